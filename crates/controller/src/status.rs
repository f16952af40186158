//! The cell at a glance. This is the documented, stable JSON of `homeostat status --json` (docs/src/status.md): fields
//! are only added.

use homeostat_api::v1::{InspectRequest, ServiceState};
use homeostat_model::{CellKind, MachineState, TaskState};
use homeostat_turnup::drained_machine;
use serde::Serialize;
use serde_json::Value;

use crate::checks::CheckView;
use crate::core::Core;
use crate::handle::task_state;
use crate::hub::AgentView;
use crate::leader::Leader;
use crate::values::endpoint_on;

#[derive(Debug, Serialize)]
pub(crate) struct Status {
    format: u32,
    cell: String,
    term: u64,
    controller_pid: u32,
    machines: Vec<MachineStatus>,
    tasks: Vec<TaskStatus>,
    /// Each as its admin server describes it: name, epoch, phase, primary, members, waits.
    sql: Vec<Value>,
    services: Vec<ServiceStatus>,
    checks: Vec<CheckView>,
    /// `sandbox` or `production`.
    kind: CellKind,
    /// Those that are under way.
    operations: Vec<OperationStatus>,
    /// What the cell holds back, and why: empty as a rule.
    held: Vec<String>,
}

/// An operation that is under way.
#[derive(Debug, Serialize)]
struct OperationStatus {
    name: String,
    procedure: String,
    /// What it is for.
    why: String,
    asked_by: String,
    state: &'static str,
    /// What it does now.
    step: String,
    steps_done: usize,
    steps: usize,
    waits_for: String,
    /// The machine that it empties, if that is what it does.
    machine: Option<String>,
}

#[derive(Debug, Serialize)]
struct MachineStatus {
    name: String,
    rack: String,
    address: String,
    /// `ready`, `draining`, `drained`, `lost`, `returning`; of one that should be there `reporting` (its agent has not told
    /// yet what it runs) or `silent` (not for long enough to be lost).
    state: &'static str,
    /// How long it has been lost, draining, …; absent while it always was what it is.
    since_unix_ms: Option<u64>,
    /// What is still to be stopped of an earlier time.
    stale: Vec<String>,
    agent_pid: Option<u32>,
    endpoint_pid: Option<u32>,
}

#[derive(Debug, Serialize)]
struct TaskStatus {
    name: String,
    service: String,
    machine: String,
    pid: Option<u32>,
    supervisor_pid: Option<u32>,
    state: &'static str,
    /// How it ended or why it does not run.
    why: String,
    ports: std::collections::BTreeMap<String, u32>,
    address: String,
    logs: String,
}

#[derive(Debug, Serialize)]
struct ServiceStatus {
    name: String,
    owner: String,
    state: &'static str,
    waits_for: String,
    /// Machines on which its tasks are.
    machines: Vec<String>,
    /// On the cell's first machine that is not lost; every machine has its own at the same port.
    endpoint: Option<String>,
    needs: Vec<String>,
}

pub(crate) async fn status(leader: &Leader) -> Status {
    let (core, services, checks) = (&*leader.core, &leader.services, &leader.checks);
    let tasks = tasks(core);
    let mut service_rows = Vec::new();
    let mut sql = Vec::new();
    let applied = core.applied();
    for spec in applied.iter().flat_map(|applied| &applied.spec.services) {
        let admin = services.admin(&spec.name);
        let seen = match admin {
            Some(admin) => admin
                .inspect(InspectRequest {
                    service: spec.name.to_string(),
                })
                .await
                .ok(),
            None => None,
        };
        let (state, waits_for) = match &seen {
            Some(reply) => (service_word(reply.state), reply.waits_for.clone()),
            None => ("unknown", "its admin server does not answer".to_owned()),
        };
        if let Some(view) = seen.filter(|reply| !reply.detail_json.is_empty()) {
            sql.extend(serde_json::from_str::<Value>(&view.detail_json).ok());
        }
        let mut machines: Vec<String> = tasks
            .iter()
            .filter(|task| task.service == spec.name.as_str())
            .map(|task| task.machine.clone())
            .collect();
        machines.sort();
        machines.dedup();
        let has_endpoint = core.hub.endpoints().contains_key(spec.name.as_str());
        let first = core.vantage();
        service_rows.push(ServiceStatus {
            name: spec.name.to_string(),
            owner: spec.owner.clone(),
            state,
            waits_for,
            machines,
            endpoint: first
                .filter(|_| has_endpoint)
                .and_then(|machine| endpoint_on(core, &spec.name, &machine).ok()),
            needs: spec.needs.iter().map(ToString::to_string).collect(),
        });
    }
    Status {
        format: 1,
        cell: core.identity.name.to_string(),
        term: core.term.0,
        controller_pid: std::process::id(),
        machines: machines(core),
        tasks,
        sql,
        services: service_rows,
        checks: checks.views(),
        kind: core
            .applied()
            .map_or(CellKind::Production, |applied| applied.spec.kind),
        operations: operations(leader).await,
        held: core.machines.held().into_iter().collect(),
    }
}

async fn operations(leader: &Leader) -> Vec<OperationStatus> {
    // What cannot be listed cannot be shown; the store's own trouble shows elsewhere.
    let listed = leader
        .executor
        .list()
        .await
        .map(|listing| listing.operations);
    let under_way = listed
        .into_iter()
        .flatten()
        .filter(|operation| operation.outcome().is_none());
    under_way
        .map(|operation| {
            let draft = operation.plan().draft();
            let current = operation.current();
            OperationStatus {
                name: operation.id().to_string(),
                procedure: draft.procedure.to_string(),
                why: draft.why.clone(),
                asked_by: draft.asked_by.to_string(),
                state: operation.status().word(),
                step: current
                    .and_then(|step| operation.plan().step(step))
                    .map(|step| step.about.clone())
                    .unwrap_or_default(),
                steps_done: current.map_or(draft.steps.len(), |step| step.position()),
                steps: draft.steps.len(),
                waits_for: leader.core.waits_for(operation.id()),
                machine: drained_machine(draft).map(|machine| machine.to_string()),
            }
        })
        .collect()
}

fn machines(core: &Core) -> Vec<MachineStatus> {
    let forwarders = core.hub.forwarders();
    core.identity
        .machines
        .iter()
        .map(|machine| {
            let agent = core.hub.agent(&machine.spec.name);
            let record = core.machines.record(&machine.spec.name);
            let endpoint = forwarders.iter().find(|(of, _)| *of == machine.spec.name);
            MachineStatus {
                name: machine.spec.name.to_string(),
                rack: machine.spec.rack.to_string(),
                address: machine.address.clone(),
                state: machine_word(record.state, agent.as_ref()),
                since_unix_ms: (record.since_unix_ms > 0).then_some(record.since_unix_ms),
                stale: core
                    .machines
                    .stale(&machine.spec.name)
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
                agent_pid: agent.map(|agent| agent.pid),
                endpoint_pid: endpoint
                    .map(|(_, report)| report.pid)
                    .filter(|pid| *pid != 0),
            }
        })
        .collect()
}

fn machine_word(state: MachineState, agent: Option<&AgentView>) -> &'static str {
    match (state, agent) {
        (MachineState::Present { .. }, None) => "silent",
        (MachineState::Present { .. }, Some(agent)) if !agent.synced => "reporting",
        (
            MachineState::Present { .. }
            | MachineState::Lost { .. }
            | MachineState::Returning { .. },
            Some(_) | None,
        ) => state.word(),
    }
}

fn tasks(core: &Core) -> Vec<TaskStatus> {
    let observed = core.hub.tasks();
    core.placements
        .all()
        .into_iter()
        .map(|(name, place)| {
            let event = observed.iter().find(|event| event.task == name.as_str());
            let lost = core.hub.is_lost(&place.machine);
            let unknown = if lost {
                "is lost"
            } else {
                "has not reported it"
            };
            let state =
                event
                    .and_then(task_state)
                    .filter(|_| !lost)
                    .unwrap_or(TaskState::Pending {
                        why: format!("{} {unknown}", place.machine),
                    });
            TaskStatus {
                logs: core
                    .layout
                    .machine(&place.machine)
                    .task_logs(&name)
                    .display()
                    .to_string(),
                name: name.to_string(),
                service: place.service.to_string(),
                machine: place.machine.to_string(),
                pid: state.pid(),
                supervisor_pid: event
                    .map(|event| event.supervisor_pid)
                    .filter(|pid| *pid != 0),
                why: match &state {
                    TaskState::Pending { why } => why.clone(),
                    TaskState::Exited { cause } => cause.to_string(),
                    TaskState::Starting
                    | TaskState::Running { .. }
                    | TaskState::Stopping { .. }
                    | TaskState::Lost => String::new(),
                },
                state: state.word(),
                ports: event
                    .map(|event| event.ports.clone().into_iter().collect())
                    .unwrap_or_default(),
                address: event.map(|event| event.address.clone()).unwrap_or_default(),
            }
        })
        .collect()
}

fn service_word(state: i32) -> &'static str {
    match ServiceState::try_from(state) {
        Ok(ServiceState::Down) => "down",
        Ok(ServiceState::Starting) => "starting",
        Ok(ServiceState::Up) => "up",
        Ok(ServiceState::Degraded) => "degraded",
        Ok(ServiceState::Stopping) => "stopping",
        Ok(ServiceState::Updating) => "updating",
        Ok(ServiceState::Unspecified) | Err(_) => "unknown",
    }
}
