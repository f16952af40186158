//! The rules. Each gets an empty store.

mod data;
mod leases;
mod watches;

pub use data::*;
pub use leases::*;
pub use watches::*;

use std::sync::Arc;

use homeostat_store::{Event, Item, Outcome, Revision, Store, Txn, Watch, WatchBatch};

pub type Any = Arc<dyn Store>;

pub async fn commit(store: &Any, txn: Txn) -> Revision {
    let reply = store.txn(txn).await.unwrap();
    assert_eq!(reply.outcome, Outcome::Committed);
    reply.revision
}

pub fn texts(items: &[Item]) -> Vec<(&str, &str)> {
    items
        .iter()
        .map(|item| (item.key.as_str(), std::str::from_utf8(&item.value).unwrap()))
        .collect()
}

/// A batch as text: `7: +a=1 -b`.
pub fn told(batch: &WatchBatch) -> String {
    let mut text = format!("{}:", batch.revision);
    for event in &batch.events {
        match event {
            Event::Put(item) => {
                assert_eq!(item.mod_revision, batch.revision);
                text += &format!(" +{}={}", item.key, String::from_utf8_lossy(&item.value));
            }
            Event::Delete { key } => text += &format!(" -{key}"),
        }
    }
    text
}

pub async fn next(watch: &mut Watch) -> String {
    told(&watch.next().await.unwrap())
}
