//! The loop of one job: carries out what [`reconcile`](crate::reconcile) says, and looks again whenever something
//! changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use homeostat_api::v1::{
    EndpointTarget, HelloRequest, OnChange, ReadRequest, ServiceState, SetEndpointRequest,
    TaskEvent, WatchRequest, WriteRequest,
};
use homeostat_api::{CellHandle, RefusalKind, TaskEvents};
use homeostat_model::{JobSpec, ServiceKind, ServiceName, ServiceSpec, TaskName, TaskState};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::launch::fingerprint;
use crate::order::{Finished, perform};
use crate::reconcile::{Action, Now, Placed, Seen, Wanted, Wish, failures_after, reconcile};

/// How long a connection to the endpoint is held while no task runs.
const HOLD: Duration = Duration::from_secs(5);
/// Pause before something that was refused is tried again.
const AGAIN: Duration = Duration::from_millis(200);
/// Where the fingerprints of started tasks are kept, under the service's prefix.
const STARTED: &str = "started";

/// What the loop last knew, for inspection.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct View {
    pub state: ServiceState,
    pub waits_for: String,
}

pub(crate) enum Command {
    /// The cell's word on what is wanted. Answered when what is published takes it into account: before that, a view of
    /// earlier times would be taken for the answer.
    Want(Wanting, oneshot::Sender<()>),
    Finished {
        task: TaskName,
        outcome: Finished,
    },
}

pub(crate) enum Wanting {
    Up(Box<ServiceSpec>, String),
    Down,
}

/// The fingerprint of what each task was started from; kept by the cell, so that a new leader replaces nothing
/// that is as wanted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Started(BTreeMap<TaskName, String>);

pub(crate) struct Loop {
    service: ServiceName,
    cell: Arc<dyn CellHandle>,
    results: mpsc::WeakSender<Command>,
    publish: watch::Sender<View>,
    spec: Option<JobSpec>,
    wish: Wish,
    tasks: BTreeMap<TaskName, Seen>,
    /// Where each task listens, as observed.
    addresses: BTreeMap<TaskName, (String, HashMap<String, u32>)>,
    began: Instant,
    endpoint: Option<Vec<String>>,
    /// When to try again to set it.
    endpoint_again: Option<Instant>,
    /// Tasks that are busy with nothing but the pause after an order.
    resting: BTreeSet<TaskName>,
    /// The last order for each task, so that the pause after an earlier one does not end the quiet of a later one.
    orders: BTreeMap<TaskName, u64>,
    next_order: u64,
    /// How often the state of each task changed.
    changes: BTreeMap<TaskName, u64>,
    version: u64,
    term: u64,
    started: Started,
    started_revision: u64,
}

impl Loop {
    pub(crate) fn new(
        service: ServiceName,
        cell: Arc<dyn CellHandle>,
        results: mpsc::WeakSender<Command>,
        publish: watch::Sender<View>,
    ) -> Self {
        Self {
            service,
            cell,
            results,
            publish,
            spec: None,
            wish: Wish::Unknown,
            tasks: BTreeMap::new(),
            addresses: BTreeMap::new(),
            began: Instant::now(),
            endpoint: None,
            endpoint_again: None,
            resting: BTreeSet::new(),
            orders: BTreeMap::new(),
            next_order: 0,
            changes: BTreeMap::new(),
            version: 0,
            term: 0,
            started: Started::default(),
            started_revision: 0,
        }
    }

    fn now(&self) -> Now {
        Now(self.began.elapsed())
    }

    pub(crate) async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        loop {
            let Some(mut events) = self.attach(&queue).await else {
                return;
            };
            loop {
                let wake = self.act().into_iter().chain(self.endpoint_again).min();
                tokio::select! {
                    command = queue.recv() => match command {
                        Some(command) => self.command(command).await,
                        None => return,
                    },
                    event = events.recv() => match event {
                        Some(event) => self.seen(&event),
                        None => break,
                    },
                    () = sleep_until(wake) => {}
                }
                self.publish_view();
                self.set_endpoint().await;
            }
        }
    }

    /// Watches the service's tasks from a fresh snapshot. `None`: the server was dropped.
    async fn attach(&mut self, queue: &mpsc::Receiver<Command>) -> Option<TaskEvents> {
        let service = self.service.to_string();
        while !(queue.is_closed() && queue.is_empty()) {
            let hello = self
                .cell
                .hello(HelloRequest {
                    service: service.clone(),
                })
                .await;
            let read = self
                .cell
                .read(ReadRequest {
                    service: service.clone(),
                    key: STARTED.into(),
                })
                .await;
            let watch = self
                .cell
                .watch(WatchRequest {
                    service: service.clone(),
                })
                .await;
            if let (Ok(hello), Ok(read), Ok(mut events)) = (hello, read, watch) {
                self.term = hello.term;
                self.started = serde_json::from_slice(&read.value).unwrap_or_default();
                self.started_revision = read.mod_revision;
                while let Some(event) = events.recv().await {
                    if event.synced {
                        return Some(events);
                    }
                    self.seen(&event);
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
        None
    }

    fn seen(&mut self, event: &TaskEvent) {
        let now = self.now();
        let Ok(name) = TaskName::new(event.task.clone()) else {
            return;
        };
        let Ok(state) = serde_json::from_str::<TaskState>(&event.state_json) else {
            return;
        };
        let task = self.tasks.entry(name.clone()).or_insert_with(Seen::new);
        let fell =
            task.runs() || matches!(task.state, TaskState::Starting | TaskState::Stopping { .. });
        match &state {
            TaskState::Running { .. } if !task.runs() => task.started = Some(now),
            TaskState::Exited { .. } | TaskState::Lost if fell => {
                task.failures = failures_after(task, now);
                task.ended = Some(now);
            }
            TaskState::Pending { .. }
            | TaskState::Starting
            | TaskState::Running { .. }
            | TaskState::Stopping { .. }
            | TaskState::Exited { .. }
            | TaskState::Lost => {}
        }
        if task.state != state {
            // A change ends the pause after an order, and never the order itself: what it will have changed is not known
            // before it has ended.
            if self.resting.remove(&name) {
                task.busy = false;
            }
            *self.changes.entry(name.clone()).or_default() += 1;
        }
        task.state = state;
        if !event.machine.is_empty() {
            task.placed = Some(Placed {
                machine: event.machine.clone(),
                generation: event.generation,
            });
            self.addresses
                .insert(name.clone(), (event.address.clone(), event.ports.clone()));
        }
        if task.fingerprint.is_none() {
            task.fingerprint = self.started.0.get(&name).cloned();
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Want(wanting, heard) => {
                self.want(wanting);
                self.publish_view();
                // Whoever asked may have gone.
                heard.send(()).unwrap_or_default();
            }
            Command::Finished { task, outcome } => self.finished(task, outcome).await,
        }
    }

    fn want(&mut self, wanting: Wanting) {
        match wanting {
            Wanting::Up(spec, package_hash) => {
                let ServiceKind::Job(job) = spec.kind else {
                    return;
                };
                let tasks: Vec<TaskName> = (0..job.tasks)
                    .filter_map(|n| TaskName::of(&self.service, n).ok())
                    .collect();
                for task in &tasks {
                    self.tasks.entry(task.clone()).or_insert_with(Seen::new);
                }
                self.wish = Wish::Up(Wanted {
                    tasks,
                    fingerprint: fingerprint(&job, &package_hash),
                    restart: job.task.restart,
                });
                self.spec = Some(job);
            }
            Wanting::Down => self.wish = Wish::Down,
        }
    }

    async fn finished(&mut self, name: TaskName, outcome: Finished) {
        let now = self.now();
        let Some(task) = self.tasks.get_mut(&name) else {
            return;
        };
        if let Finished::Rested(order) = &outcome
            && self.orders.get(&name) != Some(order)
        {
            return;
        }
        task.busy = false;
        self.resting.remove(&name);
        match outcome {
            Finished::Placed(placed) => task.placed = Some(placed),
            Finished::Pending(why) => {
                task.state = TaskState::Pending { why };
                self.retry_later(name);
            }
            Finished::Started(fingerprint, changes) => {
                task.fingerprint = Some(fingerprint.clone());
                // Its first event may be here already, and its end too: what was seen is never overwritten.
                if self.changes.get(&name).copied().unwrap_or(0) == changes {
                    self.retry_later(name.clone());
                }
                if self.started.0.insert(name, fingerprint.clone()).as_ref() != Some(&fingerprint) {
                    self.remember_started().await;
                }
            }
            Finished::Forgotten => {
                self.tasks.remove(&name);
                self.addresses.remove(&name);
                self.orders.remove(&name);
                self.changes.remove(&name);
                if self.started.0.remove(&name).is_some() {
                    self.remember_started().await;
                }
            }
            Finished::Asked => self.retry_later(name),
            Finished::Rested(_) => {}
            Finished::Refused(refusal) => {
                if task.over() {
                    task.state = TaskState::Pending {
                        why: refusal.message,
                    };
                }
                match refusal.kind {
                    // Nothing is wrong with the task: it is tried again as soon as what it lacks may be there.
                    RefusalKind::NotNow | RefusalKind::Unknown | RefusalKind::NotFound => {}
                    RefusalKind::BadRequest | RefusalKind::Stale | RefusalKind::Internal => {
                        task.ended = Some(now);
                        task.failures = task.failures.saturating_add(1);
                    }
                }
                self.retry_later(name);
            }
        }
    }

    /// Keeps a task quiet for a moment.
    fn retry_later(&mut self, name: TaskName) {
        let Some(task) = self.tasks.get_mut(&name) else {
            return;
        };
        task.busy = true;
        self.resting.insert(name.clone());
        let results = self.results.clone();
        let order = self.orders.get(&name).copied().unwrap_or(0);
        tokio::spawn(async move {
            tokio::time::sleep(AGAIN).await;
            if let Some(results) = results.upgrade() {
                drop(
                    results
                        .send(Command::Finished {
                            task: name,
                            outcome: Finished::Rested(order),
                        })
                        .await,
                );
            }
        });
    }

    async fn remember_started(&mut self) {
        let request = WriteRequest {
            service: self.service.to_string(),
            key: STARTED.into(),
            value: serde_json::to_vec(&self.started).unwrap_or_default(),
            expected_mod_revision: self.started_revision,
        };
        // Losing it costs one replacement of an unchanged task after a change of leader, nothing else.
        if let Ok(reply) = self.cell.write(request).await {
            self.started_revision = reply.mod_revision;
        }
    }

    /// Sets every due action going; returns when to look again though nothing happened.
    fn act(&mut self) -> Option<Instant> {
        let mut wake: Option<Now> = None;
        for action in reconcile(&self.wish, &self.tasks, self.now()) {
            let name = match &action {
                Action::LookAgain(at) => {
                    wake = Some(wake.map_or(*at, |earlier| earlier.min(*at)));
                    continue;
                }
                Action::Place(name)
                | Action::Start(name)
                | Action::Stop(name)
                | Action::Forget(name) => name.clone(),
            };
            if let Some(task) = self.tasks.get_mut(&name) {
                task.busy = true;
            }
            self.resting.remove(&name);
            self.next_order += 1;
            self.orders.insert(name.clone(), self.next_order);
            self.spawn(name, action);
        }
        wake.map(|at| self.began + at.0)
    }

    fn spawn(&self, name: TaskName, action: Action) {
        let spec = self.spec.clone();
        let cell = Arc::clone(&self.cell);
        let service = self.service.to_string();
        let generation = self
            .tasks
            .get(&name)
            .and_then(|task| task.placed.as_ref())
            .map_or(0, |p| p.generation);
        let fingerprint = match &self.wish {
            Wish::Up(wanted) => wanted.fingerprint.clone(),
            Wish::Unknown | Wish::Down => String::new(),
        };
        let results = self.results.clone();
        let changes = self.changes.get(&name).copied().unwrap_or(0);
        tokio::spawn(async move {
            let started = Finished::Started(fingerprint, changes);
            let outcome = perform(
                &*cell,
                service,
                &name,
                action,
                generation,
                spec.as_ref(),
                started,
            )
            .await;
            if let Some(results) = results.upgrade() {
                drop(
                    results
                        .send(Command::Finished {
                            task: name,
                            outcome,
                        })
                        .await,
                );
            }
        });
    }

    fn publish_view(&self) {
        let view = self.view();
        self.publish.send_if_modified(|current| {
            let changed = *current != view;
            *current = view;
            changed
        });
    }

    fn view(&self) -> View {
        let wanted = match &self.wish {
            Wish::Up(wanted) => wanted,
            Wish::Unknown | Wish::Down => {
                let running = self.tasks.values().filter(|task| !task.over()).count();
                let quiet = running == 0 && self.tasks.values().all(|task| !task.busy);
                return match (&self.wish, quiet) {
                    (_, true) => View {
                        state: ServiceState::Down,
                        waits_for: String::new(),
                    },
                    (Wish::Unknown, false) => View {
                        state: ServiceState::Starting,
                        waits_for: "the leader to say what is wanted".into(),
                    },
                    (Wish::Down | Wish::Up(_), false) => View {
                        state: ServiceState::Stopping,
                        waits_for: format!("{running} tasks to end"),
                    },
                };
            }
        };
        let mut missing = Vec::new();
        for name in &wanted.tasks {
            let Some(task) = self.tasks.get(name) else {
                continue;
            };
            let current = task.fingerprint.as_deref() == Some(wanted.fingerprint.as_str());
            match &task.state {
                TaskState::Running { .. } if current => {}
                TaskState::Running { .. } => missing.push(format!("{name} to be replaced")),
                TaskState::Pending { why } => missing.push(format!("{name}: {why}")),
                TaskState::Exited { cause } => missing.push(format!("{name}: {cause}")),
                TaskState::Starting | TaskState::Stopping { .. } | TaskState::Lost => {
                    missing.push(format!("{name} {}", task.state.word()));
                }
            }
        }
        if missing.is_empty() {
            return View {
                state: ServiceState::Up,
                waits_for: String::new(),
            };
        }
        let state = if missing.len() < wanted.tasks.len() {
            ServiceState::Degraded
        } else {
            ServiceState::Starting
        };
        View {
            state,
            waits_for: missing.join(", "),
        }
    }

    async fn set_endpoint(&mut self) {
        let Some(port) = self.spec.as_ref().and_then(|spec| spec.endpoint.clone()) else {
            return;
        };
        let targets: Vec<String> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.runs())
            .filter_map(|(name, _)| self.addresses.get(name))
            .filter_map(|(address, ports)| Some(format!("{address}:{}", ports.get(port.as_str())?)))
            .collect();
        self.endpoint_again = None;
        if self.endpoint.as_ref() == Some(&targets) {
            return;
        }
        self.version += 1;
        let target = EndpointTarget {
            service: self.service.to_string(),
            epoch: self.term,
            version: self.version,
            targets: targets.clone(),
            hold_ms: u64::try_from(HOLD.as_millis()).unwrap_or(u64::MAX),
            on_change: OnChange::Keep as i32,
            port: 0,
        };
        let request = SetEndpointRequest {
            service: self.service.to_string(),
            target: Some(target),
        };
        match self.cell.set_endpoint(request).await {
            Ok(_) => self.endpoint = Some(targets),
            Err(_) => self.endpoint_again = Some(Instant::now() + AGAIN),
        }
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
