//! One order to the cell about one task, and how it went.

use std::time::Duration;

use homeostat_api::v1::{
    Apart, DisturbRequest, ForgetRequest, PlaceRequest, PlaceTask, SettleRequest, StartRequest,
    StopRequest,
};
use homeostat_api::{CellHandle, Refusal};
use homeostat_model::{JobSpec, TaskName};

use crate::launch::{launch, resources};
use crate::reconcile::{Action, Placed};

/// From SIGTERM to SIGKILL for a task whose specification a new leader has not been given.
const GRACE: Duration = Duration::from_secs(10);

/// What a replacement is called in the service's budget.
const ROLLOUT: &str = "rollout";

/// How an action went.
pub(crate) enum Finished {
    Placed(Placed),
    Pending(String),
    /// From this fingerprint, asked for after this many changes of state.
    Started(String, u64),
    Forgotten,
    /// The cell allows the task to be replaced.
    Granted,
    /// Not yet: this is waited for.
    Held(String),
    Settled,
    /// The task's next event tells the rest; without one it is asked again after a pause.
    Asked,
    /// The pause after this order is over.
    Rested(u64),
    Refused(Refusal),
}

pub(crate) async fn perform(
    cell: &dyn CellHandle,
    service: String,
    name: &TaskName,
    action: Action,
    generation: u64,
    spec: Option<&JobSpec>,
    started: Finished,
) -> Finished {
    let task = name.to_string();
    let grace = spec.map_or(GRACE, |spec| spec.task.grace);
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    let result = match (action, spec) {
        (Action::Place(_), Some(spec)) => place(cell, service, task, spec, 0).await,
        (Action::Move(_, leaving), Some(spec)) => place(cell, service, task, spec, leaving).await,
        (Action::Start(_), Some(spec)) => {
            let launch = Some(launch(spec));
            cell.start(StartRequest {
                service,
                task,
                generation,
                launch,
            })
            .await
            .map(|_| started)
        }
        (Action::Place(_) | Action::Move(..) | Action::Start(_), None) => {
            Ok(Finished::Pending("its specification is not known".into()))
        }
        (Action::Stop(_), _) => cell
            .stop(StopRequest {
                service,
                task,
                generation,
                grace_ms,
            })
            .await
            .map(|_| Finished::Asked),
        (Action::Forget(_), _) => cell
            .forget(ForgetRequest { service, task })
            .await
            .map(|_| Finished::Forgotten),
        (Action::Ask(_), _) => cell
            .disturb(DisturbRequest {
                service,
                task,
                purpose: ROLLOUT.into(),
            })
            .await
            .map(|reply| {
                if reply.granted {
                    Finished::Granted
                } else {
                    Finished::Held(reply.waits_for)
                }
            }),
        (Action::Settle(_), _) => cell
            .settle(SettleRequest {
                service,
                task,
                purpose: ROLLOUT.into(),
            })
            .await
            .map(|_| Finished::Settled),
        (Action::LookAgain(_), _) => Ok(Finished::Asked),
    };
    result.unwrap_or_else(Finished::Refused)
}

/// A place for one task. `leaving`: the generation of the place it gives up; 0 keeps the one there is.
async fn place(
    cell: &dyn CellHandle,
    service: String,
    task: String,
    spec: &JobSpec,
    leaving: u64,
) -> Result<Finished, Refusal> {
    let wanted = PlaceTask {
        task,
        resources: Some(resources(spec)),
        fixed_ports: spec
            .task
            .ports
            .values()
            .flatten()
            .map(|port| u32::from(*port))
            .collect(),
        apart: Apart::Spread as i32,
        leaving,
    };
    let request = PlaceRequest {
        service,
        tasks: vec![wanted],
    };
    let reply = cell.place(request).await?;
    let placed = reply.placed.into_iter().next();
    Ok(match (placed, reply.pending.into_iter().next()) {
        (Some(placed), _) => Finished::Placed(Placed {
            machine: placed.machine,
            generation: placed.generation,
        }),
        (None, Some(pending)) => Finished::Pending(pending.why),
        (None, None) => Finished::Pending("the scheduler said nothing about it".into()),
    })
}
