//! What the customers write down: who was acknowledged what, and the gaps between acknowledgements.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub(super) struct Book {
    acknowledged: u64,
    errors: u64,
    /// The highest acknowledged order of each customer; all before it were acknowledged too.
    by_client: BTreeMap<u64, u64>,
    /// The latest acknowledgement, of any customer.
    last: Option<Instant>,
    window: Window,
}

#[derive(Debug, Default)]
struct Window {
    longest: Duration,
    /// Acknowledged since the longest gap ended.
    since_longest: u64,
    errors_before: u64,
}

/// A fault as the customers saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The longest time between two successive acknowledgements.
    pub longest: Duration,
    /// Attempts that failed.
    pub errors: u64,
}

impl Gap {
    pub fn longest_ms(&self) -> f64 {
        self.longest.as_secs_f64() * 1e3
    }
}

impl Book {
    pub(super) fn acknowledge(&mut self, client: u64, seq: u64, now: Instant) {
        self.acknowledged += 1;
        self.by_client.insert(client, seq);
        let gap = self.last.map_or(Duration::ZERO, |last| now - last);
        self.last = Some(now);
        if gap > self.window.longest {
            self.window.longest = gap;
            self.window.since_longest = 0;
        }
        self.window.since_longest += 1;
    }

    pub(super) fn error(&mut self) {
        self.errors += 1;
    }

    /// The time that passes now is not a gap.
    pub(super) fn forget_last(&mut self) {
        self.last = None;
    }

    pub(super) fn open(&mut self) {
        self.window = Window {
            errors_before: self.errors,
            ..Window::default()
        };
    }

    /// A gap that goes on counts with the length it has.
    pub(super) fn close(&self, now: Instant) -> Gap {
        let going_on = self.last.map_or(Duration::ZERO, |last| now - last);
        Gap {
            longest: self.window.longest.max(going_on),
            errors: self.errors - self.window.errors_before,
        }
    }

    pub(super) fn since_longest(&self) -> u64 {
        self.window.since_longest
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    pub(super) fn by_client(&self) -> BTreeMap<u64, u64> {
        self.by_client.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_longest_gap_is_between_any_two_customers() {
        let start = Instant::now();
        let mut book = Book::default();
        book.acknowledge(1, 1, start);
        book.error();
        book.acknowledge(2, 1, start + 500 * MS);
        book.open();
        // The fault comes here; the gap is counted from the acknowledgement before it.
        book.acknowledge(1, 2, start + 510 * MS);
        book.error();
        book.acknowledge(2, 2, start + 700 * MS);
        book.acknowledge(1, 3, start + 705 * MS);
        assert_eq!(book.since_longest(), 2);
        let gap = Gap {
            longest: 190 * MS,
            errors: 1,
        };
        assert_eq!(book.close(start + 710 * MS), gap);
        assert_eq!(
            book.close(start + 1000 * MS).longest,
            295 * MS,
            "one that goes on counts"
        );
        book.forget_last();
        assert_eq!(book.close(start + 2000 * MS), gap);
        assert_eq!(book.by_client(), BTreeMap::from([(1, 3), (2, 2)]));
    }
}
