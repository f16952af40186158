//! What a keeper remembers: `keeper.slots` in its data folder.
//!
//! Two slots, written in turn and in place: the file never changes its size, so that remembering costs one write of the
//! data and no transaction of the filesystem (0.13 ms instead of 0.47 ms where it was measured; it is in the way of every
//! failover three times). Each slot is a line with a number, a length and a checksum, then JSON. What is torn by a loss
//! of power is one slot, and the other one holds what was there before.
//!
//! Losing the file is safe (the member then obeys nothing until it is told the record again); finding an older one in
//! its place is not, so it must not be restored from a copy.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use homeostat_decider::{Kept, ServerIncarnation, Source};
use homeostat_model::Epoch;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The newest format; a newer one is refused by name.
pub const FORMAT: u32 = 1;
const NAME: &str = "keeper.slots";
/// The first word of a slot.
const MAGIC: &str = "homeostat-keeper";
/// Far more than a record of the largest cluster takes.
const SLOT: usize = 64 * 1024;
const SLOTS: u64 = 2;

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
    #[error(
        "{path} is damaged in both of its halves; put it aside and the member will ask for the record again"
    )]
    Damaged { path: PathBuf },
    #[error("{path} cannot hold {bytes} bytes: the record has grown beyond all bounds")]
    TooLarge { path: PathBuf, bytes: usize },
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

    fn parse(json: &[u8], path: &Path) -> Result<Self, FileError> {
        let malformed = |source| FileError::Malformed {
            path: path.to_owned(),
            source,
        };
        let json: serde_json::Value = serde_json::from_slice(json).map_err(malformed)?;
        let found = json
            .get("format")
            .and_then(serde_json::Value::as_u64)
            .unwrap_or(0);
        if found > u64::from(FORMAT) {
            let path = path.to_owned();
            return Err(FileError::Newer { path, found });
        }
        serde_json::from_value(json).map_err(malformed)
    }
}

/// The open file, and what it holds.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    file: File,
    /// Of the newest slot.
    number: u64,
}

impl Memory {
    /// Opens it and reads the newest slot; a missing file is made, and is as fresh.
    ///
    /// # Errors
    /// [`FileError`]. A file that cannot be read is not taken for a missing one: that is for a person to say.
    pub fn open(data: &Path) -> Result<(Self, KeeperFile), FileError> {
        let path = data.join(NAME);
        let found = OpenOptions::new().read(true).write(true).open(&path);
        let file = match found {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(data, &path)?,
            Err(source) => return Err(io_error("open", &path)(source)),
        };
        let mut memory = Self {
            path,
            file,
            number: 0,
        };
        let kept = memory.newest()?;
        Ok((memory, kept))
    }

    fn newest(&mut self) -> Result<KeeperFile, FileError> {
        let mut newest: Option<(u64, Vec<u8>)> = None;
        let mut written = 0;
        for slot in 0..SLOTS {
            let bytes = self
                .slot(slot)
                .map_err(io_error("read", &self.path.clone()))?;
            if bytes.iter().all(|byte| *byte == 0) {
                continue;
            }
            written += 1;
            if let Some((number, json)) = checked(&bytes)
                && newest.as_ref().is_none_or(|(known, _)| *known < number)
            {
                newest = Some((number, json.to_vec()));
            }
        }
        match newest {
            Some((number, json)) => {
                self.number = number;
                KeeperFile::parse(&json, &self.path)
            }
            // Made, and nothing was remembered yet; or the very first write was torn, on which nobody can have counted.
            None if written < 2 => Ok(KeeperFile::fresh()),
            None => Err(FileError::Damaged {
                path: self.path.clone(),
            }),
        }
    }

    fn slot(&self, slot: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; SLOT];
        self.file.read_exact_at(&mut bytes, slot * SLOT as u64)?;
        Ok(bytes)
    }

    /// Remembers something else. When this returns, it is on disk.
    ///
    /// # Errors
    /// [`FileError::Io`], [`FileError::TooLarge`]: then nothing may be done that was to be remembered.
    pub fn store(&mut self, kept: &KeeperFile) -> Result<(), FileError> {
        let json = serde_json::to_vec(kept).map_err(|source| FileError::Malformed {
            path: self.path.clone(),
            source,
        })?;
        let number = self.number + 1;
        let mut bytes = header(number, &json).into_bytes();
        bytes.extend_from_slice(&json);
        bytes.push(b'\n');
        if bytes.len() > SLOT {
            return Err(FileError::TooLarge {
                path: self.path.clone(),
                bytes: bytes.len(),
            });
        }
        let written = self
            .file
            .write_all_at(&bytes, (number % SLOTS) * SLOT as u64)
            .and_then(|()| self.file.sync_data());
        // After a failure the slot may hold the new number, or nothing: the next one goes into the same slot and above it,
        // never over the one that is whole.
        self.number = match written {
            Ok(()) => number,
            Err(_) => number + 1,
        };
        written.map_err(io_error("write", &self.path))
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Io { what, path, source }
}

/// Both slots full of zeros and on disk, under another name first: a file of that name is always whole.
fn make(data: &Path, path: &Path) -> Result<File, FileError> {
    let new = data.join("keeper.slots.new");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .map_err(io_error("open", &new))?;
    let zeros = vec![0; SLOT * SLOTS as usize];
    file.write_all_at(&zeros, 0)
        .and_then(|()| file.sync_all())
        .map_err(io_error("write", &new))?;
    std::fs::rename(&new, path).map_err(io_error("name", path))?;
    File::open(data)
        .and_then(|folder| folder.sync_all())
        .map_err(io_error("sync", data))?;
    Ok(file)
}

fn header(number: u64, json: &[u8]) -> String {
    let sum: String = Sha256::digest([&number.to_le_bytes()[..], json].concat())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{MAGIC} {number} {} {sum}\n", json.len())
}

/// The number and the JSON of a slot that is whole.
fn checked(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let line = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut words = line.split(' ');
    if words.next() != Some(MAGIC) {
        return None;
    }
    let number = words.next()?.parse().ok()?;
    let length: usize = words.next()?.parse().ok()?;
    let json = bytes.get(end + 1..end.checked_add(1)?.checked_add(length)?)?;
    (header(number, json).as_bytes() == &bytes[..=end]).then_some((number, json))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn remembering(epoch: u64) -> KeeperFile {
        KeeperFile {
            incomplete: Some(Epoch(epoch)),
            ..KeeperFile::fresh()
        }
    }

    fn read(data: &Path) -> Result<KeeperFile, FileError> {
        Memory::open(data).map(|(_, kept)| kept)
    }

    #[test]
    fn it_reads_what_it_wrote_last() {
        let data = tempfile::tempdir().unwrap();
        let (mut memory, kept) = Memory::open(data.path()).unwrap();
        assert_eq!(kept, KeeperFile::fresh());
        assert_eq!(read(data.path()).unwrap(), KeeperFile::fresh());
        for epoch in 1..=5 {
            memory.store(&remembering(epoch)).unwrap();
            assert_eq!(read(data.path()).unwrap(), remembering(epoch));
        }
    }

    #[test]
    fn a_torn_slot_leaves_the_one_before_it() {
        let data = tempfile::tempdir().unwrap();
        let (mut memory, _) = Memory::open(data.path()).unwrap();
        for epoch in 1..=4 {
            memory.store(&remembering(epoch)).unwrap();
        }
        // Number 4 is in the first slot: every way of tearing it shows 3, and never a mixture.
        let whole = memory.slot(0).unwrap();
        let end = whole.iter().rposition(|byte| *byte != 0).unwrap();
        for cut in 1..end {
            let mut torn = whole.clone();
            torn[cut..].fill(b'#');
            memory.file.write_all_at(&torn, 0).unwrap();
            assert_eq!(read(data.path()).unwrap(), remembering(3), "cut at {cut}");
        }
        // The next one goes over the torn one.
        let (mut again, _) = Memory::open(data.path()).unwrap();
        again.store(&remembering(9)).unwrap();
        assert_eq!(read(data.path()).unwrap(), remembering(9));
    }

    #[test]
    fn what_it_does_not_know_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let (mut memory, _) = Memory::open(data.path()).unwrap();
        let newer = KeeperFile {
            format: 2,
            ..KeeperFile::fresh()
        };
        memory.store(&newer).unwrap();
        let error = read(data.path()).unwrap_err();
        assert!(
            matches!(error, FileError::Newer { found: 2, .. }),
            "{error}"
        );

        memory.file.write_all_at(b"x", 0).unwrap();
        memory.file.write_all_at(b"x", SLOT as u64).unwrap();
        let error = read(data.path()).unwrap_err();
        assert!(matches!(error, FileError::Damaged { .. }), "{error}");

        memory.file.set_len(100).unwrap();
        let error = read(data.path()).unwrap_err();
        assert!(matches!(error, FileError::Io { .. }), "{error}");
    }
}
