//! How a cluster looks from outside: one state for the cell, one row per member for people. Pure.

use std::collections::BTreeMap;

use homeostat_api::v1::ServiceState;
use homeostat_decider::{
    MemberId, MemberReport, MemberView, Phase, RebuildState, Receiver, Record, ServerFacts,
    ServerState, View, Wait,
};
use homeostat_model::{Bytes, ServiceName, TaskState};
use serde::{Deserialize, Serialize};

use super::members::Seen;

/// One cluster in `status --json` (`sql[]`) and in the contract's `Inspect`. Stable: fields are only added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    pub name: String,
    /// Rises with every change of primary, and when a primary is restarted in place. 0: the cluster was never up.
    pub epoch: u64,
    /// `serving`, `revoking`, `promoting`; `none` where there is no record yet; `unknown` while it was not read.
    pub phase: String,
    /// The member open for writes; `null` while there is none.
    pub primary: Option<String>,
    pub members: Vec<MemberRow>,
    /// What it waits for, in people's words; empty when all is well.
    pub waits: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRow {
    pub task: String,
    /// Empty while it has no place.
    pub machine: String,
    /// Of its server, not of its keeper.
    pub pid: Option<u32>,
    pub role: Role,
    /// The end of its log.
    pub gtid: Option<String>,
    pub acker: Copying,
    /// `well`, or what is wrong with it.
    pub state: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Its server holds the primary role of the current epoch.
    Primary,
    /// Its server runs in any other role.
    Replica,
    Starting,
    /// No server runs: exact.
    Down,
    /// Its keeper is silent; what is known of it is old.
    Unreachable,
}

/// What a member's receipt of a write means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Copying {
    /// A write is acknowledged to a client only when one of these has it.
    Acker,
    Asynchronous,
    /// It copies from nobody.
    None,
}

/// What is wished of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wished {
    Nothing,
    Up,
    Down,
}

/// All that the loop knows.
pub(super) struct Situation<'a> {
    pub service: &'a ServiceName,
    pub wished: Wished,
    /// Something of the wish is not carried out that is no task's matter: saving it, secrets, reaching the cell.
    pub preparing: Option<&'a str>,
    pub members: &'a [MemberId],
    pub tasks: &'a BTreeMap<MemberId, Seen>,
    pub decider: Option<&'a View>,
}

/// What others see.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Looks {
    pub state: ServiceState,
    pub waits_for: String,
    pub cluster: ClusterView,
}

pub(super) fn look(now: &Situation<'_>) -> Looks {
    let (state, waits) = match now.wished {
        Wished::Nothing => (ServiceState::Down, Vec::new()),
        Wished::Down => going_down(now),
        Wished::Up => coming_up(now),
    };
    let record = now.decider.and_then(|view| view.record.as_ref());
    let open = now.decider.and_then(|view| view.open.as_ref());
    let phase = match (now.decider, record) {
        (_, Some(record)) => word(record.phase),
        (Some(view), None) if !view.waits.contains(&Wait::RecordRead) => "none",
        (Some(_) | None, None) => "unknown",
    };
    let cluster = ClusterView {
        name: now.service.to_string(),
        epoch: record.map_or(0, |record| record.epoch.0),
        phase: phase.to_owned(),
        primary: open.map(ToString::to_string),
        members: now
            .members
            .iter()
            .map(|member| row(now, record, member))
            .collect(),
        waits: waits.clone(),
    };
    Looks {
        state,
        waits_for: waits.join("; "),
        cluster,
    }
}

fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::Serving => "serving",
        Phase::Revoking => "revoking",
        Phase::Promoting => "promoting",
    }
}

fn going_down(now: &Situation<'_>) -> (ServiceState, Vec<String>) {
    let mut waits: Vec<String> = now.preparing.map(str::to_owned).into_iter().collect();
    let running = now.tasks.iter().filter(|(_, task)| !task.over());
    waits.extend(
        running.map(|(member, task)| format!("{member} to end (it is {})", task.state.word())),
    );
    let calls = now.tasks.values().any(|task| task.busy);
    if waits.is_empty() && !calls {
        (ServiceState::Down, waits)
    } else {
        (ServiceState::Stopping, waits)
    }
}

fn coming_up(now: &Situation<'_>) -> (ServiceState, Vec<String>) {
    let mut waits: Vec<String> = now.preparing.map(str::to_owned).into_iter().collect();
    let serving = now.decider.and_then(|view| {
        let record = view
            .record
            .as_ref()
            .filter(|record| record.phase == Phase::Serving)?;
        (view.open.as_ref() == Some(&record.holder)).then_some((view, record))
    });
    let Some((view, record)) = serving else {
        for member in now.members {
            waits.extend(not_running(now, member).map(|why| format!("{member}: {why}")));
        }
        let deciders = now
            .decider
            .map(|view| view.waits.as_slice())
            .unwrap_or_default();
        waits.extend(deciders.iter().map(ToString::to_string));
        if waits.is_empty() {
            waits.push("its members".to_owned());
        }
        return (ServiceState::Starting, waits);
    };
    for member in now.members {
        waits.extend(fault(now, record, member).map(|why| format!("{member}: {why}")));
    }
    let wanted = now.members.len().saturating_sub(1).min(2);
    if record.ackers.len() < wanted {
        waits.push(format!(
            "a second replica that acknowledges ({} does now)",
            names(record)
        ));
    }
    for wait in &view.waits {
        // Orders on their way are no fault; the faults of members are named above.
        if let Wait::Superseded { .. }
        | Wait::StoreBehind { .. }
        | Wait::AutomaticOff { .. }
        | Wait::Rebuild { .. }
        | Wait::Diverged { .. } = wait
        {
            waits.push(wait.to_string());
        }
    }
    let state = if waits.is_empty() {
        ServiceState::Up
    } else {
        ServiceState::Degraded
    };
    (state, waits)
}

fn names(record: &Record) -> String {
    let names: Vec<&str> = record.ackers.iter().map(MemberId::as_str).collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// Why a member's keeper does not run, if it does not.
fn not_running(now: &Situation<'_>, member: &MemberId) -> Option<String> {
    let Some(task) = now.tasks.get(member) else {
        return Some("not placed yet".to_owned());
    };
    match &task.state {
        TaskState::Pending { why } => Some(why.clone()),
        TaskState::Exited { cause } => Some(format!("its keeper ended ({cause})")),
        TaskState::Lost => Some("its keeper was lost".to_owned()),
        TaskState::Starting | TaskState::Stopping { .. } => {
            Some(format!("its keeper is {}", task.state.word()))
        }
        TaskState::Running { .. } => task
            .ending
            .then(|| "its keeper was told to stop".to_owned()),
    }
}

/// What is wrong with a member of a serving cluster.
fn fault(now: &Situation<'_>, record: &Record, member: &MemberId) -> Option<String> {
    let view = now.decider.and_then(|view| view.members.get(member))?;
    if let Some(why) = not_running(now, member) {
        return Some(why);
    }
    let report = match &view.report {
        Some(report) if view.reachable => report,
        Some(_) | None => return Some("its keeper is silent".to_owned()),
    };
    match &report.server {
        ServerState::Down { .. } => Some(copied(report)),
        ServerState::Starting { .. } => Some("its server is starting".to_owned()),
        ServerState::Up { .. } if record.holder == *member => None,
        ServerState::Up { facts, .. } => does_not_copy(record, member, facts),
    }
}

/// What a member whose server does not run is doing.
fn copied(report: &MemberReport) -> String {
    match &report.rebuild {
        Some(RebuildState::Copying {
            source,
            bytes,
            of,
            bytes_per_second,
        }) => {
            let of = of.map_or(String::new(), |of| format!(" of about {}", Bytes(of)));
            let (bytes, rate) = (Bytes(*bytes), Bytes(*bytes_per_second));
            format!("it is being copied from {source}: {bytes}{of}, {rate}/s")
        }
        Some(RebuildState::Preparing { source }) => {
            format!("its copy of {source} is being prepared")
        }
        Some(RebuildState::Failed { source, why }) => {
            format!("its copy of {source} failed: {why}")
        }
        Some(RebuildState::Done { .. }) | None => "its server does not run".to_owned(),
    }
}

fn does_not_copy(record: &Record, member: &MemberId, facts: &ServerFacts) -> Option<String> {
    match &facts.receiver {
        Receiver::None | Receiver::Stopped { .. } => Some("it does not replicate yet".to_owned()),
        Receiver::Running {
            error: Some(error), ..
        } => Some(format!("it cannot replicate: {error}")),
        Receiver::Running { source, .. } if source.member != record.holder => {
            Some(format!("it still replicates from {}", source.member))
        }
        Receiver::Running {
            connected: false, ..
        } => Some("it connects to the primary".to_owned()),
        Receiver::Running {
            applying: false, ..
        } => Some("it receives and does not apply".to_owned()),
        Receiver::Running { .. } if record.ackers.contains(member) && !facts.acker => {
            Some("it does not acknowledge yet".to_owned())
        }
        Receiver::Running { .. } => None,
    }
}

fn row(now: &Situation<'_>, record: Option<&Record>, member: &MemberId) -> MemberRow {
    let task = now.tasks.get(member);
    let decided = now.decider.and_then(|view| view.members.get(member));
    // Without a decider (turned down, or before it begins) what the keeper said last is as good.
    let report = decided
        .and_then(|view| view.report.as_ref())
        .or_else(|| Some(&task?.said.as_ref()?.report));
    let facts = report.and_then(|report| match &report.server {
        ServerState::Up { facts, .. } => Some(facts),
        ServerState::Down { .. } | ServerState::Starting { .. } => None,
    });
    let state = match record {
        Some(record) if record.phase == Phase::Serving => fault(now, record, member),
        Some(_) | None => not_running(now, member),
    };
    MemberRow {
        task: member.to_string(),
        machine: task.map(|task| task.machine.clone()).unwrap_or_default(),
        pid: report
            .and_then(|report| report.running())
            .map(|server| server.pid),
        role: role(record, member, task, decided),
        gtid: facts
            .and_then(|facts| facts.applied.last)
            .map(|gtid| gtid.to_string()),
        acker: match facts {
            Some(ServerFacts { acker: true, .. }) => Copying::Acker,
            Some(facts) if facts.receiver.source().is_some() => Copying::Asynchronous,
            Some(_) | None => Copying::None,
        },
        state: state.unwrap_or_else(|| "well".to_owned()),
    }
}

fn role(
    record: Option<&Record>,
    member: &MemberId,
    task: Option<&Seen>,
    decided: Option<&MemberView>,
) -> Role {
    if task.is_none_or(Seen::over) {
        // Its server dies with the keeper.
        return Role::Down;
    }
    let Some(report) = decided
        .filter(|view| view.reachable)
        .and_then(|view| view.report.as_ref())
    else {
        return Role::Unreachable;
    };
    match &report.server {
        ServerState::Down { .. } => Role::Down,
        ServerState::Starting { .. } => Role::Starting,
        ServerState::Up { .. } if record.is_some_and(|record| record.holds(member)) => {
            Role::Primary
        }
        ServerState::Up { .. } => Role::Replica,
    }
}

#[cfg(test)]
mod tests;
