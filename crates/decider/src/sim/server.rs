//! One SQL server as failover.md section 11 describes it, as far as this cut of the decider can meet it.
//!
//! The disk (binlog, relay log, what the storage engine committed) survives everything; the rest dies with the process.
//! A commit is written to the binlog and synced, then acknowledged, then engine-committed. What the engine had not
//! committed comes back on a restart with the default role, and is cut off with the other one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use homeostat_model::Epoch;

use super::judge::Coming;
use crate::{BootTime, Gtid, LogEnd, Recovery, ServerIncarnation};

/// What an event is, for the checkers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Barrier(Epoch),
    Write,
}

/// An event with an identity that no other event ever has, unlike its GTID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) id: u64,
    pub(super) gtid: Gtid,
    /// The epoch in which it was written.
    pub(super) epoch: Epoch,
    /// The last barrier up to and including this event.
    pub(super) under: Epoch,
    pub(super) what: What,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    pub(super) initialised: bool,
    pub(super) binlog: Vec<Event>,
    /// How many events of the binlog the storage engine has committed.
    pub(super) engine: usize,
    /// Received, not applied. Synced before it is acknowledged (`sync_relay_log=1`).
    pub(super) relay: Vec<Event>,
    /// `CHANGE MASTER` survives a restart.
    pub(super) source: Option<usize>,
}

/// A running server.
#[derive(Debug, Clone)]
pub(super) struct Process {
    pub(super) incarnation: ServerIncarnation,
    pub(super) read_only: bool,
    pub(super) semi_sync_master: bool,
    pub(super) semi_sync_replica: bool,
    pub(super) io: Io,
    pub(super) applying: bool,
    /// `Gtid_IO_Pos` is empty after a start.
    pub(super) io_position_known: bool,
    /// Started with received events not applied, and not salvaged since.
    pub(super) needs_salvage: bool,
    /// Unlocked replication accounts.
    pub(super) admitted: BTreeSet<usize>,
    /// Dump threads: by replica, the connection and whether its receipts count.
    pub(super) dumps: BTreeMap<usize, Dump>,
    /// Commits in the binlog that wait for an acknowledgement: number of binlog events up to and including it.
    pub(super) waiting: Vec<usize>,
    pub(super) barrier: Option<Epoch>,
    /// The epoch in which it writes, once it is a holder.
    pub(super) epoch: Epoch,
    /// On the machine's clock: since when the keeper's read is not answered; how old what came by
    /// replication was at the last one that was.
    pub(super) unanswered: Option<BootTime>,
    pub(super) source_age: Option<Duration>,
    /// When something came from the source, or the receiver was started.
    pub(super) heard: Option<BootTime>,
    pub(super) heard_truly: Coming,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Io {
    Stopped,
    /// Started; asks the source again and again until it is let in.
    Connecting {
        connection: u64,
        error: Option<String>,
    },
    Connected {
        connection: u64,
    },
}

#[derive(Debug, Clone)]
pub(super) struct Dump {
    pub(super) connection: u64,
    pub(super) semi_sync: bool,
    /// How many of the binlog's events were sent.
    pub(super) sent: usize,
}

impl Disk {
    /// Runs crash recovery. Returns what was cut off.
    pub(super) fn recover(&mut self, recovery: Recovery) -> Vec<Event> {
        self.initialised = true;
        let cut = match recovery {
            Recovery::KeepTail => Vec::new(),
            Recovery::DropTail => self.binlog.split_off(self.engine.min(self.binlog.len())),
        };
        self.engine = self.binlog.len();
        cut
    }

    pub(super) fn applied_end(&self) -> LogEnd {
        end_of(self.binlog.last())
    }

    pub(super) fn received_end(&self) -> LogEnd {
        end_of(self.relay.last().or(self.binlog.last()))
    }

    /// In the binlog or the relay log?
    pub(super) fn has(&self, id: u64) -> bool {
        self.relay
            .iter()
            .rev()
            .chain(self.binlog.iter().rev())
            .any(|event| event.id == id)
    }

    pub(super) fn position_of(&self, gtid: Gtid) -> Option<usize> {
        self.binlog.iter().rposition(|event| event.gtid == gtid)
    }

    pub(super) fn next_sequence(&self) -> u64 {
        self.binlog.last().map_or(0, |event| event.gtid.sequence) + 1
    }

    pub(super) fn after_barrier(&self) -> u64 {
        let later = |event: &&Event| event.what == What::Write;
        self.binlog.iter().rev().take_while(later).count() as u64
    }

    pub(super) fn apply_one(&mut self) {
        if !self.relay.is_empty() {
            self.engine = self.binlog.len();
            let event = self.relay.remove(0);
            self.binlog.push(event);
        }
    }

    pub(super) fn apply_all(&mut self) {
        while !self.relay.is_empty() {
            self.apply_one();
        }
    }
}

impl Process {
    /// Every server starts closed.
    pub(super) fn closed(incarnation: ServerIncarnation, disk: &Disk) -> Self {
        Self {
            incarnation,
            read_only: true,
            semi_sync_master: false,
            semi_sync_replica: false,
            io: Io::Stopped,
            applying: false,
            io_position_known: false,
            needs_salvage: !disk.relay.is_empty(),
            admitted: BTreeSet::new(),
            dumps: BTreeMap::new(),
            waiting: Vec::new(),
            barrier: None,
            epoch: Epoch(0),
            unanswered: None,
            source_age: None,
            heard: None,
            heard_truly: Coming::default(),
        }
    }
}

fn end_of(last: Option<&Event>) -> LogEnd {
    last.map_or(LogEnd::EMPTY, |event| LogEnd {
        barrier: event.under,
        last: Some(event.gtid),
    })
}
