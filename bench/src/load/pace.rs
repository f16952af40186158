//! When the next order is due.
//!
//! All customers draw from one schedule, evenly spaced. What a stalled database made late is not made up for, beyond a
//! small allowance for the timer's coarse steps: the rate after an outage is the same as before it.

use std::time::{Duration, Instant};

const CATCH_UP: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    Idle,
    PerSecond(f64),
    /// As fast as the customers can.
    Max,
}

#[derive(Debug, PartialEq)]
pub(super) enum Slot {
    Now,
    At(Instant),
    /// Not before the rate changes.
    Never,
}

pub(super) struct Pacer {
    rate: Rate,
    next: Instant,
}

impl Pacer {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, next: now }
    }

    /// The next order's time; each is given out once.
    pub(super) fn reserve(&mut self, now: Instant) -> Slot {
        match self.rate {
            Rate::Idle => Slot::Never,
            Rate::Max => Slot::Now,
            Rate::PerSecond(per_second) => {
                let slot = self.next.max(now.checked_sub(CATCH_UP).unwrap_or(now));
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
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn orders_are_evenly_spaced_and_a_stall_is_not_followed_by_a_burst() {
        let start = Instant::now();
        let mut pacer = Pacer::new(Rate::PerSecond(100.0), start);
        assert_eq!(pacer.reserve(start), Slot::Now);
        assert_eq!(pacer.reserve(start), Slot::At(start + 10 * MS));
        assert_eq!(pacer.reserve(start), Slot::At(start + 20 * MS));
        let later = start + 10_000 * MS;
        let at_once = (0..100)
            .take_while(|_| pacer.reserve(later) == Slot::Now)
            .count();
        assert_eq!(at_once, 6, "five late ones, and the one that is due");
    }
}
