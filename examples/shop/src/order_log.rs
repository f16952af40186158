//! The log of acknowledged orders: a line `client seq` for each, in the order they came.
//!
//! A line counts once it ends in a newline and has been synced; only then is the order reported as
//! acknowledged. One sync takes all orders that arrived during the one before it (group commit). A
//! crash may leave a torn last line: no order was reported for it, readers ignore it, and the next
//! writer cuts it off.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Take, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use tokio::sync::mpsc;

use crate::order::Key;

/// Orders that may wait for the sync before those who place them are held up.
pub const WAITING_MAX: usize = 1_024;

pub struct Writer {
    file: File,
    path: PathBuf,
}

impl Writer {
    /// The log has one writer at a time: a second one would cut a line the first is writing.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = open_whole(path).with_context(|| format!("open the order log {path:?}"))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// Writes until all senders are gone. Blocks: for a thread of its own.
    pub fn write_all(
        mut self,
        mut keys: mpsc::Receiver<Key>,
        durable: &AtomicU64,
    ) -> anyhow::Result<()> {
        let mut batch = String::new();
        while let Some(first) = keys.blocking_recv() {
            batch.clear();
            batch.push_str(&format!("{first}\n"));
            let mut lines = 1;
            while lines < WAITING_MAX as u64
                && let Ok(key) = keys.try_recv()
            {
                batch.push_str(&format!("{key}\n"));
                lines += 1;
            }
            self.file
                .write_all(batch.as_bytes())
                .and_then(|()| self.file.sync_data())
                .with_context(|| format!("append to the order log {:?}", self.path))?;
            durable.fetch_add(lines, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn open_whole(path: &Path) -> anyhow::Result<File> {
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(path)?;
    file.try_lock().context("another writer holds it")?;
    let whole = whole_lines_length(&mut file)?;
    file.set_len(whole)?;
    file.sync_all()?;
    // A file whose name was not synced can be gone after a power loss, synced lines and all.
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(file)
}

/// The length up to and with the last newline.
fn whole_lines_length(file: &mut File) -> io::Result<u64> {
    const STEP: u64 = 4_096;
    let mut end = file.metadata()?.len();
    let mut chunk = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(STEP);
        read_range(file, start, end, &mut chunk)?;
        if let Some(newline) = chunk.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + newline as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

fn read_range(file: &mut File, start: u64, end: u64, into: &mut Vec<u8>) -> io::Result<()> {
    into.clear();
    file.seek(SeekFrom::Start(start))?;
    file.take(end - start).read_to_end(into)?;
    Ok(())
}

/// Reads a log that may grow meanwhile, up to the length it had when it was opened.
pub struct Reader {
    lines: BufReader<Take<File>>,
    offset: u64,
}

impl Reader {
    pub fn open(path: &Path, offset: u64) -> anyhow::Result<Self> {
        let open = || {
            let mut file = File::open(path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(offset))?;
            io::Result::Ok(file.take(length.saturating_sub(offset)))
        };
        let lines = open().with_context(|| format!("open the order log {path:?}"))?;
        Ok(Self {
            lines: BufReader::new(lines),
            offset,
        })
    }

    /// Where the next line begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Up to `most` keys; none at the end.
    pub fn read(&mut self, most: usize) -> anyhow::Result<Vec<Key>> {
        let mut keys = Vec::new();
        let mut line = Vec::new();
        while keys.len() < most {
            line.clear();
            let bytes = self.lines.read_until(b'\n', &mut line)?;
            let Some(text) = line.strip_suffix(b"\n") else {
                break; // the end, or a torn line before it
            };
            let key = String::from_utf8_lossy(text).parse();
            keys.push(key.with_context(|| format!("byte {} of the order log", self.offset))?);
            self.offset += bytes as u64;
        }
        Ok(keys)
    }
}

/// The last lines that end at or before `offset`, of at most `bytes` bytes together. An error if no
/// line ends exactly there.
pub fn lines_before(path: &Path, offset: u64, bytes: u64) -> anyhow::Result<Vec<Key>> {
    let start = offset.saturating_sub(bytes);
    let mut tail = Vec::new();
    File::open(path)
        .and_then(|mut file| read_range(&mut file, start, offset, &mut tail))
        .with_context(|| format!("read the order log {path:?}"))?;
    if (tail.len() as u64) < offset - start || tail.last().is_some_and(|byte| *byte != b'\n') {
        bail!("no line of the order log {path:?} ends at byte {offset}");
    }
    let tail = String::from_utf8_lossy(&tail);
    // The first line is most likely cut, unless it is the file's first.
    let cut = usize::from(start > 0);
    let keys: Result<Vec<Key>, _> = tail.lines().skip(cut).map(str::parse).collect();
    keys.with_context(|| format!("before byte {offset} of the order log {path:?}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn key(client: u64, seq: u64) -> Key {
        Key { client, seq }
    }

    fn log_with(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("orders.log");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    fn append(path: &Path, keys: &[Key]) -> u64 {
        let (sender, receiver) = mpsc::channel(keys.len());
        for key in keys {
            sender.try_send(*key).unwrap();
        }
        drop(sender);
        let durable = AtomicU64::new(0);
        Writer::open(path)
            .unwrap()
            .write_all(receiver, &durable)
            .unwrap();
        durable.into_inner()
    }

    #[test]
    fn a_torn_last_line_is_no_order_and_the_next_writer_cuts_it() {
        let (_folder, path) = log_with("1 1\n1 2\n1 3");
        let mut reader = Reader::open(&path, 0).unwrap();
        assert_eq!(reader.read(10).unwrap(), [key(1, 1), key(1, 2)]);
        assert_eq!(reader.offset(), 8);

        assert_eq!(append(&path, &[key(2, 1), key(2, 2)]), 2);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "1 1\n1 2\n2 1\n2 2\n");
    }

    #[test]
    fn a_log_that_is_one_torn_line_becomes_empty() {
        let (_folder, path) = log_with(&"9".repeat(10_000));
        drop(Writer::open(&path).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }

    #[test]
    fn a_log_has_one_writer() {
        let (_folder, path) = log_with("");
        let first = Writer::open(&path).unwrap();
        assert!(Writer::open(&path).is_err());
        drop(first);
        Writer::open(&path).unwrap();
    }

    #[test]
    fn reading_goes_on_where_it_stopped() {
        let (_folder, path) = log_with("1 1\n1 2\n");
        let mut reader = Reader::open(&path, 0).unwrap();
        assert_eq!(reader.read(1).unwrap(), [key(1, 1)]);
        let offset = reader.offset();
        append(&path, &[key(1, 3)]);
        let mut reader = Reader::open(&path, offset).unwrap();
        assert_eq!(reader.read(10).unwrap(), [key(1, 2), key(1, 3)]);
        assert_eq!(reader.read(10).unwrap(), []);
    }

    #[test]
    fn a_whole_line_that_is_no_key_is_an_error() {
        let (_folder, path) = log_with("1 1\nwhat\n");
        let error = Reader::open(&path, 0).unwrap().read(10).unwrap_err();
        assert!(error.to_string().contains("byte 4"), "{error}");
    }

    #[test]
    fn the_lines_before_an_offset() {
        let (_folder, path) = log_with("1 1\n1 2\n1 3\n");
        assert_eq!(lines_before(&path, 8, 100).unwrap(), [key(1, 1), key(1, 2)]);
        assert_eq!(lines_before(&path, 12, 6).unwrap(), [key(1, 3)]);
        assert_eq!(lines_before(&path, 0, 100).unwrap(), []);
        assert!(lines_before(&path, 7, 100).is_err(), "in a line");
        assert!(lines_before(&path, 16, 100).is_err(), "past the end");
    }
}
