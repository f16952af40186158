//! One watch: a stream from whichever member answers, taken up again at another one where the last left off.

use std::sync::Arc;

use homeostat_model::Revision;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::endpoints::{Endpoints, Patience};
use super::wire::{self, mvccpb, pb};
use crate::watch::WatchSender;
use crate::{Event, Keys, StoreError, WatchBatch};

/// Why a stream stopped.
enum Stop {
    /// Nobody listens any more.
    Unwanted,
    /// The connection, or the member, is gone: go on elsewhere.
    Lost,
    Failed(StoreError),
}

/// A stream of a member. The member ends it when the sender of requests is dropped.
struct Stream {
    _requests: mpsc::Sender<pb::WatchRequest>,
    responses: Streaming<pb::WatchResponse>,
}

/// Feeds `consumer` until it is gone or there is an error to tell it.
pub(super) async fn follow(
    endpoints: Arc<Endpoints>,
    keys: Keys,
    from: Revision,
    consumer: WatchSender,
) {
    let mut next = from.max(Revision(1));
    let error = loop {
        match follow_on(&endpoints, &keys, &mut next, &consumer).await {
            Stop::Unwanted => return,
            // A stream that had begun: begin another, with new patience, but not in a busy loop.
            Stop::Lost => Patience::new(endpoints.retry_for()).pause().await,
            Stop::Failed(error) => break error,
        }
    };
    // If the consumer is gone by now there is nobody to tell.
    drop(consumer.send(Err(error)).await);
}

/// Finds a member and follows it for as long as it lasts.
async fn follow_on(
    endpoints: &Endpoints,
    keys: &Keys,
    next: &mut Revision,
    consumer: &WatchSender,
) -> Stop {
    let mut patience = Patience::new(endpoints.retry_for());
    loop {
        let (number, channel) = endpoints.pick();
        let begun = tokio::select! {
            begun = tokio::time::timeout(endpoints.request_timeout(), begin(wire::watch_client(channel), keys, *next)) => {
                begun.unwrap_or_else(|_| Err(Status::deadline_exceeded("the watch was not created in time")))
            }
            () = consumer.closed() => return Stop::Unwanted,
        };
        match begun {
            Ok(stream) => {
                let stop = pass_on(endpoints, stream, next, consumer).await;
                if let Stop::Lost = &stop {
                    endpoints.avoid(number);
                }
                return stop;
            }
            Err(status) if patience.is_over() => {
                return Stop::Failed(endpoints.unavailable(status));
            }
            Err(_) => {
                endpoints.avoid(number);
                patience.pause().await;
            }
        }
    }
}

/// Opens a stream and waits until the member has taken it.
async fn begin(
    mut client: pb::watch_client::WatchClient<tonic::transport::Channel>,
    keys: &Keys,
    next: Revision,
) -> Result<Stream, Status> {
    let (requests, receiver) = mpsc::channel(1);
    requests
        .send(wire::watch_request(keys, next))
        .await
        .map_err(|_| Status::internal("the request was not sent"))?;
    let responses = client
        .watch(ReceiverStream::new(receiver))
        .await?
        .into_inner();
    let mut stream = Stream {
        _requests: requests,
        responses,
    };
    match stream.responses.message().await? {
        Some(response) if response.created && !response.canceled => Ok(stream),
        Some(_) | None => Err(Status::unavailable("the watch was not created")),
    }
}

async fn pass_on(
    endpoints: &Endpoints,
    mut stream: Stream,
    next: &mut Revision,
    consumer: &WatchSender,
) -> Stop {
    loop {
        let message = tokio::select! {
            message = stream.responses.message() => message,
            () = consumer.closed() => return Stop::Unwanted,
        };
        let response = match message {
            Ok(Some(response)) => response,
            Ok(None) | Err(_) => return Stop::Lost,
        };
        if response.canceled {
            return canceled(endpoints, &response);
        }
        if response.events.is_empty() {
            // A sign of progress: nothing of ours up to this revision.
            match endpoints.revision(response.header) {
                Ok(revision) => *next = (*next).max(revision.next()),
                Err(error) => return Stop::Failed(error),
            }
            continue;
        }
        let Some(batches) = batches(response.events, *next) else {
            return Stop::Failed(
                endpoints.not_understood(&"an event without a key, or one that is not UTF-8"),
            );
        };
        for batch in batches {
            *next = batch.revision.next();
            if consumer.send(Ok(batch)).await.is_err() {
                return Stop::Unwanted;
            }
        }
    }
}

fn canceled(endpoints: &Endpoints, response: &pb::WatchResponse) -> Stop {
    match wire::revision(response.compact_revision) {
        Some(compacted) if compacted > Revision(0) => Stop::Failed(StoreError::Compacted {
            oldest: compacted.next(),
        }),
        Some(_) | None => Stop::Failed(endpoints.not_understood(&response.cancel_reason)),
    }
}

/// One batch per revision, from `next` on. etcd keeps the events of a revision together and in order.
fn batches(events: Vec<mvccpb::Event>, next: Revision) -> Option<Vec<WatchBatch>> {
    let mut batches: Vec<WatchBatch> = Vec::new();
    for event in events {
        let (revision, event): (Revision, Event) = wire::event(event)?;
        if revision < next {
            continue;
        }
        match batches.last_mut() {
            Some(batch) if batch.revision == revision => batch.events.push(event),
            Some(_) | None => batches.push(WatchBatch {
                revision,
                events: vec![event],
            }),
        }
    }
    Some(batches)
}

/// The oldest revision that can be read, which etcd tells only to a watch from an older one.
pub(super) async fn compacted_revision(
    endpoints: &Arc<Endpoints>,
    asked: Revision,
) -> Result<Revision, StoreError> {
    let (sender, mut watch) = crate::Watch::channel();
    // One key that is surely never written is enough: what matters is where it begins.
    let following = tokio::spawn(follow(endpoints.clone(), Keys::one("\0"), asked, sender));
    let error = watch.next().await;
    following.abort();
    match error {
        Err(StoreError::Compacted { oldest }) => Ok(Revision(oldest.0 - 1)),
        Err(error) => Err(error),
        Ok(_) => Err(endpoints.not_understood(&"an event where history was compacted")),
    }
}
