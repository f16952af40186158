//! How often flakiness alone triggers a fix.
//!
//! A healthy check that fails with chance `p` each time, independently, and needs `k` failures in a row: each regular turn
//! triggers a fix with the chance `p^k`. That is what `docs/src/checks.md` promises, and what is measured here. A check
//! for which that would be often ends up in quarantine, and then it is never.

use std::num::NonZeroUsize;
use std::time::Duration;

use homeostat_model::CheckName;

use super::world::Pcg64Stream;
use crate::rules::{Rule, Rules};
use crate::{
    Applied, Check, Engine, EngineConfig, Fence, FixOutcome, FixPolicy, Moment, Observation,
    Outcome, Repeatable, Rounds, Suite,
};

const TURNS: u64 = 100_000;

/// What came of many turns of one check.
struct Measured {
    turns: u64,
    fixes: u64,
}

impl Measured {
    fn chance(&self) -> f64 {
        self.fixes as f64 / self.turns as f64
    }
}

fn engine(confirm: u32, rules: Rules) -> Engine {
    let check = Check {
        name: CheckName::new("web").expect("a name"),
        after: Vec::new(),
        every: Duration::from_secs(5),
        timeout: Duration::from_secs(1),
        confirm,
        target: None,
        fix: Some(FixPolicy {
            resource: "web".to_owned(),
            repeatable: Repeatable::Proved,
            attempts: 3,
            timeout: Duration::from_secs(1),
            settle: Duration::from_secs(1),
        }),
    };
    let one = NonZeroUsize::MIN;
    let config = EngineConfig {
        most_at_once: one,
        most_per_target: one,
        most_fixes_at_once: one,
        retry: Duration::from_millis(250),
        back_off: Duration::from_secs(1),
        longest_back_off: Duration::from_secs(60),
        rounds: Rounds::Endless,
        seed: 1,
        fence: Fence(0),
    };
    let suite = Suite::new(vec![check]).expect("one check");
    Engine::with_rules(suite, config, Moment::from_millis(0), rules)
}

/// Lets a check flake with chance `p` and counts the fixes for nothing.
fn measure(p: f64, confirm: u32, rules: Rules) -> Measured {
    let mut random = Pcg64Stream::new(u64::from(confirm), (p * 1000.0) as u64);
    let mut engine = engine(confirm, rules);
    let mut measured = Measured { turns: 0, fixes: 0 };
    let mut passed_before = false;
    while measured.turns < TURNS {
        let now = engine.wake_at().expect("it goes on for ever");
        let due = engine.due(now);
        for fix in due.fixes {
            measured.fixes += u64::from(fix.attempt == 1);
            let applied = Applied {
                outcome: FixOutcome::Unchanged,
                said: String::new(),
            };
            engine
                .fix_finished(&fix, applied, now)
                .expect("it is being applied");
        }
        for run in due.runs {
            let outcome = if random.chance(p) {
                Outcome::Failed
            } else {
                Outcome::Passed
            };
            measured.turns += u64::from(passed_before);
            passed_before = outcome == Outcome::Passed;
            let observation = Observation {
                outcome,
                expected: String::new(),
                seen: String::new(),
                took: Duration::ZERO,
            };
            engine.finished(&run, observation, now).expect("it runs");
        }
    }
    measured
}

#[test]
fn the_chance_of_a_fix_for_nothing_is_the_flake_rate_to_the_power_of_confirm() {
    for confirm in 1..=3 {
        for p in [0.02, 0.05, 0.1, 0.3] {
            let free = measure(p, confirm, Rules::without(Rule::QuarantineFlaky));
            let formula = p.powi(confirm as i32);
            let real = measure(p, confirm, Rules::ALL_HOLD);
            println!(
                "p = {p:<4} confirm = {confirm}: formula {formula:.6}, measured {:.6}, with quarantine {:.6}",
                free.chance(),
                real.chance()
            );
            // Five standard deviations of a count.
            let expected = formula * free.turns as f64;
            let off = (free.fixes as f64 - expected).abs();
            assert!(
                off < 5.0 * expected.sqrt() + 5.0,
                "p = {p}, confirm = {confirm}"
            );
            assert!(real.fixes as f64 <= expected + 5.0 * expected.sqrt() + 5.0);
            if p >= 0.3 {
                assert!(real.fixes < 60, "{} fixes before quarantine", real.fixes);
            }
        }
    }
}

#[test]
fn without_counting_needless_fixes_a_check_that_is_believed_at_once_is_never_quarantined() {
    let counted = measure(0.3, 1, Rules::ALL_HOLD);
    let not_counted = measure(0.3, 1, Rules::without(Rule::CountNeedlessFixes));
    assert!(counted.fixes * 100 < not_counted.fixes);
}
