//! The admin server: what the cell may ask of a job.

use std::sync::Arc;

use async_trait::async_trait;
use homeostat_api::v1::{
    ActReply, ActRequest, ChecksReply, ChecksRequest, DescribeReply, DescribeRequest, InspectReply,
    InspectRequest, PrepareEvictionReply, PrepareEvictionRequest, RolloutReply, RolloutRequest,
    ServiceState, TurndownReply, TurndownRequest, TurnupReply, TurnupRequest,
};
use homeostat_api::{AdminServer, CellHandle, Refusal};
use homeostat_model::{ServiceKind, ServiceName, ServiceSpec};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot, watch};

use crate::keeping::{Command, Loop, View, Wanting};

/// Commands and results that may wait for the loop.
const QUEUE: usize = 256;

/// What the cell adds to a specification at turnup: which build of the package is meant.
#[derive(Debug, Deserialize)]
struct Build {
    #[serde(default)]
    package_hash: String,
}

/// The admin server of one plain job. Its loop ends when it is dropped.
pub struct JobServer {
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<View>,
    service: ServiceName,
}

impl JobServer {
    /// Starts the loop; nothing happens before `turnup`.
    pub fn new(service: ServiceName, cell: Arc<dyn CellHandle>) -> Self {
        let (commands, queue) = mpsc::channel(QUEUE);
        let (publish, view) = watch::channel(View {
            state: ServiceState::Down,
            waits_for: String::new(),
        });
        let server = Loop::new(service.clone(), cell, commands.downgrade(), publish);
        tokio::spawn(server.run(queue));
        Self {
            commands,
            view,
            service,
        }
    }

    async fn want(&self, wanting: Wanting) -> Result<(), Refusal> {
        let ended = || Refusal::internal(format!("{}'s loop ended", self.service));
        let (heard, answer) = oneshot::channel();
        self.commands
            .send(Command::Want(wanting, heard))
            .await
            .map_err(|_| ended())?;
        answer.await.map_err(|_| ended())
    }

    async fn until(&self, state: ServiceState) -> Result<(), Refusal> {
        let mut view = self.view.clone();
        view.wait_for(|view| view.state == state)
            .await
            .map(|_| ())
            .map_err(|_| Refusal::internal(format!("{}'s loop ended", self.service)))
    }

    async fn up(&self, spec_json: &str) -> Result<(), Refusal> {
        let bad =
            |error: serde_json::Error| Refusal::bad_request(format!("{}: {error}", self.service));
        let spec: ServiceSpec = serde_json::from_str(spec_json).map_err(bad)?;
        let build: Build = serde_json::from_str(spec_json).map_err(bad)?;
        if !matches!(spec.kind, ServiceKind::Job(_)) {
            return Err(Refusal::bad_request(format!(
                "{} is not a job",
                self.service
            )));
        }
        self.want(Wanting::Up(Box::new(spec), build.package_hash))
            .await?;
        self.until(ServiceState::Up).await
    }
}

#[async_trait]
impl AdminServer for JobServer {
    async fn describe(&self, _: DescribeRequest) -> Result<DescribeReply, Refusal> {
        Ok(DescribeReply {
            kind: "job".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            actions: Vec::new(),
        })
    }

    async fn turnup(&self, request: TurnupRequest) -> Result<TurnupReply, Refusal> {
        self.up(&request.spec_json).await?;
        Ok(TurnupReply {})
    }

    async fn turndown(&self, _: TurndownRequest) -> Result<TurndownReply, Refusal> {
        self.want(Wanting::Down).await?;
        self.until(ServiceState::Down).await?;
        Ok(TurndownReply {})
    }

    async fn checks(&self, _: ChecksRequest) -> Result<ChecksReply, Refusal> {
        Ok(ChecksReply {
            check_json: Vec::new(),
        })
    }

    async fn prepare_eviction(
        &self,
        _: PrepareEvictionRequest,
    ) -> Result<PrepareEvictionReply, Refusal> {
        // No task of a plain job has a role that another one would have to take first.
        Ok(PrepareEvictionReply {})
    }

    async fn rollout(&self, request: RolloutRequest) -> Result<RolloutReply, Refusal> {
        let before = self.view.borrow().state;
        self.up(&request.spec_json).await?;
        Ok(RolloutReply {
            replaced: u32::from(before == ServiceState::Up),
        })
    }

    async fn inspect(&self, _: InspectRequest) -> Result<InspectReply, Refusal> {
        let view = self.view.borrow().clone();
        Ok(InspectReply {
            state: view.state as i32,
            waits_for: view.waits_for,
            detail_json: String::new(),
        })
    }

    async fn act(&self, request: ActRequest) -> Result<ActReply, Refusal> {
        Err(Refusal::bad_request(format!(
            "a plain job has no action '{}'",
            request.verb
        )))
    }
}
