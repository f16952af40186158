//! Opening the file, first and again, and sharing it with readers.
//!
//! The order matters, and no step before the last changes an existing file:
//!
//! 1. take `FILE.lock` (a lock of the kernel's: it ends with its process, however that dies);
//! 2. if there is no file, build one as `FILE.new` and rename it: a file of our name is always a whole store, so an
//!    empty or cut one is damage and never "a new store";
//! 3. open the file through an overlay that keeps writes in memory, repair and check every page, read the format;
//! 4. only then open it for real.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

use homeostat_model::Revision;
use redb::{Builder, Database, DatabaseError, ReadableDatabase, StorageError};

use super::filled::Filled;
use super::overlay::Overlay;
use super::read::ReadError;
use super::tables::{CURRENT, FORMAT, LEASES, LOG, META, meta, number};
use super::writing::State;
use crate::error::is_no_space;
use crate::{OpenError, StoreError};

/// Memory for pages. A cell's store is a few MiB; beyond this the kernel's cache serves.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// The file, open: what the writer, readers and watches share.
#[derive(Debug)]
pub(super) struct Shared {
    path: PathBuf,
    /// The database, or why it is closed at the moment.
    opened: RwLock<Result<Database, StoreError>>,
    /// The revision of the last durable change.
    revision: AtomicU64,
    /// Held for as long as the store is open; its `Drop` releases the lock.
    _lock: File,
}

impl Shared {
    /// What errors call it.
    pub(super) fn name(&self) -> String {
        self.path.display().to_string()
    }

    pub(super) fn revision(&self) -> Revision {
        Revision(self.revision.load(Ordering::Acquire))
    }

    pub(super) fn set_revision(&self, revision: Revision) {
        self.revision.store(revision.0, Ordering::Release);
    }

    pub(super) fn opened(&self) -> RwLockReadGuard<'_, Result<Database, StoreError>> {
        self.opened.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the file is closed, if it is.
    pub(super) fn failure(&self) -> Option<StoreError> {
        self.opened().as_ref().err().cloned()
    }

    /// Runs a read in the pool for blocking work.
    pub(super) async fn read<T: Send + 'static>(
        self: Arc<Self>,
        work: impl FnOnce(&Database) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.name();
        tokio::task::spawn_blocking(move || {
            let opened = self.opened();
            let db = opened.as_ref().map_err(Clone::clone)?;
            work(db).map_err(|error| match error {
                ReadError::Refused(error) => error,
                ReadError::File(error) => StoreError::ReadFailed {
                    store: self.name(),
                    source: Arc::new(error),
                },
            })
        })
        .await
        .unwrap_or_else(|source| {
            Err(StoreError::ReadFailed {
                store,
                source: Arc::new(source),
            })
        })
    }

    /// Closes the file and opens it again, after a failed write. Waits for the reads that are under way.
    pub(super) fn reopen(&self) -> Result<State, StoreError> {
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        // The old database has to be closed before the new one is opened.
        *opened = Err(StoreError::Closed);
        let again = open_database(&self.path)
            .map_err(reason)
            .and_then(|db| Ok((State::load(&db, Instant::now())?, db)))
            .map_err(|error| self.write_error(error));
        match again {
            Ok((state, db)) => {
                *opened = Ok(db);
                Ok(state)
            }
            Err(error) => {
                *opened = Err(error.clone());
                Err(error)
            }
        }
    }

    pub(super) fn write_error(&self, error: redb::Error) -> StoreError {
        let store = self.name();
        match &error {
            redb::Error::Io(io) if is_no_space(io) => StoreError::DiskFull {
                store,
                source: Arc::new(error),
            },
            // redb's enum is open-ended; all else is a write that failed.
            _ => StoreError::WriteFailed {
                store,
                source: Arc::new(error),
            },
        }
    }
}

/// Opens or creates the store in this file.
pub(super) fn open(path: &Path) -> Result<(Shared, State), OpenError> {
    let lock = lock(path)?;
    match path.try_exists() {
        Ok(true) => {}
        Ok(false) => create(path)?,
        Err(e) => return Err(io_error("look for", path, e)),
    }
    inspect(path)?;
    let db = open_database(path).map_err(|e| open_error(path, reason(e)))?;
    let state = State::load(&db, Instant::now()).map_err(|e| open_error(path, e))?;
    let shared = Shared {
        path: path.to_owned(),
        opened: RwLock::new(Ok(db)),
        revision: AtomicU64::new(state.revision.0),
        _lock: lock,
    };
    Ok((shared, state))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Takes the lock and leaves our pid in it for whoever comes second.
fn lock(path: &Path) -> Result<File, OpenError> {
    let beside = beside(path, ".lock");
    let failed = |e| io_error("lock", &beside, e);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&beside)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Whether or not it can be read, the store is in use.
            let _ = file.read_to_string(&mut pid);
            return Err(OpenError::InUse {
                path: path.to_owned(),
                holder: pid.trim().parse().ok(),
            });
        }
        Err(TryLockError::Error(e)) => return Err(failed(e)),
    }
    file.set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| writeln!(file, "{}", std::process::id()))
        .map_err(failed)?;
    Ok(file)
}

/// Builds an empty store aside and gives it its name when it is whole and on disk.
fn create(path: &Path) -> Result<(), OpenError> {
    let new = beside(path, ".new");
    let failed = |e| io_error("create", &new, e);
    // What a crash in the middle of this left; we hold the lock.
    match std::fs::remove_file(&new) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
    }
    let built = build(&new).map_err(|e| open_error(&new, e)).and_then(|()| {
        std::fs::rename(&new, path).map_err(failed)?;
        let folder = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|e| io_error("sync", folder, e))
    });
    if built.is_err() {
        // Best effort: the error that matters is already on its way.
        let _ = std::fs::remove_file(&new);
    }
    built
}

fn build(path: &Path) -> Result<(), redb::Error> {
    // What is kept includes passwords.
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let db = Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(Filled::open(path)?)?;
    let mut write = db.begin_write()?;
    write.set_two_phase_commit(true);
    {
        let mut numbers = write.open_table(META)?;
        numbers.insert(meta::FORMAT, FORMAT)?;
        for (name, value) in [
            (meta::REVISION, 1),
            (meta::COMPACTED, 0),
            (meta::LAST_LEASE, 0),
            (meta::COMMITS, 0),
        ] {
            numbers.insert(name, value)?;
        }
        write.open_table(CURRENT)?;
        write.open_table(LOG)?;
        write.open_table(LEASES)?;
    }
    write.commit()?;
    db.close()?;
    File::open(path)?.sync_all()?;
    Ok(())
}

/// Finds out whether the file is a store that this program can use, without changing it.
fn inspect(path: &Path) -> Result<(), OpenError> {
    let file = File::open(path).map_err(|e| io_error("open", path, e))?;
    if file
        .metadata()
        .map_err(|e| io_error("look at", path, e))?
        .len()
        == 0
    {
        return Err(OpenError::Damaged {
            path: path.to_owned(),
            why: "it is empty".to_owned(),
        });
    }
    let overlay = Overlay::new(file).map_err(|e| io_error("look at", path, e))?;
    // redb checks what it reads, yet says that a file altered by others may make it panic.
    let found = catch_unwind(AssertUnwindSafe(|| {
        let db = Builder::new()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .create_with_backend(overlay)
            .map_err(reason)?;
        let format = number(&db.begin_read()?.open_table(META)?, meta::FORMAT)?;
        if format == FORMAT {
            State::load(&db, Instant::now())?;
        }
        Ok::<_, redb::Error>(format)
    }));
    match found {
        Ok(Ok(FORMAT)) => Ok(()),
        Ok(Ok(found)) if found > FORMAT => Err(OpenError::NewerFormat {
            path: path.to_owned(),
            found,
            known: FORMAT,
        }),
        Ok(Ok(found)) => Err(OpenError::Damaged {
            path: path.to_owned(),
            why: format!("format {found} never was"),
        }),
        Ok(Err(error)) => Err(open_error(path, error)),
        Err(_) => Err(OpenError::Damaged {
            path: path.to_owned(),
            why: "its pages contradict each other".to_owned(),
        }),
    }
}

/// Opens an existing store for real. redb would take an empty file for a new database; to us it is a cut one.
fn open_database(path: &Path) -> Result<Database, DatabaseError> {
    let file = Filled::open(path)?;
    if file.is_empty()? {
        return Err(DatabaseError::Storage(StorageError::Corrupted(
            "it is empty".to_owned(),
        )));
    }
    Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(file)
}

fn reason(error: DatabaseError) -> redb::Error {
    error.into()
}

fn io_error(doing: &'static str, path: &Path, error: std::io::Error) -> OpenError {
    if is_no_space(&error) {
        OpenError::DiskFull {
            path: path.to_owned(),
            source: Arc::new(error),
        }
    } else {
        OpenError::Io {
            doing,
            path: path.to_owned(),
            source: Arc::new(error),
        }
    }
}

/// Sorts redb's errors at opening: what the system said, and what the file's contents say.
fn open_error(path: &Path, error: redb::Error) -> OpenError {
    match error {
        redb::Error::DatabaseAlreadyOpen => OpenError::InUse {
            path: path.to_owned(),
            holder: None,
        },
        redb::Error::Io(e) if matches!(e.kind(), std::io::ErrorKind::UnexpectedEof) => {
            OpenError::Damaged {
                path: path.to_owned(),
                why: "it ends before its data does".to_owned(),
            }
        }
        redb::Error::Io(e) if matches!(e.kind(), std::io::ErrorKind::InvalidData) => {
            OpenError::Damaged {
                path: path.to_owned(),
                why: e.to_string(),
            }
        }
        redb::Error::Io(e) => io_error("open", path, e),
        // redb's enum is open-ended; all else is about what the file contains.
        error => OpenError::Damaged {
            path: path.to_owned(),
            why: error.to_string(),
        },
    }
}
