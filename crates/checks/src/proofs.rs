//! Which fixes are proved to be idempotent: a record for each, by the fix's hash, so that it lapses when the fix changes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use homeostat_model::library::Call;
use homeostat_probes::prove::{Finding, Worker, prove};
use homeostat_probes::{CallError, Fix};
use serde::{Deserialize, Serialize};

/// The longest that one run of a fix may take while it is proved.
const WITHIN: Duration = Duration::from_secs(60);
const VERSION: u32 = 1;

/// One file. Fields are only added.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    /// For people: `user kim`.
    fix: String,
    finding: Found,
    /// What was shown, for people.
    said: String,
    at: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Found {
    Proved,
    Refuted,
    /// Nothing was shown; nothing is recorded.
    Unproved,
}

/// What came of trying to prove one fix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proved {
    pub fix: String,
    pub hash: String,
    pub found: Found,
    pub said: String,
}

/// The records of this machine and user, as they were when it was opened.
#[derive(Debug, Default)]
pub struct ProofBook {
    folder: PathBuf,
    by_hash: BTreeMap<String, Found>,
}

#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("cannot write {}", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl ProofBook {
    /// Where the records of this user are; `XDG_STATE_HOME` moves them.
    pub fn usual_folder() -> PathBuf {
        if let Some(state) = std::env::var_os("XDG_STATE_HOME").filter(|state| !state.is_empty()) {
            return PathBuf::from(state).join("homeostat/proofs");
        }
        if rustix::process::geteuid().is_root() {
            return "/var/lib/homeostat/proofs".into();
        }
        let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
        home.join(".local/state/homeostat/proofs")
    }

    /// What cannot be read proves nothing.
    pub fn open(folder: PathBuf) -> Self {
        let mut by_hash = BTreeMap::new();
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let hash = path.file_stem().and_then(|stem| stem.to_str());
            let record = fs::read(&path)
                .ok()
                .and_then(|text| serde_json::from_slice(&text).ok());
            if let (
                Some(hash),
                Some(Record {
                    version: VERSION,
                    finding,
                    ..
                }),
            ) = (hash, record)
            {
                by_hash.insert(hash.to_owned(), finding);
            }
        }
        Self { folder, by_hash }
    }

    /// What is known of a fix.
    pub(crate) fn says(&self, fix: &Fix) -> Found {
        // Hashing reads files; most machines have no records.
        if self.by_hash.is_empty() {
            return Found::Unproved;
        }
        self.by_hash
            .get(&fix.hash())
            .copied()
            .unwrap_or(Found::Unproved)
    }

    /// Tries to prove a fix, and writes down what was shown. Takes as long as a dozen runs of it; must not be called
    /// within an async runtime. `inside` is a program that does nothing but call [`crate::prove_inside`].
    ///
    /// # Errors
    /// When the call is no fix, or the record cannot be written.
    pub fn prove(
        &self,
        call: &Call,
        inside: &Worker,
        scratch: &Path,
    ) -> Result<Proved, ProofError> {
        let fix = Fix::from_call(call)?;
        let proof = prove(call, inside, scratch, WITHIN)?;
        let (found, said) = match proof.finding {
            Finding::Proved { kills } => (
                Found::Proved,
                format!("run twice, and killed {kills} times"),
            ),
            Finding::Refuted(refutation) => (Found::Refuted, refutation.to_string()),
            Finding::Nothing(why) => (Found::Unproved, why),
        };
        let proved = Proved {
            fix: fix.summary(),
            hash: proof.hash,
            found,
            said,
        };
        self.record(&proved)?;
        Ok(proved)
    }

    fn record(&self, proved: &Proved) -> Result<(), ProofError> {
        let path = self.folder.join(format!("{}.json", proved.hash));
        let fail = |source| ProofError::Write {
            path: path.clone(),
            source,
        };
        if proved.found == Found::Unproved {
            return Ok(());
        }
        let record = Record {
            version: VERSION,
            fix: proved.fix.clone(),
            finding: proved.found,
            said: proved.said.clone(),
            at: format!("{:.0}", jiff::Timestamp::now()),
        };
        make_private(&self.folder).map_err(fail)?;
        let text = serde_json::to_vec_pretty(&record).map_err(|error| fail(error.into()))?;
        let beside = self
            .folder
            .join(format!(".{}-{}", proved.hash, std::process::id()));
        fs::write(&beside, text)
            .and_then(|()| fs::rename(&beside, &path))
            .map_err(fail)
    }
}

/// A folder for layers of sandboxes, which cannot lie on a layered file system themselves.
///
/// # Errors
/// When there is none.
pub fn scratch_folder(book: &Path) -> io::Result<PathBuf> {
    const OVERLAY: i64 = 0x794c_7630;
    let beside = book.join("scratch");
    make_private(&beside)?;
    if rustix::fs::statfs(&beside)?.f_type != OVERLAY {
        return Ok(beside);
    }
    let memory = PathBuf::from(format!(
        "/dev/shm/homeostat-prove-{}",
        rustix::process::geteuid().as_raw()
    ));
    make_private(&memory)?;
    Ok(memory)
}

fn make_private(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn fix(path: &str) -> Fix {
        Fix::from_call(&Call {
            kind: "file".to_owned(),
            args: [
                ("path".to_owned(), path.into()),
                ("content".to_owned(), "x".into()),
            ]
            .into(),
        })
        .unwrap()
    }

    #[test]
    fn a_record_is_about_one_definition() {
        let folder = tempfile::tempdir().unwrap();
        let book = ProofBook::open(folder.path().join("proofs"));
        let proved = Proved {
            fix: "file /a".to_owned(),
            hash: fix("/a").hash(),
            found: Found::Proved,
            said: String::new(),
        };
        book.record(&proved).unwrap();
        let book = ProofBook::open(folder.path().join("proofs"));
        assert_eq!(book.says(&fix("/a")), Found::Proved);
        assert_eq!(book.says(&fix("/b")), Found::Unproved);
        book.record(&Proved {
            found: Found::Refuted,
            ..proved
        })
        .unwrap();
        let book = ProofBook::open(folder.path().join("proofs"));
        assert_eq!(book.says(&fix("/a")), Found::Refuted);
    }
}
