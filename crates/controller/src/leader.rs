//! A controller that leads: the shared core, its services and checks, and the operations people ask for.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use homeostat_api::v1::{TurnupRequest, to_agent, Shutdown};
use homeostat_api::{AdminServer, Refusal};
use homeostat_journal::{Asker, Outcome, Person};
use homeostat_model::{CellSpec, OperationId, ServiceName};
use homeostat_ops::{Executor, Procedure};
use homeostat_turnup::{Cell, Direction, TurnProcedure, turndown, turndown_procedure, turnup, turnup_procedure};
use tokio::sync::watch;

use crate::ControllerError;
use crate::checks::Checks;
use crate::core::{Applied, Core};
use crate::packages;
use crate::services::Services;

/// How long agents may take to end after the cell is down.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(5);

pub(crate) struct Leader {
    pub core: Arc<Core>,
    pub services: Arc<Services>,
    pub checks: Arc<Checks>,
    executor: Executor,
    /// What the running turnup brings up; becomes the cell's specification once its packages are installed.
    coming: Mutex<Option<CellSpec>>,
    /// One turnup or turndown is set going at a time.
    turning: tokio::sync::Mutex<()>,
    /// Becomes true when the cell is down and the controller may end.
    pub ended: watch::Sender<bool>,
}

impl Leader {
    pub(crate) fn new(core: Arc<Core>, services: Arc<Services>, executor: Executor) -> Self {
        Self {
            core,
            services,
            checks: Arc::default(),
            executor,
            coming: Mutex::new(None),
            turning: tokio::sync::Mutex::new(()),
            ended: watch::Sender::new(false),
        }
    }

    /// Carries on where the controller before this one stopped.
    pub(crate) async fn resume(self: &Arc<Self>) -> Result<(), ControllerError> {
        if let Some(applied) = self.core.applied() {
            self.services.resume().await?;
            self.checks.start(Arc::clone(&self.core), Arc::clone(&self.services), &applied);
        }
        for operation in self.executor.resume_all().await.map_err(operation_error)? {
            let id = operation.id().clone();
            let procedure = &operation.plan().draft().procedure;
            if *procedure == turnup_procedure() {
                self.drive(id, Direction::Up);
            } else if *procedure == turndown_procedure() {
                self.drive(id, Direction::Down);
            }
        }
        Ok(())
    }

    /// Brings the cell to `spec`. An unfinished turnup or turndown is abandoned first: the newest wish counts.
    pub(crate) async fn turnup(self: &Arc<Self>, spec: CellSpec, by: String) -> Result<String, ControllerError> {
        let _one_at_a_time = self.turning.lock().await;
        self.abandon_unfinished("a newer turnup was asked for").await?;
        let asker = Asker::Person(Person(by));
        let draft = turnup(&spec.services, asker, format!("cell {} is to be up", spec.name));
        *self.coming.lock().unwrap_or_else(PoisonError::into_inner) = Some(spec);
        // Installed before anything is recorded: a missing package is an error of the person who asks.
        self.prepare().await.map_err(|refusal| ControllerError::Package(refusal.message))?;
        let operation = self.executor.submit(draft).await.map_err(operation_error)?;
        let id = operation.id().clone();
        self.core.events.add("operation", id.as_str(), "turnup begins");
        self.drive(id.clone(), Direction::Up);
        Ok(id.to_string())
    }

    pub(crate) async fn turndown(self: &Arc<Self>, by: String) -> Result<String, ControllerError> {
        let _one_at_a_time = self.turning.lock().await;
        self.abandon_unfinished("the cell is to go down").await?;
        let services = self.core.applied().map(|applied| applied.spec.services.clone()).unwrap_or_default();
        if services.is_empty() {
            self.end().await;
            return Ok("none".to_owned());
        }
        self.checks.stop();
        let asker = Asker::Person(Person(by));
        let draft = turndown(&services, asker, format!("cell {} is to be down", self.core.identity.name));
        let operation = self.executor.submit(draft).await.map_err(operation_error)?;
        let id = operation.id().clone();
        self.core.events.add("operation", id.as_str(), "turndown begins");
        self.drive(id.clone(), Direction::Down);
        Ok(id.to_string())
    }

    async fn abandon_unfinished(&self, why: &str) -> Result<(), ControllerError> {
        for operation in self.executor.list().await.map_err(operation_error)?.operations {
            let procedure = &operation.plan().draft().procedure;
            let ours = *procedure == turnup_procedure() || *procedure == turndown_procedure();
            if ours && operation.outcome().is_none() {
                let by = Person("homeostat".into());
                self.executor.abandon(operation.id(), by, why).await.map_err(operation_error)?;
            }
        }
        Ok(())
    }

    /// Runs an operation in the background.
    fn drive(self: &Arc<Self>, id: OperationId, direction: Direction) {
        let leader = Arc::clone(self);
        tokio::spawn(async move {
            let cell: Arc<dyn Cell> = Arc::new(LeaderCell(Arc::clone(&leader)));
            let procedure: Arc<dyn Procedure> = Arc::new(TurnProcedure::new(direction, cell));
            let outcome = leader.executor.run(&id, procedure).await;
            let text = match &outcome {
                Ok(outcome) => format!("ended: {outcome:?}"),
                Err(error) => format!("stopped: {error}"),
            };
            leader.core.events.add("operation", id.as_str(), text);
            if direction == Direction::Down && matches!(outcome, Ok(Outcome::Done)) {
                leader.end().await;
            }
        });
    }

    /// Ends the agents (nothing of theirs runs any more), then this controller.
    async fn end(&self) {
        let agents = self.core.identity.machines.iter().map(|machine| {
            self.core.hub.order(&machine.spec.name, to_agent::Message::Shutdown(Shutdown {}), SHUTDOWN_WITHIN)
        });
        let mut waiting = Vec::new();
        for agent in agents {
            waiting.push(agent.await);
        }
        self.core.events.add("cell", "cell", "down");
        self.ended.send_replace(true);
    }

    async fn prepare(self: &Arc<Self>) -> Result<(), Refusal> {
        let coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // After a restart of the controller in the middle of a turnup what is coming was applied already.
        let Some(spec) = coming.or_else(|| self.core.applied().map(|applied| applied.spec.clone())) else {
            return Err(Refusal::not_now("no specification was applied"));
        };
        let (layout, for_install) = (self.core.layout.clone(), spec.clone());
        let builds = tokio::task::spawn_blocking(move || packages::install(&for_install, &layout))
            .await
            .map_err(|panic| Refusal::internal(panic.to_string()))?
            .map_err(|error| Refusal::bad_request(error.to_string()))?;
        let applied = Applied { spec, builds };
        if self.core.applied().as_deref() != Some(&applied) {
            self.core.apply(applied.clone()).await?;
            self.checks.start(Arc::clone(&self.core), Arc::clone(&self.services), &applied);
        } else if self.checks.views().is_empty() {
            self.checks.start(Arc::clone(&self.core), Arc::clone(&self.services), &applied);
        }
        Ok(())
    }
}

fn operation_error(error: homeostat_ops::OpsError) -> ControllerError {
    let mut line = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(source) = cause {
        line = format!("{line}: {source}");
        cause = source.source();
    }
    ControllerError::Operation(line)
}

/// What the turnup procedure may ask of the leader.
struct LeaderCell(Arc<Leader>);

#[async_trait]
impl Cell for LeaderCell {
    fn admin(&self, service: &ServiceName) -> Option<Arc<dyn AdminServer>> {
        self.0.services.admin(service)
    }

    fn turnup_request(&self, service: &ServiceName) -> Result<TurnupRequest, Refusal> {
        let applied = self.0.core.applied().ok_or_else(|| Refusal::not_now("no specification was applied"))?;
        self.0.services.turnup_request(&applied, service)
    }

    async fn prepare(&self) -> Result<(), Refusal> {
        self.0.prepare().await?;
        let hub = &self.0.core.hub;
        let mut changes = hub.changes();
        loop {
            let missing = self
                .0
                .core
                .identity
                .machines
                .iter()
                .find(|machine| hub.agent(&machine.spec.name).is_none_or(|agent| !agent.synced));
            let Some(missing) = missing else { return Ok(()) };
            let name = missing.spec.name.clone();
            changes.changed().await.map_err(|_| Refusal::not_now(format!("the agent of {name} is not connected")))?;
        }
    }

    async fn wish(&self, service: &ServiceName, direction: Direction) -> Result<(), Refusal> {
        match direction {
            Direction::Up => self.0.services.want(service).await?,
            Direction::Down => self.0.services.unwant(service).await?,
        }
        Ok(())
    }
}
