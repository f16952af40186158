//! The agent's loop: one owner of all state, one place where wake-ups become actions.
//!
//! What the controller asks for is in [`orders`], what supervisors say in [`hearing`].

mod folders;
mod hearing;
mod orders;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use homeostat_api::PROTOCOL;
use homeostat_api::v1::{
    AgentHello, AgentSynced, CallDone, FromAgent, Resources, StartTask, TaskEvent, from_agent,
};
use homeostat_model::{
    CellIdentity, CellLayout, LocalMachine, MachineLayout, MachineName, TaskName, TaskState,
};
use homeostat_supervisor::launch::LaunchFile;
use homeostat_supervisor::process;
use homeostat_supervisor::protocol::{Process, Request};
use rustix::fs::FlockOperation;
use tokio::sync::mpsc;

use crate::forwarder::Forwarder;
use crate::prepare::make_folder;
use crate::supervised::{Found, connect, inventory};
use crate::talk::Patience;
use crate::wake::Wake;
use crate::{AgentError, link};

/// Wake-ups that may wait for the loop.
const QUEUE: usize = 4096;

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
    agent.sweep();
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
    /// The controller said so: an earlier one would take a sign for the state of a task.
    takes_signs: bool,
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
            takes_signs: false,
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
        self.takes_signs = false;
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
            machine_lost: false,
            sign: Vec::new(),
        };
        self.send(from_agent::Message::Task(event));
    }

    /// A sign is worth something only now: it is not kept, and not sent to a controller that is far behind.
    fn pass_on(&mut self, task: &TaskName, sign: Vec<u8>) {
        let (Some(held), Some(controller)) = (self.tasks.get(task), &self.controller) else {
            return;
        };
        if !self.takes_signs || controller.capacity() < controller.max_capacity() / 2 {
            return;
        }
        let event = TaskEvent {
            task: task.to_string(),
            service: held.launch.service.to_string(),
            machine: self.machine.spec.name.to_string(),
            generation: held.launch.generation.0,
            sign,
            ..TaskEvent::default()
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

fn now_unix_ms() -> u64 {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}
