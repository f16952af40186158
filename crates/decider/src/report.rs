//! What a keeper says about its member. Facts only: the decider draws the conclusions.

use std::collections::BTreeSet;

use homeostat_model::Epoch;
use serde::{Deserialize, Serialize};

use crate::{KeeperIncarnation, LogEnd, MemberId, Record, Source};

/// The kernel's boot id: another one means that the machine lost what was not synced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub String);

/// One run of a server process; a reused pid has another start time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerIncarnation {
    pub boot: BootId,
    pub pid: u32,
    /// Field 22 of /proc/PID/stat, in clock ticks since boot.
    pub start_ticks: u64,
}

/// Sent whole at every change and as the first thing on a new connection; the newest replaces all earlier ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberReport {
    pub member: MemberId,
    pub incarnation: KeeperIncarnation,
    pub boot: BootId,
    /// Where its server listens for peers and clients.
    pub host: String,
    pub port: u16,
    /// The highest record persisted; `None` on a fresh member, and on one that lost its file.
    pub record: Option<Record>,
    /// The newest epoch this member held and whose tail its log may still carry (`KeeperCore::held`): such a member
    /// is not restarted as a replica is.
    #[serde(default)]
    pub held: Option<Epoch>,
    /// Up to this epoch it may have acknowledged what it no longer has (`KeeperCore::incomplete`).
    #[serde(default)]
    pub incomplete: Option<Epoch>,
    /// Signs of life. A keeper that gives them sends a report every [`crate::Config::pulse`] at least, changed or not; one
    /// that never gave any is never taken for silent.
    #[serde(default)]
    pub pulse: Option<Pulse>,
    /// How the rebuilding of this member goes, from its order until its server is started.
    #[serde(default)]
    pub rebuild: Option<RebuildState>,
    /// To whom a copy of this member is being sent.
    #[serde(default)]
    pub lends: Option<MemberId>,
    pub server: ServerState,
}

/// How far a member that becomes a copy of a peer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "rebuild")]
pub enum RebuildState {
    Copying {
        source: MemberId,
        bytes: u64,
        /// About how many there will be.
        of: Option<u64>,
        bytes_per_second: u64,
    },
    /// A consistent data folder is made of what came.
    Preparing { source: MemberId },
    /// The copy is the data folder now; the server is to be started.
    Done { source: MemberId },
    /// The data folder is as it was before.
    Failed { source: MemberId, why: String },
}

impl RebuildState {
    pub fn under_way(&self) -> bool {
        match self {
            RebuildState::Copying { .. } | RebuildState::Preparing { .. } => true,
            RebuildState::Done { .. } | RebuildState::Failed { .. } => false,
        }
    }

    pub fn source(&self) -> &MemberId {
        match self {
            RebuildState::Copying { source, .. }
            | RebuildState::Preparing { source }
            | RebuildState::Done { source }
            | RebuildState::Failed { source, .. } => source,
        }
    }
}

/// Signs of life, as ages measured on the clock of the keeper's machine when the report was made. A report that is late
/// makes them look younger than they are, so lateness alone never makes a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulse {
    /// For how long a trivial *read* on the keeper's own connection has waited for its answer, counted from when it was
    /// sent. `None`: the last one was answered, or no server runs. A commit may wait for ackers and says nothing.
    pub unanswered_ms: Option<u64>,
    /// Since anything (an event or a heartbeat) came from the source, or since the receiver was started, whichever is
    /// later; as of the last look at the server that was answered. `None`: the receiver is stopped.
    pub source_ms: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "server")]
#[expect(
    clippy::large_enum_variant,
    reason = "few exist at a time, and a box would hide the shape"
)]
pub enum ServerState {
    /// No server process runs: exact (reaped, or its cgroup is empty, or the machine booted since).
    Down {
        /// Whether this member has ever been started as part of its cluster. `false` everywhere = `NeverHeld`.
        initialised: bool,
        /// The server that ended last, when this keeper or its predecessor knew one.
        last: Option<ServerIncarnation>,
    },
    /// Started, not answering yet.
    Starting { incarnation: ServerIncarnation },
    Up {
        incarnation: ServerIncarnation,
        facts: ServerFacts,
    },
}

/// Read on the keeper's own connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFacts {
    pub read_only: bool,
    /// `rpl_semi_sync_master_enabled`.
    pub waits_for_ackers: bool,
    /// `rpl_semi_sync_slave_enabled`.
    pub acker: bool,
    pub receiver: Receiver,
    /// The end of the received log; `None` = unknown (empty `Gtid_IO_Pos` after a restart).
    pub received: Option<LogEnd>,
    /// The end of the own binlog (applied and written events).
    pub applied: LogEnd,
    /// The relay log holds events beyond `applied` that a START would purge: salvage first.
    pub needs_salvage: bool,
    /// Members whose replication account is unlocked here.
    pub admitted: BTreeSet<MemberId>,
    /// Members that receive from here now.
    pub receiving: BTreeSet<MemberId>,
    /// The newest own barrier that was acknowledged since this server started.
    pub barrier: Option<Epoch>,
    /// Replication from the source named last ended with an error that neither time nor another try mends: the logs differ,
    /// or the source lacks what comes next.
    #[serde(default)]
    pub broken: Option<String>,
    /// How many transactions the own log has after its last barrier.
    #[serde(default)]
    pub after_barrier: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "receiver")]
pub enum Receiver {
    /// No source is named.
    None,
    Stopped {
        source: Source,
        applying: bool,
    },
    /// The IO thread runs; `connected` once it has a working connection to the source.
    Running {
        source: Source,
        connected: bool,
        applying: bool,
        error: Option<String>,
    },
}

impl MemberReport {
    /// The server that runs, if one does.
    pub fn running(&self) -> Option<&ServerIncarnation> {
        match &self.server {
            ServerState::Down { .. } => None,
            ServerState::Starting { incarnation } | ServerState::Up { incarnation, .. } => {
                Some(incarnation)
            }
        }
    }
}

impl Receiver {
    /// The source named last.
    pub fn source(&self) -> Option<&Source> {
        match self {
            Receiver::None => None,
            Receiver::Stopped { source, .. } | Receiver::Running { source, .. } => Some(source),
        }
    }
}
