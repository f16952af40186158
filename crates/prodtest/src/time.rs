//! Time as the engine sees it: an argument, never a clock.

use std::fmt;
use std::time::Duration;

/// A moment on the caller's monotonic clock, in milliseconds since a beginning of the caller's choice.
///
/// Wall clocks jump; an engine that decided by one would run everything at once, or nothing, after a correction.
/// For people the caller adds the wall time of its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// The end of time: what is due then is never due.
    pub(crate) const NEVER: Self = Self(u64::MAX);

    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The moment `later` after this one; stays at the end of time rather than wrapping round.
    #[must_use]
    pub fn after(self, later: Duration) -> Self {
        Self(self.0.saturating_add(whole_millis(later)))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The first moment after this one that lies on the grid of `every`, shifted by `phase`.
    ///
    /// Each check has a phase of its own, so that checks of the same interval are spread over it, and keep their
    /// distance for as long as they run.
    pub(crate) fn next_slot(self, every: Duration, phase: u64) -> Self {
        let every = whole_millis(every).max(1);
        let phase = phase % every;
        let into = (self.0 + (every - phase)) % every;
        Self(self.0.saturating_add(every - into))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03} s", self.0 / 1000, self.0 % 1000)
    }
}

fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_lie_on_the_grid_and_ahead() {
        for every in [1, 7, 1000, 5000] {
            for phase in [0, 1, 6, 999, 12345] {
                for now in [0, 1, 6, 7, 999, 1000, 1001, 123_456] {
                    let slot = Moment(now).next_slot(Duration::from_millis(every), phase).0;
                    assert!(
                        slot > now && slot <= now + every,
                        "{now} every {every}: {slot}"
                    );
                    assert_eq!(slot % every, phase % every);
                }
            }
        }
    }
}
