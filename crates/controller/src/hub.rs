//! What is observed: which agents are connected, what their tasks are, who wants to hear of it.
//!
//! One lock, held for moments only and never across an await. Nothing here is stored: a new leader learns it anew
//! from the agents.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use homeostat_api::v1::{AgentHello, CallDone, EndpointTarget, Endpoints, ForwarderReport, TaskEvent, ToAgent, to_agent};
use homeostat_api::{Refusal, RefusalKind};
use homeostat_model::{MachineName, TaskName, TaskState};
use tokio::sync::{mpsc, oneshot, watch};

/// Orders to one agent that may wait.
pub(crate) const AGENT_QUEUE: usize = 1024;

pub(crate) struct Hub {
    inner: Mutex<Inner>,
    /// Counts changes; those who wait for something look again.
    changes: watch::Sender<u64>,
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
    next_id: u64,
}

struct Session {
    number: u64,
    hello: AgentHello,
    orders: mpsc::Sender<Result<ToAgent, tonic::Status>>,
    synced: bool,
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
        Self { inner: Mutex::default(), changes: watch::Sender::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock was held left plain data behind; it is as good as before.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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
        let session = Session { number, hello, orders, synced: false, named: Vec::new() };
        session.order(0, to_agent::Message::Endpoints(Endpoints { targets }));
        inner.sessions.insert(machine, session);
        drop(inner);
        self.touch();
        number
    }

    pub(crate) fn disconnected(&self, machine: &MachineName, number: u64) {
        let mut inner = self.lock();
        if inner.sessions.get(machine).is_none_or(|session| session.number != number) {
            return;
        }
        inner.sessions.remove(machine);
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
    pub(crate) fn observed(&self, machine: &MachineName, number: u64, event: TaskEvent) -> Option<TaskEvent> {
        let Ok(name) = TaskName::new(event.task.clone()) else { return None };
        let mut inner = self.lock();
        let session = inner.sessions.get_mut(machine).filter(|session| session.number == number)?;
        if !session.synced {
            session.named.push(name.clone());
        }
        inner.tell(&event);
        let before = inner.tasks.insert(name, event);
        drop(inner);
        self.touch();
        before
    }

    /// The agent has told all it has; what else was placed there is not there.
    pub(crate) fn synced(&self, machine: &MachineName, number: u64, placed: &[(TaskName, String, u64)]) {
        let mut inner = self.lock();
        let Some(session) = inner.sessions.get_mut(machine).filter(|session| session.number == number) else { return };
        session.synced = true;
        let named = std::mem::take(&mut session.named);
        for (task, service, generation) in placed.iter().filter(|(task, _, _)| !named.contains(task)) {
            let event = unknown_task(machine, task, service, *generation);
            inner.tell(&event);
            inner.tasks.insert(task.clone(), event);
        }
        drop(inner);
        self.touch();
    }

    pub(crate) fn forwarder(&self, machine: &MachineName, report: ForwarderReport) {
        self.lock().forwarders.insert((machine.clone(), report.service.clone()), report);
        self.touch();
    }

    pub(crate) fn forwarders(&self) -> Vec<(MachineName, ForwarderReport)> {
        self.lock().forwarders.iter().map(|((machine, _), report)| (machine.clone(), report.clone())).collect()
    }

    pub(crate) fn agent(&self, machine: &MachineName) -> Option<AgentView> {
        let inner = self.lock();
        inner.sessions.get(machine).map(|session| AgentView { pid: session.hello.pid, synced: session.synced })
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
        let answer = {
            let mut inner = self.lock();
            inner.next_id += 1;
            let id = inner.next_id;
            let session = inner
                .sessions
                .get(machine)
                .ok_or_else(|| Refusal::not_now(format!("the agent of {machine} is not connected")))?;
            if !session.order(id, message) {
                return Err(Refusal::not_now(format!("the agent of {machine} does not keep up")));
            }
            let (sender, answer) = oneshot::channel();
            inner.calls.insert(id, (machine.clone(), sender));
            answer
        };
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(done)) if done.error.is_empty() => Ok(done.body),
            Ok(Ok(done)) => Err(Refusal::new(kind(&done.error_kind), done.error)),
            Ok(Err(_)) => Err(Refusal::unknown(format!("the agent of {machine} went away before it answered"))),
            Err(_) => Err(Refusal::unknown(format!("the agent of {machine} did not answer in time"))),
        }
    }

    pub(crate) fn answered(&self, done: CallDone) {
        if let Some((_, caller)) = self.lock().calls.remove(&done.id) {
            // The caller may have given up.
            drop(caller.send(done));
        }
    }

    // ---- tasks

    pub(crate) fn tasks(&self) -> Vec<TaskEvent> {
        self.lock().tasks.values().cloned().collect()
    }

    pub(crate) fn forget(&self, task: &TaskName) {
        self.lock().tasks.remove(task);
        self.touch();
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
            drop(events.try_send(event));
        }
        drop(events.try_send(TaskEvent { synced: true, ..TaskEvent::default() }));
        inner.watchers.push(Watcher { service: service.to_owned(), events });
        reader
    }

    // ---- endpoints

    /// Tells every agent. Lower (epoch, version) than known are ignored.
    pub(crate) fn set_endpoint(&self, target: EndpointTarget) {
        let mut inner = self.lock();
        let known = inner.endpoints.get(&target.service);
        if known.is_some_and(|known| (known.epoch, known.version) > (target.epoch, target.version)) {
            return;
        }
        for session in inner.sessions.values() {
            session.order(0, to_agent::Message::Endpoints(Endpoints { targets: vec![target.clone()] }));
        }
        inner.endpoints.insert(target.service.clone(), target);
        drop(inner);
        self.touch();
    }

    pub(crate) fn endpoints(&self) -> BTreeMap<String, EndpointTarget> {
        self.lock().endpoints.clone()
    }
}

impl Session {
    /// `false`: its queue is full or its stream has ended.
    fn order(&self, id: u64, message: to_agent::Message) -> bool {
        self.orders.try_send(Ok(ToAgent { id, message: Some(message) })).is_ok()
    }
}

impl Inner {
    fn tell(&mut self, event: &TaskEvent) {
        self.watchers
            .retain(|watcher| watcher.service != event.service || watcher.events.try_send(event.clone()).is_ok());
    }
}

fn unknown_task(machine: &MachineName, task: &TaskName, service: &str, generation: u64) -> TaskEvent {
    let state = TaskState::Pending { why: format!("{machine} does not run it") };
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
