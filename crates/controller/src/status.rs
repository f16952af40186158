//! The cell at a glance. This is the documented, stable JSON of `homeostat status --json` (docs/src/status.md): fields
//! are only added.

use homeostat_api::v1::{InspectRequest, ServiceState};
use homeostat_model::TaskState;
use serde::Serialize;
use serde_json::Value;

use crate::checks::{CheckView, Checks};
use crate::core::Core;
use crate::handle::{endpoint_on, task_state};
use crate::services::Services;

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
}

#[derive(Debug, Serialize)]
struct MachineStatus {
    name: String,
    rack: String,
    address: String,
    /// `ready`, `reporting` (its agent has not told yet what it runs) or `silent`.
    state: &'static str,
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
    /// On the cell's first machine; every machine has its own at the same port.
    endpoint: Option<String>,
    needs: Vec<String>,
}

pub(crate) async fn status(core: &Core, services: &Services, checks: &Checks) -> Status {
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
        let first = core
            .identity
            .machines
            .first()
            .map(|machine| machine.spec.name.clone());
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
    }
}

fn machines(core: &Core) -> Vec<MachineStatus> {
    let forwarders = core.hub.forwarders();
    core.identity
        .machines
        .iter()
        .map(|machine| {
            let agent = core.hub.agent(&machine.spec.name);
            let endpoint = forwarders.iter().find(|(of, _)| *of == machine.spec.name);
            MachineStatus {
                name: machine.spec.name.to_string(),
                rack: machine.spec.rack.to_string(),
                address: machine.address.clone(),
                state: match &agent {
                    Some(agent) if agent.synced => "ready",
                    Some(_) => "reporting",
                    None => "silent",
                },
                agent_pid: agent.map(|agent| agent.pid),
                endpoint_pid: endpoint
                    .map(|(_, report)| report.pid)
                    .filter(|pid| *pid != 0),
            }
        })
        .collect()
}

fn tasks(core: &Core) -> Vec<TaskStatus> {
    let observed = core.hub.tasks();
    core.placements
        .all()
        .into_iter()
        .map(|(name, place)| {
            let event = observed.iter().find(|event| event.task == name.as_str());
            let state = event.and_then(task_state).unwrap_or(TaskState::Pending {
                why: format!("{} has not reported it", place.machine),
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
        Ok(ServiceState::Unspecified) | Err(_) => "unknown",
    }
}
