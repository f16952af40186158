//! The members of the cluster, tried in turn.
//!
//! Each member has its own channel, which connects when used and again after it broke. The member that last answered is
//! asked first. What decides whether a request may be sent again is not how it failed but whether it can have been
//! carried out: never when no connection came about, or when etcd says that it has no leader.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use homeostat_model::Revision;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, ConnectError, Response, Status};

use super::EtcdConfig;
use super::wire::{self, mvccpb, pb};
use crate::{Item, OpenError, StoreError};

/// First pause after all members were tried, doubled up to [`LONGEST_PAUSE`].
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(320);
/// A connection whose member does not answer pings for these two is given up; a watch would wait on it for ever.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether a request may be sent again when it may have been carried out already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Twice is as good as once.
    Safe,
    /// Then its outcome is unknown, and the caller has to look.
    OnlyIfNotTaken,
}

/// Why a request failed.
#[derive(Debug)]
pub(super) enum CallError {
    /// It did not come to an answer.
    Store(StoreError),
    /// The answer is a refusal.
    Refused(Status),
}

/// What a status says about the request.
enum Meaning {
    NotTaken,
    MaybeTaken,
    Refused,
}

/// Pauses between rounds over all members, until the patience is over.
pub(super) struct Patience {
    pause: Duration,
    until: Instant,
}

impl Patience {
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            pause: SHORTEST_PAUSE,
            until: Instant::now() + patience,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

#[derive(Debug)]
pub(super) struct Endpoints {
    channels: Vec<Channel>,
    /// Index of the member that is asked first.
    preferred: AtomicUsize,
    config: EtcdConfig,
}

impl Endpoints {
    pub(super) fn new(config: EtcdConfig) -> Result<Self, OpenError> {
        if config.endpoints.is_empty() {
            return Err(OpenError::NoEndpoint);
        }
        let channels = config
            .endpoints
            .iter()
            .map(|at| channel(*at, &config))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            channels,
            preferred: AtomicUsize::new(0),
            config,
        })
    }

    /// What errors call the cluster.
    pub(super) fn name(&self) -> String {
        let members: Vec<String> = self
            .config
            .endpoints
            .iter()
            .map(SocketAddr::to_string)
            .collect();
        format!("etcd at {}", members.join(", "))
    }

    pub(super) fn retry_for(&self) -> Duration {
        self.config.retry_for
    }

    pub(super) fn request_timeout(&self) -> Duration {
        self.config.request_timeout
    }

    /// The member to ask, and its number for [`Endpoints::avoid`].
    pub(super) fn pick(&self) -> (usize, Channel) {
        let number = self.preferred.load(Ordering::Relaxed) % self.channels.len();
        (number, self.channels[number].clone())
    }

    /// Prefers the member after this one, unless somebody has already moved on.
    pub(super) fn avoid(&self, number: usize) {
        let next = (number + 1) % self.channels.len();
        let _ = self
            .preferred
            .compare_exchange(number, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Sends a request until it is answered or must not be sent again.
    pub(super) async fn call<T, F>(
        &self,
        repeat: Repeat,
        send: impl Fn(Channel) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut patience = Patience::new(self.config.retry_for);
        loop {
            let mut last = Status::unavailable("not tried");
            for _ in 0..self.channels.len() {
                let (number, channel) = self.pick();
                let answer = tokio::time::timeout(self.config.request_timeout, send(channel)).await;
                let status = match answer {
                    Ok(Ok(response)) => return Ok(response.into_inner()),
                    Ok(Err(status)) => status,
                    Err(_) => Status::deadline_exceeded(format!(
                        "no answer within {:?}",
                        self.config.request_timeout
                    )),
                };
                match (meaning(&status), repeat) {
                    (Meaning::Refused, _) => return Err(CallError::Refused(status)),
                    (Meaning::MaybeTaken, Repeat::OnlyIfNotTaken) => {
                        self.avoid(number);
                        return Err(CallError::Store(StoreError::OutcomeUnknown {
                            store: self.name(),
                            source: Arc::new(status),
                        }));
                    }
                    (Meaning::MaybeTaken, Repeat::Safe) | (Meaning::NotTaken, _) => {
                        self.avoid(number)
                    }
                }
                last = status;
            }
            if patience.is_over() {
                return Err(CallError::Store(self.unavailable(last)));
            }
            patience.pause().await;
        }
    }

    pub(super) fn unavailable(&self, status: Status) -> StoreError {
        StoreError::Unavailable {
            store: self.name(),
            tried_for: self.config.retry_for,
            source: Arc::new(status),
        }
    }

    pub(super) fn not_understood(&self, answer: &dyn std::fmt::Display) -> StoreError {
        StoreError::Protocol {
            store: self.name(),
            answer: answer.to_string(),
        }
    }

    pub(super) fn revision(
        &self,
        header: Option<pb::ResponseHeader>,
    ) -> Result<Revision, StoreError> {
        header
            .and_then(|header| wire::revision(header.revision))
            .ok_or_else(|| self.not_understood(&"no revision in the header"))
    }

    pub(super) fn item(&self, kv: mvccpb::KeyValue) -> Result<Item, StoreError> {
        wire::item(kv)
            .ok_or_else(|| self.not_understood(&"a key that is not UTF-8, or a negative revision"))
    }
}

fn channel(at: SocketAddr, config: &EtcdConfig) -> Result<Channel, OpenError> {
    if !at.ip().is_loopback() {
        return Err(OpenError::NotLoopback { endpoint: at });
    }
    let endpoint =
        Endpoint::from_shared(format!("http://{at}")).map_err(|source| OpenError::Io {
            doing: "make an address of",
            path: at.to_string().into(),
            source: Arc::new(source),
        })?;
    Ok(endpoint
        .connect_timeout(config.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .connect_lazy())
}

fn meaning(status: &Status) -> Meaning {
    if never_sent(status) {
        return Meaning::NotTaken;
    }
    match status.code() {
        Code::Unavailable if status.message() == "etcdserver: no leader" => Meaning::NotTaken,
        Code::ResourceExhausted if status.message() == "etcdserver: too many requests" => {
            Meaning::NotTaken
        }
        // What etcd says in an election or on its way down, and what tonic makes of a broken connection.
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::Internal
        | Code::Aborted => Meaning::MaybeTaken,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => Meaning::Refused,
    }
}

/// Whether there was not even a connection.
fn never_sent(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}
