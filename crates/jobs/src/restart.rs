//! When a task that ended is started again, and when its ends are called a crash loop. Pure: the chance that spreads
//! restarts comes in as an argument.

use std::fmt;
use std::time::Duration;

/// A task that ran for this long is healthy: its earlier failures no longer count.
pub(crate) const SETTLED: Duration = Duration::from_secs(10);
/// Pause before the second start in a row, doubled for each further one. The first restart is immediate: most
/// crashes are not loops, and a client is waiting.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// This many failures in a row without a good run between them are no accident any more.
const LOOP_AFTER: u32 = 5;

/// A draw of luck, from 0 to 65535. It shortens a pause by up to a quarter, so that tasks which fell together do not
/// fall upon what they need together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chance(pub u16);

/// How often a task failed in a row, and how long it rests because of that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tries {
    pub failures: u32,
    /// Between its last end and its next start.
    pub pause: Duration,
}

/// What so many failures mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Steady,
    Failing,
    CrashLoop,
}

impl Tries {
    /// After an end. `lived`: how long it had run.
    #[must_use]
    pub(crate) fn after_failure(self, lived: Duration, chance: Chance) -> Self {
        let failures = if lived >= SETTLED {
            1
        } else {
            self.failures.saturating_add(1)
        };
        Self {
            failures,
            pause: pause(failures, chance),
        }
    }

    /// After a run that was long enough.
    pub(crate) const FRESH: Self = Self {
        failures: 0,
        pause: Duration::ZERO,
    };

    pub(crate) fn verdict(self) -> Verdict {
        match self.failures {
            0 => Verdict::Steady,
            n if n < LOOP_AFTER => Verdict::Failing,
            _ => Verdict::CrashLoop,
        }
    }
}

impl fmt::Display for Tries {
    /// For people; empty when there is nothing to tell.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = self.failures;
        let rests = shown(self.pause);
        match self.verdict() {
            Verdict::Steady => Ok(()),
            Verdict::Failing if times == 1 => f.write_str("failed once"),
            Verdict::Failing => write!(f, "failed {times} times in a row, rests {rests}"),
            Verdict::CrashLoop => write!(
                f,
                "crash loop: failed {times} times in a row, rests {rests} before each start"
            ),
        }
    }
}

/// How long to wait after this many failures in a row.
fn pause(failures: u32, chance: Chance) -> Duration {
    let full = match failures {
        0 | 1 => return Duration::ZERO,
        n => FIRST_PAUSE
            .saturating_mul(1 << (n - 2).min(16))
            .min(LONGEST_PAUSE),
    };
    full - full / 4 * u32::from(chance.0) / u32::from(u16::MAX)
}

fn shown(pause: Duration) -> String {
    format!("{:.1} s", pause.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNLUCKY: Chance = Chance(0);
    const LUCKY: Chance = Chance(u16::MAX);

    fn failed(times: u32, chance: Chance) -> Tries {
        (0..times).fold(Tries::FRESH, |tries, _| {
            tries.after_failure(Duration::from_millis(5), chance)
        })
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_chance_shortens_them() {
        let pauses = |chance| [1, 2, 3, 4, 40].map(|n| failed(n, chance).pause.as_millis());
        assert_eq!(pauses(UNLUCKY), [0, 200, 400, 800, 30_000]);
        assert_eq!(pauses(LUCKY), [0, 150, 300, 600, 22_500]);
    }

    #[test]
    fn a_good_run_makes_the_next_failure_a_first_one() {
        let tries = failed(7, UNLUCKY);
        assert_eq!(tries.verdict(), Verdict::CrashLoop);
        let after = tries.after_failure(SETTLED, UNLUCKY);
        assert_eq!((after.failures, after.pause), (1, Duration::ZERO));
    }

    #[test]
    fn the_verdict_reads_well() {
        let texts = [0, 1, 3, 5].map(|n| failed(n, UNLUCKY).to_string());
        assert_eq!(
            texts,
            [
                "",
                "failed once",
                "failed 3 times in a row, rests 0.4 s",
                "crash loop: failed 5 times in a row, rests 1.6 s before each start"
            ]
        );
    }
}
