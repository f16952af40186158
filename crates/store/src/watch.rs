//! The consumer's end of a watch. A task of the implementation feeds it through a short queue; when the consumer is
//! slow the feeder waits and later reads what it missed from the log, so no consumer costs more memory than its queue.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use tokio_stream::Stream;

use crate::{StoreError, WatchBatch};

/// Batches that wait for a slow consumer.
const QUEUE: usize = 16;

pub(crate) type WatchSender = mpsc::Sender<Result<WatchBatch, StoreError>>;

/// The changes of some keys, in order; see [`Store::watch`](crate::Store::watch). Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    receiver: mpsc::Receiver<Result<WatchBatch, StoreError>>,
}

impl Watch {
    pub(crate) fn channel() -> (WatchSender, Self) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (sender, Self { receiver })
    }

    /// The next revision's changes. Cancelling the wait loses nothing.
    ///
    /// # Errors
    /// Why the watch is over; the next call then returns [`StoreError::Closed`].
    pub async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        self.receiver
            .recv()
            .await
            .unwrap_or(Err(StoreError::Closed))
    }
}

impl Stream for Watch {
    type Item = Result<WatchBatch, StoreError>;

    /// As [`Watch::next`], except that after the error the stream is over (`None`).
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(cx)
    }
}
