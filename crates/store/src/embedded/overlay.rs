//! A file that is read for real and written only in memory: what lets us open, repair and check a store before we
//! decide to touch it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use redb::StorageBackend;

const BLOCK: u64 = 4096;

#[derive(Debug)]
pub(super) struct Overlay {
    file: File,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    /// The length the database believes the file has.
    len: u64,
    /// Bytes of the real file that still show through; shrinking and growing again reads as zeroes.
    shows: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl Overlay {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self {
            file,
            written: Mutex::new(Written {
                len,
                shows: len,
                blocks: BTreeMap::new(),
            }),
        })
    }

    /// One block as it is on disk, zeroes beyond its end.
    fn on_disk(&self, index: u64, shows: u64) -> io::Result<Vec<u8>> {
        let mut block = vec![0; BLOCK as usize];
        let start = index * BLOCK;
        let wanted = shows.saturating_sub(start).min(BLOCK) as usize;
        self.file.read_exact_at(&mut block[..wanted], start)?;
        Ok(block)
    }
}

/// The parts of `offset..offset + len`, block by block: block index, range within the block, range within the buffer.
fn parts(
    offset: u64,
    len: usize,
) -> impl Iterator<Item = (u64, std::ops::Range<usize>, std::ops::Range<usize>)> {
    let end = offset + len as u64;
    (offset / BLOCK..end.div_ceil(BLOCK)).map(move |index| {
        let first = offset.max(index * BLOCK);
        let last = end.min((index + 1) * BLOCK);
        let within = (first - index * BLOCK) as usize..(last - index * BLOCK) as usize;
        (
            index,
            within,
            (first - offset) as usize..(last - offset) as usize,
        )
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self
            .written
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if offset.saturating_add(out.len() as u64) > written.len {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file ends before the data it should hold",
            ));
        }
        for (index, within, part) in parts(offset, out.len()) {
            match written.blocks.get(&index) {
                Some(block) => out[part].copy_from_slice(&block[within]),
                None => out[part].copy_from_slice(&self.on_disk(index, written.shows)?[within]),
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if len < written.len {
            written.shows = written.shows.min(len);
            written.blocks.retain(|index, _| index * BLOCK < len);
            if let Some(block) = written.blocks.get_mut(&(len / BLOCK)) {
                block[(len % BLOCK) as usize..].fill(0);
            }
        }
        written.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let shows = written.shows;
        for (index, within, part) in parts(offset, data.len()) {
            let block = match written.blocks.entry(index) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(self.on_disk(index, shows)?)
                }
            };
            block[within].copy_from_slice(&data[part]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn writes_stay_in_memory() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; 10_000]).unwrap();
        let overlay = Overlay::new(file.reopen().unwrap()).unwrap();
        overlay.write(4000, &[1; 5000]).unwrap();
        let mut seen = vec![0; 10_000];
        overlay.read(0, &mut seen).unwrap();
        assert_eq!(seen, [vec![7; 4000], vec![1; 5000], vec![7; 1000]].concat());

        overlay.set_len(4100).unwrap();
        overlay.set_len(9000).unwrap();
        let mut seen = vec![9; 9000];
        overlay.read(0, &mut seen).unwrap();
        assert_eq!(seen, [vec![7; 4000], vec![1; 100], vec![0; 4900]].concat());
        assert!(overlay.read(0, &mut vec![0; 9001]).is_err());
        assert_eq!(std::fs::read(file.path()).unwrap(), vec![7; 10_000]);
    }
}
