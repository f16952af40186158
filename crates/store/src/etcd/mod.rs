//! The store on etcd v3, spoken to over gRPC with the few messages we need (`proto/`), without protoc.
//!
//! etcd does the work; what is ours is to keep the contract exact at the edges:
//!
//! - The limits are checked here, so that they are the same with whatever settings the server runs.
//! - Only what certainly was not carried out is tried again on its own. A transaction whose connection broke before
//!   the answer is [`StoreError::OutcomeUnknown`]: repeating a compare-and-set could refuse its own success.
//! - etcd lets a watch begin at the very revision that was compacted, though deletes of that revision may be gone. We
//!   ask from one revision earlier and drop its events, so that such a watch is refused.
//!
//! Let the server do the compaction of history: `--auto-compaction-mode=revision --auto-compaction-retention=10000`.

mod endpoints;
mod follow;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use homeostat_model::Revision;
use tonic::{Code, Status};

use crate::{
    Keys, Lease, LeaseId, OpenError, RangeReply, Store, StoreError, Txn, TxnReply, Watch, limits,
};
use endpoints::{CallError, Endpoints, Repeat};
use wire::pb;

/// How to reach an etcd cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdConfig {
    /// The members' client addresses; the first that answers is used for as long as it does.
    pub endpoints: Vec<SocketAddr>,
    /// For one attempt at one member.
    pub connect_timeout: Duration,
    /// For the answer to one request. Must leave time for an election.
    pub request_timeout: Duration,
    /// How long the members are tried in turn before a request, or a watch, ends as [`StoreError::Unavailable`].
    pub retry_for: Duration,
}

impl EtcdConfig {
    /// Suits a cluster in one site with etcd's default election timeout of a second.
    pub fn with_endpoints(endpoints: Vec<SocketAddr>) -> Self {
        Self {
            endpoints,
            connect_timeout: Duration::from_millis(500),
            request_timeout: Duration::from_secs(3),
            retry_for: Duration::from_secs(10),
        }
    }
}

/// A store kept by an etcd cluster.
#[derive(Debug, Clone)]
pub struct EtcdStore {
    endpoints: Arc<Endpoints>,
}

impl EtcdStore {
    /// Connects when first used. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`OpenError::NoEndpoint`], [`OpenError::NotLoopback`].
    pub fn new(config: EtcdConfig) -> Result<Self, OpenError> {
        Ok(Self {
            endpoints: Arc::new(Endpoints::new(config)?),
        })
    }

    /// The error for an answer that is a refusal.
    async fn refused(&self, error: CallError, asked: Asked) -> StoreError {
        let status = match error {
            CallError::Store(error) => return error,
            CallError::Refused(status) => status,
        };
        match (asked, status.code()) {
            (Asked::Lease(lease), Code::NotFound) => StoreError::LeaseNotFound(lease),
            (Asked::Revision(revision), Code::OutOfRange)
                if status.message().contains("future") =>
            {
                match self.revision().await {
                    Ok(current) => StoreError::FutureRevision {
                        asked: revision,
                        current,
                    },
                    Err(error) => error,
                }
            }
            (Asked::Revision(revision), Code::OutOfRange) => self.compacted(revision).await,
            (_, Code::ResourceExhausted) if status.message().contains("space exceeded") => {
                StoreError::DiskFull {
                    store: self.endpoints.name(),
                    source: Arc::new(status),
                }
            }
            (Asked::Anything | Asked::Lease(_) | Asked::Revision(_), _) => {
                self.endpoints.not_understood(&status)
            }
        }
    }

    /// etcd tells how far it has compacted only to watches.
    async fn compacted(&self, asked: Revision) -> StoreError {
        match follow::compacted_revision(&self.endpoints, asked).await {
            Ok(oldest) => StoreError::Compacted { oldest },
            Err(error) => error,
        }
    }

    /// The lease that a refusal "lease not found" means: etcd does not say which of several.
    async fn missing_lease(&self, txn: &Txn, error: CallError) -> StoreError {
        let leases = wire::leases(txn);
        match (&error, leases.as_slice()) {
            (CallError::Refused(status), [first, others @ ..])
                if status.code() == Code::NotFound =>
            {
                for lease in others {
                    if let Err(StoreError::LeaseNotFound(lease)) = self.look_at_lease(*lease).await
                    {
                        return StoreError::LeaseNotFound(lease);
                    }
                }
                StoreError::LeaseNotFound(*first)
            }
            _ => self.refused(error, Asked::Anything).await,
        }
    }

    async fn look_at_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        let request = pb::LeaseTimeToLiveRequest {
            id: wire::lease_id(lease),
        };
        let asked = self
            .endpoints
            .call(Repeat::Safe, |channel| async move {
                wire::lease_client(channel)
                    .lease_time_to_live(request)
                    .await
            })
            .await;
        match asked {
            Ok(reply) if reply.ttl < 0 => Err(StoreError::LeaseNotFound(lease)),
            Ok(_) => Ok(()),
            Err(error) => Err(self.refused(error, Asked::Lease(lease)).await),
        }
    }
}

/// What a refusal can be about.
enum Asked {
    Anything,
    Lease(LeaseId),
    Revision(Revision),
}

#[async_trait::async_trait]
impl Store for EtcdStore {
    async fn revision(&self) -> Result<Revision, StoreError> {
        let request = pb::RangeRequest {
            key: vec![0],
            count_only: true,
            ..Default::default()
        };
        let reply = self
            .endpoints
            .call(Repeat::Safe, |channel| {
                let request = request.clone();
                async move { wire::kv_client(channel).range(request).await }
            })
            .await;
        match reply {
            Ok(reply) => self.endpoints.revision(reply.header),
            Err(CallError::Store(error)) => Err(error),
            Err(CallError::Refused(status)) => Err(self.endpoints.not_understood(&status)),
        }
    }

    async fn range(&self, keys: Keys, at: Option<Revision>) -> Result<RangeReply, StoreError> {
        limits::check_keys(&keys)?;
        if let Some(at) = at {
            limits::check_revision(at)?;
        }
        let request = wire::range_request(&keys, at);
        let reply = self
            .endpoints
            .call(Repeat::Safe, |channel| {
                let request = request.clone();
                async move { wire::kv_client(channel).range(request).await }
            })
            .await;
        match reply {
            Ok(reply) => {
                let revision = self.endpoints.revision(reply.header)?;
                let items = reply
                    .kvs
                    .into_iter()
                    .map(|kv| self.endpoints.item(kv))
                    .collect::<Result<_, _>>()?;
                Ok(RangeReply { revision, items })
            }
            Err(error) => Err(self
                .refused(error, at.map_or(Asked::Anything, Asked::Revision))
                .await),
        }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        limits::check_txn(&txn)?;
        let request = wire::txn_request(&txn);
        let reply = self
            .endpoints
            .call(Repeat::OnlyIfNotTaken, |channel| {
                let request = request.clone();
                async move { wire::kv_client(channel).txn(request).await }
            })
            .await;
        match reply {
            Ok(reply) => {
                let revision = self.endpoints.revision(reply.header)?;
                Ok(TxnReply {
                    revision,
                    outcome: wire::outcome(reply.succeeded),
                })
            }
            Err(error) => Err(self.missing_lease(&txn, error).await),
        }
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        let request = wire::grant_request(limits::lease_seconds(ttl)?);
        // A lease granted twice costs nothing: the one nobody heard of expires.
        let reply = self
            .endpoints
            .call(Repeat::Safe, |channel| async move {
                wire::lease_client(channel).lease_grant(request).await
            })
            .await;
        match reply {
            Ok(reply) => Ok(Lease {
                id: LeaseId(reply.id.cast_unsigned()),
                ttl: wire::seconds(reply.ttl),
            }),
            Err(error) => Err(self.refused(error, Asked::Anything).await),
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        let request = pb::LeaseKeepAliveRequest {
            id: wire::lease_id(lease),
        };
        let reply = self
            .endpoints
            .call(Repeat::Safe, |channel| {
                let requests = tokio_stream::once(request);
                async move {
                    let mut replies = wire::lease_client(channel)
                        .lease_keep_alive(requests)
                        .await?
                        .into_inner();
                    let reply = replies.message().await?;
                    reply
                        .map(tonic::Response::new)
                        .ok_or_else(|| Status::unavailable("keep-alive without an answer"))
                }
            })
            .await;
        match reply {
            Ok(reply) if reply.ttl <= 0 => Err(StoreError::LeaseNotFound(lease)),
            Ok(reply) => Ok(wire::seconds(reply.ttl)),
            Err(error) => Err(self.refused(error, Asked::Lease(lease)).await),
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let request = pb::LeaseRevokeRequest {
            id: wire::lease_id(lease),
        };
        let reply = self
            .endpoints
            .call(Repeat::OnlyIfNotTaken, |channel| async move {
                wire::lease_client(channel).lease_revoke(request).await
            })
            .await;
        match reply {
            Ok(_) => Ok(()),
            Err(error) => Err(self.refused(error, Asked::Lease(lease)).await),
        }
    }

    async fn watch(&self, keys: Keys, from: Revision) -> Result<Watch, StoreError> {
        limits::check_keys(&keys)?;
        limits::check_revision(from)?;
        let (sender, watch) = Watch::channel();
        tokio::spawn(follow::follow(self.endpoints.clone(), keys, from, sender));
        Ok(watch)
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        limits::check_revision(revision)?;
        let request = wire::compaction_request(revision);
        let reply = self
            .endpoints
            .call(Repeat::Safe, |channel| async move {
                wire::kv_client(channel).compact(request).await
            })
            .await;
        match reply {
            Ok(_) => Ok(()),
            Err(CallError::Refused(status))
                if status.code() == Code::OutOfRange
                    && status.message().contains("has been compacted") =>
            {
                Ok(())
            }
            Err(error) => Err(self.refused(error, Asked::Revision(revision)).await),
        }
    }
}
