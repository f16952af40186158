//! What an agent writes for a supervisor before it starts one: `launch.json` in the task's run folder, mode 0600.
//! Everything is resolved: no templates are left. Kept until the placement ends, so that the agent (and a person)
//! can see what was started.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use homeostat_model::{Bytes, Generation, MachineName, PortName, ServiceName, TaskName};
use serde::{Deserialize, Serialize};

use crate::run::{RunError, load_json, store_json};

/// The newest format written; a newer one is refused by name.
pub const FORMAT: u32 = 1;
/// Its name in the run folder.
pub const FILE: &str = "launch.json";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaunchFile {
    pub format: u32,
    pub task: TaskName,
    pub service: ServiceName,
    pub machine: MachineName,
    pub generation: Generation,
    pub argv: Vec<String>,
    /// The whole environment; nothing is inherited.
    pub env: BTreeMap<String, String>,
    /// The task's working folder; survives restarts of the task.
    pub data: PathBuf,
    /// Where the socket `s` is.
    pub run: PathBuf,
    /// Where `out.log` and its rotated predecessors go.
    pub logs: PathBuf,
    /// A folder of the machine which its supervisors share for what is costly to make and never changes (a keeper's
    /// template data folders). Not for a task's own data.
    pub shared: PathBuf,
    /// `None`: the user that runs the cell.
    pub user: Option<UserIds>,
    pub grace_ms: u64,
    pub memory_limit: Option<Bytes>,
    /// For people and for the agent's inventory after its restart.
    pub address: String,
    pub ports: BTreeMap<PortName, u16>,
    /// A keeper's configuration; `argv` is empty then.
    pub keeper: Option<serde_json::Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserIds {
    pub uid: u32,
    pub gid: u32,
}

impl LaunchFile {
    /// The launch file of a run folder; `None` when there is none.
    ///
    /// # Errors
    /// [`RunError`]; among them [`RunError::Newer`] for a format this program does not know.
    pub fn load(run_dir: &Path) -> Result<Option<Self>, RunError> {
        load_json(&run_dir.join(FILE), FORMAT)
    }

    /// Writes it into its run folder, mode 0600: its environment may hold what others must not read.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn store(&self) -> Result<(), RunError> {
        store_json(&self.run.join(FILE), self)
    }
}
