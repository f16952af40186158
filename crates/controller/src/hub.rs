//! What is observed: which agents are connected, what their tasks are, who wants to hear of it.
//!
//! One lock, held for moments only and never across an await. Nothing here is stored: a new leader learns it anew
//! from the agents.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use homeostat_api::v1::{
    AgentHello, CallDone, EndpointTarget, Endpoints, ForwarderReport, TaskEvent, ToAgent, to_agent,
};
use homeostat_api::{Refusal, RefusalKind};
use homeostat_model::{MachineName, TaskName, TaskState};
use tokio::sync::{mpsc, oneshot, watch};

/// Orders to one agent that may wait.
pub(crate) const AGENT_QUEUE: usize = 1024;

pub(crate) struct Hub {
    inner: Mutex<Inner>,
    /// Counts changes; those who wait for something look again.
    changes: watch::Sender<u64>,
    /// Who never connected has been silent since then.
    began: Instant,
}

#[derive(Default)]
struct Inner {
    sessions: BTreeMap<MachineName, Session>,
    tasks: BTreeMap<TaskName, TaskEvent>,
    watchers: Vec<Watcher>,
    calls: BTreeMap<u64, (MachineName, oneshot::Sender<CallDone>)>,
    /// The newest target of each service's endpoint.
    endpoints: BTreeMap<String, EndpointTarget>,
    forwarders: BTreeMap<(MachineName, String), ForwarderReport>,
    /// When the last stream of a machine that has none now ended.
    silent: BTreeMap<MachineName, Instant>,
    /// Nobody listened before then: no silence is longer.
    listens_since: Option<Instant>,
    /// Machines called lost: what was heard of their tasks says nothing any more.
    lost: BTreeSet<MachineName>,
    next_id: u64,
}

struct Session {
    number: u64,
    hello: AgentHello,
    orders: mpsc::Sender<Result<ToAgent, tonic::Status>>,
    synced: bool,
    /// When it was last heard.
    heard: Instant,
    /// Tasks named since the hello.
    named: Vec<TaskName>,
}

struct Watcher {
    service: String,
    events: mpsc::Sender<TaskEvent>,
}

/// A connected agent as others see it.
#[derive(Debug, Clone)]
pub(crate) struct AgentView {
    pub pid: u32,
    pub synced: bool,
}

impl Hub {
    pub(crate) fn new() -> Self {
        Self {
            inner: Mutex::default(),
            changes: watch::Sender::new(0),
            began: Instant::now(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock was held left plain data behind; it is as good as before.
        self.inner
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(crate) fn touch(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    // ---- agents

    /// A new stream of an agent; an earlier one of the same machine is dropped. Returns the session's number.
    pub(crate) fn connected(
        &self,
        machine: MachineName,
        hello: AgentHello,
        orders: mpsc::Sender<Result<ToAgent, tonic::Status>>,
    ) -> u64 {
        let mut inner = self.lock();
        inner.next_id += 1;
        let number = inner.next_id;
        let targets = inner.endpoints.values().cloned().collect();
        let session = Session {
            number,
            hello,
            orders,
            synced: false,
            heard: Instant::now(),
            named: Vec::new(),
        };
        session.order(0, to_agent::Message::Endpoints(Endpoints { targets }));
        // What was asked over an earlier stream is answered by nobody.
        inner.calls.retain(|_, (of, _)| *of != machine);
        inner.silent.remove(&machine);
        inner.sessions.insert(machine, session);
        drop(inner);
        self.touch();
        number
    }

    pub(crate) fn disconnected(&self, machine: &MachineName, number: u64) {
        let mut inner = self.lock();
        if inner
            .sessions
            .get(machine)
            .is_none_or(|session| session.number != number)
        {
            return;
        }
        inner.sessions.remove(machine);
        inner.silent.insert(machine.clone(), Instant::now());
        inner.forwarders.retain(|(of, _), _| of != machine);
        // Their callers learn that the outcome is unknown.
        inner.calls.retain(|_, (of, _)| of != machine);
        let silent: Vec<TaskEvent> = inner
            .tasks
            .values_mut()
            .filter(|task| task.machine == machine.as_str())
            .map(|task| {
                task.reachable = false;
                task.service_event = Vec::new();
                task.clone()
            })
            .collect();
        for event in silent {
            inner.tell(&event);
        }
        drop(inner);
        self.touch();
    }

    /// Takes in what an agent says of a task. Returns the state before.
    pub(crate) fn observed(
        &self,
        machine: &MachineName,
        number: u64,
        event: TaskEvent,
    ) -> Option<TaskEvent> {
        let Ok(name) = TaskName::new(event.task.clone()) else {
            return None;
        };
        let mut inner = self.lock();
        let session = inner
            .sessions
            .get_mut(machine)
            .filter(|session| session.number == number)?;
        session.heard = Instant::now();
        if !session.synced {
            session.named.push(name.clone());
        }
        inner.tell(&event);
        let before = inner.tasks.insert(name, event);
        drop(inner);
        self.touch();
        before
    }

    /// Passes a sign of a task's own supervisor on to those who listen now. Nothing is changed by it, and nobody else is
    /// woken. A listener who is far behind is spared: what comes later says as much.
    pub(crate) fn sign(&self, machine: &MachineName, number: u64, event: &TaskEvent) {
        let mut inner = self.lock();
        let Some(session) = inner
            .sessions
            .get_mut(machine)
            .filter(|session| session.number == number)
        else {
            return;
        };
        session.heard = Instant::now();
        for watcher in &inner.watchers {
            let events = &watcher.events;
            let keeps_up = events.capacity() > events.max_capacity() / 2;
            if watcher.service == event.service && keeps_up {
                // One that is gone is noticed with the next change.
                drop(events.try_send(event.clone()));
            }
        }
    }

    /// The agent has told all it has; what else was placed there is not there.
    pub(crate) fn synced(
        &self,
        machine: &MachineName,
        number: u64,
        placed: &[(TaskName, String, u64)],
    ) {
        let mut inner = self.lock();
        let Some(session) = inner
            .sessions
            .get_mut(machine)
            .filter(|session| session.number == number)
        else {
            return;
        };
        session.synced = true;
        let named = std::mem::take(&mut session.named);
        for (task, service, generation) in
            placed.iter().filter(|(task, _, _)| !named.contains(task))
        {
            let event = unknown_task(machine, task, service, *generation);
            inner.tell(&event);
            inner.tasks.insert(task.clone(), event);
        }
        drop(inner);
        self.touch();
    }

    pub(crate) fn forwarder(&self, machine: &MachineName, report: ForwarderReport) {
        self.lock()
            .forwarders
            .insert((machine.clone(), report.service.clone()), report);
        self.touch();
    }

    pub(crate) fn forwarders(&self) -> Vec<(MachineName, ForwarderReport)> {
        self.lock()
            .forwarders
            .iter()
            .map(|((machine, _), report)| (machine.clone(), report.clone()))
            .collect()
    }

    /// For how long nothing was heard of a machine. An open connection is not enough: a machine may hang.
    pub(crate) fn silence(&self, machine: &MachineName) -> Duration {
        let inner = self.lock();
        let session = inner.sessions.get(machine).map(|session| session.heard);
        let silent = inner.silent.get(machine).copied();
        let since = session.or(silent).unwrap_or(self.began);
        inner
            .listens_since
            .map_or(since, |listens| listens.max(since))
            .elapsed()
    }

    /// Nobody listened until now: what was not heard meanwhile says nothing about who may have spoken.
    pub(crate) fn listen_anew(&self) {
        self.lock().listens_since = Some(Instant::now());
    }

    /// From here on the tasks placed on a machine are told as those of a lost one; or as those of one that is there.
    pub(crate) fn call_lost(&self, machine: &MachineName, placed: &[(TaskName, String, u64)]) {
        let mut inner = self.lock();
        inner.lost.insert(machine.clone());
        // Should it only hang: when it wakes it has to begin with what it runs.
        if let Some(session) = inner.sessions.remove(machine) {
            inner.silent.insert(machine.clone(), session.heard);
            inner.forwarders.retain(|(of, _), _| of != machine);
            inner.calls.retain(|_, (of, _)| of != machine);
        }
        for (task, service, generation) in placed {
            let mut event = inner
                .tasks
                .get(task)
                .filter(|event| event.machine == machine.as_str())
                .cloned()
                .unwrap_or_else(|| unknown_task(machine, task, service, *generation));
            // Its stream ends without that anybody tells: the session is gone.
            event.reachable = false;
            event.service_event = Vec::new();
            inner.tell(&event);
            inner.tasks.insert(task.clone(), event);
        }
        drop(inner);
        self.touch();
    }

    pub(crate) fn call_found(&self, machine: &MachineName) {
        let mut inner = self.lock();
        inner.lost.remove(machine);
        let here: Vec<TaskEvent> = inner
            .tasks
            .values()
            .filter(|event| event.machine == machine.as_str())
            .cloned()
            .collect();
        for event in here {
            inner.tell(&event);
        }
        drop(inner);
        self.touch();
    }

    pub(crate) fn is_lost(&self, machine: &MachineName) -> bool {
        self.lock().lost.contains(machine)
    }

    pub(crate) fn agent(&self, machine: &MachineName) -> Option<AgentView> {
        let inner = self.lock();
        inner.sessions.get(machine).map(|session| AgentView {
            pid: session.hello.pid,
            synced: session.synced,
        })
    }

    /// Sends an order and waits for its answer.
    ///
    /// # Errors
    /// `NotNow` when no agent is connected; `Unknown` when the connection ends, or `patience` with it, before an
    /// answer; otherwise the agent's own refusal.
    pub(crate) async fn order(
        &self,
        machine: &MachineName,
        message: to_agent::Message,
        patience: Duration,
    ) -> Result<Vec<u8>, Refusal> {
        let (_asked, answer) = {
            let mut inner = self.lock();
            inner.next_id += 1;
            let id = inner.next_id;
            let session = inner.sessions.get(machine).ok_or_else(|| {
                Refusal::not_now(format!("the agent of {machine} is not connected"))
            })?;
            if !session.order(id, message) {
                return Err(Refusal::not_now(format!(
                    "the agent of {machine} does not keep up"
                )));
            }
            let (sender, answer) = oneshot::channel();
            inner.calls.insert(id, (machine.clone(), sender));
            (Asked { hub: self, id }, answer)
        };
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(done)) if done.error.is_empty() => Ok(done.body),
            Ok(Ok(done)) => Err(Refusal::new(kind(&done.error_kind), done.error)),
            Ok(Err(_)) => Err(Refusal::unknown(format!(
                "the agent of {machine} went away before it answered"
            ))),
            Err(_) => Err(Refusal::unknown(format!(
                "the agent of {machine} did not answer in time"
            ))),
        }
    }

    /// An agent answers what it was asked itself, over the stream of `number`.
    pub(crate) fn answered(&self, machine: &MachineName, number: u64, done: CallDone) {
        let mut inner = self.lock();
        let speaks = inner
            .sessions
            .get_mut(machine)
            .filter(|session| session.number == number);
        let Some(session) = speaks else { return };
        session.heard = Instant::now();
        if inner
            .calls
            .get(&done.id)
            .is_none_or(|(of, _)| of != machine)
        {
            return;
        }
        if let Some((_, caller)) = inner.calls.remove(&done.id) {
            // The caller may have given up.
            drop(caller.send(done));
        }
    }

    // ---- tasks

    pub(crate) fn tasks(&self) -> Vec<TaskEvent> {
        self.lock().tasks.values().cloned().collect()
    }

    /// What is known of one task.
    pub(crate) fn task(&self, task: &TaskName) -> Option<TaskEvent> {
        self.lock().tasks.get(task).cloned()
    }

    pub(crate) fn forget(&self, task: &TaskName) {
        self.lock().tasks.remove(task);
        self.touch();
    }

    /// Forgets what is known of one placement of a task, and says what that was.
    pub(crate) fn take(&self, task: &TaskName, generation: u64) -> Option<TaskEvent> {
        let mut inner = self.lock();
        let taken = match inner.tasks.get(task) {
            Some(event) if event.generation == generation => inner.tasks.remove(task),
            Some(_) | None => None,
        };
        drop(inner);
        self.touch();
        taken
    }

    /// Subscribes to a service's tasks: what is known now, `synced`, then changes. A subscriber that does not keep
    /// up is dropped and subscribes again.
    pub(crate) fn watch(
        &self,
        service: &str,
        placed: &[(TaskName, MachineName, u64)],
        queue: usize,
    ) -> mpsc::Receiver<TaskEvent> {
        let mut inner = self.lock();
        let (events, reader) = mpsc::channel(queue.max(placed.len() + 2));
        for (task, machine, generation) in placed {
            let event = inner
                .tasks
                .get(task)
                .cloned()
                .unwrap_or_else(|| unknown_task(machine, task, service, *generation));
            // Fits: the queue was made large enough.
            drop(events.try_send(inner.stamped(&event)));
        }
        drop(events.try_send(TaskEvent {
            synced: true,
            ..TaskEvent::default()
        }));
        inner.watchers.push(Watcher {
            service: service.to_owned(),
            events,
        });
        reader
    }

    // ---- endpoints

    /// Tells every agent.
    ///
    /// # Errors
    /// With the (epoch, version) that is known, when it is higher: nobody is told anything.
    pub(crate) fn set_endpoint(&self, target: EndpointTarget) -> Result<(), (u64, u64)> {
        let mut inner = self.lock();
        let known = inner
            .endpoints
            .get(&target.service)
            .map(|known| (known.epoch, known.version));
        if let Some(newer) = known.filter(|known| *known > (target.epoch, target.version)) {
            return Err(newer);
        }
        for session in inner.sessions.values() {
            session.order(
                0,
                to_agent::Message::Endpoints(Endpoints {
                    targets: vec![target.clone()],
                }),
            );
        }
        inner.endpoints.insert(target.service.clone(), target);
        drop(inner);
        self.touch();
        Ok(())
    }

    pub(crate) fn endpoints(&self) -> BTreeMap<String, EndpointTarget> {
        self.lock().endpoints.clone()
    }
}

/// An order that waits for its answer; forgotten when its caller does not wait any more.
struct Asked<'a> {
    hub: &'a Hub,
    id: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.hub.lock().calls.remove(&self.id);
    }
}

impl Session {
    /// `false`: its queue is full or its stream has ended.
    fn order(&self, id: u64, message: to_agent::Message) -> bool {
        self.orders
            .try_send(Ok(ToAgent {
                id,
                message: Some(message),
            }))
            .is_ok()
    }
}

impl Inner {
    /// The event as it is told: whether its machine is lost is known here and not by its agent.
    fn stamped(&self, event: &TaskEvent) -> TaskEvent {
        TaskEvent {
            machine_lost: self.lost.iter().any(|lost| lost.as_str() == event.machine),
            ..event.clone()
        }
    }

    fn tell(&mut self, event: &TaskEvent) {
        let event = self.stamped(event);
        self.watchers.retain(|watcher| {
            watcher.service != event.service || watcher.events.try_send(event.clone()).is_ok()
        });
    }
}

fn unknown_task(
    machine: &MachineName,
    task: &TaskName,
    service: &str,
    generation: u64,
) -> TaskEvent {
    let state = TaskState::Pending {
        why: format!("{machine} does not run it"),
    };
    TaskEvent {
        task: task.to_string(),
        service: service.to_owned(),
        machine: machine.to_string(),
        generation,
        state_json: serde_json::to_string(&state).unwrap_or_default(),
        ..TaskEvent::default()
    }
}

fn kind(word: &str) -> RefusalKind {
    match word {
        "stale" => RefusalKind::Stale,
        "not-found" => RefusalKind::NotFound,
        "not-now" => RefusalKind::NotNow,
        "bad-request" => RefusalKind::BadRequest,
        "internal" => RefusalKind::Internal,
        // A word of a newer agent.
        _ => RefusalKind::Unknown,
    }
}

#[cfg(test)]
mod tests;
