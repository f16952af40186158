//! A small real cell for one service: its keepers are processes, its machines are loopback addresses, its store is in
//! memory and forgets nothing while the test lives.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use homeostat_api::grpc::ServeCell;
use homeostat_api::v1::cell_handle_server::CellHandleServer;
use homeostat_api::v1::*;
use homeostat_api::{CellHandle, Refusal, RefusalKind, TaskEvents, uds};
use homeostat_model::{
    Bytes, Generation, MachineName, PortName, ServiceName, TaskName, TaskState, Template,
};
use homeostat_supervisor::launch::{FORMAT, LaunchFile, UserIds};
use homeostat_supervisor::leftovers::kill_leftovers;
use homeostat_supervisor::protocol::{Answer, Event, Hello, Message, Phase, Request, Verb};
use homeostat_supervisor::run::ExitFile;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

/// Set for the process that is to be a keeper.
pub const RUN_DIR: &str = "HOMEOSTAT_TEST_KEEPER";
pub const SERVICE: &str = "db";
/// The bound of everything that is waited for; never reached unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);
const UNPRIVILEGED: u32 = 77_001;

/// Clones are the same cell.
#[derive(Clone)]
pub struct TestCell(Arc<Shared>);

struct Shared {
    folder: tempfile::TempDir,
    /// Distinguishes the addresses of tests that run at the same time.
    number: u8,
    inner: Mutex<Inner>,
    endpoint: watch::Sender<Option<EndpointTarget>>,
    /// Where keepers are looked after, whoever asks for one.
    runtime: Handle,
}

#[derive(Default)]
struct Inner {
    term: u64,
    revision: u64,
    store: BTreeMap<String, (Vec<u8>, u64)>,
    tasks: BTreeMap<TaskName, Task>,
    watchers: Vec<mpsc::Sender<TaskEvent>>,
    notes: Vec<NoteRequest>,
    endpoints_refused: u32,
}

struct Task {
    machine: u8,
    port: u16,
    state: TaskState,
    keeper_pid: u32,
    said: Vec<u8>,
    requests: Option<mpsc::UnboundedSender<(Verb, oneshot::Sender<Answer>)>>,
    starts: u32,
}

impl TestCell {
    pub fn new(number: u8) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("hs")
            .tempdir_in("/tmp")
            .unwrap();
        open(folder.path());
        let inner = Inner {
            term: 1,
            ..Inner::default()
        };
        let endpoint = watch::Sender::new(None);
        Self(Arc::new(Shared {
            folder,
            number,
            inner: Mutex::new(inner),
            endpoint,
            runtime: Handle::current(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap()
    }

    pub fn folder(&self) -> &Path {
        self.0.folder.path()
    }

    /// Another controller leads: the streams of the old one end.
    pub fn new_leader(&self) -> u64 {
        let mut inner = self.lock();
        inner.term += 1;
        inner.watchers.clear();
        inner.term
    }

    pub fn term(&self) -> u64 {
        self.lock().term
    }

    pub fn value(&self, key: &str) -> Option<String> {
        self.lock()
            .store
            .get(key)
            .map(|(value, _)| String::from_utf8(value.clone()).unwrap())
    }

    pub fn notes(&self) -> Vec<String> {
        self.lock()
            .notes
            .iter()
            .map(|note| format!("{}: {}", note.kind, note.text))
            .collect()
    }

    pub fn endpoint(&self) -> watch::Receiver<Option<EndpointTarget>> {
        self.0.endpoint.subscribe()
    }

    /// Targets that came with a lower or an equal order than one before and said something else.
    pub fn endpoints_refused(&self) -> u32 {
        self.lock().endpoints_refused
    }

    pub fn starts(&self, task: &str) -> u32 {
        self.lock().tasks[&TaskName::new(task).unwrap()].starts
    }

    pub fn keeper_pid(&self, task: &str) -> u32 {
        self.lock().tasks[&TaskName::new(task).unwrap()].keeper_pid
    }

    pub fn states(&self) -> Vec<TaskState> {
        self.lock()
            .tasks
            .values()
            .map(|task| task.state.clone())
            .collect()
    }

    /// What a keeper and its server wrote.
    pub fn log(&self, task: &str) -> String {
        std::fs::read_to_string(self.folder().join(format!("l-{task}/out.log"))).unwrap_or_default()
    }

    fn change(&self, name: &TaskName, change: impl FnOnce(&mut Task)) {
        let mut inner = self.lock();
        let Some(task) = inner.tasks.get_mut(name) else {
            return;
        };
        change(task);
        let event = self.event(name, task);
        inner
            .watchers
            .retain(|watcher| watcher.try_send(event.clone()).is_ok());
    }

    fn pass_on(&self, name: &TaskName, sign: &serde_json::Value) {
        let event = TaskEvent {
            task: name.to_string(),
            service: SERVICE.into(),
            generation: 1,
            sign: serde_json::to_vec(sign).unwrap(),
            ..TaskEvent::default()
        };
        for watcher in &self.lock().watchers {
            let _ = watcher.try_send(event.clone());
        }
    }

    fn event(&self, name: &TaskName, task: &Task) -> TaskEvent {
        TaskEvent {
            task: name.to_string(),
            service: SERVICE.into(),
            machine: format!("m{}", task.machine),
            generation: 1,
            address: self.address(task.machine),
            ports: [("sql".to_owned(), u32::from(task.port))].into(),
            state_json: serde_json::to_string(&task.state).unwrap(),
            supervisor_pid: task.keeper_pid,
            reachable: task.requests.is_some(),
            service_event: task.said.clone(),
            at_unix_ms: 0,
            synced: false,
            machine_lost: false,
            sign: Vec::new(),
        }
    }

    fn address(&self, machine: u8) -> String {
        format!("127.84.{}.{machine}", self.0.number)
    }

    fn prepare(&self, name: &TaskName, launch: &Launch) -> LaunchFile {
        let user = rustix::process::geteuid().is_root().then_some(UserIds {
            uid: UNPRIVILEGED,
            gid: UNPRIVILEGED,
        });
        let folder = |kind: &str| self.folder().join(format!("{kind}-{name}"));
        for folder in [folder("r"), folder("d"), folder("l")] {
            std::fs::create_dir_all(&folder).unwrap();
            open(&folder);
        }
        if let Some(user) = user {
            std::os::unix::fs::chown(folder("d"), Some(user.uid), Some(user.gid)).unwrap();
        }
        let template = Template::parse(&launch.keeper_json).unwrap();
        let text = template
            .render(|variable| Err::<String, _>(format!("{variable} is not expected")))
            .unwrap();
        let (machine, port) = {
            let task = &self.lock().tasks[name];
            (task.machine, task.port)
        };
        let file = LaunchFile {
            format: FORMAT,
            task: name.clone(),
            service: ServiceName::new(SERVICE).unwrap(),
            machine: MachineName::new(format!("m{machine}")).unwrap(),
            generation: Generation(1),
            argv: vec![],
            env: BTreeMap::new(),
            data: folder("d"),
            run: folder("r"),
            logs: folder("l"),
            shared: self.folder().join("shared"),
            user,
            grace_ms: launch.grace_ms,
            memory_limit: launch
                .resources
                .as_ref()
                .map(|resources| Bytes(resources.memory_bytes)),
            address: self.address(machine),
            ports: [(PortName::new("sql").unwrap(), port)].into(),
            keeper: Some(serde_json::from_str(&text).unwrap()),
        };
        ExitFile::remove(&file.run).unwrap();
        file.store().unwrap();
        file
    }

    /// Lives as long as the keeper's process.
    async fn supervise(self, name: TaskName, run: PathBuf, mut child: Child) {
        if let Some(stream) = connect(&run, &mut child).await {
            self.talk(&name, stream).await;
        }
        self.change(&name, |task| {
            task.requests = None;
            task.said.clear();
        });
        drop(child.wait().await);
        let swept = run.clone();
        tokio::task::spawn_blocking(move || kill_leftovers(&swept).map(drop))
            .await
            .unwrap()
            .unwrap();
        let state = match ExitFile::load(&run).unwrap() {
            Some(exit) => TaskState::Exited { cause: exit.cause },
            None => TaskState::Lost,
        };
        self.change(&name, |task| task.state = state);
    }

    async fn talk(&self, name: &TaskName, stream: UnixStream) {
        let (reading, mut writing) = stream.into_split();
        let mut lines = BufReader::new(reading).lines();
        let (requests, mut asked) = mpsc::unbounded_channel::<(Verb, oneshot::Sender<Answer>)>();
        let mut open: BTreeMap<u64, oneshot::Sender<Answer>> = BTreeMap::new();
        let mut next_id = 0;
        loop {
            tokio::select! {
                Some((verb, answer)) = asked.recv() => {
                    next_id += 1;
                    open.insert(next_id, answer);
                    let mut line = serde_json::to_vec(&Request { id: next_id, verb }).unwrap();
                    line.push(b'\n');
                    if writing.write_all(&line).await.is_err() {
                        return;
                    }
                }
                line = lines.next_line() => {
                    let Ok(Some(line)) = line else { return };
                    match serde_json::from_str::<Message>(&line).unwrap() {
                        Message::Hello(Hello { phase, .. }) => self.change(name, |task| {
                            task.requests = Some(requests.clone());
                            task.state = state_of(&phase);
                        }),
                        Message::Event(Event::Phase { phase }) => {
                            self.change(name, |task| task.state = state_of(&phase));
                            // An agent closes when it has heard the end; the keeper need not linger.
                            if matches!(phase, Phase::Ended { .. }) {
                                return;
                            }
                        }
                        Message::Event(Event::Service { body }) => {
                            self.change(name, |task| task.said = serde_json::to_vec(&body).unwrap());
                        }
                        Message::Event(Event::Sign { body }) => self.pass_on(name, &body),
                        Message::Reply { id, answer } => {
                            if let Some(asker) = open.remove(&id) {
                                drop(asker.send(answer));
                            }
                        }
                    }
                }
            }
        }
    }

    async fn ask(&self, task: &str, verb: Verb, patience: Duration) -> Result<Answer, Refusal> {
        let name = TaskName::new(task).unwrap();
        let requests = self
            .lock()
            .tasks
            .get(&name)
            .and_then(|task| task.requests.clone());
        let unreachable = || Refusal::unknown(format!("{task} is not reachable"));
        let (answer, waiting) = oneshot::channel();
        requests
            .ok_or_else(unreachable)?
            .send((verb, answer))
            .map_err(|_| unreachable())?;
        timeout(patience, waiting)
            .await
            .map_err(|_| unreachable())?
            .map_err(|_| unreachable())
    }
}

/// A cell's side of the contract over a socket, with a runtime of its own: when it is dropped its connections break.
pub struct Controller(Option<Runtime>);

impl Controller {
    pub fn serve(cell: &TestCell, socket: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let handle = Arc::new(cell.clone());
        let here = runtime.enter();
        let incoming = uds::listen(socket).unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(CellHandleServer::new(ServeCell(handle)));
        runtime.spawn(server.serve_with_incoming(incoming));
        drop(here);
        Self(Some(runtime))
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn open(folder: &Path) {
    std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
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

async fn connect(run: &Path, child: &mut Child) -> Option<UnixStream> {
    loop {
        match UnixStream::connect(run.join("s")).await {
            Ok(stream) => return Some(stream),
            Err(_) if child.try_wait().unwrap().is_some() => return None,
            Err(_) => sleep(Duration::from_millis(2)).await,
        }
    }
}

#[async_trait]
impl CellHandle for TestCell {
    async fn hello(&self, _: HelloRequest) -> Result<HelloReply, Refusal> {
        Ok(HelloReply {
            endpoint_epoch: 0,
            endpoint_version: 0,
            term: self.term(),
            cell: "test".into(),
        })
    }

    async fn watch(&self, _: WatchRequest) -> Result<TaskEvents, Refusal> {
        let (sender, reader) = mpsc::channel(1024);
        let mut inner = self.lock();
        for (name, task) in &inner.tasks {
            sender.try_send(self.event(name, task)).unwrap();
        }
        sender
            .try_send(TaskEvent {
                synced: true,
                ..TaskEvent::default()
            })
            .unwrap();
        inner.watchers.push(sender);
        Ok(reader)
    }

    async fn place(&self, request: PlaceRequest) -> Result<PlaceReply, Refusal> {
        let mut inner = self.lock();
        let mut placed = Vec::new();
        for wanted in request.tasks {
            assert_eq!(wanted.apart, Apart::NeverTogether as i32);
            let machine = u8::try_from(inner.tasks.len()).unwrap() + 1;
            let name = TaskName::new(wanted.task.clone()).unwrap();
            let task = inner.tasks.entry(name).or_insert_with(|| Task {
                machine,
                port: free_port(&self.address(machine)),
                state: TaskState::Pending {
                    why: "not started".into(),
                },
                keeper_pid: 0,
                said: Vec::new(),
                requests: None,
                starts: 0,
            });
            placed.push(Placement {
                task: wanted.task,
                machine: format!("m{}", task.machine),
                generation: 1,
                address: self.address(task.machine),
            });
        }
        Ok(PlaceReply {
            placed,
            pending: Vec::new(),
        })
    }

    async fn start(&self, request: StartRequest) -> Result<StartReply, Refusal> {
        let name = TaskName::new(request.task).unwrap();
        {
            let mut inner = self.lock();
            let task = inner
                .tasks
                .get_mut(&name)
                .ok_or_else(|| Refusal::not_found("it has no place"))?;
            match task.state {
                TaskState::Pending { .. } | TaskState::Exited { .. } | TaskState::Lost => {}
                TaskState::Starting | TaskState::Running { .. } | TaskState::Stopping { .. } => {
                    return Ok(StartReply {});
                }
            }
            task.state = TaskState::Starting;
            task.starts += 1;
        }
        let launch = request.launch.unwrap();
        assert_eq!(launch.supervision, Supervision::Keeper as i32);
        let file = self.prepare(&name, &launch);
        let _here = self.0.runtime.enter();
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "keeper_process",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(RUN_DIR, &file.run)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let pid = child.id().unwrap();
        self.change(&name, |task| task.keeper_pid = pid);
        tokio::spawn(self.clone().supervise(name, file.run, child));
        Ok(StartReply {})
    }

    async fn stop(&self, request: StopRequest) -> Result<StopReply, Refusal> {
        self.ask(
            &request.task,
            Verb::Stop {
                grace_ms: request.grace_ms,
            },
            PATIENCE,
        )
        .await?;
        Ok(StopReply {})
    }

    async fn kill(&self, request: KillRequest) -> Result<KillReply, Refusal> {
        self.ask(&request.task, Verb::Kill, PATIENCE).await?;
        Ok(KillReply {})
    }

    async fn forget(&self, _: ForgetRequest) -> Result<ForgetReply, Refusal> {
        Err(Refusal::not_now("nobody forgets a member"))
    }

    async fn read(&self, request: ReadRequest) -> Result<ReadReply, Refusal> {
        let inner = self.lock();
        Ok(inner
            .store
            .get(&request.key)
            .map_or_else(ReadReply::default, |(value, revision)| ReadReply {
                found: true,
                value: value.clone(),
                mod_revision: *revision,
            }))
    }

    async fn write(&self, request: WriteRequest) -> Result<WriteReply, Refusal> {
        let mut inner = self.lock();
        let (current, seen) = inner.store.get(&request.key).cloned().unwrap_or_default();
        if seen != request.expected_mod_revision {
            return Ok(WriteReply {
                committed: false,
                mod_revision: seen,
                current,
            });
        }
        inner.revision += 1;
        let revision = inner.revision;
        inner.store.insert(request.key, (request.value, revision));
        Ok(WriteReply {
            committed: true,
            mod_revision: revision,
            current: Vec::new(),
        })
    }

    async fn set_endpoint(&self, request: SetEndpointRequest) -> Result<SetEndpointReply, Refusal> {
        let new = request.target.unwrap();
        self.0.endpoint.send_if_modified(|current| {
            let rank = |target: &EndpointTarget| (target.epoch, target.version);
            match current {
                Some(current) if rank(&new) <= rank(current) => {
                    if new != *current {
                        self.lock().endpoints_refused += 1;
                    }
                    false
                }
                Some(_) | None => {
                    *current = Some(new);
                    true
                }
            }
        });
        Ok(SetEndpointReply {})
    }

    async fn local_call(&self, request: LocalCallRequest) -> Result<LocalCallReply, Refusal> {
        let body = serde_json::from_slice(&request.body).unwrap();
        match self
            .ask(
                &request.task,
                Verb::Call { body },
                Duration::from_millis(request.deadline_ms),
            )
            .await?
        {
            Answer::Called { body } => Ok(LocalCallReply {
                body: serde_json::to_vec(&body).unwrap(),
            }),
            Answer::Accepted => Ok(LocalCallReply::default()),
            Answer::Refused { why } => Err(Refusal::new(RefusalKind::BadRequest, why)),
        }
    }

    async fn note(&self, request: NoteRequest) -> Result<NoteReply, Refusal> {
        self.lock().notes.push(request);
        Ok(NoteReply {})
    }
}

fn free_port(address: &str) -> u16 {
    std::net::TcpListener::bind((address, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

impl Drop for Shared {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap();
        for (name, task) in &inner.tasks {
            if std::thread::panicking() {
                let log = self.folder.path().join(format!("l-{name}/out.log"));
                let log = std::fs::read_to_string(log).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(25).collect();
                eprintln!("--- {name} {:?}", task.state);
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
            if let Some(pid) = rustix::process::Pid::from_raw(task.keeper_pid as i32) {
                let alive = matches!(
                    task.state,
                    TaskState::Running { .. } | TaskState::Stopping { .. }
                );
                if alive {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
            let run = self.folder.path().join(format!("r-{name}"));
            while let Err(error) = kill_leftovers(&run) {
                if !matches!(
                    &error,
                    homeostat_supervisor::leftovers::LeftoverError::Run(
                        homeostat_supervisor::run::RunError::Locked { .. }
                    )
                ) {
                    eprintln!("cannot clean up: {error}");
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}
