//! What can go wrong, told apart by what the caller can do about it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use homeostat_model::Revision;

use crate::{LeaseId, limits};

type Source = Arc<dyn std::error::Error + Send + Sync>;

/// Why a request failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A mistake of the caller: the request is refused by every implementation, nothing was done.
    #[error("the store refuses this request")]
    Limit(#[from] LimitExceeded),
    /// The history asked for was forgotten. List the keys again, and watch from the revision after that reply's.
    #[error("the history asked for was compacted; the oldest revision still to be had is {oldest}")]
    Compacted {
        /// For a read the lowest revision that can be read, for a watch the lowest it can begin from.
        oldest: Revision,
    },
    #[error("revision {asked} has not happened yet; the store is at revision {current}")]
    FutureRevision { asked: Revision, current: Revision },
    /// It expired, was revoked, or never was. A transaction that names it did nothing.
    #[error("there is no lease {0}: it expired or was revoked")]
    LeaseNotFound(LeaseId),
    /// Nothing was changed and nothing is lost; works again once there is space.
    #[error(
        "no space left to write the store {store}: free some and go on (nothing was changed, nothing is lost)"
    )]
    DiskFull {
        store: String,
        #[source]
        source: Source,
    },
    /// Nothing was changed, and the store was opened anew.
    #[error("cannot write the store {store}")]
    WriteFailed {
        store: String,
        #[source]
        source: Source,
    },
    #[error("cannot read the store {store}")]
    ReadFailed {
        store: String,
        #[source]
        source: Source,
    },
    /// No server took the request, so it was not carried out. Try again later.
    #[error("the store {store} cannot be reached (tried for {tried_for:?})")]
    Unavailable {
        store: String,
        tried_for: Duration,
        #[source]
        source: Source,
    },
    /// The connection was lost, or the disk failed, between request and answer: it may or may not have been carried
    /// out. Read to find out; do not simply repeat a compare-and-set, it could refuse its own success.
    #[error("it is unknown whether the store {store} carried this out: read before trying again")]
    OutcomeUnknown {
        store: String,
        #[source]
        source: Source,
    },
    /// The server gave an answer that this program does not understand.
    #[error("the store {store} answered in a way not understood: {answer}")]
    Protocol { store: String, answer: String },
    /// The store was closed in this process.
    #[error("the store is closed")]
    Closed,
}

/// Which limit a request broke. The limits are etcd's and hold for every implementation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitExceeded {
    #[error(
        "a transaction may have {} {what} at most, not {count}",
        limits::OPERATIONS
    )]
    TooManyOperations { what: &'static str, count: usize },
    #[error(
        "the value of '{key}' has {bytes} bytes; {} at most",
        limits::VALUE_BYTES
    )]
    ValueTooLarge { key: String, bytes: usize },
    #[error(
        "the transaction has {bytes} bytes of keys and values; {} at most",
        limits::TXN_BYTES
    )]
    TxnTooLarge { bytes: usize },
    #[error("a key must not be empty")]
    EmptyKey,
    #[error("a key has {bytes} bytes; {} at most", limits::KEY_BYTES)]
    KeyTooLong { bytes: usize },
    #[error("a delete of everything (an empty prefix) is refused")]
    DeleteAll,
    #[error("a transaction may change '{key}' only once")]
    DuplicateKey { key: String },
    #[error(
        "a lease of {asked:?} is too short; {:?} at least",
        limits::SHORTEST_LEASE
    )]
    LeaseTooShort { asked: Duration },
    #[error(
        "a lease of {asked:?} is too long; {:?} at most",
        limits::LONGEST_LEASE
    )]
    LeaseTooLong { asked: Duration },
    #[error("revision {asked} is larger than any there can be")]
    RevisionTooLarge { asked: Revision },
}

/// Why a store could not be opened. Nothing was changed, whichever it is.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "the store {} is in use by another process{}: stop that one first, or choose another state folder",
        path.display(), holder.map_or(String::new(), |pid| format!(" (pid {pid})"))
    )]
    InUse { path: PathBuf, holder: Option<u32> },
    #[error(
        "the store {} has format {found} and was written by a newer homeostat; this one knows formats up to {known}: \
         use the newer one (nothing was changed)",
        path.display()
    )]
    NewerFormat {
        path: PathBuf,
        found: u64,
        known: u64,
    },
    #[error(
        "the store {} is damaged (truncated, overwritten, or not a store at all): {why}; restore it from a backup, or \
         move it away to begin with an empty one (nothing was changed)",
        path.display()
    )]
    Damaged { path: PathBuf, why: String },
    #[error("no space left to open the store {}: free some and try again (nothing is lost)", path.display())]
    DiskFull {
        path: PathBuf,
        #[source]
        source: Source,
    },
    #[error("cannot {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: Source,
    },
    /// Traffic to etcd is not encrypted yet, so it must not leave the machine.
    #[error(
        "the store's endpoint {endpoint} is not a loopback address; without TLS only those are allowed"
    )]
    NotLoopback { endpoint: std::net::SocketAddr },
    #[error("no endpoint of the store was given")]
    NoEndpoint,
}

/// Whether an error of the system means that there is no room: full disk, quota, or limit of the file size.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            true
        }
        // ErrorKind belongs to the standard library and is open-ended.
        _ => false,
    }
}
