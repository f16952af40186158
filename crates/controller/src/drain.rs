//! Emptying machines and opening them again: the operation is planned and carried out by the turnup room; here is what it
//! needs of the cell.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use homeostat_api::v1::TurndownRequest;
use homeostat_api::{AdminServer, Refusal};
use homeostat_journal::{Asker, Operation, Outcome, Person};
use homeostat_model::{
    Duty, MachineEvent, MachineName, MachineState, OperationId, ServiceName, TaskState,
};
use homeostat_ops::OpsError;
use homeostat_placement::budget::Ask;
use homeostat_turnup::{Door, DrainProcedure, Landlord, Tenant, drain, drained_machine};
use tokio::time::Instant;

use crate::handle::task_state;
use crate::leader::{Leader, operation_error};

/// How long a drain that is cancelled may take to come to its end, and how often that is looked at. Longer than the graces
/// that the executor gives an attempt.
const STOP_WITHIN: Duration = Duration::from_secs(15);
const STOP_EVERY: Duration = Duration::from_millis(20);

impl Leader {
    /// Writes the drain of a machine down and sets it going.
    pub(crate) async fn drain(
        self: &Arc<Self>,
        machine: &MachineName,
        by: String,
    ) -> Result<OperationId, Refusal> {
        self.known_machine(machine)?;
        let tenants = tenants(self, machine);
        let draft = drain(machine, tenants, Asker::Person(Person(by)));
        let operation = self
            .executor
            .submit(draft)
            .await
            .map_err(|error| match error {
                OpsError::Busy { .. } => Refusal::not_now(error.to_string()),
                other => operation_error(other).into(),
            })?;
        let id = operation.id().clone();
        let text = format!("{} begins", operation.plan().draft().procedure);
        self.core.events.add("operation", id.as_str(), text);
        self.drive_drain(id.clone(), machine.clone());
        Ok(id)
    }

    /// Opens a machine for tasks; a drain that is under way is cancelled first. Answers with what was done.
    pub(crate) async fn undrain(
        self: &Arc<Self>,
        machine: &MachineName,
        by: String,
    ) -> Result<String, Refusal> {
        self.known_machine(machine)?;
        let mut done = Vec::new();
        if let Some(id) = self.drain_of(machine).await? {
            self.cancel_drain(&id, by).await?;
            done.push(format!(
                "{id} is cancelled; what it had moved stays where it is"
            ));
        }
        let opened = self
            .core
            .machines
            .apply(machine, MachineEvent::UndrainAsked)
            .await?;
        if opened.is_some() {
            let text = "takes tasks again";
            self.core.events.add("machine", machine.as_str(), text);
            self.core.hub.touch();
        }
        done.push(if opened.is_some() || !done.is_empty() {
            format!("{machine} takes tasks again")
        } else {
            format!("{machine} was not drained: nothing to do")
        });
        Ok(done.join("; "))
    }

    fn known_machine(&self, machine: &MachineName) -> Result<(), Refusal> {
        match self.core.identity.machine(machine) {
            Some(_) => Ok(()),
            None => Err(Refusal::not_found(format!(
                "{machine} is not a machine of this cell"
            ))),
        }
    }

    async fn unfinished_drain(&self, id: &OperationId) -> Result<bool, Refusal> {
        let view = self.executor.get(id).await.map_err(operation_error)?;
        Ok(view.operation.outcome().is_none())
    }

    async fn drain_of(&self, machine: &MachineName) -> Result<Option<OperationId>, Refusal> {
        let listing = self.executor.list().await.map_err(operation_error)?;
        let drains = |operation: &Operation| {
            operation.outcome().is_none()
                && drained_machine(operation.plan().draft()).as_ref() == Some(machine)
        };
        let found = listing
            .operations
            .iter()
            .find(|operation| drains(operation));
        Ok(found.map(|operation| operation.id().clone()))
    }

    async fn cancel_drain(&self, id: &OperationId, by: String) -> Result<(), Refusal> {
        let until = Instant::now() + STOP_WITHIN;
        while self.unfinished_drain(id).await? {
            let asker = Asker::Person(Person(by.clone()));
            match self
                .executor
                .cancel(id, asker, "undrain was asked for")
                .await
            {
                // Refused: it was asked before, or has just ended.
                Ok(_) | Err(OpsError::Refused { .. }) => {}
                Err(error) => return Err(operation_error(error).into()),
            }
            if Instant::now() > until {
                return Err(Refusal::unknown(format!("{id} does not stop; try again")));
            }
            tokio::time::sleep(STOP_EVERY).await;
        }
        Ok(())
    }

    /// Runs a drain in the background, to its end or until it is cancelled.
    pub(crate) fn drive_drain(self: &Arc<Self>, id: OperationId, machine: MachineName) {
        let leader = Arc::clone(self);
        tokio::spawn(async move {
            let landlord = Arc::new(CellLandlord(Arc::clone(&leader)));
            let procedure = Arc::new(DrainProcedure::new(landlord));
            let outcome = leader.executor.run(&id, procedure).await;
            leader.core.tell_wait(&id, String::new());
            let text = match &outcome {
                Ok(Outcome::Done) => format!("done: {machine} is empty"),
                Ok(Outcome::Undone | Outcome::Abandoned) => "stopped before its end".to_owned(),
                Err(error) => format!("stopped: {error}"),
            };
            leader.core.events.add("operation", id.as_str(), text);
        });
    }
}

fn tenants(leader: &Leader, machine: &MachineName) -> Vec<Tenant> {
    let placed = leader.core.placements.on(machine).into_iter();
    placed
        .filter_map(|(task, service, _)| {
            let service = ServiceName::new(service).ok()?;
            Some(Tenant { task, service })
        })
        .collect()
}

/// The cell as a drain needs it.
struct CellLandlord(Arc<Leader>);

#[async_trait]
impl Landlord for CellLandlord {
    async fn door(&self, machine: &MachineName, door: Door) -> Result<(), Refusal> {
        let machines = &self.0.core.machines;
        let event = match door {
            Door::Closed => MachineEvent::DrainAsked,
            Door::Empty => MachineEvent::DrainDone,
            Door::Open => MachineEvent::UndrainAsked,
        };
        if let Some(state) = machines.apply(machine, event).await? {
            let text = match state.duty() {
                Duty::Serving => "takes tasks again",
                Duty::Draining => "is being drained: it takes no new tasks",
                Duty::Drained => "is drained",
            };
            self.0.core.events.add("machine", machine.as_str(), text);
            self.0.core.hub.touch();
        }
        Ok(())
    }

    fn tenants(&self, machine: &MachineName) -> Vec<Tenant> {
        tenants(&self.0, machine)
    }

    fn admin(&self, service: &ServiceName) -> Option<Arc<dyn AdminServer>> {
        self.0.services.admin(service)
    }

    async fn settle_wish(&self, service: &ServiceName) -> Result<(), Refusal> {
        if self.0.services.is_wanted(service).await? {
            return Ok(());
        }
        let Some(admin) = self.0.services.admin(service) else {
            return Ok(());
        };
        let request = TurndownRequest {
            service: service.to_string(),
            term: self.0.core.term.0,
        };
        admin.turndown(request).await.map(|_| ())
    }

    async fn stuck(&self, tenant: &Tenant) -> Result<Option<String>, Refusal> {
        if !self.0.services.is_wanted(&tenant.service).await? {
            return Ok(None);
        }
        let core = &self.0.core;
        let (hub, machines) = (&core.hub, &core.machines);
        Ok(core
            .placements
            .stuck(&tenant.task, &core.identity, hub, machines))
    }

    async fn disturb(&self, tenant: &Tenant, by: &OperationId) -> Result<Option<String>, Refusal> {
        // A service that is down serves nobody: nothing of it can be disturbed.
        if !self.0.services.is_wanted(&tenant.service).await? {
            return Ok(None);
        }
        let core = &self.0.core;
        Ok(core
            .budgets
            .ask(core, &tenant.service, &ask(tenant, by))
            .await?)
    }

    async fn release(&self, tenant: &Tenant, by: &OperationId) -> Result<(), Refusal> {
        let budgets = &self.0.core.budgets;
        Ok(budgets.release(&tenant.service, &ask(tenant, by)).await?)
    }

    async fn settle(&self, tenant: &Tenant, by: &OperationId) -> Result<(), Refusal> {
        let budgets = &self.0.core.budgets;
        Ok(budgets.settle(&tenant.service, &ask(tenant, by)).await?)
    }

    fn missing(&self, tenant: &Tenant) -> Option<String> {
        let core = &self.0.core;
        let place = core.placements.of(&tenant.task)?;
        if let MachineState::Lost { .. } = core.machines.state(&place.machine) {
            return Some(format!("{} is lost", place.machine));
        }
        match core.hub.task(&tenant.task).as_ref().and_then(task_state) {
            Some(TaskState::Running { .. }) => None,
            Some(state) if core.has_finished(&tenant.service, &state) => None,
            Some(TaskState::Exited { cause }) => Some(cause.to_string()),
            Some(TaskState::Pending { why }) => Some(why),
            Some(state @ (TaskState::Starting | TaskState::Stopping { .. } | TaskState::Lost)) => {
                Some(format!("it is {} on {}", state.word(), place.machine))
            }
            None => Some(format!("it is not started on {} yet", place.machine)),
        }
    }

    fn tell(&self, operation: &OperationId, waits_for: String) {
        self.0.core.tell_wait(operation, waits_for);
    }
}

fn ask(tenant: &Tenant, by: &OperationId) -> Ask {
    Ask {
        task: tenant.task.clone(),
        by: by.to_string(),
    }
}
