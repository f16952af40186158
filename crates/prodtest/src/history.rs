//! What a check did lately, as far as it tells how often it fails for no reason.
//!
//! A *flake* is a failure that was not confirmed: the check passed before and passes again. The probes of a
//! confirmed outage are not in the window at all, or every real fault would make its check look unreliable. So the
//! rate is: of the probes made while nothing was (as far as is known) broken, how many failed. A check with
//! `confirm = 1` cannot be seen to flake, because it is believed each time.

/// Outcomes remembered; one bit each.
const WINDOW: u32 = u64::BITS;

/// Fewer outcomes than this say nothing: one failure in the first two probes would look like a rate of a half.
const FEWEST: u32 = 20;

/// A check that flakes more often than this is worth a person's attention.
const FLAKY_ABOVE: f64 = 0.05;

/// The last outcomes of one check; bit 0 is the latest, 1 is a flake.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct History {
    flaked: u64,
    count: u32,
}

/// What is worth knowing of a check when it is run again later, by another engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Remembered {
    /// The last outcomes, one bit each; bit 0 is the latest, 1 is a flake.
    pub flaked: u64,
    /// How many outcomes there are.
    pub count: u32,
    /// Whether it passed in the end.
    pub passed: bool,
}

impl History {
    pub(crate) fn of(remembered: Remembered) -> Self {
        Self {
            flaked: remembered.flaked,
            count: remembered.count.min(WINDOW),
        }
    }

    pub(crate) fn remembered(self, passed: bool) -> Remembered {
        Remembered {
            flaked: self.flaked,
            count: self.count,
            passed,
        }
    }

    pub(crate) fn push_pass(&mut self) {
        self.push(0);
    }

    pub(crate) fn push_flakes(&mut self, flakes: u32) {
        for _ in 0..flakes.min(WINDOW) {
            self.push(1);
        }
    }

    pub(crate) fn rate(self) -> FlakeRate {
        FlakeRate {
            flakes: self.flaked.count_ones(),
            of: self.count,
        }
    }

    fn push(&mut self, bit: u64) {
        self.flaked = self.flaked << 1 | bit;
        self.count = (self.count + 1).min(WINDOW);
    }
}

/// How many of the last probes failed without a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlakeRate {
    pub flakes: u32,
    pub of: u32,
}

impl FlakeRate {
    /// The 95 % interval of the true rate (Wilson's score interval, which stays within 0 and 1 and is sound for few
    /// probes, where the textbook one is not).
    pub fn interval(self) -> (f64, f64) {
        const Z: f64 = 1.959_964;
        if self.of == 0 {
            return (0.0, 1.0);
        }
        let n = f64::from(self.of);
        let p = f64::from(self.flakes) / n;
        let centre = p + Z * Z / (2.0 * n);
        let spread = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        let scale = 1.0 + Z * Z / n;
        (
            ((centre - spread) / scale).max(0.0),
            ((centre + spread) / scale).min(1.0),
        )
    }

    /// Whether the check is flaky beyond doubt: even the lower end of the interval is too much.
    pub(crate) fn is_too_high(self) -> bool {
        self.of >= FEWEST && self.interval().0 > FLAKY_ABOVE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(flakes: u32, of: u32) -> FlakeRate {
        FlakeRate { flakes, of }
    }

    #[test]
    fn interval_agrees_with_published_values() {
        // Wilson 95 % for 10 of 100: 0.0552 to 0.1744 (Newcombe 1998, method 3).
        let (low, high) = rate(10, 100).interval();
        assert!(
            (low - 0.0552).abs() < 5e-5 && (high - 0.1744).abs() < 5e-5,
            "{low} {high}"
        );
        assert_eq!(rate(0, 0).interval(), (0.0, 1.0));
        assert!(rate(0, 64).interval().0.abs() < 1e-12);
    }

    #[test]
    fn flaky_only_beyond_doubt() {
        assert!(!rate(2, 2).is_too_high(), "too few probes to say");
        assert!(!rate(2, 20).is_too_high());
        assert!(rate(3, 20).is_too_high());
        assert!(!rate(3, 64).is_too_high());
        assert!(rate(7, 64).is_too_high());
    }

    #[test]
    fn the_window_forgets() {
        let mut history = History::default();
        history.push_flakes(1000);
        assert_eq!(history.rate(), rate(64, 64));
        for _ in 0..60 {
            history.push_pass();
        }
        assert_eq!(history.rate(), rate(4, 64));
        for _ in 0..4 {
            history.push_pass();
        }
        assert_eq!(history.rate(), rate(0, 64));
    }
}
