//! The endpoint forwarder: the body of `homeostat endpoint RUN_DIR`, one process on each machine.
//!
//! Clients on a machine reach a service at one address that never changes; this process leads them to where the
//! service is now. It outlives agents and controllers: what it knows is in `targets.json`, and it goes on with that.
//! The rules are section 9 of the failover specification: only to the target of the highest (epoch, version) it ever saw;
//! a newer record closes connections at once; while there is no target new connections wait for a declared time.
//!
//! **Why one thread and epoll.** The work is to hand bytes on for 16 to some hundred connections, and, rarely, to
//! switch. With one thread a switch is one pass over a table with no locks: between two events everything still points to
//! the old target, after it nothing does. Two threads per connection would cost stacks and a lock on that path; an
//! async runtime would bring its scheduler for what is one loop. Copying goes through one shared buffer: `splice` needs a
//! pipe per direction (six descriptors a connection) and gains nothing on the short messages that databases exchange.
//! The only other thread calls fsync (see `disk`).

mod connection;
mod disk;
mod find;
mod flow;
mod forwarder;
mod listening;
mod orders;
pub mod protocol;
mod slab;
mod table;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use homeostat_model::MachineName;
use serde::{Deserialize, Serialize};

pub use find::{FoundForwarder, identify};

use crate::run::{RunError, load_json, store_json};

/// The name of the control socket in the run folder.
pub const SOCKET: &str = "e";
/// What the agent writes there before it starts a forwarder.
pub const FILE: &str = "endpoint.json";
const FORMAT: u32 = 1;

/// Who a forwarder is. Everything else it is told over its socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointFile {
    pub format: u32,
    pub machine: MachineName,
}

impl EndpointFile {
    pub fn new(machine: MachineName) -> Self {
        Self {
            format: FORMAT,
            machine,
        }
    }

    /// # Errors
    /// [`RunError`]; a missing file is `None`.
    pub fn load(run_dir: &Path) -> Result<Option<Self>, RunError> {
        load_json(&run_dir.join(FILE), FORMAT)
    }

    /// # Errors
    /// [`RunError::Io`].
    pub fn store(&self, run_dir: &Path) -> Result<(), RunError> {
        store_json(&run_dir.join(FILE), self)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("there is no {FILE} in {run_dir}: an agent writes it before it starts a forwarder")]
    NoFile { run_dir: PathBuf },
    #[error("cannot {what}")]
    System {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot listen on {path}")]
    Listen {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> ForwardError {
    move |source| ForwardError::System { what, source }
}

/// Forwards until it is told to drain, or SIGTERM. Must be called before its process starts other threads.
///
/// # Errors
/// When it cannot begin (another forwarder lives in this folder, a file of a newer format) or epoll breaks. An occupied
/// port is no error but an event: it is tried again while the other services are served.
pub fn forward(run_dir: &Path) -> Result<(), ForwardError> {
    let run_dir = fs::canonicalize(run_dir).map_err(RunError::io("open", run_dir))?;
    let file = EndpointFile::load(&run_dir)?.ok_or_else(|| ForwardError::NoFile {
        run_dir: run_dir.clone(),
    })?;
    forwarder::Forwarder::begin(run_dir, file.machine)?.run()
}
