//! When the next order is due.
//!
//! All connections draw their orders from one schedule, evenly spaced at the chosen rate. Orders
//! that a stalled shop made late are not made up for, beyond a small allowance that evens out the
//! timer's coarse steps: the rate after an outage is the same as before it.

use std::str::FromStr;
use std::time::Duration;

use tokio::time::Instant;

const CATCH_UP: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    Idle,
    PerSecond(f64),
    /// As fast as the connections can.
    Max,
}

#[derive(Debug, thiserror::Error)]
#[error("a rate is a number of orders per second (at most 1000000), 0 to pause, or `max`")]
pub struct NotARate;

impl FromStr for Rate {
    type Err = NotARate;

    fn from_str(text: &str) -> Result<Self, NotARate> {
        if text == "max" {
            return Ok(Self::Max);
        }
        match text.parse::<f64>() {
            Ok(0.0) => Ok(Self::Idle),
            // Below one a day the period would not be a sensible time any more.
            Ok(per_second) if (1e-5..=1e6).contains(&per_second) => Ok(Self::PerSecond(per_second)),
            Ok(_) | Err(_) => Err(NotARate),
        }
    }
}

#[derive(Debug, PartialEq)]
pub enum Slot {
    Now,
    At(Instant),
    /// Not before the rate changes.
    Never,
}

pub struct Pacer {
    rate: Rate,
    next: Instant,
}

impl Pacer {
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, next: now }
    }

    /// The next order's time; each is given out once.
    pub fn reserve(&mut self, now: Instant) -> Slot {
        match self.rate {
            Rate::Idle => Slot::Never,
            Rate::Max => Slot::Now,
            Rate::PerSecond(per_second) => {
                let earliest = now.checked_sub(CATCH_UP).unwrap_or(now);
                let slot = self.next.max(earliest);
                self.next = slot + Duration::from_secs_f64(1.0 / per_second);
                if slot <= now {
                    Slot::Now
                } else {
                    Slot::At(slot)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn rates_are_numbers_or_max() {
        for (text, rate) in [
            ("0", Rate::Idle),
            ("0.5", Rate::PerSecond(0.5)),
            ("100", Rate::PerSecond(100.0)),
            ("max", Rate::Max),
        ] {
            assert_eq!(text.parse::<Rate>().unwrap(), rate);
        }
        for text in ["", "-1", "fast", "NaN", "inf", "1e9", "1e-9"] {
            assert!(text.parse::<Rate>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn orders_are_evenly_spaced() {
        let start = Instant::now();
        let mut pacer = Pacer::new(Rate::PerSecond(100.0), start);
        assert_eq!(pacer.reserve(start), Slot::Now);
        assert_eq!(pacer.reserve(start), Slot::At(start + 10 * MS));
        assert_eq!(pacer.reserve(start + 5 * MS), Slot::At(start + 20 * MS));
        // 25 ms late: within the allowance, so the schedule holds.
        assert_eq!(pacer.reserve(start + 55 * MS), Slot::Now);
        assert_eq!(pacer.reserve(start + 55 * MS), Slot::Now);
    }

    #[test]
    fn a_stall_is_not_followed_by_a_burst() {
        let start = Instant::now();
        let mut pacer = Pacer::new(Rate::PerSecond(100.0), start);
        let later = start + 10_000 * MS;
        let at_once = (0..100)
            .take_while(|_| pacer.reserve(later) == Slot::Now)
            .count();
        assert_eq!(at_once, 6, "five late ones, and the one that is due");
    }

    #[test]
    fn idle_and_max_have_no_schedule() {
        let now = Instant::now();
        assert_eq!(Pacer::new(Rate::Idle, now).reserve(now), Slot::Never);
        let mut max = Pacer::new(Rate::Max, now);
        assert!((0..10).all(|_| max.reserve(now) == Slot::Now));
    }
}
