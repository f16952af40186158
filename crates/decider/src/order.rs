//! What a decider may ask of a keeper. Only the keeper changes its member's server (failover.md section 1).
//!
//! Each order carries the whole record it was decided under. The keeper persists that record (synced) *before* it
//! acts when it is higher than what it has, refuses a lower one, a lower term, a lower sequence and an order made for
//! another incarnation of itself. One order at a time per member.

use std::fmt;
use std::num::NonZeroU64;

use homeostat_model::{Epoch, Sequence, TaskName};
use serde::{Deserialize, Serialize};

use crate::{Gtid, LogEnd, MemberId, Record, ServerIncarnation};

/// A random number drawn when a keeper process starts. An order for another incarnation is refused: what the decider
/// knew about that keeper died with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeeperIncarnation(pub u64);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderHeader {
    pub sequence: Sequence,
    pub incarnation: KeeperIncarnation,
    /// Carries term, epoch and version.
    pub record: Record,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub header: OrderHeader,
    pub verb: Verb,
}

/// Where a replica receives from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub member: MemberId,
    pub host: String,
    pub port: u16,
}

/// Which recovery a server is started with (failover.md section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recovery {
    /// Keeps the tail: prepared and binlogged transactions come back as committed.
    KeepTail,
    /// `--init-rpl-role=SLAVE`: drops the unacknowledged tail of a former holder. The keeper first saves the binlogs
    /// that hold it. Only legal when another member is Serving at a higher epoch and this one's epoch is closed.
    DropTail,
}

/// What proves to the source of a copy that one may fetch it. The source draws it, for one copy.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CopyToken(String);

impl CopyToken {
    pub fn new(token: String) -> Self {
        Self(token)
    }

    /// The text itself: only for what is about to prove that it knows it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for CopyToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CopyToken(…)")
    }
}

/// Where a copy of a member can be fetched, once and soon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyOffer {
    pub host: String,
    pub port: u16,
    pub token: CopyToken,
}

/// What becomes of the data folder that a copy replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Former {
    /// It may hold what nobody else has: a person may want to see it.
    KeptAside,
    Discarded,
}

/// The closed set of orders. Every one is idempotent: obeyed twice it leaves the same state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verb")]
pub enum Verb {
    /// Learn the record, change nothing else.
    Learn,
    /// Start the server closed: read_only, no replication threads, semi-sync off, every replication account locked.
    Start { recovery: Recovery },
    /// SIGKILL the server; answered when it is reaped.
    Kill,
    /// Receive nothing more: KILL the IO thread's connection, STOP SLAVE IO_THREAD, verify `Slave_IO_Running: No`.
    /// The applier goes on. Answered with the end of the received log, read after the stop.
    StopReceiving,
    /// Apply all that was received (the IO thread is stopped). Salvages the relay log first when the server was
    /// restarted since the events came.
    Drain,
    /// Name the source and set or clear the acker flag, IO stopped (verified) and relay log drained; does not start.
    Repoint { source: Source, acker: Acker },
    /// Start receiving and applying from the source named last.
    Receive,
    /// As the coming holder: stop and forget replication, lock every replication account, kill every dump thread,
    /// verify that none is left.
    TakeOver,
    /// As holder: unlock the replication account of `member`.
    Admit { member: MemberId },
    /// As holder: lock the account of `member`, then kill its dump thread and verify that it is gone.
    Expel { member: MemberId },
    /// As holder, read_only still on: semi-sync on, then commit the barrier row of this epoch; done only when it was
    /// acknowledged with semi-sync status ON.
    Barrier,
    /// As holder of a `Serving` record: read_only off.
    Open,
    /// As holder, for a switchover: no more barrier commits of its own, read_only on (bounded by `patience_ms`), no
    /// commit waiting, connections of applications killed; answered with the position read after that.
    Demote { patience_ms: u64 },
    /// Undo a `Demote` of the same holder when the switchover could not finish (only under a new Serving record).
    /// As `Open`, and named apart so that the log reads well.
    Reinstate,
    /// Offer a copy of the own data to `to`, which goes on while other orders are carried out; answered with the offer.
    /// Given again, it begins anew. It ends when the member changes its role: a copy must not hold up a failover.
    Lend {
        to: MemberId,
        bytes_per_second: Option<NonZeroU64>,
    },
    /// With its server down: become a copy of `source`. Answered when it has begun; the report says how it goes on. Legal
    /// only for who is in no A that may still count: what it received is given up.
    Rebuild {
        source: MemberId,
        offer: CopyOffer,
        former: Former,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Acker {
    /// Replicates semi-synchronously: its receipt counts. Legal only for members of A in the persisted record.
    Counts,
    /// Replicates asynchronously.
    Asynchronous,
}

/// The answer to one order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderReply {
    pub member: TaskName,
    pub sequence: Sequence,
    pub incarnation: KeeperIncarnation,
    pub outcome: OrderOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum OrderOutcome {
    Done,
    /// `Start`.
    Started {
        server: ServerIncarnation,
    },
    /// `Kill`, or any order that found its server gone: reaped (or its cgroup empty), exact.
    Exited {
        server: Option<ServerIncarnation>,
    },
    /// `StopReceiving`: IO verified stopped under this record; `received` is `None` when it is not known (after a
    /// restart, before salvage): never to be taken for zero.
    /// `drained`: all of it was applied at that moment already; a `Drain` is not needed any more.
    Stopped {
        received: Option<LogEnd>,
        #[serde(default)]
        drained: Option<LogEnd>,
    },
    /// `Drain`: everything received is applied; the end of the applied log.
    Drained {
        applied: LogEnd,
    },
    /// `Barrier`.
    BarrierDone {
        epoch: Epoch,
        at: Gtid,
    },
    /// `Demote`: P of failover.md section 3.
    Demoted {
        position: LogEnd,
    },
    /// `Lend`.
    Lent {
        offer: CopyOffer,
    },
    Refused(Refusal),
    /// It was tried and did not work; the server may have been changed in part. Look again before anything else.
    Failed {
        why: String,
    },
}

/// Why a keeper would not even try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "refusal")]
pub enum Refusal {
    /// The order's record (or term) is lower than what the keeper persisted.
    Stale { persisted: Box<Record> },
    /// A lower or equal sequence than the last one obeyed.
    OldSequence { last: Sequence },
    /// Made for an earlier process of this keeper.
    OtherIncarnation { own: KeeperIncarnation },
    /// Another order is still being carried out.
    Busy { sequence: Sequence },
    /// The verb is not legal under the record it carries (for example `Open` without `Serving`, or not as holder).
    NotLegal { why: String },
    /// The server does not run, or runs and must not.
    WrongServerState { why: String },
}
