//! The file, grown with zeroes instead of a hole.
//!
//! The first write into a hole makes the file system allocate blocks, and then the next sync has to commit its journal
//! as well: on ext4 a commit into a hole takes milliseconds, into blocks that exist a fraction of one. So that cost is
//! paid when the file grows, which is seldom (redb doubles it) and not in each commit. It also finds a full disk there.

use std::io;
use std::ops::Bound;
use std::path::Path;

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};

static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

#[derive(Debug)]
pub(super) struct Filled(FileBackend);

impl Filled {
    /// The file must exist.
    pub(super) fn open(path: &Path) -> Result<Self, DatabaseError> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)?;
        Ok(Self(FileBackend::new(file)?))
    }

    pub(super) fn is_empty(&self) -> io::Result<bool> {
        Ok(self.0.len()? == 0)
    }
}

impl StorageBackend for Filled {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut filled = self.0.len()?;
        self.0.set_len(len)?;
        while filled < len {
            let part = (len - filled).min(ZEROES.len() as u64);
            self.0.write(filled, &ZEROES[..part as usize])?;
            filled += part;
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}
