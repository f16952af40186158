//! The machines of the cell: which are there, which are lost, which are to be emptied. The states are the model's, who is
//! lost is judged by the placement room; here they are kept in the store, and what follows from them is set going.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use homeostat_api::v1::{Endpoints, Folder, ForgetTask, KillTask, TaskEvent, to_agent};
use homeostat_api::{Refusal, RefusalKind};
use homeostat_model::{
    Duty, Generation, MachineEvent, MachineName, MachineState, TaskName, TaskState,
};
use homeostat_placement::silence::{Judgement, LOST_AFTER, judge};
use homeostat_store::{Store, convenience};
use serde::{Deserialize, Serialize};

use crate::ControllerError;
use crate::clock::unix_ms;
use crate::core::{Core, encode};
use crate::handle::task_state;
use crate::keys;

/// How often the silence of agents is measured.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A pause between two looks that is longer than this is one in which this process stood still, and heard nobody.
const DEAF_AFTER: Duration = Duration::from_secs(1);
/// How often each agent is asked for a sign of life.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long an agent may take to accept an order about a task that should not be there, and how often it is asked again
/// when its answer is lost.
const ACCEPT_WITHIN: Duration = Duration::from_secs(10);
const ASK_TIMES: u32 = 5;

/// The stored form, version 1: fields are only added.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Record {
    pub state: MachineState,
    pub since_unix_ms: u64,
}

pub(crate) struct Machines {
    store: Arc<dyn Store>,
    inner: Mutex<Inner>,
    /// One change at a time, so that the newest is stored last.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Inner {
    known: BTreeMap<MachineName, Record>,
    /// What runs (or may run) on a machine under a generation that was given up.
    stale: BTreeMap<MachineName, BTreeSet<TaskName>>,
    /// Why nothing is called lost at present.
    held: Option<String>,
}

impl Machines {
    pub(crate) async fn load(store: Arc<dyn Store>) -> Result<Self, ControllerError> {
        let mut known = BTreeMap::new();
        for item in convenience::list(&*store, keys::MACHINES).await?.items {
            let garbled = |error: String| ControllerError::Garbled {
                key: item.key.clone(),
                error,
            };
            let name = MachineName::new(item.key.trim_start_matches(keys::MACHINES))
                .map_err(|error| garbled(error.to_string()))?;
            let record =
                serde_json::from_slice(&item.value).map_err(|error| garbled(error.to_string()))?;
            known.insert(name, record);
        }
        Ok(Self {
            store,
            inner: Mutex::new(Inner {
                known,
                ..Inner::default()
            }),
            changing: tokio::sync::Mutex::new(()),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A machine of which nothing is stored has always been ready.
    pub(crate) fn record(&self, machine: &MachineName) -> Record {
        let known = self.lock().known.get(machine).copied();
        known.unwrap_or(Record {
            state: MachineState::READY,
            since_unix_ms: 0,
        })
    }

    pub(crate) fn state(&self, machine: &MachineName) -> MachineState {
        self.record(machine).state
    }

    pub(crate) fn held(&self) -> Option<String> {
        self.lock().held.clone()
    }

    /// What is still to be stopped on a machine.
    pub(crate) fn stale(&self, machine: &MachineName) -> Vec<TaskName> {
        let inner = self.lock();
        inner
            .stale
            .get(machine)
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// Takes an event in, durably. `None`: it changed nothing, or makes no sense for the state.
    pub(crate) async fn apply(
        &self,
        machine: &MachineName,
        event: MachineEvent,
    ) -> Result<Option<MachineState>, ControllerError> {
        let _one_at_a_time = self.changing.lock().await;
        let before = self.state(machine);
        let Ok(state) = before.after(event) else {
            return Ok(None);
        };
        if state == before {
            return Ok(None);
        }
        let record = Record {
            state,
            since_unix_ms: unix_ms(),
        };
        convenience::put(&*self.store, &keys::machine(machine), encode(&record)).await?;
        self.lock().known.insert(machine.clone(), record);
        Ok(Some(state))
    }

    fn add_stale(&self, machine: &MachineName, task: TaskName) {
        let mut inner = self.lock();
        inner.stale.entry(machine.clone()).or_default().insert(task);
    }

    /// An agent has told all it has: what it did not name is not there any more.
    pub(crate) fn keep_stale(&self, machine: &MachineName, named: &BTreeSet<String>) {
        if let Some(tasks) = self.lock().stale.get_mut(machine) {
            tasks.retain(|task| named.contains(task.as_str()));
        }
    }

    fn remove_stale(&self, machine: &MachineName, task: &TaskName) {
        if let Some(tasks) = self.lock().stale.get_mut(machine) {
            tasks.remove(task);
        }
    }

    /// Says whether that is news.
    fn hold(&self, why: Option<String>) -> bool {
        let mut inner = self.lock();
        let news = why.is_some() && inner.held != why;
        inner.held = why;
        news
    }
}

/// Watches over the machines for as long as this controller leads.
pub(crate) async fn watch(core: Arc<Core>) {
    // What a leader before this one called lost is so until it speaks.
    for machine in core.identity.machines.iter().map(|m| &m.spec.name) {
        if matches!(core.machines.state(machine), MachineState::Lost { .. }) {
            core.hub.call_lost(machine, &core.placements.on(machine));
        }
    }
    for machine in core.identity.machines.iter().map(|m| m.spec.name.clone()) {
        tokio::spawn(listen_for(Arc::clone(&core), machine));
    }
    let mut looked = Instant::now();
    loop {
        if let Err(error) = look(&core, &mut looked).await {
            eprintln!("the machines could not be looked after: {}", error.line());
        }
        looked = Instant::now();
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Asks an agent for a sign of life again and again. An order that changes nothing will do: its answer is the sign.
async fn listen_for(core: Arc<Core>, machine: MachineName) {
    loop {
        tokio::time::sleep(ASK_EVERY).await;
        let nothing = to_agent::Message::Endpoints(Endpoints {
            targets: Vec::new(),
        });
        // Without an answer the silence grows, and that is looked at elsewhere.
        drop(core.hub.order(&machine, nothing, LOST_AFTER).await);
    }
}

/// `looked`: when the look before this one ended.
async fn look(core: &Core, looked: &mut Instant) -> Result<(), ControllerError> {
    let names = core.identity.machines.iter().map(|m| &m.spec.name);
    // Those that were called lost before are no news, and no reason to suspect oneself.
    let known = |name: &MachineName| core.hub.is_lost(name) && core.hub.agent(name).is_none();
    let mut silent: BTreeMap<MachineName, Duration> = names
        .map(|name| {
            let silence = core.hub.silence(name);
            let counts = if known(name) { Duration::ZERO } else { silence };
            (name.clone(), counts)
        })
        .collect();
    // Measured after the silences: a stop in between counts too.
    if looked.elapsed() > DEAF_AFTER {
        core.hub.listen_anew();
        silent
            .values_mut()
            .for_each(|silence| *silence = Duration::ZERO);
    }
    let Judgement { lost, held } = judge(&silent);
    let held = held.map(|held| held.to_string());
    if core.machines.hold(held.clone()) {
        let text = held.unwrap_or_default();
        core.events.add("machine", "cell", text);
    }
    call_lost(core, &lost).await?;
    for machine in silent.keys().filter(|machine| !lost.contains(machine)) {
        let synced = core.hub.agent(machine).is_some_and(|agent| agent.synced);
        if synced {
            welcome(core, machine).await?;
        }
    }
    Ok(())
}

/// All of them are known to be lost before anything follows from it: nothing of one may be placed on another.
async fn call_lost(core: &Core, lost: &[MachineName]) -> Result<(), ControllerError> {
    for machine in lost {
        core.machines.apply(machine, MachineEvent::Silence).await?;
    }
    for machine in lost.iter().filter(|machine| !core.hub.is_lost(machine)) {
        let text = "lost: its agent is silent; its tasks are placed elsewhere where that is safe";
        core.events.add("machine", machine.as_str(), text);
        core.hub.call_lost(machine, &core.placements.on(machine));
    }
    Ok(())
}

/// An agent speaks: its machine is back, and ready once nothing of the past runs on it.
async fn welcome(core: &Core, machine: &MachineName) -> Result<(), ControllerError> {
    if core
        .machines
        .apply(machine, MachineEvent::Spoke)
        .await?
        .is_some()
    {
        let text =
            "speaks again: what it still has under older placements is stopped and put aside";
        core.events.add("machine", machine.as_str(), text);
        core.hub.call_found(machine);
    }
    let returning = matches!(core.machines.state(machine), MachineState::Returning { .. });
    if returning
        && core.machines.stale(machine).is_empty()
        && let Some(state) = core.machines.apply(machine, MachineEvent::Emptied).await?
    {
        core.events.add("machine", machine.as_str(), state.word());
        core.hub.touch();
    }
    Ok(())
}

/// Whether new tasks may be placed on a machine that is there.
pub(crate) fn takes_tasks(state: MachineState) -> Result<(), String> {
    match state {
        MachineState::Present {
            duty: Duty::Serving,
        } => Ok(()),
        MachineState::Present { .. }
        | MachineState::Lost { .. }
        | MachineState::Returning { .. } => Err(format!("it is {state}")),
    }
}

/// A task that an agent reports and that has no place there. What is known to have moved on is stopped and its folder put
/// aside; of what is not known nothing is done: the store may have been restored from an older copy.
pub(crate) fn stray(core: &Arc<Core>, machine: &MachineName, event: &TaskEvent) -> Stray {
    let Ok(task) = TaskName::new(event.task.clone()) else {
        return Stray::Unknown;
    };
    let over = match task_state(event) {
        Some(TaskState::Exited { .. } | TaskState::Lost) => Over::Yes,
        Some(
            TaskState::Pending { .. }
            | TaskState::Starting
            | TaskState::Running { .. }
            | TaskState::Stopping { .. },
        )
        | None => Over::No,
    };
    let generation = Generation(event.generation);
    let place = core.placements.of(&task);
    let moved = place
        .as_ref()
        .is_some_and(|place| place.generation > generation)
        || core.placements.last_generation(&task) > generation;
    // A place that was freed: its folder stays for when the service is declared again.
    let freed = place.is_none() && core.placements.last_generation(&task) == generation;
    let folder = if moved { Folder::Aside } else { Folder::Keep };
    if !(moved || freed && over == Over::Yes) {
        return Stray::Unknown;
    }
    if moved {
        core.machines.add_stale(machine, task.clone());
    }
    let order = match over {
        Over::Yes => to_agent::Message::Forget(ForgetTask {
            task: task.to_string(),
            generation: generation.0,
            folder: folder as i32,
        }),
        Over::No => to_agent::Message::Kill(KillTask {
            task: task.to_string(),
            generation: generation.0,
        }),
    };
    let (core, machine) = (Arc::clone(core), machine.clone());
    tokio::spawn(async move {
        let done = order_surely(&core, &machine, order).await;
        // Refused while its supervisor is not out of the way: the agent tells when it is, and that leads here again.
        let cleared = match done.map_err(|refusal| refusal.kind) {
            // It holds a newer one: the older is gone.
            Ok(()) | Err(RefusalKind::Stale) => over == Over::Yes,
            Err(
                RefusalKind::NotFound
                | RefusalKind::NotNow
                | RefusalKind::Unknown
                | RefusalKind::BadRequest
                | RefusalKind::Internal,
            ) => false,
        };
        if cleared {
            core.machines.remove_stale(&machine, &task);
            if moved {
                let text = format!("what {machine} had of generation {generation} is put aside");
                core.events.add("task", task.as_str(), text);
            }
        }
    });
    Stray::Handled
}

/// Asks again when an answer was lost: both orders may be carried out twice. Not over a newer stream: over that one the
/// agent tells anew what it has.
async fn order_surely(
    core: &Core,
    machine: &MachineName,
    order: to_agent::Message,
) -> Result<(), Refusal> {
    let mut answer = Ok(());
    for _ in 0..ASK_TIMES {
        let done = core.hub.order(machine, order.clone(), ACCEPT_WITHIN).await;
        answer = done.map(drop);
        let unknown = |refusal: &Refusal| refusal.kind == RefusalKind::Unknown;
        if !answer.as_ref().is_err_and(unknown) {
            break;
        }
    }
    answer
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    Yes,
    No,
}

/// What is made of a task that has no place where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stray {
    Handled,
    Unknown,
}
