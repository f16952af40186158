//! The store: what the cell remembers, behind one trait with etcd's shape.
//!
//! Everything a controller must not forget is a key in a [`Store`]: records of clusters, journals of operations,
//! placements, the leader's key. All of it moves by compare-and-set on modification revisions, so that a program which
//! was asleep, or is a copy of another, changes nothing it has not seen; and every change is an event that a watcher
//! can follow from any revision it has read, without a gap.
//!
//! There are two implementations, and one conformance file (`tests/conformance.rs`) that both pass:
//!
//! - [`EmbeddedStore`]: one redb file, the default of `homeostat up`, for one machine. One process holds it.
//! - [`EtcdStore`] (feature `etcd`): an etcd cluster, for several machines and several controllers. We have no
//!   consensus protocol of our own.
//!
//! etcd's limits hold on both, checked by the same code before anything is sent ([`limits`]): what works on one
//! machine must not be refused on three.
//!
//! What the trait promises:
//!
//! - A transaction is atomic, isolated and, once answered, durable. All its events carry one revision.
//! - Revisions start at 1 for an empty store and rise by one with each transaction that changed something. They never
//!   go back, restarts and crashes included.
//! - A caller that stops waiting for an answer does not undo its request: the outcome is then *unknown*, exactly as
//!   with [`StoreError::OutcomeUnknown`], and has to be found out by reading.
//! - A lease that expires deletes its keys; it proves nothing about whoever held it.
//!
//! What is deliberately absent: values have no meaning here (callers version their own records), there are no
//! comparisons by value, and no reads inside a transaction: read, decide, compare-and-set.

pub mod convenience;
mod embedded;
mod error;
#[cfg(feature = "etcd")]
mod etcd;
pub mod limits;
mod types;
mod watch;

use std::time::Duration;

pub use embedded::{EmbeddedConfig, EmbeddedStore};
pub use error::{LimitExceeded, OpenError, StoreError};
#[cfg(feature = "etcd")]
pub use etcd::{EtcdConfig, EtcdStore};
pub use homeostat_model::Revision;
pub use types::{
    Compare, Event, Expect, Item, Keys, Lease, LeaseId, Op, Outcome, RangeReply, Txn, TxnReply,
    WatchBatch,
};
pub use watch::Watch;

/// What the cell remembers. See the crate's documentation for what holds for all methods.
///
/// Every method refuses what breaks a limit with [`StoreError::Limit`] before doing anything.
#[async_trait::async_trait]
pub trait Store: Send + Sync + 'static {
    /// The revision of the last change.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Closed`].
    async fn revision(&self) -> Result<Revision, StoreError>;

    /// Reads keys, in ascending order of their bytes: as they are now, or as they were at revision `at`.
    ///
    /// The reply's revision is the store's revision at the time of the read (not `at`): a watch from the one after it
    /// misses nothing.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when `at` is older than what is kept, [`StoreError::FutureRevision`] when there has
    /// not been one yet; otherwise as [`Store::revision`].
    async fn range(&self, keys: Keys, at: Option<Revision>) -> Result<RangeReply, StoreError>;

    /// Carries out `then` if all comparisons hold and `otherwise` if not, atomically and durably.
    ///
    /// # Errors
    /// [`StoreError::LeaseNotFound`] when an operation that would run names an unknown lease (nothing is done then);
    /// [`StoreError::DiskFull`], [`StoreError::WriteFailed`] (nothing was done); [`StoreError::OutcomeUnknown`].
    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError>;

    /// Creates a lease. Its time limit is `ttl` rounded up to whole seconds, [`limits::SHORTEST_LEASE`] at least.
    ///
    /// # Errors
    /// As [`Store::txn`].
    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError>;

    /// Starts the lease's time anew and returns how long that is.
    ///
    /// # Errors
    /// [`StoreError::LeaseNotFound`] when it has expired or was revoked; otherwise as [`Store::revision`].
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError>;

    /// Ends a lease and deletes its keys, in one revision.
    ///
    /// # Errors
    /// [`StoreError::LeaseNotFound`]; otherwise as [`Store::txn`].
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Follows the changes of these keys from revision `from` on (which may be in the future): each revision once, whole
    /// and in order, however slow the caller reads.
    ///
    /// The stream ends with an error, and only so: [`StoreError::Compacted`] when `from`, or what a slow caller has
    /// yet to read, is no longer kept (list again, and watch from the revision after that reply's);
    /// [`StoreError::Closed`] or [`StoreError::Unavailable`] when the store went away.
    ///
    /// # Errors
    /// [`StoreError::Limit`] for a bad key.
    async fn watch(&self, keys: Keys, from: Revision) -> Result<Watch, StoreError>;

    /// Forgets history: afterwards reads at revisions lower than `revision`, and watches from `revision` or lower, are
    /// refused as [`StoreError::Compacted`]. Current values are not touched. Doing it again is no error.
    ///
    /// # Errors
    /// [`StoreError::FutureRevision`]; otherwise as [`Store::txn`].
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;
}
