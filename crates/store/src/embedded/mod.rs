//! The embedded store: our revisions, leases and watches on top of one redb file.
//!
//! ```text
//! callers ──(bounded queue)──> writer thread ──commit, fsync──> redb file
//!                                    │ after the commit             │
//!                                    └──(ring of news)──> watches <─┘ (the log, for who fell behind)
//! ```
//!
//! - **One thread writes** (`writer`). redb has one writer anyway; a thread of our own, rather than a task of the
//!   blocking pool for each request, keeps the order, owns the leases without a lock, never waits behind other blocking
//!   work, and gathers what arrived during one fsync into the next one. Reads run in the blocking pool, on snapshots,
//!   and wait for nobody.
//! - **A commit is two-phase** (two `fdatasync`): the file never depends on checksums to tell a finished commit from a
//!   torn one. Requests that arrive together share it.
//! - **Opening never changes a file it then refuses** (`open`): the file is first opened, repaired and checked with all
//!   writes going to memory.
//! - **The log is an undo log** (`tables`): each event holds what was there before, so the past is the present with
//!   events undone, and forgetting history is deleting its rows.

mod filled;
mod follow;
mod leases;
mod open;
mod overlay;
mod read;
mod tables;
mod writer;
mod writing;

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use homeostat_model::Revision;
use tokio::sync::{Semaphore, broadcast, oneshot};

use crate::{
    Keys, Lease, LeaseId, OpenError, RangeReply, Store, StoreError, Txn, TxnReply, Watch, limits,
};
use open::Shared;
use writer::{Body, News, Reply, Request};

/// Requests that wait for the writer; further callers wait for a place.
const QUEUE: usize = 256;
/// Revisions a watch may fall behind before it reads the log again.
const NEWS: usize = 128;

/// How an embedded store behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddedConfig {
    /// Revisions of history that are kept at least; a little more before it is cut.
    pub keep_revisions: u64,
}

impl EmbeddedConfig {
    /// Hours of history of a busy cell, in a file of a few MiB.
    pub const KEEP_REVISIONS: u64 = 10_000;
}

/// A store in one file on this machine, used by this process alone. Beside `FILE` there is `FILE.lock`, which belongs
/// to whoever has the store open and stays behind, harmless, when it is closed.
///
/// Dropping it finishes the requests that were taken, ends the watches with [`StoreError::Closed`] and closes the file.
/// That takes as long as a commit.
#[derive(Debug)]
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    news: broadcast::WeakSender<News>,
    places: Arc<Semaphore>,
    /// `None` only while dropping.
    requests: Option<mpsc::SyncSender<Request>>,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl EmbeddedStore {
    /// Opens the store in this file, or creates it when there is no such file. The folder must exist.
    ///
    /// The whole file is read and checked, so that everything later can trust it.
    ///
    /// # Errors
    /// [`OpenError`]; an existing file is then as it was.
    pub async fn open(path: impl AsRef<Path>, config: EmbeddedConfig) -> Result<Self, OpenError> {
        let path = path.as_ref().to_owned();
        let at = path.clone();
        tokio::task::spawn_blocking(move || Self::open_blocking(path, config))
            .await
            .unwrap_or_else(|e| {
                Err(OpenError::Io {
                    doing: "open the store",
                    path: at,
                    source: Arc::new(e),
                })
            })
    }

    fn open_blocking(path: PathBuf, config: EmbeddedConfig) -> Result<Self, OpenError> {
        let (shared, state) = open::open(&path)?;
        let shared = Arc::new(shared);
        let (news, _) = broadcast::channel(NEWS);
        let (requests, incoming) = mpsc::sync_channel(QUEUE);
        let weak = news.downgrade();
        let writer =
            writer::Writer::new(shared.clone(), incoming, news, state, config.keep_revisions);
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|e| OpenError::Io {
                doing: "start the writer of",
                path: path.clone(),
                source: Arc::new(e),
            })?;
        Ok(Self {
            shared,
            news: weak,
            places: Arc::new(Semaphore::new(QUEUE)),
            requests: Some(requests),
            writer: Some(writer),
        })
    }

    async fn ask<T>(&self, body: impl FnOnce(Reply<T>) -> Body) -> Result<T, StoreError> {
        let place = self
            .places
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or(StoreError::Closed)?;
        // The queue is as long as there are places, so this does not block.
        requests
            .send(Request {
                body: body(reply),
                _place: place,
            })
            .map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or_else(|source| {
            Err(StoreError::OutcomeUnknown {
                store: self.shared.name(),
                source: Arc::new(source),
            })
        })
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has said so on standard error.
            let _ = writer.join();
        }
    }
}

#[async_trait::async_trait]
impl Store for EmbeddedStore {
    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.shared.revision())
    }

    async fn range(&self, keys: Keys, at: Option<Revision>) -> Result<RangeReply, StoreError> {
        limits::check_keys(&keys)?;
        self.shared
            .clone()
            .read(move |db| read::range(db, &keys, at))
            .await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        limits::check_txn(&txn)?;
        self.ask(|reply| Body::Txn { txn, reply }).await
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        let seconds = limits::lease_seconds(ttl)?;
        self.ask(|reply| Body::Grant { seconds, reply }).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.ask(|reply| Body::KeepAlive { lease, reply }).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(|reply| Body::Revoke { lease, reply }).await
    }

    async fn watch(&self, keys: Keys, from: Revision) -> Result<Watch, StoreError> {
        limits::check_keys(&keys)?;
        limits::check_revision(from)?;
        // Subscribing comes before the first look into the log, so that nothing falls between the two.
        let news = self.news.upgrade().ok_or(StoreError::Closed)?.subscribe();
        let (sender, watch) = Watch::channel();
        tokio::spawn(follow::follow(
            Arc::downgrade(&self.shared),
            keys,
            from,
            news,
            sender,
        ));
        Ok(watch)
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        limits::check_revision(revision)?;
        self.ask(|reply| Body::Compact { revision, reply }).await
    }
}
