//! A controller that leads: the shared core, its services and checks, and the operations people ask for.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use homeostat_api::v1::{ActReply, ActRequest, Shutdown, TurnupRequest, to_agent};
use homeostat_api::{AdminServer, Refusal};
use homeostat_journal::{Asker, Outcome, Person, Touched};
use homeostat_model::{CellSpec, OperationId, ProcedureName, ServiceName, ServiceSpec};
use homeostat_ops::{Executor, OpsError, Procedure};
use homeostat_turnup::{
    Act, ActProcedure, Cell, Direction, Keep, TurnProcedure, drained_machine, is_whole, turndown,
    turndown_procedure, turnup, turnup_procedure,
};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::ControllerError;
use crate::checks::Checks;
use crate::core::{Applied, Core};
use crate::packages;
use crate::purge::is_down;
use crate::services::Services;

/// How long agents may take to end after the cell is down.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(5);
/// How long an operation that is not wanted any more may take to end, and how often that is looked at. Longer than the
/// graces that the executor gives an attempt.
const STOP_WITHIN: Duration = Duration::from_secs(15);
const STOP_EVERY: Duration = Duration::from_millis(10);

/// Which unfinished turnups and turndowns are meant.
#[derive(Clone, Copy)]
pub(crate) enum Which<'a> {
    All,
    /// Those of any of these services.
    About(&'a [ServiceSpec]),
}

pub(crate) struct Leader {
    pub core: Arc<Core>,
    pub services: Arc<Services>,
    pub checks: Arc<Checks>,
    pub executor: Executor,
    /// One turnup or turndown is set going at a time.
    pub turning: tokio::sync::Mutex<()>,
    /// Becomes true when the cell is down and the controller may end.
    pub ended: watch::Sender<bool>,
}

impl Leader {
    pub(crate) fn new(core: Arc<Core>, services: Arc<Services>, executor: Executor) -> Self {
        Self {
            checks: Arc::clone(&core.checks),
            core,
            services,
            executor,
            turning: tokio::sync::Mutex::new(()),
            ended: watch::Sender::new(false),
        }
    }

    /// Carries on where the controller before this one stopped.
    pub(crate) async fn resume(self: &Arc<Self>) -> Result<(), ControllerError> {
        if let Some(applied) = self.core.applied() {
            self.services.resume().await?;
            self.checks
                .start(Arc::clone(&self.core), Arc::clone(&self.services), &applied);
        }
        for operation in self.executor.resume_all().await.map_err(operation_error)? {
            let id = operation.id().clone();
            let procedure = &operation.plan().draft().procedure;
            if *procedure == turnup_procedure() {
                self.drive(id, Direction::Up);
            } else if *procedure == turndown_procedure() {
                if is_whole(operation.plan().draft()) {
                    self.drive(id, Direction::Down);
                } else {
                    self.drive_services(id, Direction::Down);
                }
            } else if let Some(machine) = drained_machine(operation.plan().draft()) {
                self.drive_drain(id, machine);
            } else if let Some(act) = Act::of(operation.plan().draft()) {
                let procedure = Arc::new(ActProcedure::new(
                    act,
                    Arc::new(LeaderCell(Arc::clone(self))),
                ));
                let leader = Arc::clone(self);
                tokio::spawn(async move { leader.executor.run(&id, procedure).await });
            }
        }
        Ok(())
    }

    /// Brings the cell to `spec`. An unfinished turnup or turndown is stopped first: the newest wish counts.
    pub(crate) async fn turnup(
        self: &Arc<Self>,
        spec: CellSpec,
        by: String,
    ) -> Result<String, ControllerError> {
        let _one_at_a_time = self.turning.lock().await;
        self.services.may_become(&spec).await?;
        // Installed before anything is touched: a missing package is an error of the person who asks.
        let applied = self.install(spec).await?;
        self.stop_unfinished(Which::All, "a newer turnup was asked for")
            .await?;
        // What that one took down in the meantime counts too.
        self.services.may_become(&applied.spec).await?;
        self.dropped_are_down(&applied.spec).await?;
        self.keep_for_good(&applied.spec.services).await?;
        let asker = Asker::Person(Person(by));
        let draft = turnup(
            &applied.spec.services,
            asker,
            format!("cell {} is to be up", applied.spec.name),
        );
        self.become_applied(applied).await?;
        let operation = self.executor.submit(draft).await.map_err(operation_error)?;
        let id = operation.id().clone();
        self.core
            .events
            .add("operation", id.as_str(), "turnup begins");
        self.drive(id.clone(), Direction::Up);
        Ok(id.to_string())
    }

    pub(crate) async fn turndown(self: &Arc<Self>, by: String) -> Result<String, ControllerError> {
        let _one_at_a_time = self.turning.lock().await;
        self.stop_unfinished(Which::All, "the cell is to go down")
            .await?;
        let services = self
            .core
            .applied()
            .map(|applied| applied.spec.services.clone())
            .unwrap_or_default();
        if services.is_empty() {
            self.end().await;
            return Ok("none".to_owned());
        }
        let asker = Asker::Person(Person(by));
        let draft = turndown(
            &services,
            asker,
            format!("cell {} is to be down", self.core.identity.name),
        );
        let operation = self.executor.submit(draft).await.map_err(operation_error)?;
        let id = operation.id().clone();
        self.core
            .events
            .add("operation", id.as_str(), "turndown begins");
        self.drive(id.clone(), Direction::Down);
        Ok(id.to_string())
    }

    /// A verb of a service's own, as an operation: planned by the service, written down, then carried out.
    pub(crate) async fn act(self: &Arc<Self>, request: ActRequest) -> Result<ActReply, Refusal> {
        let bad = |error: homeostat_model::BadName| Refusal::bad_request(error.to_string());
        let service = ServiceName::new(request.service.clone()).map_err(bad)?;
        let admin = self.services.admin(&service).ok_or_else(|| {
            Refusal::not_found(format!("{service} is not a service of this cell"))
        })?;
        let verb = ProcedureName::new(request.verb.clone()).map_err(bad)?;
        let by = request.by.clone();
        let mut planning = request;
        planning.arguments.insert("plan".to_owned(), String::new());
        let plan = admin.act(planning).await?;
        let arguments = serde_json::from_str(&plan.detail_json).map_err(|error| {
            Refusal::internal(format!("{service} planned {verb} unreadably: {error}"))
        })?;
        let act = Act {
            service,
            verb,
            arguments,
        };
        let draft = act.draft(plan.text, Asker::Person(Person(by)));
        let operation = self
            .executor
            .submit(draft)
            .await
            .map_err(|error| match error {
                OpsError::Busy { .. } => Refusal::not_now(error.to_string()),
                other => operation_error(other).into(),
            })?;
        let id = operation.id().clone();
        self.core.events.add(
            "operation",
            id.as_str(),
            operation.plan().draft().why.clone(),
        );
        let procedure = Arc::new(ActProcedure::new(
            act,
            Arc::new(LeaderCell(Arc::clone(self))),
        ));
        let outcome = self
            .executor
            .run(&id, Arc::clone(&procedure) as Arc<dyn Procedure>)
            .await;
        let answer = procedure.answer();
        match (answer, outcome) {
            (Some(answer), _) => answer,
            (None, Ok(_)) => Err(Refusal::unknown(format!(
                "operation {id} ended before it was carried out"
            ))),
            (None, Err(error)) => Err(operation_error(error).into()),
        }
    }

    /// A service that is not declared any more has nobody who could stop it.
    async fn dropped_are_down(&self, spec: &CellSpec) -> Result<(), ControllerError> {
        let before = self.core.applied();
        let mut running = Vec::new();
        for service in before.iter().flat_map(|applied| &applied.spec.services) {
            let stays = spec.services.iter().any(|new| new.name == service.name);
            if !stays && !self.is_down_soon(&service.name).await {
                running.push(service.name.clone());
            }
        }
        if running.is_empty() {
            Ok(())
        } else {
            Err(ControllerError::NotDown(running))
        }
    }

    /// Agents that have just been started are waited for.
    async fn is_down_soon(&self, service: &ServiceName) -> bool {
        let until = Instant::now() + STOP_WITHIN;
        while !is_down(self, service).await {
            if Instant::now() > until {
                return false;
            }
            tokio::time::sleep(STOP_EVERY).await;
        }
        true
    }

    pub(crate) async fn stop_unfinished(
        &self,
        which: Which<'_>,
        why: &str,
    ) -> Result<(), ControllerError> {
        for operation in self
            .executor
            .list()
            .await
            .map_err(operation_error)?
            .operations
        {
            let procedure = &operation.plan().draft().procedure;
            let ours = *procedure == turnup_procedure() || *procedure == turndown_procedure();
            let meant = match which {
                Which::All => true,
                Which::About(services) => services.iter().any(|service| {
                    let touched = Touched::Service(service.name.clone());
                    operation.plan().draft().scope.contains(&touched)
                }),
            };
            if ours && meant && operation.outcome().is_none() {
                self.stop(operation.id(), why).await?;
            }
        }
        Ok(())
    }

    /// Ends an operation as it is. What it started goes on until the next one says otherwise.
    async fn stop(&self, id: &OperationId, why: &str) -> Result<(), ControllerError> {
        let by = || Person("homeostat".into());
        let until = Instant::now() + STOP_WITHIN;
        while Instant::now() < until {
            match self.executor.abandon(id, by(), why).await {
                Ok(_) => return Ok(()),
                Err(OpsError::Refused { .. }) => {}
                Err(error) => return Err(operation_error(error)),
            }
            // An attempt is under way and must end first; or the operation has just ended by itself.
            match self.executor.cancel(id, Asker::Person(by()), why).await {
                Ok(_) | Err(OpsError::Refused { .. }) => {}
                Err(error) => return Err(operation_error(error)),
            }
            if self
                .executor
                .get(id)
                .await
                .map_err(operation_error)?
                .operation
                .outcome()
                .is_some()
            {
                return Ok(());
            }
            tokio::time::sleep(STOP_EVERY).await;
        }
        Err(ControllerError::Operation(format!(
            "operation {id} does not stop; try again"
        )))
    }

    /// Brings the cell up or down in the background; down, it ends with its controller.
    fn drive(self: &Arc<Self>, id: OperationId, direction: Direction) {
        if direction == Direction::Down {
            self.checks.stop();
        }
        let leader = Arc::clone(self);
        tokio::spawn(async move {
            let outcome = leader.carry_out(&id, direction).await;
            if direction == Direction::Down && outcome == Some(Outcome::Done) {
                leader.end().await;
            }
        });
    }

    /// Brings some services up or down in the background.
    pub(crate) fn drive_services(self: &Arc<Self>, id: OperationId, direction: Direction) {
        let leader = Arc::clone(self);
        tokio::spawn(async move { leader.carry_out(&id, direction).await });
    }

    async fn carry_out(
        self: &Arc<Self>,
        id: &OperationId,
        direction: Direction,
    ) -> Option<Outcome> {
        let cell: Arc<dyn Cell> = Arc::new(LeaderCell(Arc::clone(self)));
        let procedure: Arc<dyn Procedure> = Arc::new(TurnProcedure::new(direction, cell));
        let outcome = self.executor.run(id, procedure).await;
        let text = match &outcome {
            Ok(Outcome::Done) => "done".to_owned(),
            Ok(Outcome::Undone | Outcome::Abandoned) => "stopped before its end".to_owned(),
            Err(error) => format!("stopped: {error}"),
        };
        self.core.events.add("operation", id.as_str(), text);
        outcome.ok()
    }

    /// Ends the agents (nothing of theirs runs any more), then this controller.
    async fn end(&self) {
        let mark = self.core.layout.down_mark();
        if let Err(error) = std::fs::write(&mark, "") {
            eprintln!("cannot write {}: {error}", mark.display());
        }
        let mut agents = JoinSet::new();
        for machine in &self.core.identity.machines {
            let (core, name) = (Arc::clone(&self.core), machine.spec.name.clone());
            agents.spawn(async move {
                core.hub
                    .order(
                        &name,
                        to_agent::Message::Shutdown(Shutdown {}),
                        SHUTDOWN_WITHIN,
                    )
                    .await
            });
        }
        // The warden ends those that do not answer.
        while agents.join_next().await.is_some() {}
        self.core.events.add("cell", "cell", "down");
        self.ended.send_replace(true);
    }

    async fn install(&self, spec: CellSpec) -> Result<Applied, ControllerError> {
        let layout = self.core.layout.clone();
        tokio::task::spawn_blocking(move || {
            let builds = packages::install(&spec, &layout)?;
            Ok(Applied { spec, builds })
        })
        .await
        .map_err(|panic| ControllerError::Operation(format!("installing packages {panic}")))?
    }

    async fn become_applied(self: &Arc<Self>, applied: Applied) -> Result<(), ControllerError> {
        let changed = self.core.applied().as_deref() != Some(&applied);
        if changed {
            self.core.apply(applied.clone()).await?;
            self.services.keep_declared(&applied.spec);
        }
        if changed || !self.checks.run() {
            self.checks
                .start(Arc::clone(&self.core), Arc::clone(&self.services), &applied);
        }
        Ok(())
    }
}

pub(crate) fn operation_error(error: homeostat_ops::OpsError) -> ControllerError {
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
        let applied = self
            .0
            .core
            .applied()
            .ok_or_else(|| Refusal::not_now("no specification was applied"))?;
        self.0.services.turnup_request(&applied, service)
    }

    async fn prepare(&self) -> Result<(), Refusal> {
        let Some(applied) = self.0.core.applied() else {
            return Err(Refusal::not_now("no specification was applied"));
        };
        // Installed when it was asked for: all that can be missing is what was removed since.
        if applied.builds.values().all(|build| build.path.exists()) {
            return Ok(());
        }
        let applied = self.0.install(applied.spec.clone()).await?;
        Ok(self.0.become_applied(applied).await?)
    }

    async fn machines(&self) -> Result<(), Refusal> {
        let hub = &self.0.core.hub;
        let mut changes = hub.changes();
        loop {
            let machines = &self.0.core.identity.machines;
            // What a lost machine runs is nobody's word: it is not waited for.
            let silent =
                |name| !hub.is_lost(name) && hub.agent(name).is_none_or(|agent| !agent.synced);
            let Some(missing) = machines.iter().find(|machine| silent(&machine.spec.name)) else {
                return Ok(());
            };
            let name = missing.spec.name.clone();
            changes
                .changed()
                .await
                .map_err(|_| Refusal::not_now(format!("the agent of {name} is not connected")))?;
        }
    }

    async fn wish(&self, service: &ServiceName, direction: Direction) -> Result<(), Refusal> {
        match direction {
            Direction::Up => self.0.services.want(service).await?,
            Direction::Down => self.0.services.unwant(service).await?,
        }
        Ok(())
    }

    async fn keep(&self, services: &[ServiceName], keep: &Keep) -> Result<(), Refusal> {
        self.0.set_keep(services, keep).await
    }
}
