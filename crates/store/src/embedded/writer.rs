//! The thread that writes. It takes what has arrived, carries it all out in one redb transaction, commits, tells the
//! watches, and answers: in this order, so that an answer is never about something that could still be lost.
//!
//! After a failed commit redb takes no more writes, and it is not known whether the commit reached the disk. So the
//! file is closed and opened anew (this process keeps the lock all the while), and the counter of commits in it tells:
//! the callers get a definite answer, and a disk that has room again is all it takes to go on.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use homeostat_model::Revision;
use tokio::sync::{OwnedSemaphorePermit, broadcast, oneshot};

use super::open::Shared;
use super::writing::{Changes, State, Writing};
use crate::{Lease, LeaseId, StoreError, Txn, TxnReply, WatchBatch};

/// Requests that share one commit at most: bounds how long the first of them waits.
const TOGETHER: usize = 64;
/// How long a failing disk is left alone before leases are expired again.
const RETRY: Duration = Duration::from_secs(1);

pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) struct Request {
    pub(super) body: Body,
    /// The request's place in the queue, free again when it was taken up.
    pub(super) _place: OwnedSemaphorePermit,
}

pub(super) enum Body {
    Txn {
        txn: Txn,
        reply: Reply<TxnReply>,
    },
    Grant {
        seconds: u64,
        reply: Reply<Lease>,
    },
    KeepAlive {
        lease: LeaseId,
        reply: Reply<Duration>,
    },
    Revoke {
        lease: LeaseId,
        reply: Reply<()>,
    },
    Compact {
        revision: Revision,
        reply: Reply<()>,
    },
}

/// What the watches are told.
#[derive(Debug, Clone)]
pub(super) enum News {
    /// This is durable now. Revisions come one by one.
    Committed(Arc<WatchBatch>),
    /// The file was opened anew: there may be more in the log than was told.
    LookAgain,
}

/// Answers one request once it is known what became of the commit: `None` when it is durable.
type Settle = Box<dyn FnOnce(Option<&StoreError>)>;

pub(super) struct Writer {
    shared: Arc<Shared>,
    requests: Receiver<Request>,
    news: broadcast::Sender<News>,
    state: State,
    keep_revisions: u64,
    /// Not before this are due leases looked at again.
    patience: Option<Instant>,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        requests: Receiver<Request>,
        news: broadcast::Sender<News>,
        state: State,
        keep_revisions: u64,
    ) -> Self {
        Self {
            shared,
            requests,
            news,
            state,
            keep_revisions,
            patience: None,
        }
    }

    /// Serves until nobody can ask any more.
    pub(super) fn run(mut self) {
        while let Some(requests) = self.wait() {
            self.serve(requests);
        }
    }

    /// Waits for requests, or for the next lease to be due (then there may be none). `None`: the store is closed.
    fn wait(&self) -> Option<Vec<Body>> {
        let wake = self
            .state
            .leases
            .next_due()
            .map(|due| self.patience.map_or(due, |patience| due.max(patience)));
        let first = match wake {
            None => Some(self.requests.recv().ok()?),
            Some(at) => match self
                .requests
                .recv_timeout(at.saturating_duration_since(Instant::now()))
            {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return None,
            },
        };
        let more = self.requests.try_iter().take(TOGETHER - 1);
        Some(
            first
                .into_iter()
                .chain(more)
                .map(|request| request.body)
                .collect(),
        )
    }

    fn serve(&mut self, requests: Vec<Body>) {
        let mut settle = Vec::with_capacity(requests.len());
        let done = self.commit(requests, &mut settle);
        let failure = match done {
            Ok(news) => {
                self.patience = None;
                self.publish(news);
                None
            }
            Err(failure) => {
                self.patience = Some(Instant::now() + RETRY);
                Some(failure)
            }
        };
        for settle in settle {
            settle(failure.as_ref());
        }
    }

    /// Tells everybody what is durable now.
    fn publish(&self, news: Vec<Arc<WatchBatch>>) {
        self.shared.set_revision(self.state.revision);
        for batch in news {
            // Nobody watching is no error.
            let _ = self.news.send(News::Committed(batch));
        }
    }

    fn commit(
        &mut self,
        requests: Vec<Body>,
        settle: &mut Vec<Settle>,
    ) -> Result<Vec<Arc<WatchBatch>>, StoreError> {
        if self.shared.failure().is_some() {
            // An earlier failure left the file closed. Try that again first.
            let reopened = self.shared.reopen();
            match reopened {
                Ok(state) => self.state = state,
                Err(failure) => {
                    settle.extend(requests.into_iter().map(postponed));
                    return Err(failure);
                }
            }
            self.shared.set_revision(self.state.revision);
            let _ = self.news.send(News::LookAgain);
        }
        let before = self.state.commits;
        let mut news = Vec::new();
        let tried = self.attempt(requests, settle, &mut news);
        let Err(error) = tried else { return Ok(news) };
        let failure = self.shared.write_error(error);
        match self.shared.reopen() {
            Ok(state) => {
                self.state = state;
                if self.state.commits > before {
                    Ok(news)
                } else {
                    Err(failure)
                }
            }
            Err(_) => Err(StoreError::OutcomeUnknown {
                store: self.shared.name(),
                source: Arc::new(failure),
            }),
        }
    }

    /// Carries out all requests in one transaction. Every request is in `settle` afterwards, also on failure.
    fn attempt(
        &mut self,
        requests: Vec<Body>,
        settle: &mut Vec<Settle>,
        news: &mut Vec<Arc<WatchBatch>>,
    ) -> Result<(), redb::Error> {
        let opened = self.shared.opened();
        let db = match &*opened {
            Ok(db) => db,
            Err(_) => {
                settle.extend(requests.into_iter().map(postponed));
                return Err(redb::Error::DatabaseClosed);
            }
        };
        let mut requests = requests.into_iter();
        let mut run = || {
            let mut write = db.begin_write()?;
            write.set_two_phase_commit(true);
            let mut writing = Writing::begin(&write, &mut self.state, Instant::now())?;
            for request in requests.by_ref() {
                carry_out(&mut writing, request, settle)?;
            }
            // After the requests: a keep-alive that waited out a slow disk with us came in time.
            writing.expire()?;
            writing.compact_to(self.keep_revisions)?;
            let (changes, told) = writing.finish()?;
            *news = told;
            match changes {
                Changes::None => write.abort()?,
                Changes::Some => write.commit()?,
            }
            Ok(())
        };
        let done = run();
        settle.extend(requests.map(postponed));
        done
    }
}

/// Does what one request wants and keeps the answer back until the commit.
fn carry_out(
    writing: &mut Writing<'_>,
    request: Body,
    settle: &mut Vec<Settle>,
) -> Result<(), redb::Error> {
    match request {
        Body::Txn { txn, reply } => keep_back(reply, writing.txn(&txn), settle),
        Body::Grant { seconds, reply } => keep_back(reply, writing.grant(seconds).map(Ok), settle),
        Body::KeepAlive { lease, reply } => keep_back(reply, Ok(writing.keep_alive(lease)), settle),
        Body::Revoke { lease, reply } => keep_back(reply, writing.revoke(lease), settle),
        Body::Compact { revision, reply } => keep_back(reply, writing.compact(revision), settle),
    }
}

fn keep_back<T: 'static>(
    reply: Reply<T>,
    result: Result<Result<T, StoreError>, redb::Error>,
    settle: &mut Vec<Settle>,
) -> Result<(), redb::Error> {
    match result {
        Ok(answer) => {
            settle.push(Box::new(move |failure| {
                tell(
                    reply,
                    failure.map_or(answer, |failure| Err(failure.clone())),
                )
            }));
            Ok(())
        }
        Err(error) => {
            settle.push(refuse(reply));
            Err(error)
        }
    }
}

/// Answers a request that was not carried out, because the file failed before its turn.
fn postponed(request: Body) -> Settle {
    match request {
        Body::Txn { txn: _, reply } => refuse(reply),
        Body::Grant { seconds: _, reply } => refuse(reply),
        Body::KeepAlive { lease: _, reply } => refuse(reply),
        Body::Revoke { lease: _, reply } => refuse(reply),
        Body::Compact { revision: _, reply } => refuse(reply),
    }
}

/// Nothing was committed after a failure before the commit, so there always is a failure to tell.
fn refuse<T: 'static>(reply: Reply<T>) -> Settle {
    Box::new(move |failure| tell(reply, Err(failure.cloned().unwrap_or(StoreError::Closed))))
}

/// A caller that stopped waiting is no error.
fn tell<T>(reply: Reply<T>, answer: Result<T, StoreError>) {
    let _ = reply.send(answer);
}
