//! One fix at a time for a resource, also between two runs: the engine sees to it within one.
//!
//! A lock is a file that is locked, so that it ends with its process however that ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// How often a lock that is taken is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// Where the locks are.
#[derive(Debug, Clone)]
pub struct LockFolder(PathBuf);

#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    #[error("cannot lock {}", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} belongs to another user", .0.display())]
    Foreign(PathBuf),
    #[error("another run has changed it for {0:?}")]
    Taken(Duration),
}

/// Held until it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    _file: File,
    /// Whether somebody else held it before: what was seen of the resource is old then.
    pub(crate) waited: bool,
}

impl LockFolder {
    /// The one that all runs of this user share.
    pub fn usual() -> Self {
        let user = rustix::process::geteuid();
        if user.is_root() {
            return Self("/run/lock/homeostat-checks".into());
        }
        Self(format!("/tmp/homeostat-checks-{}", user.as_raw()).into())
    }

    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    pub(crate) async fn hold(&self, resource: &str, within: Duration) -> Result<Held, LockError> {
        let path = self.file(resource);
        let fail = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        self.make()?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(fail)?;
        let until = Instant::now() + within;
        let mut waited = false;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    return Ok(Held {
                        _file: file,
                        waited,
                    });
                }
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => {
                    waited = true;
                    tokio::time::sleep(RETRY).await;
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(LockError::Taken(within)),
                Err(error) => return Err(fail(error.into())),
            }
        }
    }

    /// Others may have made it, in a place where anybody can: then it is not used.
    fn make(&self) -> Result<(), LockError> {
        let fail = |source| LockError::Io {
            path: self.0.clone(),
            source,
        };
        match std::fs::DirBuilder::new().mode(0o700).create(&self.0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(fail(error)),
        }
        let is = std::fs::symlink_metadata(&self.0).map_err(fail)?;
        if is.is_dir() && is.uid() == rustix::process::geteuid().as_raw() {
            Ok(())
        } else {
            Err(LockError::Foreign(self.0.clone()))
        }
    }

    /// Resources are texts of any length and kind.
    fn file(&self, resource: &str) -> PathBuf {
        use std::fmt::Write as _;
        let hash = Sha256::digest(resource.as_bytes());
        let mut name = String::new();
        for byte in &hash[..12] {
            // Writing to a String cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        Path::new(&self.0).join(name)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_resource_is_held_by_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let locks = LockFolder::at(folder.path().join("locks"));
        let first = locks.hold("user kim", Duration::ZERO).await.unwrap();
        assert!(!first.waited);
        let other = locks.hold("user eve", Duration::ZERO).await.unwrap();
        assert!(!other.waited);
        let taken = locks.hold("user kim", Duration::from_millis(30)).await;
        assert!(matches!(taken, Err(LockError::Taken(_))), "{taken:?}");
        drop(first);
        locks.hold("user kim", Duration::ZERO).await.unwrap();
    }
}
