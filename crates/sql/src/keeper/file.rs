//! What a keeper remembers: `keeper.json` in its data folder.
//!
//! Written to another name, synced, renamed, and the folder synced, so after a loss of power it holds either what was
//! there before or all of the new. Losing it is safe (the member then obeys nothing until it is told the record again);
//! finding an older one in its place is not, so it must not be restored from a copy.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use homeostat_decider::{Kept, ServerIncarnation, Source};
use homeostat_model::Epoch;
use serde::{Deserialize, Serialize};

/// The newest format; a newer one is refused by name.
pub const FORMAT: u32 = 1;
const NAME: &str = "keeper.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperFile {
    pub format: u32,
    /// What the core wants kept: record, term, boot, the epoch held last.
    pub kept: Option<Kept>,
    /// The server that was started last.
    pub server: Option<ServerIncarnation>,
    /// Where this member was pointed last; the server knows the address and not whose it is.
    pub source: Option<Source>,
    /// Set when the machine was booted anew under a server that does not sync what it receives: up to this epoch the
    /// member may have acknowledged what it no longer has (failover.md section 2).
    pub incomplete: Option<Epoch>,
}

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot {what} {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path} is not what a keeper writes; put it aside and the member will ask for the record again"
    )]
    Malformed {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{path} has format {found}; this keeper reads up to {FORMAT}: use a newer one")]
    Newer { path: PathBuf, found: u64 },
}

impl KeeperFile {
    fn fresh() -> Self {
        Self {
            format: FORMAT,
            kept: None,
            server: None,
            source: None,
            incomplete: None,
        }
    }

    /// Reads it; a missing one is as fresh.
    ///
    /// # Errors
    /// [`FileError`]. A file that cannot be read is not taken for a missing one: that is for a person to say.
    pub fn load(data: &Path) -> Result<Self, FileError> {
        let path = data.join(NAME);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::fresh()),
            Err(source) => {
                return Err(FileError::Io {
                    what: "read",
                    path,
                    source,
                });
            }
        };
        let malformed = |source| FileError::Malformed {
            path: path.clone(),
            source,
        };
        let json: serde_json::Value = serde_json::from_slice(&bytes).map_err(malformed)?;
        let found = json
            .get("format")
            .and_then(serde_json::Value::as_u64)
            .unwrap_or(0);
        if found > u64::from(FORMAT) {
            return Err(FileError::Newer { path, found });
        }
        serde_json::from_value(json).map_err(malformed)
    }

    /// Replaces it. When this returns, it is on disk.
    ///
    /// # Errors
    /// [`FileError::Io`]: then nothing may be done that was to be remembered.
    pub fn store(&self, data: &Path) -> Result<(), FileError> {
        let path = data.join(NAME);
        let new = data.join("keeper.json.new");
        let fail = |what: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source| FileError::Io { what, path, source }
        };
        let text = serde_json::to_vec_pretty(self).map_err(|source| FileError::Malformed {
            path: path.clone(),
            source,
        })?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .map_err(fail("open", &new))?;
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .map_err(fail("write", &new))?;
        std::fs::rename(&new, &path).map_err(fail("replace", &path))?;
        File::open(data)
            .and_then(|folder| folder.sync_all())
            .map_err(fail("sync", data))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_it_wrote_and_refuses_what_it_does_not_know() {
        let data = tempfile::tempdir().unwrap();
        let mut file = KeeperFile::load(data.path()).unwrap();
        assert_eq!(file, KeeperFile::fresh());
        file.incomplete = Some(Epoch(3));
        file.store(data.path()).unwrap();
        assert_eq!(KeeperFile::load(data.path()).unwrap(), file);

        std::fs::write(data.path().join(NAME), r#"{"format": 2, "kept": 7}"#).unwrap();
        assert!(matches!(
            KeeperFile::load(data.path()),
            Err(FileError::Newer { found: 2, .. })
        ));
        std::fs::write(data.path().join(NAME), "{").unwrap();
        assert!(matches!(
            KeeperFile::load(data.path()),
            Err(FileError::Malformed { .. })
        ));
    }
}
