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
#[serde(from = "WireCause", into = "WireCause")]
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

/// How a cause is written. Readers of the first version knew no cause but these, so what is told more exactly since then is
/// told by a field.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "cause")]
enum WireCause {
    Code {
        code: i32,
    },
    Signal {
        signal: i32,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        out_of_memory: bool,
    },
    NotStarted {
        why: String,
    },
}

/// What the kernel kills with.
const SIGKILL: i32 = 9;

impl From<WireCause> for ExitCause {
    fn from(wire: WireCause) -> Self {
        match wire {
            WireCause::Code { code } => ExitCause::Code { code },
            WireCause::Signal {
                out_of_memory: true,
                ..
            } => ExitCause::OutOfMemory,
            WireCause::Signal { signal, .. } => ExitCause::Signal { signal },
            WireCause::NotStarted { why } => ExitCause::NotStarted { why },
        }
    }
}

impl From<ExitCause> for WireCause {
    fn from(cause: ExitCause) -> Self {
        match cause {
            ExitCause::Code { code } => WireCause::Code { code },
            ExitCause::Signal { signal } => WireCause::Signal {
                signal,
                out_of_memory: false,
            },
            ExitCause::OutOfMemory => WireCause::Signal {
                signal: SIGKILL,
                out_of_memory: true,
            },
            ExitCause::NotStarted { why } => WireCause::NotStarted { why },
        }
    }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_written_so_that_the_first_readers_understand_them() {
        let why = || "no such file".to_owned();
        for (cause, json) in [
            (ExitCause::Code { code: 3 }, r#"{"cause":"code","code":3}"#),
            (
                ExitCause::Signal { signal: 15 },
                r#"{"cause":"signal","signal":15}"#,
            ),
            (
                ExitCause::OutOfMemory,
                r#"{"cause":"signal","signal":9,"out_of_memory":true}"#,
            ),
            (
                ExitCause::NotStarted { why: why() },
                r#"{"cause":"not-started","why":"no such file"}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&cause).unwrap(), json);
            assert_eq!(serde_json::from_str::<ExitCause>(json).unwrap(), cause);
        }
    }
}
