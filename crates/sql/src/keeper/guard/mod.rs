//! The keeper's loop: one thread, and one place where events become actions.
//!
//! At most one order is carried out and one look at the server is taken at a time, over a connection each; a kill goes
//! before an order under way, which it ends. An order is
//! offered to the core only with a look that was begun after the order before it was over; one that arrives earlier
//! waits for that look (under a millisecond).

mod asking;
mod copies;
mod ending;
mod living;
mod looking;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, pending};
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use homeostat_decider::{
    BootId, BootTime, KeeperCore, KeeperIncarnation, MemberReport, Order, ServerState,
};
use homeostat_model::Durability;
use homeostat_supervisor::cgroup::{self, TaskGroup, group_name};
use homeostat_supervisor::launch::LaunchFile;
use homeostat_supervisor::logs::{Limits, Log};
use homeostat_supervisor::process;
use homeostat_supervisor::protocol::{Event, Hello, Message, Phase, Process, VERSION};
use homeostat_supervisor::run::SOCKET;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::config::KeeperConfig;
use super::file::{KeeperFile, Memory};
use super::fuse::Fuse;
use super::orders::{Context, Done, Progress};
use super::peers::{PeerEvent, PeerId, Peers};
use super::reader::Watched;
use super::server::{Paths, Server};
use super::{KeepError, system};
use crate::copy::folder;
use crate::mariadb::{Driver, Known, Login, Reading, SqlError};
use copies::Copies;
use living::Living;
use looking::QUICK;

/// Orders that may wait for a look.
const WAITING: usize = 8;

type Running<T> = Option<Pin<Box<dyn Future<Output = T>>>>;
/// Which request is to be answered.
type Asker = (PeerId, u64);

pub(crate) struct Guard {
    context: Rc<Context>,
    me: Process,
    phase: Phase,
    core: KeeperCore,
    memory: Memory,
    /// What is in `memory`.
    file: KeeperFile,
    listener: UnixListener,
    peers: Peers,
    asked: mpsc::UnboundedReceiver<PeerEvent>,
    progress: (
        mpsc::UnboundedSender<Progress>,
        mpsc::UnboundedReceiver<Progress>,
    ),
    terminate: Signal,
    server: Option<Server>,
    state: ServerState,
    known: Known,
    /// For orders; while one is carried out it has it.
    driver: Option<Driver>,
    /// For looks.
    watcher: Option<Driver>,
    /// For all of them, while the server is ready.
    login: Option<Login>,
    living: Living,
    copies: Copies,
    watched: Rc<Watched>,
    fuse: Fuse,
    job: Running<Done>,
    job_of: Option<Asker>,
    job_begun: BootTime,
    waiting: VecDeque<(Asker, Order)>,
    /// Who asked for a report, and the number of the look from which it is to be made.
    curious: VecDeque<(Asker, u64)>,
    look: Running<(Driver, Result<Reading, SqlError>)>,
    looks_begun: u64,
    /// Counts orders carried out, so that a look knows whether it is newer than the last one.
    orders_over: u64,
    look_begun_at: u64,
    /// `state` is newer than the last order.
    fresh: bool,
    /// What `state` was made from, where no order was begun since.
    reading: Option<Reading>,
    next_look: Instant,
    pace: Duration,
    reported: Option<MemberReport>,
    /// When a server that was asked to end is killed; or, after its end, when this process ends.
    deadline: Option<Instant>,
}

async fn maybe<T>(running: &mut Running<T>) -> T {
    match running {
        Some(future) => {
            let value = future.as_mut().await;
            *running = None;
            value
        }
        None => pending().await,
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

impl Guard {
    pub(crate) fn begin(
        run_dir: PathBuf,
        launch: LaunchFile,
        config: KeeperConfig,
    ) -> Result<Self, KeepError> {
        let me = process::current().map_err(system("read /proc"))?;
        let boot = BootId(process::boot_id().map_err(system("read the boot id"))?);
        take_data_folder(&launch).map_err(system("take the data folder over"))?;
        let finished = folder::recover(&launch.data)?;
        let (mut memory, mut file) = Memory::open(&launch.data)?;
        if mark_incomplete(&mut file, &config, &boot) {
            memory.store(&file)?;
        }
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|error| system("draw a number")(std::io::Error::other(error)))?;
        let incarnation = KeeperIncarnation(u64::from_ne_bytes(random));
        let core = KeeperCore::new(
            launch.task.clone(),
            incarnation,
            boot.clone(),
            file.kept.clone(),
        )
        .with_lease(config.lease());
        let watched = Rc::new(Watched::new(config.pulse()));
        let name = group_name(&launch.task, &run_dir);
        let (group, notes) = TaskGroup::create(&cgroup::detect(), &name, launch.memory_limit);
        let log = Log::new(&launch.logs, Limits::DEFAULT);
        let socket = run_dir.join(SOCKET);
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(system("remove a dead keeper's socket")(error));
            }
            Ok(()) | Err(_) => {}
        }
        let listener =
            UnixListener::bind(&socket).map_err(system("listen on the keeper's socket"))?;
        let (ask, asked) = mpsc::unbounded_channel();
        let paths = Paths::of(&launch, &run_dir);
        let state = ServerState::Down {
            initialised: paths.data.is_dir(),
            last: file.server.clone(),
        };
        let known = Known {
            source: file.source.clone(),
            incomplete: file.incomplete.is_some(),
            ..Known::default()
        };
        let context = Context {
            launch,
            config,
            run_dir,
            paths,
            group: Rc::new(group),
            boot,
            log: Rc::new(RefCell::new(log)),
        };
        for note in notes.iter().map(String::as_str).chain(finished) {
            context.note(note);
        }
        let guard = Self {
            context: Rc::new(context),
            me,
            phase: Phase::Running { child: me },
            core,
            memory,
            file,
            listener,
            peers: Peers::new(ask),
            asked,
            progress: mpsc::unbounded_channel(),
            terminate: signal(SignalKind::terminate()).map_err(system("listen for signals"))?,
            server: None,
            state,
            known,
            driver: None,
            watcher: None,
            login: None,
            living: Living::new(),
            copies: Copies::default(),
            watched,
            fuse: Fuse::light().map_err(system("start a thread"))?,
            job: None,
            job_of: None,
            job_begun: BootTime::default(),
            waiting: VecDeque::new(),
            curious: VecDeque::new(),
            look: None,
            looks_begun: 0,
            orders_over: 0,
            look_begun_at: 0,
            fresh: true,
            reading: None,
            next_look: Instant::now(),
            pace: QUICK,
            reported: None,
            deadline: None,
        };
        guard.write_run_record().map_err(KeepError::Run)?;
        Ok(guard)
    }

    pub(crate) fn note(&mut self, text: &str) {
        self.context.note(text);
    }

    pub(crate) async fn run(mut self) -> Result<(), KeepError> {
        let mut interrupt =
            signal(SignalKind::interrupt()).map_err(system("listen for signals"))?;
        let mut hangup = signal(SignalKind::hangup()).map_err(system("listen for signals"))?;
        loop {
            self.report_changes();
            if self.over() {
                break;
            }
            self.begin_look();
            let ends = self.lease_ends();
            self.fuse.set(ends);
            tokio::select! {
                // In this order, so that a server is known before the order that started it is over.
                biased;
                Some(progress) = self.progress.1.recv() => self.progressed(progress),
                done = maybe(&mut self.job) => self.order_over(done),
                (driver, seen) = maybe(&mut self.look) => self.looked(driver, seen),
                Some(event) = self.asked.recv() => self.peer_event(event),
                accepted = self.listener.accept() => {
                    // A failed accept is the peer's trouble: it connects again.
                    if let Ok((stream, _)) = accepted {
                        let first = [Message::Hello(self.hello()), report_event(&self.report())];
                        self.peers.welcome(stream, &first);
                    }
                }
                kept = maybe(&mut self.living.keeping) => self.kept_alive(kept),
                sent = maybe(&mut self.copies.lending) => self.lent(sent),
                received = maybe(&mut self.copies.fetching) => self.fetched(received),
                () = sleep_until(self.living.next_beat) => self.beat(),
                () = at(self.deadline) => self.out_of_time(),
                () = sleep_until(self.next_look), if self.look.is_none() && self.watcher.is_some() => {}
                _ = self.terminate.recv() => self.stop(Duration::from_millis(self.context.launch.grace_ms)),
                _ = interrupt.recv() => self.stop(Duration::from_millis(self.context.launch.grace_ms)),
                // A terminal that goes away is no reason to end.
                _ = hangup.recv() => {}
            }
        }
        let _ = std::fs::remove_file(self.context.run_dir.join(SOCKET));
        self.context
            .group
            .remove()
            .map_err(system("remove the cgroup"))
    }

    fn hello(&self) -> Hello {
        Hello {
            version: VERSION,
            task: self.context.launch.task.clone(),
            generation: self.context.launch.generation,
            supervisor: self.me,
            phase: self.phase.clone(),
        }
    }

    fn report_changes(&mut self) {
        let facts = self.facts();
        if self.reported.as_ref() != Some(&facts) {
            self.reported = Some(facts);
            self.peers.tell_all(&report_event(&self.report()));
        }
    }
}

fn report_event(report: &MemberReport) -> Message {
    // A report is plain data: strings, numbers, sets.
    let body = serde_json::to_value(report).unwrap_or_default();
    Message::Event(Event::Service { body })
}

/// The server's user owns what is in `sql` and may not replace what the keeper remembers beside it.
fn take_data_folder(launch: &LaunchFile) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if launch.user.is_some() && rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&launch.data, Some(0), Some(0))?;
        std::fs::set_permissions(&launch.data, std::fs::Permissions::from_mode(0o711))?;
    }
    Ok(())
}

/// A reboot under a server that does not sync what it receives may have lost what it acknowledged.
fn mark_incomplete(file: &mut KeeperFile, config: &KeeperConfig, boot: &BootId) -> bool {
    let Some(kept) = &file.kept else { return false };
    match config.durability {
        Durability::Process if kept.boot != *boot => {
            file.incomplete = Some(kept.record.epoch).max(file.incomplete);
            true
        }
        Durability::Process | Durability::Power => false,
    }
}
