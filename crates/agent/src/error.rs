use std::path::{Path, PathBuf};

use homeostat_model::{MachineName, TaskName};
use homeostat_supervisor::run::RunError;

/// Why an agent cannot work, or cannot do one thing it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("another agent runs machine {machine} already (it holds {lock})")]
    AlreadyRunning { machine: MachineName, lock: PathBuf },
    #[error("machine {0} is not in this cell")]
    UnknownMachine(MachineName),
    #[error("{what} {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{task} is here with generation {here}; an order for generation {asked} is too old")]
    OldGeneration {
        task: TaskName,
        here: u64,
        asked: u64,
    },
    #[error("the endpoint forwarder cannot be prepared")]
    Forwarder(#[from] RunError),
    #[error("{0} is not on this machine")]
    UnknownTask(TaskName),
    #[error("{0} still runs")]
    StillRuns(TaskName),
    #[error("nobody answers for {0}: its supervisor cannot be reached")]
    Unreachable(TaskName),
    #[error("{task}: {why}")]
    BadLaunch { task: TaskName, why: String },
    #[error("{task}: no user is called '{user}' on this machine")]
    UnknownUser { task: TaskName, user: String },
    #[error("{task}: user {user} can only be used by a cell that root runs")]
    NotRoot { task: TaskName, user: String },
    #[error(
        "{task}: port {address}:{port} is taken by another program; free it or declare another port"
    )]
    PortTaken {
        task: TaskName,
        address: String,
        port: u16,
    },
    #[error("{task}: no free port on {address} between {from} and {to}")]
    NoFreePort {
        task: TaskName,
        address: String,
        from: u16,
        to: u16,
    },
    #[error("a controller of term {asked} is not obeyed: one of term {seen} was seen")]
    OldTerm { asked: u64, seen: u64 },
    #[error("an order that makes no sense: {0}")]
    BadOrder(String),
}

impl AgentError {
    pub(crate) fn io(what: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }

    /// One word for the controller, which decides by it whether to try again.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            AgentError::OldGeneration { .. } | AgentError::OldTerm { .. } => "stale",
            AgentError::UnknownTask(_) | AgentError::UnknownMachine(_) => "not-found",
            AgentError::StillRuns(_)
            | AgentError::PortTaken { .. }
            | AgentError::NoFreePort { .. } => "not-now",
            AgentError::Unreachable(_) => "unknown",
            AgentError::BadLaunch { .. }
            | AgentError::UnknownUser { .. }
            | AgentError::NotRoot { .. }
            | AgentError::BadOrder(_) => "bad-request",
            AgentError::Io { .. }
            | AgentError::AlreadyRunning { .. }
            | AgentError::Forwarder(_) => "internal",
        }
    }

    /// The whole chain in one line, as it goes over the wire.
    pub(crate) fn line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            line = format!("{line}: {error}");
            cause = error.source();
        }
        line
    }
}
