//! `targets.json`: how a restarted forwarder, with no controller to ask, knows where its services are.
//!
//! Two failures, two steps. The *process* may die at any moment: so the file is replaced before a record is acted on,
//! which costs microseconds and survives every death of a process. The *machine* may lose power: so the file is
//! synced before the order is answered, in a thread of its own, because a sync may take longer than every other thing
//! this process does and clients must not wait for it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use super::protocol::Durability;
use super::table::{FORMAT, Table};
use crate::run::{RunError, load_json, store_json};

const FILE: &str = "targets.json";
/// The thread calls fsync twice and writes a few bytes.
const STACK: usize = 64 * 1024;

pub(super) struct Disk {
    folder: PathBuf,
    /// A place for one: a request that finds it full is served by the sync that has not begun yet.
    ask: SyncSender<()>,
    /// How often the file was stored.
    stored: Arc<AtomicU64>,
    /// A line for each finished sync: the number of stores that it covers, and `!` and its error if it failed.
    done: io::PipeReader,
}

/// A sync that ended: everything up to this store is on the disk, or is not.
pub(super) struct Synced {
    pub upto: u64,
    pub durability: Durability,
}

/// What was remembered.
pub(super) enum Remembered {
    Table(Table),
    /// Nothing, and why that is news.
    Lost(String),
}

impl Disk {
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let (ask, asked) = sync_channel(1);
        let (done, report) = io::pipe()?;
        rustix::io::ioctl_fionbio(&done, true)?;
        let stored = Arc::new(AtomicU64::new(0));
        let thread_folder = folder.to_owned();
        let thread_stored = Arc::clone(&stored);
        std::thread::Builder::new()
            .name("sync".to_owned())
            .stack_size(STACK)
            .spawn(move || sync_on_demand(&thread_folder, &thread_stored, &asked, report))?;
        Ok(Self {
            folder: folder.to_owned(),
            ask,
            stored,
            done,
        })
    }

    /// What the predecessor knew. A file that cannot be read is put aside: the agent, which connects next, knows too.
    ///
    /// # Errors
    /// When it has a newer format (it must not be overwritten) or cannot be put aside.
    pub(super) fn load(&self) -> Result<Remembered, RunError> {
        let path = self.folder.join(FILE);
        match load_json(&path, FORMAT) {
            Ok(table) => Ok(Remembered::Table(table.unwrap_or_else(Table::new))),
            Err(RunError::Malformed { path, source }) => {
                let aside = path.with_extension("bad");
                std::fs::rename(&path, &aside).map_err(RunError::io("put aside", &path))?;
                let why = format!("{} was unreadable ({source})", path.display());
                Ok(Remembered::Lost(why))
            }
            Err(
                error @ (RunError::Io { .. } | RunError::Newer { .. } | RunError::Locked { .. }),
            ) => Err(error),
        }
    }

    /// Replaces the file, and asks for a sync. Says under which number it will be reported.
    pub(super) fn store(&self, table: &Table) -> Result<u64, RunError> {
        let path = self.folder.join(FILE);
        store_json(&path, table)?;
        let number = self.stored.fetch_add(1, Ordering::SeqCst) + 1;
        match self.ask.try_send(()) {
            Ok(()) | Err(TrySendError::Full(())) => Ok(number),
            Err(TrySendError::Disconnected(())) => {
                let ended = io::Error::other("the sync thread ended");
                Err(RunError::io("sync", &path)(ended))
            }
        }
    }

    /// Readable when a sync has ended.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }

    /// The last sync that ended since this was asked.
    pub(super) fn ended(&mut self) -> Option<Synced> {
        let mut text = Vec::new();
        let mut piece = [0u8; 512];
        // Lines are shorter than what a pipe takes at once, so only whole ones arrive.
        while let Ok(n @ 1..) = self.done.read(&mut piece) {
            text.extend_from_slice(&piece[..n]);
        }
        let text = String::from_utf8_lossy(&text);
        let last = text.lines().last()?;
        let (number, error) = match last.split_once('!') {
            Some((number, error)) => (number, Some(error)),
            None => (last, None),
        };
        Some(Synced {
            upto: number.parse().ok()?,
            durability: match error {
                Some(why) => Durability::Failed {
                    why: why.to_owned(),
                },
                None => Durability::Synced,
            },
        })
    }
}

/// Ends when the forwarder drops its side.
fn sync_on_demand(
    folder: &Path,
    stored: &AtomicU64,
    asked: &Receiver<()>,
    mut report: io::PipeWriter,
) {
    while asked.recv().is_ok() {
        let upto = stored.load(Ordering::SeqCst);
        let synced = File::open(folder.join(FILE))
            .and_then(|file| file.sync_all())
            .and_then(|()| File::open(folder)?.sync_all());
        let line = match synced {
            Ok(()) => format!("{upto}\n"),
            Err(error) => format!("{upto}!{}\n", error.to_string().replace('\n', " ")),
        };
        if report.write_all(line.as_bytes()).is_err() {
            return;
        }
    }
}
