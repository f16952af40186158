//! One watch: first the log, then the news as the writer tells it, and the log again whenever the ring of news has
//! moved on without us. The task ends with its consumer, with the store, or with history that is gone.

use std::sync::Weak;

use homeostat_model::Revision;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::open::Shared;
use super::read::{self, End};
use super::writer::News;
use crate::watch::WatchSender;
use crate::{Event, Keys, StoreError, WatchBatch};

/// Why following stopped.
enum Stop {
    /// Nobody listens any more.
    Unwanted,
    Failed(StoreError),
}

/// Feeds `consumer` until it is gone or there is an error to tell it.
///
/// Holds the store weakly: a forgotten watch must not keep the file open.
pub(super) async fn follow(
    shared: Weak<Shared>,
    keys: Keys,
    from: Revision,
    mut news: broadcast::Receiver<News>,
    consumer: WatchSender,
) {
    // Revision 0 never happened.
    let mut next = from.max(Revision(1));
    let stop = loop {
        if let Err(stop) = read_log(&shared, &keys, &mut next, &consumer).await {
            break stop;
        }
        if let Err(stop) = read_news(&mut news, &keys, &mut next, &consumer).await {
            break stop;
        }
    };
    match stop {
        Stop::Unwanted => {}
        // If the consumer is gone by now there is nobody to tell.
        Stop::Failed(error) => drop(consumer.send(Err(error)).await),
    }
}

/// Brings the consumer up to the end of the log.
async fn read_log(
    shared: &Weak<Shared>,
    keys: &Keys,
    next: &mut Revision,
    consumer: &WatchSender,
) -> Result<(), Stop> {
    loop {
        let store = shared.upgrade().ok_or(Stop::Failed(StoreError::Closed))?;
        let (wanted, from) = (keys.clone(), *next);
        let chunk = store
            .read(move |db| read::log(db, &wanted, from))
            .await
            .map_err(Stop::Failed)?;
        for batch in chunk.batches {
            deliver(consumer, batch).await?;
        }
        *next = chunk.next;
        match chunk.end {
            End::Reached => return Ok(()),
            End::More => {}
        }
    }
}

/// Passes news on until some were missed.
async fn read_news(
    news: &mut broadcast::Receiver<News>,
    keys: &Keys,
    next: &mut Revision,
    consumer: &WatchSender,
) -> Result<(), Stop> {
    loop {
        let told = tokio::select! {
            told = news.recv() => told,
            () = consumer.closed() => return Err(Stop::Unwanted),
        };
        match told {
            // The log had it already, or the watch begins later.
            Ok(News::Committed(batch)) if batch.revision < *next => {}
            Ok(News::Committed(batch)) if batch.revision == *next => {
                let events: Vec<Event> = batch
                    .events
                    .iter()
                    .filter(|e| keys.contains(e.key()))
                    .cloned()
                    .collect();
                if !events.is_empty() {
                    deliver(
                        consumer,
                        WatchBatch {
                            revision: batch.revision,
                            events,
                        },
                    )
                    .await?;
                }
                *next = next.next();
            }
            Ok(News::Committed(_) | News::LookAgain) | Err(RecvError::Lagged(_)) => return Ok(()),
            Err(RecvError::Closed) => return Err(Stop::Failed(StoreError::Closed)),
        }
    }
}

async fn deliver(consumer: &WatchSender, batch: WatchBatch) -> Result<(), Stop> {
    consumer.send(Ok(batch)).await.map_err(|_| Stop::Unwanted)
}
