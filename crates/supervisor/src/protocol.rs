//! The protocol between an agent and a supervisor (or keeper): **frozen as version 1**.
//!
//! One JSON value a line over a unix socket in the task's run folder. Supervisors of an old version meet new agents
//! for months, so: fields are only added, unknown fields are ignored, unknown verbs are answered with
//! [`Answer::Refused`]. The supervisor speaks first: a [`Hello`] which says who it is. Every connection gets every
//! event; several agents may be connected while one replaces another.

use homeostat_model::{ExitCause, Generation, TaskName};
use serde::{Deserialize, Serialize};

/// The version in every [`Hello`].
pub const VERSION: u32 = 1;
/// Longest accepted line in bytes; a longer one closes the connection.
pub const LONGEST_LINE: usize = 4 * 1024 * 1024;

/// Agent to supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the agent, repeated in the reply.
    pub id: u64,
    pub verb: Verb,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Verb {
    /// SIGTERM, and after `grace_ms` SIGKILL to everything of the task; the supervisor then exits. Answered at once;
    /// the end is an event.
    Stop { grace_ms: u64 },
    /// SIGKILL to everything of the task at once; the supervisor then exits.
    Kill,
    /// For the task's own kind of supervisor (a keeper); a plain supervisor refuses it.
    Call { body: serde_json::Value },
}

/// Supervisor to agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "message")]
pub enum Message {
    Hello(Hello),
    Reply { id: u64, answer: Answer },
    Event(Event),
}

/// Who a supervisor is: what an agent compares before it believes that this is the task it knew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
    pub task: TaskName,
    pub generation: Generation,
    pub supervisor: Process,
    pub phase: Phase,
}

/// A pid is reused; a pid with its start time is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// Field 22 of /proc/PID/stat: clock ticks since boot.
    pub start_ticks: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "phase")]
pub enum Phase {
    Starting,
    Running {
        child: Process,
    },
    Stopping {
        child: Process,
    },
    /// Nothing of the task runs any more. The supervisor stays for a moment so that the agent hears it, then exits.
    Ended {
        cause: ExitCause,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Answer {
    Accepted,
    Called { body: serde_json::Value },
    Refused { why: String },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    Phase {
        phase: Phase,
    },
    /// Pushed by the task's own kind of supervisor: a keeper's report.
    Service {
        body: serde_json::Value,
    },
    /// A passing word of the same (a keeper's sign of life): it changes nothing of what was pushed before, and is told once to
    /// those who listen now. Agents that do not know it pass over it.
    Sign {
        body: serde_json::Value,
    },
}
