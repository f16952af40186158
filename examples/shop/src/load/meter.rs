//! What the customers notice: how many orders got through, and the longest time in which none did.
//!
//! A pause is the time between two successive acknowledgements, whoever of the customers got them,
//! taken when the answer arrives (before the log's sync, which is the customers' own affair). The
//! pause that is still going on counts. Before the first acknowledgement, and while the load is
//! told to be idle, there are no pauses.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::time::Instant;

/// Shorter pauses are not listed one by one.
const LISTED_FROM: Duration = Duration::from_millis(5);
const LISTED_MAX: usize = 4_096;

pub struct Meter {
    started: Instant,
    previous: Previous,
    errors: u64,
    last_error: Option<String>,
    longest: Duration,
    longest_in_window: Duration,
    window: Window,
    gaps: Vec<Gap>,
    gaps_not_listed: u64,
}

#[derive(Clone, Copy)]
enum Previous {
    /// Told to be idle.
    Idle,
    NoneYet,
    At(Instant),
}

/// When the present second began, and what had been acknowledged then.
struct Window {
    began: Instant,
    acknowledged: u64,
}

/// One of the pauses that are listed.
#[derive(Clone, Serialize)]
pub struct Gap {
    pub start_unix_ms: f64,
    pub length_ms: f64,
}

/// One line a second.
#[derive(Serialize)]
pub struct Line {
    /// Acknowledged per second.
    pub rate: f64,
    /// Since the start, as is `acknowledged`.
    pub errors: u64,
    pub acknowledged: u64,
    /// Pauses that ended in this second or are going on, with their whole length.
    pub longest_pause_ms: f64,
    pub longest_pause_since_start_ms: f64,
    /// Why the last of this second's errors happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// Everything since the start.
#[derive(Serialize)]
pub struct Report {
    pub acknowledged: u64,
    pub errors: u64,
    pub seconds: f64,
    pub throughput: f64,
    pub longest_pause_since_start_ms: f64,
    /// The pauses longer than 5 ms in order of their ends; the longest 4096 of them.
    pub gaps: Vec<Gap>,
    pub gaps_not_listed: u64,
}

impl Meter {
    pub fn new(now: Instant) -> Self {
        Self {
            started: now,
            previous: Previous::NoneYet,
            errors: 0,
            last_error: None,
            longest: Duration::ZERO,
            longest_in_window: Duration::ZERO,
            window: Window {
                began: now,
                acknowledged: 0,
            },
            gaps: Vec::new(),
            gaps_not_listed: 0,
        }
    }

    pub fn error(&mut self, error: &anyhow::Error) {
        self.errors += 1;
        self.last_error = Some(format!("{error:#}"));
    }

    /// `wall` is `now` on the wall clock.
    pub fn acknowledged(&mut self, now: Instant, wall: SystemTime) {
        match self.previous {
            Previous::Idle => (), // it was under way when the load was told to be idle
            Previous::NoneYet => self.previous = Previous::At(now),
            Previous::At(previous) => {
                let length = now - previous;
                self.longest = self.longest.max(length);
                self.longest_in_window = self.longest_in_window.max(length);
                if length > LISTED_FROM {
                    let ended = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
                    self.list(Gap {
                        start_unix_ms: ms(ended.saturating_sub(length)),
                        length_ms: ms(length),
                    });
                }
                self.previous = Previous::At(now);
            }
        }
    }

    /// The load was told to be idle. A pause that was going on is given up, not counted.
    pub fn idle(&mut self) {
        self.previous = Previous::Idle;
    }

    /// The load was told to place orders. A pause that is going on goes on.
    pub fn busy(&mut self) {
        match self.previous {
            Previous::Idle => self.previous = Previous::NoneYet,
            Previous::NoneYet | Previous::At(_) => (),
        }
    }

    /// Ends the present second.
    pub fn line(&mut self, now: Instant, acknowledged: u64) -> Line {
        let going_on = self.going_on(now);
        let seconds = (now - self.window.began).as_secs_f64();
        let line = Line {
            rate: per_second(acknowledged - self.window.acknowledged, seconds),
            errors: self.errors,
            acknowledged,
            longest_pause_ms: ms(self.longest_in_window.max(going_on)),
            longest_pause_since_start_ms: ms(self.longest.max(going_on)),
            last_error: self.last_error.take(),
        };
        self.longest_in_window = Duration::ZERO;
        self.window = Window {
            began: now,
            acknowledged,
        };
        line
    }

    pub fn report(&self, now: Instant, acknowledged: u64) -> Report {
        let seconds = (now - self.started).as_secs_f64();
        Report {
            acknowledged,
            errors: self.errors,
            seconds: rounded(seconds),
            throughput: per_second(acknowledged, seconds),
            longest_pause_since_start_ms: ms(self.longest.max(self.going_on(now))),
            gaps: self.gaps.clone(),
            gaps_not_listed: self.gaps_not_listed,
        }
    }

    fn going_on(&self, now: Instant) -> Duration {
        match self.previous {
            Previous::Idle | Previous::NoneYet => Duration::ZERO,
            Previous::At(previous) => now - previous,
        }
    }

    /// Keeps the longest ones when there are too many.
    fn list(&mut self, gap: Gap) {
        self.gaps.push(gap);
        if self.gaps.len() > LISTED_MAX {
            let shortest = (0..self.gaps.len())
                .min_by(|a, b| f64::total_cmp(&self.gaps[*a].length_ms, &self.gaps[*b].length_ms));
            if let Some(shortest) = shortest {
                self.gaps.remove(shortest);
            }
            self.gaps_not_listed += 1;
        }
    }
}

/// Milliseconds with a fraction down to microseconds.
fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 {
        rounded(count as f64 / seconds)
    } else {
        0.0
    }
}

fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    struct Clock(Instant);

    impl Clock {
        /// An acknowledgement `at_ms` after the start, which is 1000 s after the epoch.
        fn acknowledge(&self, meter: &mut Meter, at_ms: u32) {
            let wall = UNIX_EPOCH + Duration::from_secs(1_000) + at_ms * MS;
            meter.acknowledged(self.0 + at_ms * MS, wall);
        }
    }

    fn start() -> (Clock, Meter) {
        let now = Instant::now();
        (Clock(now), Meter::new(now))
    }

    #[test]
    fn pauses_are_between_acknowledgements_and_long_ones_are_listed() {
        let (clock, mut meter) = start();
        for at_ms in [700, 704, 754, 755] {
            clock.acknowledge(&mut meter, at_ms);
        }
        let report = meter.report(clock.0 + 755 * MS, 4);
        assert_eq!(report.longest_pause_since_start_ms, 50.0);
        assert_eq!(report.gaps.len(), 1);
        assert_eq!(report.gaps[0].start_unix_ms, 1_000_704.0);
        assert_eq!(report.gaps[0].length_ms, 50.0);
    }

    #[test]
    fn each_line_has_its_own_longest_pause_and_sees_the_one_going_on() {
        let (clock, mut meter) = start();
        clock.acknowledge(&mut meter, 900);
        clock.acknowledge(&mut meter, 940);
        let line = meter.line(clock.0 + 1_000 * MS, 2);
        assert_eq!((line.longest_pause_ms, line.rate), (60.0, 2.0));
        let line = meter.line(clock.0 + 2_000 * MS, 2);
        assert_eq!((line.longest_pause_ms, line.rate), (1_060.0, 0.0));
        clock.acknowledge(&mut meter, 2_500);
        clock.acknowledge(&mut meter, 2_990);
        let line = meter.line(clock.0 + 3_000 * MS, 4);
        assert_eq!(line.longest_pause_ms, 1_560.0);
        let line = meter.line(clock.0 + 3_001 * MS, 4);
        assert_eq!(line.longest_pause_ms, 11.0);
        assert_eq!(line.longest_pause_since_start_ms, 1_560.0);
    }

    #[test]
    fn idle_time_is_no_pause() {
        let (clock, mut meter) = start();
        clock.acknowledge(&mut meter, 0);
        meter.idle();
        clock.acknowledge(&mut meter, 2);
        assert_eq!(meter.line(clock.0 + 9_000 * MS, 2).longest_pause_ms, 0.0);
        meter.busy();
        clock.acknowledge(&mut meter, 9_500);
        clock.acknowledge(&mut meter, 9_501);
        let report = meter.report(clock.0 + 9_502 * MS, 4);
        assert_eq!(report.longest_pause_since_start_ms, 1.0);
    }

    #[test]
    fn the_list_keeps_the_longest_pauses() {
        let (clock, mut meter) = start();
        let mut at_ms = 0;
        clock.acknowledge(&mut meter, at_ms);
        for length_ms in [6, 1_000].into_iter().chain((0..LISTED_MAX).map(|_| 7)) {
            at_ms += length_ms;
            clock.acknowledge(&mut meter, at_ms);
        }
        let report = meter.report(clock.0 + at_ms * MS, 0);
        assert_eq!(report.gaps.len(), LISTED_MAX);
        assert_eq!(report.gaps_not_listed, 2);
        assert_eq!(report.gaps[0].length_ms, 1_000.0);
    }
}
