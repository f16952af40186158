//! The admin server: what the cell may ask of a job.

use std::sync::Arc;

use async_trait::async_trait;
use homeostat_api::v1::{
    ActReply, ActRequest, ChecksReply, ChecksRequest, DescribeReply, DescribeRequest, EvictReply,
    EvictRequest, InspectReply, InspectRequest, PrepareEvictionReply, PrepareEvictionRequest,
    RolloutReply, RolloutRequest, ServiceState, TurndownReply, TurndownRequest, TurnupReply,
    TurnupRequest,
};
use homeostat_api::{AdminServer, CellHandle, Refusal};
use homeostat_model::{ServiceKind, ServiceName, ServiceSpec, TaskName};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot, watch};

use crate::keeping::{Command, Loop, Wanting};
use crate::restart::Chance;
use crate::view::View;

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
        let (publish, view) = watch::channel(View::unheard());
        let server = Loop::new(service.clone(), cell, commands.downgrade(), publish, luck);
        tokio::spawn(server.run(queue));
        Self {
            commands,
            view,
            service,
        }
    }

    fn ended(&self) -> Refusal {
        Refusal::internal(format!("{}'s loop ended", self.service))
    }

    async fn want(&self, wanting: Wanting) -> Result<(), Refusal> {
        let (heard, answer) = oneshot::channel();
        self.commands
            .send(Command::Want(wanting, heard))
            .await
            .map_err(|_| self.ended())?;
        answer.await.map_err(|_| self.ended())
    }

    async fn until(&self, state: ServiceState) -> Result<(), Refusal> {
        let mut view = self.view.clone();
        view.wait_for(|view| view.state == state)
            .await
            .map(|_| ())
            .map_err(|_| self.ended())
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

    async fn evict(&self, request: EvictRequest) -> Result<EvictReply, Refusal> {
        let bad = |error: homeostat_model::BadName| Refusal::bad_request(error.to_string());
        let (heard, answer) = oneshot::channel();
        let command = Command::Evict {
            task: TaskName::new(request.task).map_err(bad)?,
            machine: request.machine,
            heard,
        };
        self.commands
            .send(command)
            .await
            .map_err(|_| self.ended())?;
        answer.await.map_err(|_| self.ended())??;
        Ok(EvictReply {})
    }

    async fn rollout(&self, request: RolloutRequest) -> Result<RolloutReply, Refusal> {
        let before = self.view.borrow().replaced;
        self.up(&request.spec_json).await?;
        let after = self.view.borrow().replaced;
        Ok(RolloutReply {
            replaced: after.saturating_sub(before),
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
        if request.verb == EXPLAIN_TASK {
            let name = request.arguments.get("task").cloned().unwrap_or_default();
            let view = self.view.borrow();
            let note = TaskName::new(name).ok().and_then(|n| view.notes.get(&n));
            return Ok(ActReply {
                text: note.cloned().unwrap_or_default(),
                detail_json: String::new(),
            });
        }
        Err(Refusal::bad_request(format!(
            "a plain job has no action '{}'",
            request.verb
        )))
    }
}

/// What there is to tell of one of its tasks; changes nothing.
const EXPLAIN_TASK: &str = "explain-task";

/// Without luck the pauses are what they are: nothing of it is a secret.
fn luck() -> Chance {
    let mut bytes = [0; 2];
    match getrandom::fill(&mut bytes) {
        Ok(()) => Chance(u16::from_le_bytes(bytes)),
        Err(_) => Chance(0),
    }
}
