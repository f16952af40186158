//! A member's data, copied from a peer that goes on working: how a member is rebuilt.
//!
//! ```text
//!  source                                             target
//!  mariadb-backup ──pipe──▶ keeper ──TCP, loopback──▶ keeper ──pipe──▶ mbstream ──▶ sql.incoming
//!                                                                      prepare  ──▶ sql.ready ──▶ sql
//! ```
//!
//! - **The source offers, the target fetches.** [`offer`] listens and draws a token; whoever has both may fetch the copy,
//!   once. Both sides prove that they know the token, neither sends it (`wire`).
//! - **A copy counts when it is whole.** It is made beside the data folder and takes its name only when the source has said
//!   that its program ended well, it was prepared, its position was read and all of it is on disk ([`folder`]). Whatever dies
//!   in between leaves nothing that anybody would take for a data folder: the next try begins anew.
//! - **The position comes with it.** The backup program writes down the GTID at which the copy stands. It becomes the
//!   server's own `binlog.state`, from which MariaDB takes the end of a log that has no files yet; so the copied member says
//!   from its first moment which log it has, and strict mode holds (`position`).
//! - Everything that is started here dies with its keeper (`program`) and when the future that started it is dropped.

mod account;
pub mod folder;
mod pace;
mod position;
mod program;
mod receive;
mod send;
mod wire;

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use homeostat_model::{Bytes, ExitCause};
use homeostat_supervisor::cgroup::TaskGroup;
use homeostat_supervisor::launch::UserIds;
use serde::{Deserialize, Serialize};

use crate::mariadb::SqlError;

pub use account::USER;
pub use receive::{Fetch, Received, receive};
pub use send::{Lend, Offered, Sent, offer};

/// The programs that make and unpack copies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyPrograms {
    pub backup: PathBuf,
    pub unpack: PathBuf,
}

impl CopyPrograms {
    /// Where Debian's `mariadb-backup` puts them.
    pub fn debian() -> Self {
        Self {
            backup: "/usr/bin/mariadb-backup".into(),
            unpack: "/usr/bin/mbstream".into(),
        }
    }
}

/// As whom and within which bounds the programs run.
#[derive(Debug, Clone)]
pub struct Place {
    /// The server's user; the files are his.
    pub user: Option<UserIds>,
    /// The task's run folder, by which what is left over is found.
    pub run: PathBuf,
    pub group: Rc<TaskGroup>,
    /// For the programs' temporary files: nobody else's.
    pub temporary: PathBuf,
}

/// Every wait of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// An offer that nobody takes is withdrawn.
    pub taken: Duration,
    /// Each step of the greeting.
    pub greeting: Duration,
    /// Without a single byte for this long the copy is given up. A source that waits for its last lock sends nothing,
    /// and a holder without ackers waits for it for ever (failover.md section 8).
    pub stall: Duration,
    pub prepare: Duration,
    /// Between the end of a program's output and its own.
    pub ending: Duration,
}

impl Limits {
    pub const DEFAULT: Self = Self {
        taken: Duration::from_secs(30),
        greeting: Duration::from_secs(5),
        stall: Duration::from_secs(60),
        prepare: Duration::from_secs(3600),
        ending: Duration::from_secs(30),
    };
}

/// How far a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// For the other side.
    Waiting,
    Copying,
    /// The target makes a consistent data folder of what came.
    Preparing,
}

/// For people: nothing hangs on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub stage: Stage,
    pub bytes: Bytes,
    /// About how many there will be, once the source has said so.
    pub of: Option<Bytes>,
    /// Over the whole time since the first byte.
    pub bytes_per_second: u64,
}

impl Progress {
    pub const BEGIN: Self = Self {
        stage: Stage::Waiting,
        bytes: Bytes(0),
        of: None,
        bytes_per_second: 0,
    };
}

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("cannot {what} {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot {what}")]
    System {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{host} is not a loopback address: copies do not leave the machine yet")]
    NotLoopback { host: String },
    #[error("{0}")]
    NotStarted(String),
    #[error("{program} failed ({how}): {said}")]
    Program {
        program: String,
        how: ExitCause,
        said: String,
    },
    #[error("nobody fetched the copy within {limit_s} s")]
    NotTaken { limit_s: u64 },
    #[error("the source ended the copy: {why}")]
    SourceEnded { why: String },
    #[error("the target ended the copy: {why}")]
    TargetEnded { why: String },
    #[error("{what} for {limit_s} s: the copy was given up")]
    Stalled { what: &'static str, limit_s: u64 },
    #[error(
        "{peer} speaks version {version} of the copy protocol; this keeper speaks {}",
        wire::VERSION
    )]
    Version { peer: &'static str, version: u32 },
    #[error("the other side said something that does not belong here: {0}")]
    Protocol(String),
    #[error(
        "the copy needs about {needs} and {path} has room for {free}{}",
        aside_words(.aside)
    )]
    NoRoom {
        needs: Bytes,
        free: Bytes,
        path: PathBuf,
        /// Folders kept aside beside it, which a person may remove.
        aside: Vec<PathBuf>,
    },
    #[error("the copy is of no use: {0}")]
    Useless(String),
    #[error(transparent)]
    Sql(#[from] SqlError),
}

fn aside_words(aside: &[PathBuf]) -> String {
    let names: Vec<String> = aside
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    if names.is_empty() {
        String::new()
    } else {
        format!(" (kept aside: {})", names.join(", "))
    }
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CopyError + 'a {
    move |source| CopyError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> CopyError {
    move |source| CopyError::System { what, source }
}

/// Runs blocking work off the loop.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, CopyError> + Send + 'static,
) -> Result<T, CopyError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(system(what)(io::Error::other(error))))
}
