//! The protocol between an agent and the forwarder of its machine, version 1: one JSON value a line over the unix
//! socket `e` in the forwarder's run folder, under the same rules as [`crate::protocol`] (fields are only added, unknown
//! fields ignored, unknown verbs refused, the forwarder speaks first).

use std::net::SocketAddr;

use homeostat_model::{Epoch, MachineName, RecordVersion, ServiceName};
use serde::{Deserialize, Serialize};

use crate::protocol::Process;

/// The version in every [`Hello`].
pub const VERSION: u32 = 1;
/// The most services one forwarder takes.
pub const MOST_SERVICES: usize = 256;

/// Agent to forwarder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the agent, repeated in the reply.
    pub id: u64,
    pub verb: Verb,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Verb {
    /// Says where services are now. Each is taken or refused by itself; services that are not named stay as they are.
    /// Acted on at once; answered with [`Answer::Taken`] when it is on the disk.
    Set { targets: Vec<ServiceTarget> },
    /// Stops listening for a service, closes its connections and forgets it. Refused for a record lower than the one
    /// it has.
    Remove {
        service: ServiceName,
        epoch: Epoch,
        version: RecordVersion,
    },
    /// Answered with [`Answer::Status`].
    Status,
    /// Stops listening and lets go of the run folder (a successor may start at once), lets open connections go on
    /// until they end or the time is up, says [`Event::Drained`], exits.
    Drain { within_ms: u64 },
}

/// Where clients of a service connect, and where they are led.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceTarget {
    pub service: ServiceName,
    pub listen: SocketAddr,
    /// With `version` the order of records: a lower pair is refused, an equal one changes nothing.
    pub epoch: Epoch,
    pub version: RecordVersion,
    /// Several are taken in turn. None: new connections wait.
    pub targets: Vec<SocketAddr>,
    pub on_change: OnChange,
    /// How long a new connection waits for a target that accepts it.
    pub hold_ms: u64,
}

/// What happens to open connections when a newer record is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnChange {
    /// For a service with one right place: a higher epoch closes all of them; a higher version in the same epoch those to
    /// targets that it no longer names (a version also rises for reasons which are none of a client's concern).
    Close,
    /// They go on for as long as both sides like.
    Keep,
}

/// Forwarder to agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "message")]
pub enum Message {
    Hello(Hello),
    Reply { id: u64, answer: Answer },
    Event(Event),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
    pub machine: MachineName,
    pub forwarder: Process,
    /// What it remembers and does: an agent that comes back compares it with what it knows.
    pub services: Vec<ServiceStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Answer {
    Accepted,
    /// One entry for each target of the order, in its order.
    Taken {
        services: Vec<Taken>,
        durability: Durability,
    },
    Status {
        services: Vec<ServiceStatus>,
    },
    Refused {
        why: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    pub service: ServiceName,
    pub verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum Verdict {
    /// It is what holds now.
    Newer,
    /// It is what held already.
    Same,
    /// Refused: a higher record was seen.
    Older {
        epoch: Epoch,
        version: RecordVersion,
    },
    /// Refused: another record of the same epoch and version holds, or there are too many services.
    Conflict { why: String },
}

/// Whether a restart of the machine would find what was taken. A restart of the forwarder always does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "durability")]
pub enum Durability {
    Synced,
    Failed { why: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub target: ServiceTarget,
    pub listening: Listening,
    /// Connections that are forwarded now.
    pub open: u64,
    /// Connections that wait for a target now.
    pub held: u64,
    pub counters: Counters,
}

/// Since this forwarder started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    pub accepted: u64,
    /// Closed because of a newer record.
    pub closed_on_change: u64,
    /// Closed because no target took them in time.
    pub expired: u64,
    /// Attempts that a target refused or did not answer.
    pub refused_by_target: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Listening {
    Yes,
    /// It is tried again.
    No {
        why: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    /// Cannot listen; it is tried again until it works.
    ListenFailed {
        service: ServiceName,
        listen: SocketAddr,
        why: String,
    },
    /// Listens, after it could not.
    Listening {
        service: ServiceName,
        listen: SocketAddr,
    },
    /// The last thing a drained forwarder says.
    Drained { cut_off: u64 },
}
