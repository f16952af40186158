//! What one run knows of the flakiness of checks, for the next one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use homeostat_model::CheckName;
use homeostat_prodtest::Remembered;
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;

/// A file of them. Fields are only added.
#[derive(Debug, Serialize, Deserialize)]
struct Book {
    version: u32,
    checks: BTreeMap<CheckName, Page>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Page {
    /// Of the last outcomes, one bit each, bit 0 the latest: which were flakes.
    flaked: u64,
    count: u32,
    passed: bool,
}

/// Why the history cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("cannot read the history {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the history {} is of version {version}, which is newer than this program", .path.display())]
    Newer { path: PathBuf, version: u32 },
    #[error("cannot write the history {}", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, Default)]
pub(crate) struct History(BTreeMap<CheckName, Page>);

impl History {
    /// One that is not there is empty.
    pub(crate) fn read(path: &Path) -> Result<Self, HistoryError> {
        let fail = |source| HistoryError::Read {
            path: path.to_owned(),
            source,
        };
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(fail(error)),
        };
        let book: Book = serde_json::from_slice(&text).map_err(|error| fail(error.into()))?;
        if book.version > VERSION {
            return Err(HistoryError::Newer {
                path: path.to_owned(),
                version: book.version,
            });
        }
        Ok(Self(book.checks))
    }

    pub(crate) fn of(&self, check: &CheckName) -> Option<Remembered> {
        self.0.get(check).map(|page| Remembered {
            flaked: page.flaked,
            count: page.count,
            passed: page.passed,
        })
    }

    pub(crate) fn note(&mut self, check: CheckName, remembered: Remembered) {
        let page = Page {
            flaked: remembered.flaked,
            count: remembered.count,
            passed: remembered.passed,
        };
        self.0.insert(check, page);
    }

    /// Whole or not at all. What was not part of this run stays.
    pub(crate) fn write(self, path: &Path) -> Result<(), HistoryError> {
        let fail = |source| HistoryError::Write {
            path: path.to_owned(),
            source,
        };
        let book = Book {
            version: VERSION,
            checks: self.0,
        };
        let text = serde_json::to_vec(&book).map_err(|error| fail(error.into()))?;
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".new-{}", std::process::id()));
        fs::write(&beside, text)
            .and_then(|()| fs::rename(&beside, path))
            .map_err(fail)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_history_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.json");
        assert!(History::read(&path).unwrap().0.is_empty());
        let text = "{\"version\": 9, \"checks\": {}}";
        fs::write(&path, text).unwrap();
        let error = History::read(&path).unwrap_err();
        assert!(error.to_string().contains("version 9"), "{error}");
        fs::write(&path, "{").unwrap();
        assert!(matches!(
            History::read(&path),
            Err(HistoryError::Read { .. })
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "{");
    }
}
