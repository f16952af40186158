//! What happened, for people: numbered, kept in the store, followed live.
//!
//! Writing an event never delays what it tells of: callers hand it over and go on; one task writes in batches. The
//! queue is bounded; when it is full events are dropped and their number is told by the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use homeostat_api::v1::CellEvent;
use homeostat_store::{Op, Store, Txn, convenience};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc};

use crate::ControllerError;
use crate::clock::unix_ms;
use crate::core::encode;
use crate::keys;

const QUEUE: usize = 4096;
/// Events kept; older ones are deleted.
const KEEP: u64 = 20_000;
/// Events written in one transaction (a store takes 128 operations).
const BATCH: usize = 64;
/// A longer detail is left out: a batch of them must fit into what a store takes at once.
const LONGEST_DETAIL: usize = 16 * 1024;

/// The stored form, version 1: fields are only added.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    at_unix_ms: u64,
    about: String,
    kind: String,
    text: String,
    #[serde(default)]
    detail_json: String,
}

#[derive(Clone)]
pub(crate) struct EventLog {
    queue: mpsc::Sender<Stored>,
    live: broadcast::Sender<CellEvent>,
    dropped: Arc<AtomicU64>,
}

impl EventLog {
    pub(crate) async fn open(store: Arc<dyn Store>) -> Result<Self, ControllerError> {
        let items = convenience::list(&*store, keys::EVENTS).await?.items;
        let number = |key: &str| {
            key.strip_prefix(keys::EVENTS)
                .and_then(|text| text.parse::<u64>().ok())
        };
        let last = items.last().and_then(|item| number(&item.key)).unwrap_or(0);
        let first = items
            .first()
            .and_then(|item| number(&item.key))
            .unwrap_or(last + 1);
        let (queue, waiting) = mpsc::channel(QUEUE);
        let (live, _) = broadcast::channel(QUEUE);
        let log = Self {
            queue,
            live: live.clone(),
            dropped: Arc::default(),
        };
        tokio::spawn(write(
            store,
            waiting,
            live,
            first,
            last,
            Arc::clone(&log.dropped),
        ));
        Ok(log)
    }

    pub(crate) fn add(&self, kind: &str, about: impl Into<String>, text: impl Into<String>) {
        self.add_detailed(kind, about, text, String::new());
    }

    pub(crate) fn add_detailed(
        &self,
        kind: &str,
        about: impl Into<String>,
        text: impl Into<String>,
        detail_json: String,
    ) {
        let detail_json = if detail_json.len() > LONGEST_DETAIL {
            String::new()
        } else {
            detail_json
        };
        let event = Stored {
            at_unix_ms: unix_ms(),
            about: about.into(),
            kind: kind.into(),
            text: text.into(),
            detail_json,
        };
        if self.queue.try_send(event).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn follow(&self) -> broadcast::Receiver<CellEvent> {
        self.live.subscribe()
    }
}

async fn write(
    store: Arc<dyn Store>,
    mut waiting: mpsc::Receiver<Stored>,
    live: broadcast::Sender<CellEvent>,
    mut first: u64,
    mut last: u64,
    dropped: Arc<AtomicU64>,
) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, BATCH).await > 0 {
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            batch.push(Stored {
                at_unix_ms: unix_ms(),
                about: "cell".into(),
                kind: "events".into(),
                text: format!("{lost} events came too fast and were dropped"),
                detail_json: String::new(),
            });
        }
        let mut txn = Txn::new();
        let mut told = Vec::with_capacity(batch.len());
        for event in batch.drain(..) {
            last += 1;
            txn = txn.then(Op::put(keys::event(last), encode(&event)));
            told.push(wire(last, event));
        }
        while last - first >= KEEP && txn.then.len() < 2 * BATCH {
            txn = txn.then(Op::delete(keys::event(first)));
            first += 1;
        }
        if let Err(error) = store.txn(txn).await {
            eprintln!("events were not written: {error}");
        }
        // After they can be read: who subscribes and then reads what is kept misses nothing in between.
        for event in told {
            // Nobody listening is no error.
            drop(live.send(event));
        }
    }
}

fn wire(number: u64, event: Stored) -> CellEvent {
    CellEvent {
        number,
        at_unix_ms: event.at_unix_ms,
        about: event.about,
        kind: event.kind,
        text: event.text,
        detail_json: event.detail_json,
    }
}

/// Every kept event after number `after`, oldest first.
pub(crate) async fn read(store: &dyn Store, after: u64) -> Result<Vec<CellEvent>, ControllerError> {
    let items = convenience::list(store, keys::EVENTS).await?.items;
    Ok(items
        .into_iter()
        .filter_map(|item| {
            let number: u64 = item.key.strip_prefix(keys::EVENTS)?.parse().ok()?;
            (number > after).then_some(())?;
            Some(wire(number, serde_json::from_slice(&item.value).ok()?))
        })
        .collect())
}
