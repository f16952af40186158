//! Carries a turnup or turndown out, through admin servers.

use std::sync::Arc;

use async_trait::async_trait;
use homeostat_api::v1::{InspectRequest, ServiceState, TurndownRequest, TurnupRequest};
use homeostat_api::{AdminServer, Refusal, RefusalKind};
use homeostat_journal::{Evidence, StepPlan};
use homeostat_model::{ProcedureName, ServiceName};
use homeostat_ops::{Procedure, StepContext, StepError};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::plan::{KEEP, Keep, PROCEDURE_VERSION, turndown_procedure, turnup_procedure};

/// What a turnup needs of the cell besides the services' own admin servers.
#[async_trait]
pub trait Cell: Send + Sync + 'static {
    /// The admin server of a declared service.
    fn admin(&self, service: &ServiceName) -> Option<Arc<dyn AdminServer>>;

    /// What to turn the service up with.
    ///
    /// # Errors
    /// When the service is not declared.
    fn turnup_request(&self, service: &ServiceName) -> Result<TurnupRequest, Refusal>;

    /// Installs packages. Idempotent.
    ///
    /// # Errors
    /// When a package cannot be installed.
    async fn prepare(&self) -> Result<(), Refusal>;

    /// Waits until every machine has told what it runs. Before that nothing is started, and above all nothing is called
    /// down: a task of which nobody has heard may well run.
    ///
    /// # Errors
    /// When that will never be.
    async fn machines(&self) -> Result<(), Refusal>;

    /// Remembers that the service should be up (or down) before anything is done about it, so that a new leader
    /// carries on in the same direction.
    ///
    /// # Errors
    /// When the store refuses.
    async fn wish(&self, service: &ServiceName, direction: Direction) -> Result<(), Refusal>;

    /// Sets the clock by which what services kept is purged. Called when they are down.
    ///
    /// # Errors
    /// When one of them is wanted again, or the store refuses.
    async fn keep(&self, services: &[ServiceName], keep: &Keep) -> Result<(), Refusal>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Up,
    Down,
}

/// The procedure `turnup` or `turndown`.
pub struct TurnProcedure {
    name: ProcedureName,
    direction: Direction,
    cell: Arc<dyn Cell>,
}

impl TurnProcedure {
    pub fn new(direction: Direction, cell: Arc<dyn Cell>) -> Self {
        let name = match direction {
            Direction::Up => turnup_procedure(),
            Direction::Down => turndown_procedure(),
        };
        Self {
            name,
            direction,
            cell,
        }
    }

    fn services(step: &StepPlan) -> Result<Vec<ServiceName>, StepError> {
        let list = step
            .parameters
            .get("services")
            .cloned()
            .unwrap_or(Value::Null);
        serde_json::from_value(list)
            .map_err(|error| StepError::final_(format!("its services cannot be read: {error}")))
    }

    async fn carry_out(&self, step: &StepPlan, term: u64) -> Result<Value, StepError> {
        let services = Self::services(step)?;
        if let Some(keep) = step.parameters.get(KEEP) {
            let keep = serde_json::from_value(keep.clone()).map_err(|error| {
                StepError::final_(format!("how long to keep cannot be read: {error}"))
            })?;
            self.all_as_wanted(&services)
                .await
                .map_err(|evidence| StepError {
                    evidence,
                    ..StepError::retryable("")
                })?;
            let kept = self.cell.keep(&services, &keep).await;
            return kept.map(|()| Value::Null).map_err(step_error);
        }
        if services.is_empty() {
            self.cell.prepare().await.map_err(step_error)?;
        }
        if services.is_empty() || self.direction == Direction::Down {
            self.cell.machines().await.map_err(step_error)?;
        }
        // All of a layer at once; the first refusal is the step's, after the others had their chance.
        let mut calls = JoinSet::new();
        for service in services {
            let this = Self {
                name: self.name.clone(),
                direction: self.direction,
                cell: Arc::clone(&self.cell),
            };
            calls.spawn(async move { this.turn(service, term).await });
        }
        let mut first = Ok(Value::Null);
        while let Some(done) = calls.join_next().await {
            let failed = match done {
                Ok(Ok(())) => continue,
                Ok(Err(refusal)) => step_error(refusal),
                Err(panic) => StepError::retryable(panic.to_string()),
            };
            if first.is_ok() {
                first = Err(failed);
            }
        }
        first
    }

    async fn turn(&self, service: ServiceName, term: u64) -> Result<(), Refusal> {
        let admin = self.cell.admin(&service).ok_or_else(|| {
            Refusal::not_found(format!("{service} is not a service of this cell"))
        })?;
        self.cell.wish(&service, self.direction).await?;
        let result = match self.direction {
            Direction::Up => admin
                .turnup(self.cell.turnup_request(&service)?)
                .await
                .map(|_| ()),
            Direction::Down => admin
                .turndown(TurndownRequest {
                    service: service.to_string(),
                    term,
                })
                .await
                .map(|_| ()),
        };
        result.map_err(|refusal| Refusal::new(refusal.kind, format!("{service}: {refusal}")))
    }
}

pub(crate) fn step_error(refusal: Refusal) -> StepError {
    match refusal.kind {
        RefusalKind::BadRequest | RefusalKind::Stale => StepError::final_(refusal.message),
        RefusalKind::NotFound
        | RefusalKind::NotNow
        | RefusalKind::Unknown
        | RefusalKind::Internal => StepError::retryable(refusal.message),
    }
}

#[async_trait]
impl Procedure for TurnProcedure {
    fn name(&self) -> &ProcedureName {
        &self.name
    }

    fn version(&self) -> u32 {
        PROCEDURE_VERSION
    }

    async fn run(&self, step: &StepPlan, context: &StepContext) -> Result<Value, StepError> {
        tokio::select! {
            result = self.carry_out(step, context.term.0) => result,
            // Nothing to put in order: the services go on by themselves, and the next operation tells them where to.
            () = context.cancellation.cancelled() => Err(StepError::retryable("stopped: it is not wanted any more")),
        }
    }

    async fn verify(&self, step: &StepPlan, _: &StepContext) -> Result<(), Evidence> {
        let services = Self::services(step).map_err(|error| error.evidence)?;
        self.all_as_wanted(&services).await
    }

    async fn undo(&self, _: &StepPlan, _: &StepContext) -> Result<(), StepError> {
        // Planned as `Undo::Nothing`: a turnup that fails stays as it is, and a turndown is undone by a turnup.
        Ok(())
    }
}

impl TurnProcedure {
    async fn all_as_wanted(&self, services: &[ServiceName]) -> Result<(), Evidence> {
        for service in services {
            let admin = self
                .cell
                .admin(service)
                .ok_or_else(|| Evidence::from(format!("{service} is not declared")))?;
            let seen = admin
                .inspect(InspectRequest {
                    service: service.to_string(),
                })
                .await
                .map_err(|refusal| Evidence::from(format!("{service}: {refusal}")))?;
            let wanted = match self.direction {
                Direction::Up => {
                    seen.state == ServiceState::Up as i32
                        || seen.state == ServiceState::Degraded as i32
                        || seen.state == ServiceState::Updating as i32
                }
                Direction::Down => seen.state == ServiceState::Down as i32,
            };
            if !wanted {
                return Err(Evidence::from(format!(
                    "{service} waits for {}",
                    seen.waits_for
                )));
            }
        }
        Ok(())
    }
}
