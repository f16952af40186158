//! The keeper's loop: one thread, and one place where events become actions.
//!
//! At most one order is carried out and one look at the server is taken at a time, over a connection each. An order is
//! offered to the core only with a look that was begun after the order before it was over; one that arrives earlier
//! waits for that look (under a millisecond).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, pending};
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use homeostat_decider::{
    BootId, Decision, KeeperCore, KeeperIncarnation, Kept, MemberReport, Order, OrderOutcome,
    ServerState, Verb as Ordered,
};
use homeostat_model::{Durability, ExitCause};
use homeostat_supervisor::cgroup::{self, TaskGroup, group_name};
use homeostat_supervisor::launch::LaunchFile;
use homeostat_supervisor::logs::{Limits, Log};
use homeostat_supervisor::process;
use homeostat_supervisor::protocol::{
    Answer, Event, Hello, Message, Phase, Process, Request, VERSION, Verb,
};
use homeostat_supervisor::run::{ExitFile, RunRecord, SOCKET, now};
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::call::KeeperCall;
use super::config::KeeperConfig;
use super::file::KeeperFile;
use super::orders::{Context, Done, Job, Progress, carry_out, chain};
use super::peers::{PeerEvent, PeerId, Peers};
use super::server::{Paths, Server};
use super::{KeepError, system};
use crate::mariadb::{self, Driver, Known, Reading, SqlError};

/// Looks come quickly after a change and slowly when nothing moves: an idle member costs next to nothing.
const QUICK: Duration = Duration::from_millis(20);
const MOVING: Duration = Duration::from_secs(1);
const SLOW: Duration = Duration::from_secs(4);
/// Orders that may wait for a look.
const WAITING: usize = 8;
/// How long an ended keeper waits for an agent to hear of it; the exit file says it to later ones.
const LINGER: Duration = Duration::from_secs(2);

type Running<T> = Option<Pin<Box<dyn Future<Output = T>>>>;
/// Which request is to be answered.
type Asker = (PeerId, u64);

pub(crate) struct Guard {
    context: Rc<Context>,
    me: Process,
    phase: Phase,
    core: KeeperCore,
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
    job: Running<Done>,
    job_of: Option<Asker>,
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
        let mut file = KeeperFile::load(&launch.data)?;
        if mark_incomplete(&mut file, &config, &boot) {
            file.store(&launch.data)?;
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
        );
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
        for note in notes {
            context.note(&note);
        }
        let guard = Self {
            context: Rc::new(context),
            me,
            phase: Phase::Running { child: me },
            core,
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
            job: None,
            job_of: None,
            waiting: VecDeque::new(),
            curious: VecDeque::new(),
            look: None,
            looks_begun: 0,
            orders_over: 0,
            look_begun_at: 0,
            fresh: true,
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

    fn report(&self) -> MemberReport {
        MemberReport {
            member: self.context.launch.task.clone(),
            incarnation: self.core.incarnation(),
            boot: self.context.boot.clone(),
            host: self.context.launch.address.clone(),
            port: self.context.port(),
            record: self.core.record().cloned(),
            held: self.core.held(),
            server: self.state.clone(),
        }
    }

    fn report_changes(&mut self) {
        let report = self.report();
        if self.reported.as_ref() != Some(&report) {
            self.peers.tell_all(&report_event(&report));
            self.reported = Some(report);
        }
    }

    fn peer_event(&mut self, event: PeerEvent) {
        match event {
            PeerEvent::Left(peer) => self.peers.left(peer),
            PeerEvent::Unknown(peer, id) => {
                let why = "this keeper does not know that request".to_owned();
                self.peers.answer((peer, id), Answer::Refused { why });
            }
            PeerEvent::Asked(peer, Request { id, verb }) => match verb {
                Verb::Stop { grace_ms } => {
                    self.peers.answer((peer, id), Answer::Accepted);
                    self.stop(Duration::from_millis(grace_ms));
                }
                Verb::Kill => {
                    self.peers.answer((peer, id), Answer::Accepted);
                    self.stop(Duration::ZERO);
                }
                Verb::Call { body } => match serde_json::from_value::<KeeperCall>(body) {
                    Ok(KeeperCall::Order { order }) => self.ordered((peer, id), order),
                    Ok(KeeperCall::Report) => self.report_asked((peer, id)),
                    Err(error) => {
                        let why = format!("this keeper does not know that call: {error}");
                        self.peers.answer((peer, id), Answer::Refused { why });
                    }
                },
            },
        }
    }

    /// Answered from a look that is begun after the question, where a server can be looked at.
    fn report_asked(&mut self, asker: Asker) {
        if self.watcher.is_none() && self.look.is_none() {
            return self.answer(asker, &self.report());
        }
        if self.curious.len() >= WAITING {
            let why = "too many questions wait for this keeper".to_owned();
            return self.peers.answer(asker, Answer::Refused { why });
        }
        self.curious.push_back((asker, self.looks_begun + 1));
        self.next_look = Instant::now();
    }

    fn answer_curious(&mut self, looks: u64) {
        while self
            .curious
            .front()
            .is_some_and(|(_, wanted)| *wanted <= looks)
        {
            if let Some((asker, _)) = self.curious.pop_front() {
                self.answer(asker, &self.report());
            }
        }
    }

    fn answer(&mut self, asker: Asker, body: &impl serde::Serialize) {
        let answer = match serde_json::to_value(body) {
            Ok(body) => Answer::Called { body },
            Err(error) => Answer::Refused {
                why: format!("the answer cannot be written: {error}"),
            },
        };
        self.peers.answer(asker, answer);
    }

    fn ordered(&mut self, asker: Asker, order: Order) {
        if !matches!(self.phase, Phase::Running { .. }) {
            let why = "this keeper is stopping".to_owned();
            return self.peers.answer(asker, Answer::Refused { why });
        }
        // Learning and killing need no look, and a server that hangs cannot be looked at.
        let blind = matches!(order.verb, Ordered::Learn | Ordered::Kill);
        if self.fresh || blind || self.job.is_some() {
            return self.offer(asker, order);
        }
        if self.waiting.len() >= WAITING {
            let why = "too many orders wait for this keeper".to_owned();
            return self.peers.answer(asker, Answer::Refused { why });
        }
        self.waiting.push_back((asker, order));
    }

    /// Offers an order to the core; persists, then acts.
    fn offer(&mut self, asker: Asker, order: Order) {
        let (persist, verb) = match self.core.offer(&order, &self.state) {
            Decision::Refuse(reply) => {
                self.context
                    .note(&format!("refused {:?}: {:?}", order.verb, reply.outcome));
                return self.answer(asker, &reply);
            }
            Decision::Obey { persist, verb } => (persist, verb),
        };
        if let Err(error) = self.remember(persist, &verb) {
            let outcome = OrderOutcome::Failed {
                why: format!("nothing was done: {}", chain(&error)),
            };
            return self.reply(asker, outcome);
        }
        self.known.source = self.file.source.clone();
        self.known.incomplete = self.file.incomplete.is_some();
        self.job_of = Some(asker);
        self.job = Some(Box::pin(carry_out(Job {
            context: self.context.clone(),
            order,
            known: self.known.clone(),
            driver: self.driver.take(),
            server: self.server.clone(),
            last: self.file.server.clone(),
            progress: self.progress.0.clone(),
        })));
    }

    fn remember(
        &mut self,
        persist: Option<Kept>,
        verb: &Ordered,
    ) -> Result<(), super::file::FileError> {
        let mut file = self.file.clone();
        if let Some(kept) = &persist {
            // Out of A and of every epoch that may still need it: from here on nobody counts on what was lost.
            let member = &self.context.launch.task;
            let counted = kept.record.ackers.contains(member)
                || kept
                    .record
                    .unclosed
                    .iter()
                    .any(|unclosed| unclosed.ackers.contains(member));
            if !counted {
                file.incomplete = None;
            }
            file.kept = Some(kept.clone());
        }
        if let Ordered::Repoint { source, .. } = verb {
            file.source = Some(source.clone());
        }
        if file != self.file {
            file.store(&self.context.launch.data)?;
            self.file = file;
        }
        if let Some(kept) = persist {
            self.core.persisted(kept);
        }
        Ok(())
    }

    fn order_over(&mut self, done: Done) {
        self.orders_over += 1;
        self.known = done.known;
        if self.server.is_some() {
            self.driver = done.driver;
            self.watcher = match (self.watcher.take(), &self.driver, &self.look) {
                (None, Some(driver), None) => Some(Driver::new(driver.login().clone())),
                (watcher, _, _) => watcher,
            };
            self.fresh = false;
            self.look_soon();
        }
        if let Some(asker) = self.job_of.take() {
            self.reply(asker, done.outcome);
        }
    }

    fn reply(&mut self, asker: Asker, outcome: OrderOutcome) {
        match &outcome {
            OrderOutcome::Failed { why } => self.context.note(&format!("an order failed: {why}")),
            OrderOutcome::Done
            | OrderOutcome::Started { .. }
            | OrderOutcome::Exited { .. }
            | OrderOutcome::Stopped { .. }
            | OrderOutcome::Drained { .. }
            | OrderOutcome::BarrierDone { .. }
            | OrderOutcome::Demoted { .. }
            | OrderOutcome::Refused(_) => {}
        }
        if let Some(reply) = self.core.completed(outcome) {
            self.answer(asker, &reply);
        }
    }

    fn progressed(&mut self, progress: Progress) {
        match progress {
            Progress::Spawned(server) => self.spawned(server),
            Progress::Ended(incarnation) => {
                if self
                    .server
                    .as_ref()
                    .is_none_or(|server| server.incarnation != incarnation)
                {
                    return;
                }
                self.context
                    .note(&format!("the server (pid {}) ended", incarnation.pid));
                self.server = None;
                self.driver = None;
                self.watcher = None;
                self.look = None;
                self.known.barrier = None;
                self.known.relay = None;
                self.state = ServerState::Down {
                    initialised: true,
                    last: Some(incarnation),
                };
                self.fresh = true;
                self.answer_curious(u64::MAX);
                self.offer_waiting();
            }
        }
    }

    fn spawned(&mut self, mut server: Server) {
        let incarnation = server.incarnation.clone();
        self.state = ServerState::Starting {
            incarnation: incarnation.clone(),
        };
        self.server = Some(server.clone());
        let progress = self.progress.0.clone();
        tokio::task::spawn_local(async move {
            server.end().await;
            // The guard may be gone: then nobody has to know.
            let _ = progress.send(Progress::Ended(server.incarnation));
        });
        self.file.server = Some(incarnation);
        // Neither is needed for safety: an orphan of a dead keeper is dead, and found by other traces.
        if let Err(error) = self.file.store(&self.context.launch.data) {
            self.context.note(&chain(&error));
        }
        if let Err(error) = self.write_run_record() {
            self.context.note(&chain(&error));
        }
    }

    fn write_run_record(&self) -> Result<(), homeostat_supervisor::run::RunError> {
        let launch = &self.context.launch;
        let child = self.server.as_ref().map(|server| &server.incarnation);
        RunRecord {
            format: RunRecord::FORMAT,
            task: launch.task.clone(),
            generation: launch.generation,
            boot_id: self.context.boot.0.clone(),
            supervisor: self.me,
            child: child.map(|server| Process {
                pid: server.pid,
                start_ticks: server.start_ticks,
            }),
            uid: launch
                .user
                .map_or(rustix::process::geteuid().as_raw(), |user| user.uid),
            cgroups: self.context.group.paths().to_vec(),
        }
        .store(&self.context.run_dir)
    }

    fn look_soon(&mut self) {
        self.pace = QUICK;
        self.next_look = Instant::now();
    }

    /// Takes a look when one is due.
    fn begin_look(&mut self) {
        if self.look.is_some() || Instant::now() < self.next_look {
            return;
        }
        let Some(mut driver) = self.watcher.take() else {
            return;
        };
        self.look_begun_at = self.orders_over;
        self.looks_begun += 1;
        self.look = Some(Box::pin(async move {
            let seen = mariadb::read(&mut driver).await;
            (driver, seen)
        }));
    }

    fn looked(&mut self, driver: Driver, seen: Result<Reading, SqlError>) {
        let Some(server) = &self.server else { return };
        self.watcher = Some(driver);
        let newer = self.look_begun_at == self.orders_over && self.job.is_none();
        match seen {
            Ok(reading) => {
                let facts = reading.facts(&self.context.config, &self.known);
                let state = ServerState::Up {
                    incarnation: server.incarnation.clone(),
                    facts,
                };
                self.pace = match (state == self.state, self.pace < MOVING) {
                    (_, true) => self.pace * 2,
                    (false, false) => MOVING,
                    (true, false) => (self.pace * 2).min(SLOW),
                };
                self.state = state;
            }
            Err(error) => {
                // It may be on its way out, or hang: what was seen last stays, and orders find out for themselves.
                self.pace = MOVING;
                self.context
                    .note(&format!("cannot look at the server: {}", chain(&error)));
            }
        }
        self.answer_curious(self.looks_begun);
        self.next_look = if self.curious.is_empty() {
            Instant::now() + self.pace
        } else {
            Instant::now()
        };
        if newer {
            self.fresh = true;
            self.offer_waiting();
        } else if self.job.is_none() {
            // It was begun before the last order was over: look again.
            self.next_look = Instant::now();
        }
    }

    fn offer_waiting(&mut self) {
        // The first becomes the order under way; the core answers the others that it is busy.
        while let Some((asker, order)) = self.waiting.pop_front() {
            self.offer(asker, order);
        }
    }

    /// Ends the server within `grace`, then this process.
    fn stop(&mut self, grace: Duration) {
        match self.phase {
            Phase::Running { .. } | Phase::Starting | Phase::Stopping { .. } => {}
            Phase::Ended { .. } => return,
        }
        self.phase = Phase::Stopping { child: self.me };
        self.peers.tell_all(&Message::Event(Event::Phase {
            phase: self.phase.clone(),
        }));
        // An order on its way is given up: its statements die with the server.
        self.job = None;
        self.waiting.clear();
        match &self.server {
            Some(server) if grace.is_zero() => server.kill(),
            Some(server) => {
                server.terminate();
                self.deadline = Some(Instant::now() + grace);
            }
            None => {}
        }
    }

    fn out_of_time(&mut self) {
        self.deadline = None;
        if let Some(server) = &self.server {
            self.context
                .note("the server did not end in time and is killed");
            server.kill();
        }
    }

    /// Whether this process is to end. Tells it first, and stays a moment for agents to hear it.
    fn over(&mut self) -> bool {
        match &self.phase {
            Phase::Starting | Phase::Running { .. } => false,
            Phase::Stopping { .. } if self.server.is_some() => false,
            Phase::Stopping { .. } => {
                let cause = ExitCause::Code { code: 0 };
                self.phase = Phase::Ended {
                    cause: cause.clone(),
                };
                let launch = &self.context.launch;
                let exit = ExitFile {
                    format: ExitFile::FORMAT,
                    task: launch.task.clone(),
                    generation: launch.generation,
                    boot_id: self.context.boot.0.clone(),
                    supervisor: self.me,
                    cause,
                    at: now(),
                };
                if let Err(error) = exit.store(&self.context.run_dir) {
                    self.context.note(&chain(&error));
                }
                self.report_changes();
                self.peers.tell_all(&Message::Event(Event::Phase {
                    phase: self.phase.clone(),
                }));
                self.deadline = Some(Instant::now() + LINGER);
                self.peers.is_empty()
            }
            Phase::Ended { .. } => self.peers.is_empty() || self.deadline.is_none(),
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
