//! The loop of one job: carries out what [`reconcile`](crate::reconcile) says, and looks again whenever something
//! changed.

mod endpoint;
mod finished;
mod wishes;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use homeostat_api::v1::{
    HelloRequest, NoteRequest, ReadRequest, TaskEvent, WatchRequest, WriteRequest,
};
use homeostat_api::{CellHandle, Refusal, RefusalKind, TaskEvents};
use homeostat_model::{JobSpec, ServiceName, ServiceSpec, TaskName, TaskState};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::order::{Finished, perform};
use crate::reconcile::{Action, End, Ground, Leave, Now, Placed, Seen, Wish, reconcile, rests};
use crate::restart::{Chance, SETTLED, Tries, Verdict};
use crate::view::{View, view};

/// Pause before something that was refused is tried again.
const AGAIN: Duration = Duration::from_millis(200);
/// Where the fingerprints of started tasks are kept, under the service's prefix.
const STARTED: &str = "started";

/// Where the loop's luck comes from.
pub(crate) type Luck = fn() -> Chance;

pub(crate) enum Command {
    /// The cell's word on what is wanted. Answered when what is published takes it into account: before that, a view of
    /// earlier times would be taken for the answer.
    Want(Wanting, oneshot::Sender<()>),
    /// The task is to leave this machine; the cell holds the budget for it.
    Evict {
        task: TaskName,
        machine: String,
        heard: oneshot::Sender<Result<(), Refusal>>,
    },
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
    luck: Luck,
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
    ends: finished::Ends,
    /// Tasks replaced by this loop because what they were started from had changed.
    replaced: u32,
    /// What the cell's leave to replace the next one waits for.
    held: String,
}

impl Loop {
    pub(crate) fn new(
        service: ServiceName,
        cell: Arc<dyn CellHandle>,
        results: mpsc::WeakSender<Command>,
        publish: watch::Sender<View>,
        luck: Luck,
    ) -> Self {
        Self {
            service,
            cell,
            results,
            publish,
            luck,
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
            ends: finished::Ends::default(),
            replaced: 0,
            held: String::new(),
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
            self.publish_view();
            loop {
                self.forgive();
                self.remember_ends().await;
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
            let ends = self.read_ends().await;
            if let (Ok(hello), Ok(read), Ok(ends), Ok(mut events)) = (hello, read, ends, watch) {
                self.ends = ends;
                self.term = hello.term;
                if hello.endpoint_epoch == hello.term {
                    // Set by an earlier loop of this service.
                    self.version = self.version.max(hello.endpoint_version);
                }
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
        let Ok(mut state) = serde_json::from_str::<TaskState>(&event.state_json) else {
            return;
        };
        let task = self.tasks.entry(name.clone()).or_insert_with(Seen::new);
        let placed = task.placed.as_ref().map_or(0, |placed| placed.generation);
        if event.generation < placed {
            // Of a place that it has left.
            return;
        }
        if task.fingerprint.is_none() {
            task.fingerprint = self.started.0.get(&name).cloned();
        }
        if let (TaskState::Pending { .. }, Some(end)) = (&state, self.ends.of(&name, task)) {
            // Nobody there knows of it any more; that it had finished was written down.
            state = end;
        }
        let fell =
            task.runs() || matches!(task.state, TaskState::Starting | TaskState::Stopping { .. });
        let mut looping = None;
        match &state {
            TaskState::Running { .. } if !task.runs() => task.started = Some(now),
            TaskState::Exited { .. } | TaskState::Lost if fell => {
                let asked = matches!(task.state, TaskState::Stopping { .. });
                // An end that was asked for is no failure.
                if !asked {
                    let before = task.tries.verdict();
                    task.tries = task.tries.after_failure(task.lived(now), (self.luck)());
                    let is = task.tries.verdict();
                    looping = (is == Verdict::CrashLoop && before != is).then_some(task.tries);
                }
                task.end = if asked { End::Asked } else { End::Itself };
                task.ended = Some(now);
            }
            TaskState::Pending { .. }
            | TaskState::Starting
            | TaskState::Running { .. }
            | TaskState::Stopping { .. }
            | TaskState::Exited { .. }
            | TaskState::Lost => {}
        }
        task.ground = match (event.machine_lost, task.ground) {
            (true, _) => Ground::Lost,
            // Of a place that it was to leave: this is another one.
            (false, Ground::Leaving) if event.generation > placed => Ground::Firm,
            (false, Ground::Leaving) => Ground::Leaving,
            (false, Ground::Firm | Ground::Lost) => Ground::Firm,
        };
        if task.state != state || event.generation > placed {
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
        if let Some(tries) = looping {
            self.note("crash-loop", &name, tries.to_string());
        }
    }

    /// Forgets the failures of tasks that have run well since.
    fn forgive(&mut self) {
        let now = self.now();
        let mut well = Vec::new();
        for (name, task) in &mut self.tasks {
            if task.tries.failures > 0 && task.runs() && task.lived(now) >= SETTLED {
                if task.tries.verdict() == Verdict::CrashLoop {
                    well.push(name.clone());
                }
                task.tries = Tries::FRESH;
            }
        }
        for name in well {
            self.note("crash-loop", &name, "runs well again".into());
        }
    }

    /// For people to read later; nothing waits for it.
    fn note(&self, kind: &str, about: &TaskName, text: String) {
        let cell = Arc::clone(&self.cell);
        let note = NoteRequest {
            service: self.service.to_string(),
            about: about.to_string(),
            kind: kind.to_owned(),
            text,
            detail_json: String::new(),
        };
        tokio::spawn(async move { cell.note(note).await });
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Want(wanting, heard) => {
                self.want(wanting);
                self.publish_view();
                // Whoever asked may have gone.
                heard.send(()).unwrap_or_default();
            }
            Command::Evict {
                task,
                machine,
                heard,
            } => heard.send(self.evict(&task, &machine)).unwrap_or_default(),
            Command::Finished { task, outcome } => self.finished(task, outcome).await,
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
            Finished::Placed(placed) => {
                if task.placed.as_ref() == Some(&placed) {
                    if task.ground == Ground::Leaving {
                        // Its machine takes tasks again, and is the best for it.
                        task.ground = Ground::Firm;
                    }
                } else {
                    task.ground = Ground::Firm;
                    task.state = TaskState::Pending {
                        why: format!("not started on {} yet", placed.machine),
                    };
                    self.addresses.remove(&name);
                }
                task.placed = Some(placed);
            }
            Finished::Pending(why) => {
                task.state = TaskState::Pending { why };
                self.retry_later(name);
            }
            Finished::Granted => {
                task.leave = Leave::Granted;
                self.held.clear();
            }
            Finished::Held(why) => {
                if self.held != why {
                    self.note("rollout", &name, format!("not replaced yet: {why}"));
                    self.held = why;
                }
                self.retry_later(name);
            }
            Finished::Settled => task.leave = Leave::NotAsked,
            Finished::Started(fingerprint, changes) => {
                let other = task.fingerprint.as_ref() != Some(&fingerprint);
                if task.leave == Leave::Granted && other {
                    self.replaced = self.replaced.saturating_add(1);
                }
                task.fingerprint = Some(fingerprint.clone());
                // Its first event may be here already, and its end too: what was seen is never overwritten.
                if self.changes.get(&name).copied().unwrap_or(0) == changes {
                    self.retry_later(name.clone());
                }
                if self.started.0.insert(name, fingerprint.clone()).as_ref() != Some(&fingerprint) {
                    self.remember_started().await;
                }
            }
            Finished::Forgotten if matches!(&self.wish, Wish::Up(wanted) if wanted.tasks.contains(&name) && rests(wanted, task)) =>
            {
                // It has finished and only gave up its place.
                task.placed = None;
                task.ground = Ground::Firm;
                self.addresses.remove(&name);
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
                // One that has finished stays so: it is not to run again because an order about it failed.
                let finished = matches!(&self.wish, Wish::Up(wanted) if rests(wanted, task));
                if task.over() && !finished {
                    task.state = TaskState::Pending {
                        why: refusal.message,
                    };
                    // Its place was given up meanwhile: it asks for one again, and keeps the one that there may be.
                    match refusal.kind {
                        RefusalKind::NotFound | RefusalKind::Stale => task.placed = None,
                        RefusalKind::NotNow
                        | RefusalKind::Unknown
                        | RefusalKind::BadRequest
                        | RefusalKind::Internal => {}
                    }
                }
                match refusal.kind {
                    // Nothing is wrong with the task: it is tried again as soon as what it lacks may be there.
                    RefusalKind::NotNow | RefusalKind::Unknown | RefusalKind::NotFound => {}
                    RefusalKind::BadRequest | RefusalKind::Stale | RefusalKind::Internal => {
                        task.ended = Some(now);
                        task.tries = task.tries.after_failure(Default::default(), (self.luck)());
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
                | Action::Move(name, _)
                | Action::Start(name)
                | Action::Stop(name)
                | Action::Forget(name)
                | Action::Ask(name)
                | Action::Settle(name) => name.clone(),
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
        view(&self.wish, &self.tasks, self.replaced, &self.held)
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
