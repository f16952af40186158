//! The record: who holds the primary role of a cluster, in which epoch, and whose receipts count.
//!
//! One per cluster, in the store, changed only by compare-and-set over the whole record (failover.md section 1).

use std::collections::BTreeSet;

use homeostat_model::{Epoch, RecordVersion, TaskName, Term};
use serde::{Deserialize, Serialize};

/// A member is a task of the cluster's service.
pub type MemberId = TaskName;

/// Failover.md section 1. Ordered by `(epoch, version)`; `term` is the fencing number of the leader that wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub epoch: Epoch,
    pub version: RecordVersion,
    pub term: Term,
    pub phase: Phase,
    /// While `Revoking(e+1)` this is still the holder of e: nobody holds e+1 yet.
    pub holder: MemberId,
    /// A: the members whose receipt counts in this epoch.
    pub ackers: BTreeSet<MemberId>,
    /// A member of A on its way out (section 2, "Remove x"); its receipts still count until it is gone from A.
    pub leaving: Option<MemberId>,
    /// How many receipts make an acknowledgement. MariaDB: 1.
    pub k: u8,
    /// Epochs that may have acknowledged writes and whose successor is not proved complete yet.
    pub unclosed: Vec<Unclosed>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The holder may be open for writes.
    Serving,
    /// The epoch has begun; its predecessor's holder is being fenced.
    Revoking,
    /// `holder` is being made primary; from here on it may have acknowledged.
    Promoting,
}

/// An earlier epoch whose writes a promotion must prove to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unclosed {
    pub epoch: Epoch,
    pub holder: MemberId,
    pub ackers: BTreeSet<MemberId>,
    pub k: u8,
}

impl Record {
    /// What keepers compare: a record with a lower rank is refused.
    pub fn rank(&self) -> (Epoch, RecordVersion) {
        (self.epoch, self.version)
    }
}

impl Record {
    /// The epoch that a `Revoking` record ends: nobody holds the record's own epoch yet.
    pub fn ended(&self) -> Epoch {
        Epoch(self.epoch.0.saturating_sub(1))
    }

    /// The ended epoch as it stands in `unclosed` once a successor is being promoted.
    pub fn ended_as_unclosed(&self) -> Unclosed {
        Unclosed {
            epoch: self.ended(),
            holder: self.holder.clone(),
            ackers: self.ackers.clone(),
            k: self.k,
        }
    }

    /// Is `member` the holder of this record's own epoch (not merely of the one that is being ended)?
    pub fn holds(&self, member: &MemberId) -> bool {
        self.holder == *member && self.phase != Phase::Revoking
    }
}
