//! The lifecycle of a task, as the machine that runs it sees it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a task is in its life on its machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum TaskState {
    /// Nothing of it runs: not placed yet, or placed and not started.
    Pending { why: String },
    /// Its supervisor is preparing: package, files, cgroup.
    Starting,
    /// Its process runs.
    Running { pid: u32 },
    /// It was asked to end and has not ended yet.
    Stopping { pid: u32 },
    /// Its process ended and its supervisor saw how.
    Exited { cause: ExitCause },
    /// Its supervisor died with it: how it ended is not known, that nothing of it runs any more was verified.
    Lost,
}

impl TaskState {
    /// One word for tables.
    pub fn word(&self) -> &'static str {
        match self {
            TaskState::Pending { .. } => "pending",
            TaskState::Starting => "starting",
            TaskState::Running { .. } => "running",
            TaskState::Stopping { .. } => "stopping",
            TaskState::Exited { .. } => "exited",
            TaskState::Lost => "lost",
        }
    }

    pub fn pid(&self) -> Option<u32> {
        match self {
            TaskState::Running { pid } | TaskState::Stopping { pid } => Some(*pid),
            TaskState::Pending { .. }
            | TaskState::Starting
            | TaskState::Exited { .. }
            | TaskState::Lost => None,
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "cause")]
pub enum ExitCause {
    Code {
        code: i32,
    },
    Signal {
        signal: i32,
    },
    /// The kernel killed it because it reached its memory limit.
    OutOfMemory,
    /// It never ran: the file is missing, may not be executed, or its folder could not be prepared.
    NotStarted {
        why: String,
    },
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitCause::Code { code } => write!(f, "exit code {code}"),
            ExitCause::Signal { signal } => write!(f, "signal {signal}"),
            ExitCause::OutOfMemory => {
                f.write_str("out of memory: the kernel killed it at its memory limit")
            }
            ExitCause::NotStarted { why } => write!(f, "not started: {why}"),
        }
    }
}
