//! The files in a task's run folder, apart from `launch.json`.
//!
//! | file | written by | says |
//! |---|---|---|
//! | `lock` | supervisor | locked (flock) exactly as long as a supervisor of this task lives |
//! | `s` | supervisor | its socket |
//! | `supervisor.json` | supervisor | who it is, its child and its cgroups: what to clean up should it die |
//! | `exit.json` | supervisor | how the task ended, for an agent that was away |
//!
//! They are replaced by rename, so a reader sees an old file or a new one and never half of one. They are not
//! synced: what they say is void after a reboot anyway, and their boot id tells.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use homeostat_model::{ExitCause, Generation, TaskName, UnixMillis};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cgroup::GroupPath;
use crate::protocol::Process;

/// The name of the socket in the run folder.
pub const SOCKET: &str = "s";
const LOCK: &str = "lock";
/// The name of a [`RunRecord`] in the run folder.
pub const RECORD: &str = "supervisor.json";
const EXIT: &str = "exit.json";
/// The newest format written of both JSON files.
const FORMAT: u32 = 1;
/// How long a starting supervisor waits for the lock: somebody who only looks holds it for microseconds.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot {what} {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not what a supervisor writes")]
    Malformed {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{path} has format {found}; this program knows formats up to {known}: use a newer one")]
    Newer {
        path: PathBuf,
        found: u32,
        known: u32,
    },
    #[error("another process of this folder lives: it holds {path}")]
    Locked { path: PathBuf },
}

impl RunError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| RunError::Io { what, path, source }
    }
}

/// Who runs the task: everything that finding and cleaning up after a dead supervisor needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    pub format: u32,
    pub task: TaskName,
    pub generation: Generation,
    pub boot_id: String,
    pub supervisor: Process,
    /// `None` until it was started.
    pub child: Option<Process>,
    /// The user of the child.
    pub uid: u32,
    pub cgroups: Vec<GroupPath>,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitFile {
    pub format: u32,
    pub task: TaskName,
    pub generation: Generation,
    pub boot_id: String,
    pub supervisor: Process,
    pub cause: ExitCause,
    pub at: UnixMillis,
}

impl RunRecord {
    pub const FORMAT: u32 = FORMAT;

    /// # Errors
    /// [`RunError`]; a missing file is `None`.
    pub fn load(run_dir: &Path) -> Result<Option<Self>, RunError> {
        load_json(&run_dir.join(RECORD), FORMAT)
    }

    /// # Errors
    /// [`RunError::Io`].
    pub fn store(&self, run_dir: &Path) -> Result<(), RunError> {
        store_json(&run_dir.join(RECORD), self)
    }
}

impl ExitFile {
    pub const FORMAT: u32 = FORMAT;

    /// # Errors
    /// [`RunError`]; a missing file is `None`.
    pub fn load(run_dir: &Path) -> Result<Option<Self>, RunError> {
        load_json(&run_dir.join(EXIT), FORMAT)
    }

    /// # Errors
    /// [`RunError::Io`].
    pub fn store(&self, run_dir: &Path) -> Result<(), RunError> {
        store_json(&run_dir.join(EXIT), self)
    }

    /// Forgets how an earlier run ended.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn remove(run_dir: &Path) -> Result<(), RunError> {
        remove_if_there(&run_dir.join(EXIT))
    }
}

/// Held by whoever may start or clean up things of one run folder. The kernel lets go of it when its process ends,
/// however it ends.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Takes the lock.
    ///
    /// # Errors
    /// [`RunError::Locked`] when another process keeps it.
    pub fn take(run_dir: &Path) -> Result<Self, RunError> {
        let path = run_dir.join(LOCK);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(RunError::io("open", &path))?;
        let until = Instant::now() + LOCK_PATIENCE;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(Errno::WOULDBLOCK) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(Errno::WOULDBLOCK) => return Err(RunError::Locked { path }),
                Err(Errno::INTR) => {}
                Err(error) => return Err(RunError::io("lock", &path)(error.into())),
            }
        }
    }

    /// Whether somebody holds it now. Shared, so that two who look do not see each other.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn is_held(run_dir: &Path) -> Result<bool, RunError> {
        let path = run_dir.join(LOCK);
        // Not created here: who only looks (root, perhaps) must not leave a file that the supervisor cannot open.
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(RunError::io("open", &path)(error)),
        };
        loop {
            match flock(&file, FlockOperation::NonBlockingLockShared) {
                Ok(()) => return Ok(false),
                Err(Errno::WOULDBLOCK) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(error) => return Err(RunError::io("lock", &path)(error.into())),
            }
        }
    }
}

/// The moment, for people.
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = since.unwrap_or_default().as_millis();
    UnixMillis(u64::try_from(since).unwrap_or(u64::MAX))
}

pub(crate) fn remove_if_there(path: &Path) -> Result<(), RunError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(RunError::io("remove", path)(error)),
    }
}

/// Reads a JSON file with a `format` field, which is looked at first: a newer format is refused by name, and not as
/// whatever field of it happens to be unknown here.
pub(crate) fn load_json<T: DeserializeOwned>(
    path: &Path,
    known: u32,
) -> Result<Option<T>, RunError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(RunError::io("read", path)(error)),
    };
    let malformed = |source| RunError::Malformed {
        path: path.to_owned(),
        source,
    };
    let Format { format: found } = serde_json::from_slice(&bytes).map_err(malformed)?;
    if found > known {
        let path = path.to_owned();
        return Err(RunError::Newer { path, found, known });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(malformed)
}

/// Replaces a file by a JSON text, readable by its owner only.
pub(crate) fn store_json<T: Serialize>(path: &Path, value: &T) -> Result<(), RunError> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|source| RunError::Malformed {
        path: path.to_owned(),
        source,
    })?;
    let new = path.with_extension("new");
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| file.write_all(&bytes));
    written.map_err(RunError::io("write", &new))?;
    fs::rename(&new, path).map_err(RunError::io("replace", path))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!RunLock::is_held(dir.path()).unwrap());
        let lock = RunLock::take(dir.path()).unwrap();
        assert!(RunLock::is_held(dir.path()).unwrap());
        assert!(matches!(
            RunLock::take(dir.path()),
            Err(RunError::Locked { .. })
        ));
        drop(lock);
        RunLock::take(dir.path()).unwrap();
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(EXIT);
        fs::write(&path, r#"{"format": 99, "cause": "unheard of"}"#).unwrap();
        let error = ExitFile::load(dir.path()).unwrap_err();
        assert!(matches!(error, RunError::Newer { found: 99, .. }));
        fs::write(&path, "{").unwrap();
        let error = ExitFile::load(dir.path()).unwrap_err();
        assert!(matches!(error, RunError::Malformed { .. }));
        assert_eq!(RunRecord::load(dir.path()).unwrap(), None);
    }
}
