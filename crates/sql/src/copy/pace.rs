//! Not faster than so many bytes a second, whoever could go faster: a copy must not take the disk from those who work.

use std::num::NonZeroU64;
use std::time::Duration;

use tokio::time::Instant;

/// What may be sent at once after a pause.
const BURST: Duration = Duration::from_millis(100);

/// A bucket of time: each byte costs some, and no more than [`BURST`] is saved up.
#[derive(Debug)]
pub(super) struct Pace {
    per_second: Option<NonZeroU64>,
    /// When all that was sent so far is paid for.
    paid: Instant,
}

impl Pace {
    pub(super) fn new(per_second: Option<NonZeroU64>, now: Instant) -> Self {
        Self {
            per_second,
            paid: now,
        }
    }

    /// `bytes` are sent now. Returns how long to wait before the next ones.
    pub(super) fn sent(&mut self, bytes: u64, now: Instant) -> Duration {
        let Some(per_second) = self.per_second else {
            return Duration::ZERO;
        };
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let cost = Duration::from_secs_f64(bytes as f64 / per_second.get() as f64);
        self.paid = self.paid.max(earliest) + cost;
        self.paid.saturating_duration_since(now)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_to_the_rate_and_saves_little() {
        let begin = Instant::now() + Duration::from_secs(100);
        let mut pace = Pace::new(NonZeroU64::new(1000), begin);
        let mut now = begin;
        for _ in 0..50 {
            now += pace.sent(100, now);
        }
        assert_eq!((now - begin).as_millis(), 5000);
        // A long pause is not made good.
        now += Duration::from_secs(60);
        assert_eq!(pace.sent(100, now), Duration::ZERO);
        assert_eq!(pace.sent(100, now), Duration::from_millis(100));
        assert_eq!(Pace::new(None, begin).sent(u64::MAX, begin), Duration::ZERO);
    }
}
