//! What is left of services that nobody wants any more: their places are freed when they are no longer declared, and what
//! they kept is purged when the time is over for which it was to be kept.
//!
//! That time is counted only while a controller leads, by a clock that nobody sets: a date that jumps purges nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use homeostat_api::v1::{Folder, ForgetTask, InspectRequest, ServiceState, to_agent};
use homeostat_model::{MachineName, ServiceName, TaskName};
use homeostat_store::{Compare, Op, Txn, convenience};
use serde::{Deserialize, Serialize};

use crate::ControllerError;
use crate::core::{Core, encode};
use crate::handle::{runs, task_state};
use crate::keys;
use crate::leader::Leader;

/// How often it is looked at whether something is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the time that has passed is written down; less is forgotten with a controller.
const WRITE_EVERY_MS: u64 = 10_000;
const ACCEPT_WITHIN: Duration = Duration::from_secs(10);

/// A service that was turned down, as stored, version 1: fields are only added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TurnedDown {
    pub by: String,
    /// For how long what it kept is still there, in milliseconds.
    pub keep_ms: u64,
    /// How much of that has passed while a controller led and the service was down.
    pub kept_ms: u64,
}

/// Looks after them for as long as this controller leads.
pub(crate) async fn watch(leader: Arc<Leader>) {
    let mut unwritten = 0;
    let mut before = Instant::now();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let passed = u64::try_from(before.elapsed().as_millis()).unwrap_or(u64::MAX);
        before = Instant::now();
        unwritten += passed;
        match look(&leader, unwritten).await {
            Ok(Written::Yes) => unwritten = 0,
            Ok(Written::No) => {}
            Err(error) => eprintln!("what is left of services stays: {}", error.line()),
        }
    }
}

enum Written {
    Yes,
    No,
}

async fn look(leader: &Leader, passed_ms: u64) -> Result<Written, ControllerError> {
    let core = &leader.core;
    free_dropped(core).await?;
    let mut written = Written::Yes;
    for item in convenience::list(&*core.store, keys::TURNED_DOWN)
        .await?
        .items
    {
        let name = ServiceName::new(item.key.trim_start_matches(keys::TURNED_DOWN));
        let (Ok(service), Ok(mut record)) =
            (name, serde_json::from_slice::<TurnedDown>(&item.value))
        else {
            // Of a newer controller: what is not understood is kept.
            continue;
        };
        if leader.services.is_wanted(&service).await? {
            let gone = Txn::new().then(Op::delete(keys::turned_down(&service)));
            core.store.txn(gone).await?;
            continue;
        }
        if !is_down(leader, &service).await {
            continue;
        }
        let kept_ms = record.kept_ms.saturating_add(passed_ms);
        if kept_ms >= record.keep_ms {
            // Nobody may begin to turn it up meanwhile.
            let _one_at_a_time = leader.turning.lock().await;
            purge(leader, &service).await?;
        } else if passed_ms >= WRITE_EVERY_MS {
            record.kept_ms = kept_ms;
            let key = keys::turned_down(&service);
            convenience::put(&*core.store, &key, encode(&record)).await?;
        } else {
            written = Written::No;
        }
    }
    Ok(written)
}

/// Whether nothing of a service runs: both its admin server and the agents of its tasks say so.
pub(crate) async fn is_down(leader: &Leader, service: &ServiceName) -> bool {
    let core = &leader.core;
    let may_run = |(task, machine, _): &(TaskName, MachineName, u64)| {
        let synced = core.hub.agent(machine).is_some_and(|agent| agent.synced);
        let state = core.hub.task(task).as_ref().and_then(task_state);
        !core.hub.is_lost(machine) && (!synced || state.is_some_and(|state| runs(&state)))
    };
    if core.placements.of_service(service).iter().any(may_run) {
        return false;
    }
    let Some(admin) = leader.services.admin(service) else {
        // It is not declared any more, and could be dropped only because it was down.
        return true;
    };
    let request = InspectRequest {
        service: service.to_string(),
    };
    let seen = admin.inspect(request).await;
    seen.is_ok_and(|seen| seen.state == ServiceState::Down as i32)
}

/// Frees the places of services that are not declared any more. (Only what is down may be dropped.) Their data stays where
/// it is, and they get their place back if they are declared again and there is room.
async fn free_dropped(core: &Core) -> Result<(), ControllerError> {
    let Some(applied) = core.applied() else {
        return Ok(());
    };
    for (task, place) in core.placements.all() {
        let declared = applied
            .spec
            .services
            .iter()
            .any(|s| s.name == place.service);
        if declared {
            continue;
        }
        if core.hub.is_lost(&place.machine)
            || forget(core, &task, &place.machine, Folder::Keep)
                .await
                .is_err()
        {
            // It is forgotten there when its agent speaks.
            continue;
        }
        core.placements.free(&task).await?;
        core.hub.forget(&task);
        let text = format!(
            "gives up its place on {}: {} is not declared any more",
            place.machine, place.service
        );
        core.events.add("task", task.as_str(), text);
    }
    Ok(())
}

/// The end of everything that a service kept. What a machine that is not there has is left to a person.
async fn purge(leader: &Leader, service: &ServiceName) -> Result<(), ControllerError> {
    let core = &leader.core;
    let placed = core.placements.of_service(service).into_iter();
    let former = core.placements.former_of(service);
    let tasks = placed
        .map(|(task, machine, _)| (task, machine))
        .chain(former);
    for (task, machine) in tasks {
        if !is_due(leader, service).await? {
            return Ok(());
        }
        if let Err(why) = forget(core, &task, &machine, Folder::Remove).await {
            let text = format!("what {task} kept on {machine} is not removed yet: {why}");
            eprintln!("{text}");
            return Ok(());
        }
        core.placements.forget(&task).await?;
        core.hub.forget(&task);
    }
    let txn = Txn::new()
        .when(Compare::absent(keys::wanted(service)))
        .when(Compare::present(keys::turned_down(service)))
        .then(Op::delete_prefix(keys::own(service, "")))
        .then(Op::delete(keys::disturbed(service)))
        .then(Op::delete(keys::turned_down(service)));
    if core.store.txn(txn).await?.committed().is_none() {
        return Ok(());
    }
    let text = "purged: what it kept is removed";
    core.events.add("service", service.as_str(), text);
    Ok(())
}

/// Whether a service that was to be purged still is.
async fn is_due(leader: &Leader, service: &ServiceName) -> Result<bool, ControllerError> {
    let record = convenience::get(&*leader.core.store, &keys::turned_down(service)).await?;
    let wanted = leader.services.is_wanted(service).await?;
    Ok(record.is_some() && !wanted && is_down(leader, service).await)
}

async fn forget(
    core: &Core,
    task: &TaskName,
    machine: &MachineName,
    folder: Folder,
) -> Result<(), homeostat_api::Refusal> {
    let order = to_agent::Message::Forget(ForgetTask {
        task: task.to_string(),
        generation: 0,
        folder: folder as i32,
    });
    core.hub
        .order(machine, order, ACCEPT_WITHIN)
        .await
        .map(drop)
}
