//! The serving lease: how long a holder's server may stay open without hearing from anybody.
//!
//! It bounds stale reads and nothing else. Writes are safe without it, because a former holder finds nobody who
//! acknowledges; but a client that is cut off together with it could go on reading old rows for ever.
//!
//! The server is open only until `max(c, h) + L`:
//! - `c`: when the keeper **sent** a renewal that the leader granted, after a linearizable read begun after the renewal
//!   came in and showing `Serving` of this epoch and member. Counted from the grant's arrival a late grant would reach
//!   beyond what the leader can know; counted from the sending, the read lies inside the lease.
//! - `h`: when the keeper **began** the last barrier commit that was acknowledged. An acker that acknowledged it was not
//!   revoked when it was begun. This needs no controller, so losing all of them costs nothing.
//!
//! So whoever ends the epoch and revokes its ackers knows, on a clock of its own, when the old holder is closed: `L`
//! later, plus what clocks may differ and killing takes. No two clocks are ever compared, only elapsed times.

use std::collections::BTreeMap;
use std::time::Duration;

use homeostat_model::Epoch;
use serde::{Deserialize, Serialize};

use crate::{KeeperIncarnation, MemberId};

/// `CLOCK_BOOTTIME` of the keeper's machine: it goes on while the machine is suspended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct BootTime(pub Duration);

/// From the keeper of a holder to the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRequest {
    pub member: MemberId,
    pub incarnation: KeeperIncarnation,
    /// The epoch it holds by the record it persisted.
    pub epoch: Epoch,
    /// Counts this keeper's requests; the grant repeats it.
    pub nonce: u64,
}

/// The leader's answer to one [`LeaseRequest`]. There is no refusal: what is not granted ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseGrant {
    pub incarnation: KeeperIncarnation,
    pub epoch: Epoch,
    pub nonce: u64,
}

/// Requests that may wait for their grant; a grant for an older one would hardly help any more.
const ASKED: usize = 16;

/// `max(c, h)` of one epoch, and what it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    length: Duration,
    epoch: Epoch,
    nonce: u64,
    asked: BTreeMap<u64, BootTime>,
    from: Option<BootTime>,
}

impl Lease {
    pub(crate) fn of(length: Duration) -> Self {
        Self {
            length,
            epoch: Epoch(0),
            nonce: 0,
            asked: BTreeMap::new(),
            from: None,
        }
    }

    /// A renewal is sent at `now`. Returns its nonce.
    pub(crate) fn ask(&mut self, epoch: Epoch, now: BootTime) -> u64 {
        self.turn_to(epoch);
        self.nonce += 1;
        self.asked.insert(self.nonce, now);
        while self.asked.len() > ASKED {
            self.asked.pop_first();
        }
        self.nonce
    }

    /// When the granted request was sent; `None` for one that is not known any more.
    pub(crate) fn sent(&self, epoch: Epoch, nonce: u64) -> Option<BootTime> {
        self.asked
            .get(&nonce)
            .copied()
            .filter(|_| epoch == self.epoch)
    }

    pub(crate) fn renewed(&mut self, epoch: Epoch, from: BootTime) {
        self.turn_to(epoch);
        if epoch == self.epoch {
            self.from = self.from.max(Some(from));
        }
    }

    /// When it ends; `None` where it never began in this epoch.
    pub(crate) fn ends(&self, epoch: Epoch) -> Option<BootTime> {
        self.from
            .filter(|_| epoch == self.epoch)
            .map(|from| BootTime(from.0.saturating_add(self.length)))
    }

    fn turn_to(&mut self, epoch: Epoch) {
        if epoch > self.epoch {
            self.epoch = epoch;
            self.asked.clear();
            self.from = None;
        }
    }
}
