//! Clocks: of machines and of controllers. Each runs at a rate of its own, and a machine's stands still while it sleeps.

use std::time::Duration;

use super::dice::Dice;
use crate::{BootTime, Now};

#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    /// Local microseconds in a million true ones: two clocks differ by 1 % at most.
    rate: u64,
    /// When it was stopped, in true microseconds.
    stopped: Option<u64>,
    /// True microseconds that it stood still.
    lost: u64,
}

impl Clock {
    pub(super) fn random(dice: &mut Dice) -> Self {
        Self {
            rate: dice.between(995_000, 1_005_000),
            stopped: None,
            lost: 0,
        }
    }

    fn at(&self, now: u64) -> Duration {
        let runs = self.stopped.unwrap_or(now).saturating_sub(self.lost);
        Duration::from_micros(runs.saturating_mul(self.rate) / 1_000_000)
    }

    pub(super) fn boot_time(&self, now: u64) -> BootTime {
        BootTime(self.at(now))
    }

    pub(super) fn now(&self, now: u64) -> Now {
        Now(self.at(now))
    }

    /// True microseconds until it shows `at`, rounded up.
    pub(super) fn until(&self, at: Duration, now: u64) -> u64 {
        let left = u64::try_from(at.saturating_sub(self.at(now)).as_micros()).unwrap_or(u64::MAX);
        (left.saturating_mul(1_000_000) / self.rate) + 2
    }

    pub(super) fn stop(&mut self, now: u64) {
        self.stopped = self.stopped.or(Some(now));
    }

    pub(super) fn go_on(&mut self, now: u64) {
        if let Some(since) = self.stopped.take() {
            self.lost += now.saturating_sub(since);
        }
    }
}
