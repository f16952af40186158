//! Emptying a machine: an operation that closes it for new tasks and moves those it has, each within the budget of its
//! service.
//!
//! The service itself moves its task ([`AdminServer::evict`]), after it was asked to take away whatever must not vanish
//! with it. What a step waits for is told while it waits. Cancelling opens the machine again; what has moved stays where
//! it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use homeostat_api::v1::{EvictRequest, PrepareEvictionRequest};
use homeostat_api::{AdminServer, Refusal};
use homeostat_journal::{
    Approval, Asker, Draft, Evidence, OnFailure, Retry, StepPlan, Touched, Undo,
};
use homeostat_model::{MachineName, OperationId, ProcedureName, ServiceName, StepName, TaskName};
use homeostat_ops::{Procedure, StepContext, StepError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::plan::PROCEDURE_VERSION;
use crate::procedure::step_error;

/// Reasons to wait that are shown at once.
const MOST_SHOWN: usize = 4;
/// How long one step may wait for budgets, machines and people. Whoever asked may cancel at any moment.
const WITHIN: Duration = Duration::from_secs(24 * 3600);
/// How often what a step waits for is looked at, and how long a service that refused is left alone.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// A task and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tenant {
    pub task: TaskName,
    pub service: ServiceName,
}

/// What a step of a drain does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "drain")]
enum Part {
    /// No new tasks.
    Close { machine: MachineName },
    Move {
        machine: MachineName,
        tenants: Vec<Tenant>,
    },
    /// Also what came between the planning and the closing.
    Finish { machine: MachineName },
}

/// What emptying a machine needs of the cell.
#[async_trait]
pub trait Landlord: Send + Sync + 'static {
    /// Opens the machine for new tasks, closes it, or calls it empty.
    ///
    /// # Errors
    /// When the store refuses.
    async fn door(&self, machine: &MachineName, door: Door) -> Result<(), Refusal>;

    /// Who has a place on the machine.
    fn tenants(&self, machine: &MachineName) -> Vec<Tenant>;

    /// The admin server of a declared service.
    fn admin(&self, service: &ServiceName) -> Option<Arc<dyn AdminServer>>;

    /// Makes sure that a service which should be down knows so.
    ///
    /// # Errors
    /// Those of its admin server.
    async fn settle_wish(&self, service: &ServiceName) -> Result<(), Refusal>;

    /// Why a task would find no place elsewhere; `None`: it would, or needs none. It is not stopped before that.
    ///
    /// # Errors
    /// When the store refuses.
    async fn stuck(&self, tenant: &Tenant) -> Result<Option<String>, Refusal>;

    /// Asks the service's budget. `Some`: what that waits for.
    ///
    /// # Errors
    /// When the store refuses.
    async fn disturb(&self, tenant: &Tenant, by: &OperationId) -> Result<Option<String>, Refusal>;

    /// The task is back, or was left where it is.
    ///
    /// # Errors
    /// When the store refuses.
    async fn settle(&self, tenant: &Tenant, by: &OperationId) -> Result<(), Refusal>;

    /// The task was not touched after all.
    ///
    /// # Errors
    /// When the store refuses.
    async fn release(&self, tenant: &Tenant, by: &OperationId) -> Result<(), Refusal>;

    /// What a task that has moved still needs to run again; `None`: it runs, or has no place any more.
    fn missing(&self, tenant: &Tenant) -> Option<String>;

    /// For people: what the operation waits for now; empty when for nothing.
    fn tell(&self, operation: &OperationId, waits_for: String);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Open,
    Closed,
    /// Closed, and nobody is in.
    Empty,
}

pub fn drain_procedure() -> ProcedureName {
    ProcedureName::new("drain").expect("invariant: 'drain' is a valid name")
}

/// Close, move the tenants, finish.
pub fn drain(machine: &MachineName, tenants: Vec<Tenant>, asked_by: Asker) -> Draft {
    let close = Part::Close {
        machine: machine.clone(),
    };
    let finish = Part::Finish {
        machine: machine.clone(),
    };
    let mut steps = vec![step(
        "close",
        format!("give {machine} no new tasks"),
        &close,
    )];
    if !tenants.is_empty() {
        let about = match tenants.as_slice() {
            [one] => format!("move {}", one.task),
            many => format!("move {} tasks", many.len()),
        };
        let part = Part::Move {
            machine: machine.clone(),
            tenants,
        };
        steps.push(step("move", about, &part));
    }
    let about = format!("see that {machine} is empty");
    steps.push(step("finish", about, &finish));
    Draft {
        procedure: drain_procedure(),
        version: PROCEDURE_VERSION,
        scope: [Touched::Machine(machine.clone())].into(),
        asked_by,
        why: format!("{machine} is to be empty"),
        approval: Approval::NotNeeded,
        on_failure: OnFailure::Stop,
        steps,
    }
}

/// The machine that a stored operation empties; `None` when it is something else.
pub fn drained_machine(draft: &Draft) -> Option<MachineName> {
    if draft.procedure != drain_procedure() {
        return None;
    }
    match part(draft.steps.first()?).ok()? {
        Part::Close { machine } | Part::Move { machine, .. } | Part::Finish { machine } => {
            Some(machine)
        }
    }
}

fn step(name: &str, about: String, part: &Part) -> StepPlan {
    StepPlan {
        name: StepName::new(name).expect("invariant: the step names in this module are valid"),
        about,
        parameters: serde_json::to_value(part)
            .expect("invariant: names and lists of them always serialize"),
        manual: None,
        retry: Retry {
            max_attempts: 100,
            first: Duration::from_millis(200),
            longest: Duration::from_secs(10),
        },
        timeout: WITHIN,
        undo: Undo::ByProcedure,
    }
}

fn part(step: &StepPlan) -> Result<Part, StepError> {
    serde_json::from_value(step.parameters.clone())
        .map_err(|error| StepError::final_(format!("its parameters cannot be read: {error}")))
}

/// The procedure `drain`.
pub struct DrainProcedure {
    name: ProcedureName,
    landlord: Arc<dyn Landlord>,
}

/// How far one task is.
enum Turn {
    Done,
    Waits(String),
    /// Its service refused, and is not asked again at once.
    Refused(String),
}

impl DrainProcedure {
    pub fn new(landlord: Arc<dyn Landlord>) -> Self {
        Self {
            name: drain_procedure(),
            landlord,
        }
    }

    /// Moves all of them: those of one service one after the other, as its budget says; whoever has to wait keeps nobody of
    /// another service from moving.
    async fn move_all(
        &self,
        machine: &MachineName,
        mut tenants: Vec<Tenant>,
        context: &StepContext,
    ) -> Result<(), StepError> {
        let all = tenants.len();
        let mut refused: BTreeMap<Tenant, (Instant, String)> = BTreeMap::new();
        while !tenants.is_empty() {
            let mut waits = Vec::new();
            let mut left = Vec::new();
            for tenant in tenants {
                if let Some((at, why)) = refused.get(&tenant)
                    && at.elapsed() < ASK_AGAIN
                {
                    waits.push(why.clone());
                    left.push(tenant);
                    continue;
                }
                let turn = self.turn(machine, &tenant, &context.operation).await;
                match turn.map_err(step_error)? {
                    Turn::Done => {}
                    Turn::Waits(why) => {
                        waits.push(why);
                        left.push(tenant);
                    }
                    Turn::Refused(why) => {
                        waits.push(why.clone());
                        refused.insert(tenant.clone(), (Instant::now(), why));
                        left.push(tenant);
                    }
                }
            }
            tenants = left;
            let moved = all - tenants.len();
            self.landlord
                .tell(&context.operation, progress(moved, all, &waits));
            if tenants.is_empty() {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = context.cancellation.cancelled() => {
                    for tenant in &tenants {
                        let settled = self.landlord.settle(tenant, &context.operation).await;
                        settled.map_err(step_error)?;
                    }
                    return Err(StepError::retryable("stopped: it is not wanted any more"));
                }
            }
        }
        Ok(())
    }

    /// One look at one task, and what follows from it. Everything in here is asked again at the next look.
    async fn turn(
        &self,
        machine: &MachineName,
        tenant: &Tenant,
        operation: &OperationId,
    ) -> Result<Turn, Refusal> {
        let Tenant { task, service } = tenant;
        if !self.landlord.tenants(machine).contains(tenant) {
            if let Some(why) = self.landlord.missing(tenant) {
                return Ok(Turn::Waits(format!("{task} to run again: {why}")));
            }
            self.landlord.settle(tenant, operation).await?;
            return Ok(Turn::Done);
        }
        let Some(admin) = self.landlord.admin(service) else {
            return Ok(Turn::Waits(format!(
                "{task}: {service} is not declared any more"
            )));
        };
        self.landlord.settle_wish(service).await?;
        if let Some(why) = self.landlord.stuck(tenant).await? {
            return Ok(Turn::Waits(format!("room elsewhere: {why}")));
        }
        if let Some(why) = self.landlord.disturb(tenant, operation).await? {
            return Ok(Turn::Waits(format!("the budget of {service}: {why}")));
        }
        match leave(&*admin, machine, tenant).await {
            Ok(()) => Ok(Turn::Waits(format!("{task} to leave {machine}"))),
            Err(Stays::Untouched(refusal)) => {
                // Nothing was disturbed: others need not wait for this one.
                self.landlord.release(tenant, operation).await?;
                Ok(Turn::Refused(format!("{service}: {refusal}")))
            }
            Err(Stays::Prepared(refusal)) => {
                self.landlord.settle(tenant, operation).await?;
                Ok(Turn::Refused(format!("{service}: {refusal}")))
            }
        }
    }
}

/// What the moving waits for, for people; empty when for nothing.
fn progress(moved: usize, all: usize, waits: &[String]) -> String {
    if waits.is_empty() {
        return String::new();
    }
    let mut text = waits
        .iter()
        .take(MOST_SHOWN)
        .cloned()
        .collect::<Vec<_>>()
        .join("; ");
    if waits.len() > MOST_SHOWN {
        text.push_str(&format!("; and {} more", waits.len() - MOST_SHOWN));
    }
    format!("{text} ({moved} of {all} moved)")
}

/// Why a task does not leave: its service refused to prepare that, or to do it once it was prepared.
enum Stays {
    Untouched(Refusal),
    Prepared(Refusal),
}

/// Asks the service to make the task dispensable, then to move it.
async fn leave(
    admin: &dyn AdminServer,
    machine: &MachineName,
    tenant: &Tenant,
) -> Result<(), Stays> {
    let (service, task) = (tenant.service.to_string(), tenant.task.to_string());
    admin
        .prepare_eviction(PrepareEvictionRequest {
            service: service.clone(),
            task: task.clone(),
        })
        .await
        .map_err(Stays::Untouched)?;
    let machine = machine.to_string();
    admin
        .evict(EvictRequest {
            service,
            task,
            machine,
        })
        .await
        .map(|_| ())
        .map_err(Stays::Prepared)
}

#[async_trait]
impl Procedure for DrainProcedure {
    fn name(&self) -> &ProcedureName {
        &self.name
    }

    fn version(&self) -> u32 {
        PROCEDURE_VERSION
    }

    async fn run(&self, step: &StepPlan, context: &StepContext) -> Result<Value, StepError> {
        match part(step)? {
            Part::Close { machine } => {
                let closed = self.landlord.door(&machine, Door::Closed).await;
                closed.map_err(step_error)?;
            }
            Part::Move { machine, tenants } => self.move_all(&machine, tenants, context).await?,
            Part::Finish { machine } => {
                let late = self.landlord.tenants(&machine);
                self.move_all(&machine, late, context).await?;
                let empty = self.landlord.door(&machine, Door::Empty).await;
                empty.map_err(step_error)?;
            }
        }
        Ok(Value::Null)
    }

    async fn verify(&self, step: &StepPlan, _: &StepContext) -> Result<(), Evidence> {
        let (machine, tenants) = match part(step).map_err(|error| error.evidence)? {
            Part::Close { .. } => return Ok(()),
            Part::Move { machine, tenants } => (machine, Some(tenants)),
            Part::Finish { machine } => (machine, None),
        };
        let there = self.landlord.tenants(&machine);
        let left = there
            .iter()
            .find(|tenant| tenants.as_ref().is_none_or(|all| all.contains(tenant)));
        match left {
            None => Ok(()),
            Some(tenant) => Err(Evidence::from(format!(
                "{} is still on {machine}",
                tenant.task
            ))),
        }
    }

    async fn undo(&self, step: &StepPlan, context: &StepContext) -> Result<(), StepError> {
        match part(step)? {
            Part::Close { machine } => {
                let open = self.landlord.door(&machine, Door::Open).await;
                open.map_err(step_error)
            }
            // What has moved may stay where it is; what was on its way gets there by itself.
            Part::Move { tenants, .. } => {
                for tenant in tenants {
                    let settled = self.landlord.settle(&tenant, &context.operation).await;
                    settled.map_err(step_error)?;
                }
                Ok(())
            }
            Part::Finish { .. } => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use homeostat_journal::{Person, lint};

    fn tenants(count: u32) -> Vec<Tenant> {
        let service = ServiceName::new("web").unwrap();
        (0..count)
            .map(|n| Tenant {
                task: TaskName::of(&service, n).unwrap(),
                service: service.clone(),
            })
            .collect()
    }

    fn plan(count: u32) -> Draft {
        let machine = MachineName::new("m2").unwrap();
        drain(
            &machine,
            tenants(count),
            Asker::Person(Person("kim".into())),
        )
    }

    #[test]
    fn plans_are_sound_whatever_is_on_the_machine() {
        for count in [0, 1, 500] {
            let draft = plan(count);
            assert_eq!(lint(&draft), [], "{count} tasks");
            let moved: usize = draft
                .steps
                .iter()
                .map(|step| match part(step).unwrap() {
                    Part::Move { tenants, .. } => tenants.len(),
                    Part::Close { .. } | Part::Finish { .. } => 0,
                })
                .sum();
            assert_eq!(moved, count as usize);
        }
    }

    #[test]
    fn progress_reads_well_and_stays_short() {
        let waits = |count: usize| vec!["room".to_owned(); count];
        assert_eq!(progress(3, 3, &[]), "");
        assert_eq!(progress(1, 3, &waits(2)), "room; room (1 of 3 moved)");
        assert_eq!(
            progress(0, 9, &waits(9)),
            "room; room; room; room; and 5 more (0 of 9 moved)"
        );
    }

    #[test]
    fn what_is_drained_is_read_back_from_the_plan() {
        let draft = plan(2);
        let about: Vec<&str> = draft.steps.iter().map(|step| step.about.as_str()).collect();
        assert_eq!(
            about,
            [
                "give m2 no new tasks",
                "move 2 tasks",
                "see that m2 is empty"
            ]
        );
        assert_eq!(drained_machine(&draft), MachineName::new("m2").ok());
        let other = crate::plan::turnup(&[], Asker::Person(Person("kim".into())), "x".into());
        assert_eq!(drained_machine(&other), None);
    }
}
