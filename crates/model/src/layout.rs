//! Where a cell keeps things: paths only, no IO.
//!
//! Two trees. The *state* folder is durable and may have a long path. The *run* folder holds sockets and what is only
//! true while processes live; its path is short (a unix socket's path has 107 bytes) and it may vanish at a reboot,
//! when nothing runs either.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{CellName, MachineName, MachineSpec, TaskName};

/// The format of `cell.json` and of everything beneath the state folder that has no format number of its own.
pub const STATE_FORMAT: u32 = 1;

/// `cell.json`: what a cell decided about itself when it was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellIdentity {
    pub format: u32,
    pub name: CellName,
    /// N of the cell's addresses 127.77.N.M.
    pub block: u8,
    pub run: PathBuf,
    /// The unprivileged user and group that tasks run as when the cell runs as root.
    pub task_user: Option<u32>,
    pub machines: Vec<LocalMachine>,
}

/// A machine of an embedded cell: one agent process on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LocalMachine {
    pub spec: MachineSpec,
    pub address: String,
}

impl CellIdentity {
    pub fn machine(&self, name: &MachineName) -> Option<&LocalMachine> {
        self.machines
            .iter()
            .find(|machine| machine.spec.name == *name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellLayout {
    pub state: PathBuf,
    pub run: PathBuf,
}

impl CellLayout {
    pub fn new(state: impl Into<PathBuf>, run: impl Into<PathBuf>) -> Self {
        Self {
            state: state.into(),
            run: run.into(),
        }
    }

    /// The file that says where the run folder is.
    pub fn identity(state: &Path) -> PathBuf {
        state.join("cell.json")
    }

    pub fn store(&self) -> PathBuf {
        self.state.join("store.redb")
    }

    /// The controller's socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("c")
    }

    /// There while the cell is down on purpose. Its processes do not start then: of several that were started for one
    /// another's place (a warden was killed and replaced) only one hears that the cell went down.
    pub fn down_mark(&self) -> PathBuf {
        self.state.join("down")
    }

    pub fn packages(&self) -> PathBuf {
        self.state.join("packages")
    }

    /// What supervisors share (`LaunchFile::shared`).
    pub fn shared(&self) -> PathBuf {
        self.state.join("shared")
    }

    /// Logs of homeostat's own processes.
    pub fn log(&self, process: &str) -> PathBuf {
        self.state.join("log").join(format!("{process}.log"))
    }

    pub fn machine(&self, name: &MachineName) -> MachineLayout {
        MachineLayout {
            state: self.state.join("machines").join(name.as_str()),
            run: self.run.join(name.as_str()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineLayout {
    pub state: PathBuf,
    pub run: PathBuf,
}

impl MachineLayout {
    /// One folder per task that was started here and not forgotten.
    pub fn tasks_run(&self) -> PathBuf {
        self.run.join("t")
    }

    pub fn task_run(&self, task: &TaskName) -> PathBuf {
        self.tasks_run().join(task.as_str())
    }

    pub fn task_data(&self, task: &TaskName) -> PathBuf {
        self.state.join("data").join(task.as_str())
    }

    /// Data folders that are not trusted any more, each `TASK.GENERATION`: kept for a person to look at.
    pub fn set_aside(&self) -> PathBuf {
        self.state.join("aside")
    }

    /// There while the machine is dead on purpose (`homeostat chaos machine`): its agent is not started then.
    pub fn dead_mark(&self) -> PathBuf {
        self.state.join("dead")
    }

    pub fn task_logs(&self, task: &TaskName) -> PathBuf {
        self.state.join("logs").join(task.as_str())
    }

    /// The ports that were picked for a task, so that it keeps them.
    pub fn task_ports(&self, task: &TaskName) -> PathBuf {
        self.state.join("ports").join(format!("{task}.json"))
    }

    pub fn endpoint_run(&self) -> PathBuf {
        self.run.join("e")
    }

    pub fn lock(&self) -> PathBuf {
        self.state.join("lock")
    }
}
