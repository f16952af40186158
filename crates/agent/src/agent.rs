//! The agent's loop: one owner of all state, one place where wake-ups become actions.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use homeostat_api::PROTOCOL;
use homeostat_api::v1::{
    AgentHello, AgentSynced, CallDone, CallTask, FromAgent, Resources, StartTask, TaskEvent,
    ToAgent, from_agent, to_agent,
};
use homeostat_model::{
    CellIdentity, CellLayout, LocalMachine, MachineLayout, MachineName, TaskName, TaskState,
};
use homeostat_supervisor::launch::LaunchFile;
use homeostat_supervisor::process;
use homeostat_supervisor::protocol::{
    Answer, Event, Hello, Message, Phase, Process, Request, Verb,
};
use rustix::fs::FlockOperation;
use tokio::sync::mpsc;

use crate::forwarder::Forwarder;
use crate::prepare::{Preparing, make_folder, write_private};
use crate::supervised::{Found, bury, connect, inventory, spawn};
use crate::talk::Patience;
use crate::wake::Wake;
use crate::{AgentError, link};

/// Wake-ups that may wait for the loop.
const QUEUE: usize = 4096;
/// It cuts off what is open at once, so this is generous. Shorter than the controller's patience with this agent.
const FORWARDER_ENDS_WITHIN: Duration = Duration::from_secs(2);

pub struct AgentOptions {
    pub cell: CellIdentity,
    pub layout: CellLayout,
    pub machine: MachineName,
    /// The `homeostat` program, for supervisors.
    pub program: PathBuf,
}

/// Runs until SIGTERM or the controller's `Shutdown`.
///
/// # Errors
/// When another agent runs this machine, or its folders cannot be used.
pub async fn run(options: AgentOptions) -> Result<(), AgentError> {
    let machine = options
        .cell
        .machine(&options.machine)
        .cloned()
        .ok_or_else(|| AgentError::UnknownMachine(options.machine.clone()))?;
    let layout = options.layout.machine(&options.machine);
    make_folder(&layout.state, 0o711)?;
    make_folder(&layout.state.join("data"), 0o711)?;
    make_folder(&layout.tasks_run(), 0o711)?;
    make_folder(&options.layout.shared(), 0o711)?;
    let lock = lock(&layout, &options.machine)?;

    let (wakes, mut queue) = mpsc::channel(QUEUE);
    let mut agent = Agent::new(options, machine, layout, wakes.clone());
    agent.find_tasks();
    agent.forwarder.start(&wakes);
    tokio::spawn(link::keep(agent.options.layout.socket(), wakes.clone()));
    tokio::spawn(terminate(wakes));
    while let Some(wake) = queue.recv().await {
        if matches!(agent.handle(wake), Flow::End) {
            break;
        }
    }
    drop(lock);
    Ok(())
}

async fn terminate(wakes: mpsc::Sender<Wake>) {
    use tokio::signal::unix::{SignalKind, signal};
    if let Ok(mut signals) = signal(SignalKind::terminate()) {
        signals.recv().await;
        drop(wakes.send(Wake::Terminate).await);
    }
}

fn lock(layout: &MachineLayout, machine: &MachineName) -> Result<File, AgentError> {
    let path = layout.lock();
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| AgentError::io("cannot open", &path, error))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        AgentError::AlreadyRunning {
            machine: machine.clone(),
            lock: path,
        }
    })?;
    Ok(file)
}

enum Flow {
    Go,
    End,
}

/// A task that was given to this machine.
struct Held {
    launch: LaunchFile,
    state: TaskState,
    supervisor: Option<Process>,
    /// Numbers the connections to its supervisors, so that late words of an earlier one are told apart.
    connection: u64,
    requests: Option<mpsc::Sender<Request>>,
    /// The newest word of a keeper.
    service_event: Vec<u8>,
    /// Calls carried to the supervisor and not answered yet: our number to the controller's.
    calls: BTreeMap<u64, u64>,
    /// Whether the earlier supervisor is out of the way. Its last word comes before its end, and a new one needs its
    /// lock and socket.
    grave: Grave,
    /// A start that waits for that.
    next: Option<(u64, StartTask)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Grave {
    /// A supervisor is there, or on its way.
    Alive,
    /// It is gone, and what it left is being killed and verified.
    Digging,
    Closed,
}

struct Agent {
    options: AgentOptions,
    machine: LocalMachine,
    layout: MachineLayout,
    wakes: mpsc::Sender<Wake>,
    controller: Option<mpsc::Sender<FromAgent>>,
    highest_term: u64,
    tasks: BTreeMap<TaskName, Held>,
    forwarder: Forwarder,
    next_number: u64,
}

impl Agent {
    fn new(
        options: AgentOptions,
        machine: LocalMachine,
        layout: MachineLayout,
        wakes: mpsc::Sender<Wake>,
    ) -> Self {
        let forwarder = Forwarder::new(options.program.clone(), &layout, &options.layout, &machine);
        let highest_term = std::fs::read_to_string(layout.state.join("term"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0);
        Self {
            options,
            machine,
            layout,
            wakes,
            controller: None,
            highest_term,
            tasks: BTreeMap::new(),
            forwarder,
            next_number: 1,
        }
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Takes over what an earlier agent left.
    fn find_tasks(&mut self) {
        for (launch, patience) in inventory(&self.layout) {
            self.hold(launch, patience);
        }
    }

    fn hold(&mut self, launch: LaunchFile, patience: Patience) {
        let connection = self.number();
        let task = launch.task.clone();
        let requests = connect(
            task.clone(),
            connection,
            &launch.run,
            patience,
            self.wakes.clone(),
        );
        self.tasks.insert(
            task,
            Held {
                launch,
                state: TaskState::Starting,
                supervisor: None,
                connection,
                requests: Some(requests),
                service_event: Vec::new(),
                calls: BTreeMap::new(),
                grave: Grave::Alive,
                next: None,
            },
        );
    }

    fn handle(&mut self, wake: Wake) -> Flow {
        match wake {
            Wake::Linked(sender) => self.linked(sender),
            Wake::Unlinked => self.controller = None,
            Wake::Order(order) => return self.order(*order),
            Wake::Supervisor {
                task,
                connection,
                message,
            } => self.heard(&task, connection, message),
            Wake::SupervisorGone { task, connection } => self.gone(&task, connection),
            Wake::Buried {
                task,
                connection,
                found,
            } => match found {
                Found::Ended(state) => self.buried(&task, connection, state),
                Found::Lives => self.reconnect(&task, connection),
            },
            Wake::Forwarder(message) => {
                let report = self.forwarder.heard(message);
                for report in report {
                    self.send(from_agent::Message::Forwarder(report));
                }
            }
            Wake::ForwarderGone if self.forwarder.is_ending() => return Flow::End,
            Wake::ForwarderGone => self.forwarder.start(&self.wakes),
            // The cell is down, and the controller could not say so: the forwarder ends with this agent all the same.
            Wake::Terminate if self.is_down() && !self.forwarder.is_ending() => {
                return self.shut_down();
            }
            Wake::Terminate => return Flow::End,
        }
        Flow::Go
    }

    // ---- towards the controller

    fn send(&mut self, message: from_agent::Message) {
        if let Some(controller) = &self.controller
            && controller
                .try_send(FromAgent {
                    message: Some(message),
                })
                .is_err()
        {
            // Full or closed: dropping our end ends the stream, and the next one begins with a fresh inventory.
            self.controller = None;
        }
    }

    fn linked(&mut self, sender: mpsc::Sender<FromAgent>) {
        self.controller = Some(sender);
        // What an earlier link asked for was given up when it ended; the numbers of its calls may be used again.
        for held in self.tasks.values_mut() {
            held.calls.clear();
            held.next = None;
        }
        let capacity = self.machine.spec.capacity;
        self.send(from_agent::Message::Hello(AgentHello {
            protocol: PROTOCOL,
            machine: self.machine.spec.name.to_string(),
            pid: std::process::id(),
            boot_id: process::boot_id().unwrap_or_default(),
            address: self.machine.address.clone(),
            capacity: Some(Resources {
                cpu_milli: capacity.cpu.0,
                memory_bytes: capacity.memory.0,
            }),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            highest_term: self.highest_term,
        }));
        for task in self.tasks.keys().cloned().collect::<Vec<_>>() {
            self.report(&task);
        }
        self.send(from_agent::Message::Synced(AgentSynced {}));
        for report in self.forwarder.reports() {
            self.send(from_agent::Message::Forwarder(report));
        }
    }

    fn report(&mut self, task: &TaskName) {
        let Some(held) = self.tasks.get(task) else {
            return;
        };
        let event = TaskEvent {
            task: task.to_string(),
            service: held.launch.service.to_string(),
            machine: self.machine.spec.name.to_string(),
            generation: held.launch.generation.0,
            address: held.launch.address.clone(),
            ports: held
                .launch
                .ports
                .iter()
                .map(|(name, port)| (name.to_string(), u32::from(*port)))
                .collect(),
            state_json: serde_json::to_string(&held.state).unwrap_or_default(),
            supervisor_pid: held.supervisor.map_or(0, |process| process.pid),
            reachable: held.supervisor.is_some() && held.requests.is_some(),
            service_event: held.service_event.clone(),
            at_unix_ms: now_unix_ms(),
            synced: false,
        };
        self.send(from_agent::Message::Task(event));
    }

    fn done(&mut self, id: u64, result: Result<Vec<u8>, AgentError>) {
        let done = match result {
            Ok(body) => CallDone {
                id,
                body,
                error: String::new(),
                error_kind: String::new(),
            },
            Err(error) => CallDone {
                id,
                body: Vec::new(),
                error: error.line(),
                error_kind: error.kind().to_owned(),
            },
        };
        self.send(from_agent::Message::Done(done));
    }

    // ---- from the controller

    fn order(&mut self, order: ToAgent) -> Flow {
        if self.controller.is_none() {
            // Of a leader that is not obeyed, or of a link that was given up: nobody would hear the answer.
            return Flow::Go;
        }
        let id = order.id;
        let result = match order.message {
            None => Err(AgentError::BadOrder("it is empty".into())),
            Some(to_agent::Message::Welcome(welcome)) => self.welcome(welcome.term),
            Some(to_agent::Message::Start(start)) => {
                if self.must_wait(&start) {
                    self.wait(id, start);
                    return Flow::Go;
                }
                self.start(&start)
            }
            Some(to_agent::Message::Stop(stop)) => self.ask(
                &stop.task,
                stop.generation,
                Verb::Stop {
                    grace_ms: stop.grace_ms,
                },
            ),
            Some(to_agent::Message::Kill(kill)) => {
                self.ask(&kill.task, kill.generation, Verb::Kill)
            }
            Some(to_agent::Message::Call(call)) => match self.call(id, &call) {
                // Answered when the supervisor answers.
                Ok(()) => return Flow::Go,
                Err(error) => Err(error),
            },
            Some(to_agent::Message::Endpoints(endpoints)) => {
                self.forwarder.set(&endpoints.targets);
                Ok(Vec::new())
            }
            Some(to_agent::Message::Forget(forget)) => self.forget(&forget.task),
            Some(to_agent::Message::Shutdown(_)) => return self.shut_down(),
        };
        self.done(id, result);
        Flow::Go
    }

    fn is_down(&self) -> bool {
        self.options.layout.down_mark().exists()
    }

    /// The agent ends with its forwarder; that its stream closes is the answer. It gives up on a forwarder that does not
    /// listen: the warden must not have to wait for it.
    fn shut_down(&mut self) -> Flow {
        if !self.forwarder.stop() {
            return Flow::End;
        }
        let wakes = self.wakes.clone();
        tokio::spawn(async move {
            tokio::time::sleep(FORWARDER_ENDS_WITHIN).await;
            drop(wakes.send(Wake::Terminate).await);
        });
        Flow::Go
    }

    fn welcome(&mut self, term: u64) -> Result<Vec<u8>, AgentError> {
        if term < self.highest_term {
            self.controller = None;
            return Err(AgentError::OldTerm {
                asked: term,
                seen: self.highest_term,
            });
        }
        if term > self.highest_term {
            self.highest_term = term;
            write_private(&self.layout.state.join("term"), term.to_string().as_bytes())?;
        }
        Ok(Vec::new())
    }

    fn start(&mut self, order: &StartTask) -> Result<Vec<u8>, AgentError> {
        let task = name(&order.task)?;
        if let Some(held) = self.tasks.get(&task) {
            let here = held.launch.generation.0;
            if order.generation < here {
                return Err(AgentError::OldGeneration {
                    task,
                    here,
                    asked: order.generation,
                });
            }
            if held.grave != Grave::Closed {
                // The same order again, or a newer placement while the old one still runs.
                return if order.generation == here {
                    Ok(Vec::new())
                } else {
                    Err(AgentError::StillRuns(task))
                };
            }
        }
        let taken = self
            .tasks
            .values()
            .filter(|held| held.launch.task != task)
            .flat_map(|held| held.launch.ports.values().copied())
            .collect();
        let shared = self.options.layout.shared();
        let launch = Preparing {
            cell: &self.options.cell,
            machine: &self.machine,
            layout: &self.layout,
            shared: &shared,
            taken,
        }
        .prepare(order)?;
        spawn(&self.options.program, &launch)?;
        self.hold(launch, Patience::JustStarted);
        self.report(&task);
        Ok(Vec::new())
    }

    /// Whether the task's end is known but its supervisor not yet out of the way.
    fn must_wait(&self, order: &StartTask) -> bool {
        name(&order.task)
            .ok()
            .and_then(|task| self.tasks.get(&task))
            .is_some_and(|held| {
                let ends = match held.grave {
                    Grave::Alive => over(&held.state),
                    Grave::Digging => true,
                    Grave::Closed => false,
                };
                ends && order.generation >= held.launch.generation.0
            })
    }

    /// Carried out, and answered, by `buried`. Of two waiting starts the newer one counts.
    fn wait(&mut self, id: u64, order: StartTask) {
        let Some(held) = name(&order.task)
            .ok()
            .and_then(|task| self.tasks.get_mut(&task))
        else {
            return;
        };
        if let Some((earlier, _)) = held.next.replace((id, order)) {
            self.done(
                earlier,
                Err(AgentError::BadOrder(
                    "a newer start replaced this one".into(),
                )),
            );
        }
    }

    fn ask(&mut self, task: &str, generation: u64, verb: Verb) -> Result<Vec<u8>, AgentError> {
        let task = name(task)?;
        let id = self.number();
        let held = self
            .tasks
            .get_mut(&task)
            .ok_or_else(|| AgentError::UnknownTask(task.clone()))?;
        let here = held.launch.generation.0;
        if generation < here {
            return Err(AgentError::OldGeneration {
                task,
                here,
                asked: generation,
            });
        }
        if over(&held.state) {
            return Ok(Vec::new());
        }
        let requests = held
            .requests
            .as_ref()
            .ok_or_else(|| AgentError::Unreachable(task.clone()))?;
        requests
            .try_send(Request { id, verb })
            .map_err(|_| AgentError::Unreachable(task))?;
        Ok(Vec::new())
    }

    fn call(&mut self, id: u64, call: &CallTask) -> Result<(), AgentError> {
        let task = name(&call.task)?;
        let body = serde_json::from_slice(&call.body).map_err(|error| {
            AgentError::BadOrder(format!("the call's body is not JSON: {error}"))
        })?;
        let number = self.number();
        let held = self
            .tasks
            .get_mut(&task)
            .ok_or_else(|| AgentError::UnknownTask(task.clone()))?;
        let requests = held
            .requests
            .as_ref()
            .ok_or_else(|| AgentError::Unreachable(task.clone()))?;
        requests
            .try_send(Request {
                id: number,
                verb: Verb::Call { body },
            })
            .map_err(|_| AgentError::Unreachable(task))?;
        held.calls.insert(number, id);
        Ok(())
    }

    fn forget(&mut self, task: &str) -> Result<Vec<u8>, AgentError> {
        let task = name(task)?;
        let Some(held) = self.tasks.get(&task) else {
            return Ok(Vec::new());
        };
        if held.grave != Grave::Closed {
            return Err(AgentError::StillRuns(task));
        }
        let run = &held.launch.run;
        match std::fs::remove_dir_all(run) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(AgentError::io("cannot remove", run, error));
            }
            Ok(()) | Err(_) => {}
        }
        self.tasks.remove(&task);
        Ok(Vec::new())
    }

    // ---- from supervisors

    fn heard(&mut self, task: &TaskName, connection: u64, message: Message) {
        let Some(held) = self
            .tasks
            .get_mut(task)
            .filter(|held| held.connection == connection)
        else {
            return;
        };
        match message {
            Message::Hello(hello) => {
                if !is_same(&hello, &held.launch) {
                    eprintln!("{task}: somebody else answers at its socket: {hello:?}");
                    // An earlier placement that was believed to be gone is in the way of this one.
                    if let Some(requests) = held.requests.take()
                        && hello.task == held.launch.task
                        && hello.generation < held.launch.generation
                        && requests
                            .try_send(Request {
                                id: 0,
                                verb: Verb::Kill,
                            })
                            .is_err()
                    {
                        eprintln!("{task}: the earlier supervisor cannot be told to end");
                    }
                    return;
                }
                held.grave = Grave::Alive;
                held.supervisor = Some(hello.supervisor);
                held.state = state_of(&hello.phase);
                let refused = if over(&held.state) {
                    None
                } else {
                    held.next.take()
                };
                self.report(task);
                if let Some((id, _)) = refused {
                    self.done(id, Err(AgentError::StillRuns(task.clone())));
                }
            }
            Message::Event(Event::Phase { phase }) => {
                held.state = state_of(&phase);
                self.report(task);
            }
            Message::Event(Event::Service { body }) => {
                held.service_event = serde_json::to_vec(&body).unwrap_or_default();
                self.report(task);
            }
            Message::Reply { id, answer } => {
                let Some(call) = held.calls.remove(&id) else {
                    return;
                };
                let result = match answer {
                    Answer::Called { body } => Ok(serde_json::to_vec(&body).unwrap_or_default()),
                    Answer::Accepted => Ok(Vec::new()),
                    Answer::Refused { why } => Err(AgentError::BadOrder(why)),
                };
                self.done(call, result);
            }
        }
    }

    fn gone(&mut self, task: &TaskName, connection: u64) {
        let Some(held) = self
            .tasks
            .get_mut(task)
            .filter(|held| held.connection == connection)
        else {
            return;
        };
        held.requests = None;
        held.service_event.clear();
        held.grave = Grave::Digging;
        let calls = std::mem::take(&mut held.calls);
        let (run, generation) = (held.launch.run.clone(), held.launch.generation);
        for (_, call) in calls {
            self.done(call, Err(AgentError::Unreachable(task.clone())));
        }
        self.report(task);
        let (wakes, task) = (self.wakes.clone(), task.clone());
        tokio::task::spawn_blocking(move || {
            let found = bury(&run, generation);
            drop(wakes.blocking_send(Wake::Buried {
                task,
                connection,
                found,
            }));
        });
    }

    /// A supervisor that only closed the connection, or was slow to listen, is spoken to again.
    fn reconnect(&mut self, task: &TaskName, before: u64) {
        let connection = self.number();
        let wakes = self.wakes.clone();
        if let Some(held) = self
            .tasks
            .get_mut(task)
            .filter(|held| held.connection == before)
        {
            held.connection = connection;
            held.requests = Some(connect(
                task.clone(),
                connection,
                &held.launch.run,
                Patience::ShouldListen,
                wakes,
            ));
        }
    }

    fn buried(&mut self, task: &TaskName, connection: u64, state: TaskState) {
        let Some(held) = self
            .tasks
            .get_mut(task)
            .filter(|held| held.connection == connection)
        else {
            return;
        };
        held.supervisor = None;
        held.grave = Grave::Closed;
        held.state = state;
        let next = held.next.take();
        self.report(task);
        if let Some((id, order)) = next {
            let result = self.start(&order);
            self.done(id, result);
        }
    }
}

/// Nothing of it runs, and that is certain.
fn over(state: &TaskState) -> bool {
    match state {
        TaskState::Exited { .. } | TaskState::Lost => true,
        TaskState::Pending { .. }
        | TaskState::Starting
        | TaskState::Running { .. }
        | TaskState::Stopping { .. } => false,
    }
}

/// A socket path is reused; a supervisor is the one we mean only if it names the task and generation, and the process
/// it says it is exists with that start time.
fn is_same(hello: &Hello, launch: &LaunchFile) -> bool {
    hello.task == launch.task
        && hello.generation == launch.generation
        && process::alive(hello.supervisor)
}

fn state_of(phase: &Phase) -> TaskState {
    match phase {
        Phase::Starting => TaskState::Starting,
        Phase::Running { child } => TaskState::Running { pid: child.pid },
        Phase::Stopping { child } => TaskState::Stopping { pid: child.pid },
        Phase::Ended { cause } => TaskState::Exited {
            cause: cause.clone(),
        },
    }
}

fn name(text: &str) -> Result<TaskName, AgentError> {
    TaskName::new(text).map_err(|error| AgentError::BadOrder(error.to_string()))
}

fn now_unix_ms() -> u64 {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}
