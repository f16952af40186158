//! A cluster of real keepers and servers, each keeper in a process of its own, driven by hand-written orders.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use homeostat_decider::{
    Acker, LeaseGrant, LogEnd, MemberId, MemberReport, Order, OrderHeader, OrderOutcome,
    OrderReply, Phase, Pulse, Receiver, Record, Recovery, ServerFacts, ServerState, Source, Verb,
};
use homeostat_model::{
    Durability, Epoch, Flavor, Generation, MachineName, PortName, RecordVersion, Sequence,
    ServiceName, Term,
};
use homeostat_sql::keeper::{KeeperCall, KeeperConfig, KeeperSign, Peer, Programs, Secret};
use homeostat_sql::mariadb::Application;
use homeostat_supervisor::launch::{FORMAT, LaunchFile, UserIds};
use homeostat_supervisor::protocol::{Answer, Event, Hello, Message, Request, Verb as Asked};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder};

/// Set for the process that is to be a keeper.
pub const RUN_DIR: &str = "HOMEOSTAT_TEST_KEEPER";
const PATIENCE: Duration = Duration::from_secs(30);
const UNPRIVILEGED: u32 = 77_001;
const PULSE_MS: u64 = 100;

pub fn member(index: usize) -> MemberId {
    MemberId::new(format!("db-{index}")).unwrap()
}

pub struct Cluster {
    pub folder: tempfile::TempDir,
    pub config: KeeperConfig,
    pub keepers: Vec<Keeper>,
    pub record: Record,
    sequence: u64,
}

pub struct Keeper {
    pub run: PathBuf,
    pub address: String,
    pub port: u16,
    process: Child,
    stream: BufReader<UnixStream>,
    pub hello: Hello,
    pub report: MemberReport,
    pub pulse: Option<Pulse>,
    /// How many came.
    pub signs: u32,
    /// How many of them asked for a renewal of the lease, and whether it is granted at once.
    pub asked: u32,
    pub grants: bool,
    /// To requests that nobody waits for.
    pub answers: BTreeMap<u64, Answer>,
    next_id: u64,
}

impl Cluster {
    /// Keepers, no servers. `n` distinguishes the addresses of tests that run at the same time. Nobody grants leases here, and
    /// servers are looked at after their ackers are gone: the lease is long.
    pub fn new(n: u8) -> Self {
        Self::with_lease(n, PATIENCE * 10)
    }

    pub fn with_lease(n: u8, lease: Duration) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("hk")
            .tempdir_in("/tmp")
            .unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let secret = || Secret::random().unwrap();
        let peer = |index: usize| Peer {
            server_id: index as u32 + 1,
            replication_password: secret(),
        };
        let config = KeeperConfig {
            format: 1,
            flavor: Flavor::MariaDb,
            members: (0..3).map(|index| (member(index), peer(index))).collect(),
            application: Application {
                user: "app".into(),
                password: secret(),
                database: "shop_db".into(),
            },
            durability: Durability::Power,
            buffer_pool: None,
            settings: BTreeMap::new(),
            programs: Programs::debian(),
            pulse_ms: PULSE_MS,
            lease_ms: u64::try_from(lease.as_millis()).unwrap(),
        };
        let record = Record {
            epoch: Epoch(1),
            version: RecordVersion(1),
            term: Term(1),
            phase: Phase::Promoting,
            holder: member(0),
            ackers: [member(1), member(2)].into(),
            leaving: None,
            k: 1,
            unclosed: vec![],
        };
        let keepers = (0..3)
            .map(|index| {
                let address = format!("127.83.{n}.{}", index + 1);
                let port = TcpListener::bind((address.as_str(), 0))
                    .unwrap()
                    .local_addr()
                    .unwrap()
                    .port();
                let launch = write_launch(folder.path(), index, &address, port, &config);
                Keeper::start(&launch.run, address, port)
            })
            .collect();
        Self {
            folder,
            config,
            keepers,
            record,
            sequence: 0,
        }
    }

    /// Gives an order under the present record and says how long it took.
    pub fn order(&mut self, index: usize, verb: Verb) -> OrderOutcome {
        let order = self.make_order(index, verb.clone());
        let begun = Instant::now();
        let outcome = self.keepers[index].order(order);
        let words = format!("{verb:?}");
        let verb = words.split([' ', '{']).next().unwrap_or_default();
        println!(
            "  db-{index} {verb:<14} {:>7.1} ms",
            begun.elapsed().as_secs_f64() * 1000.0
        );
        outcome
    }

    pub fn make_order(&mut self, index: usize, verb: Verb) -> Order {
        self.sequence += 1;
        Order {
            header: OrderHeader {
                sequence: Sequence(self.sequence),
                incarnation: self.keepers[index].report.incarnation,
                record: self.record.clone(),
            },
            verb,
        }
    }

    pub fn done(&mut self, index: usize, verb: Verb) {
        assert_eq!(
            self.order(index, verb.clone()),
            OrderOutcome::Done,
            "db-{index}: {verb:?}"
        );
    }

    pub fn start(&mut self, index: usize, recovery: Recovery) {
        let outcome = self.order(index, Verb::Start { recovery });
        assert!(
            matches!(outcome, OrderOutcome::Started { .. }),
            "db-{index}: {outcome:?}"
        );
    }

    pub fn stop_receiving(&mut self, index: usize) -> Option<LogEnd> {
        match self.order(index, Verb::StopReceiving) {
            OrderOutcome::Stopped { received, .. } => received,
            other => panic!("db-{index}: {other:?}"),
        }
    }

    pub fn drain(&mut self, index: usize) -> LogEnd {
        match self.order(index, Verb::Drain) {
            OrderOutcome::Drained { applied } => applied,
            other => panic!("db-{index}: {other:?}"),
        }
    }

    pub fn source(&self, index: usize) -> Source {
        let keeper = &self.keepers[index];
        Source {
            member: member(index),
            host: keeper.address.clone(),
            port: keeper.port,
        }
    }

    /// Makes `replica` receive from `holder`, by the order of failover.md section 4, step 5.
    pub fn attach(&mut self, holder: usize, replica: usize, acker: Acker) {
        let source = self.source(holder);
        self.done(replica, Verb::Repoint { source, acker });
        self.done(
            holder,
            Verb::Admit {
                member: member(replica),
            },
        );
        self.done(replica, Verb::Receive);
    }

    /// Barrier, `Serving`, open.
    pub fn open(&mut self, holder: usize) {
        let outcome = self.order(holder, Verb::Barrier);
        let epoch = self.record.epoch;
        assert!(
            matches!(outcome, OrderOutcome::BarrierDone { epoch: e, .. } if e == epoch),
            "{outcome:?}"
        );
        self.record.version = self.record.version.next();
        self.record.phase = Phase::Serving;
        self.record.unclosed.clear();
        self.done(holder, Verb::Open);
    }

    pub fn first_start(&mut self) {
        println!("first start");
        for index in 0..3 {
            self.done(index, Verb::Learn);
            self.start(index, Recovery::KeepTail);
        }
        self.done(0, Verb::TakeOver);
        self.attach(0, 1, Acker::Counts);
        self.attach(0, 2, Acker::Counts);
        self.open(0);
        for index in 1..3 {
            self.done(index, Verb::Learn);
        }
    }

    /// The record of step 1: the epoch begins, its predecessor's holder is fenced.
    pub fn revoke(&mut self) {
        self.record.epoch = self.record.epoch.next();
        self.record.version = RecordVersion(1);
        self.record.phase = Phase::Revoking;
    }

    /// The record of step 4.
    pub fn promoting(&mut self, holder: usize, ackers: &[usize]) {
        self.record.unclosed.push(self.record.ended_as_unclosed());
        self.record.version = self.record.version.next();
        self.record.phase = Phase::Promoting;
        self.record.holder = member(holder);
        self.record.ackers = ackers.iter().map(|index| member(*index)).collect();
    }

    /// A connection of the application.
    pub async fn app(&self, index: usize) -> Conn {
        self.connect(
            index,
            "app",
            self.config.application.password.reveal(),
            Some("shop_db"),
        )
        .await
        .unwrap()
    }

    pub async fn connect(
        &self,
        index: usize,
        user: &str,
        password: &str,
        database: Option<&str>,
    ) -> Result<Conn, mysql_async::Error> {
        let keeper = &self.keepers[index];
        let opts = OptsBuilder::default()
            .ip_or_hostname(keeper.address.clone())
            .tcp_port(keeper.port)
            .user(Some(user))
            .pass(Some(password))
            .db_name(database)
            .prefer_socket(false);
        Conn::new(opts).await
    }

    /// Starts a keeper again after its process ended.
    pub fn restart_keeper(&mut self, index: usize) {
        let keeper = &mut self.keepers[index];
        let (process, stream, hello, report) = launch_keeper(&keeper.run);
        keeper.process = process;
        keeper.stream = stream;
        keeper.hello = hello;
        keeper.report = report;
    }
}

fn write_launch(
    folder: &Path,
    index: usize,
    address: &str,
    port: u16,
    config: &KeeperConfig,
) -> LaunchFile {
    let user = rustix::process::geteuid().is_root().then_some(UserIds {
        uid: UNPRIVILEGED,
        gid: UNPRIVILEGED,
    });
    let run = folder.join(format!("r{index}"));
    let data = folder.join(format!("d{index}"));
    for folder in [&run, &data] {
        std::fs::create_dir(folder).unwrap();
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711)).unwrap();
    }
    if let Some(user) = user {
        std::os::unix::fs::chown(&data, Some(user.uid), Some(user.gid)).unwrap();
    }
    let launch = LaunchFile {
        format: FORMAT,
        task: member(index),
        service: ServiceName::new("db").unwrap(),
        machine: MachineName::new(format!("m{index}")).unwrap(),
        generation: Generation(1),
        argv: vec![],
        env: BTreeMap::new(),
        data,
        run,
        logs: folder.join(format!("l{index}")),
        shared: folder.join("shared"),
        user,
        grace_ms: 10_000,
        memory_limit: None,
        address: address.to_owned(),
        ports: [(PortName::new("sql").unwrap(), port)].into(),
        keeper: Some(serde_json::to_value(config).unwrap()),
    };
    launch.store().unwrap();
    launch
}

fn launch_keeper(run: &Path) -> (Child, BufReader<UnixStream>, Hello, MemberReport) {
    let process = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "keeper_process",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(RUN_DIR, run)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let stream = loop {
        match UnixStream::connect(run.join("s")) {
            Ok(stream) => break stream,
            Err(_) if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => panic!("no keeper in {}: {error}", run.display()),
        }
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = BufReader::new(stream);
    let Message::Hello(hello) = read(&mut stream) else {
        panic!("no hello")
    };
    let Message::Event(Event::Service { body }) = read(&mut stream) else {
        panic!("no report")
    };
    let report = serde_json::from_value(body).unwrap();
    (process, stream, hello, report)
}

impl Keeper {
    fn start(run: &Path, address: String, port: u16) -> Self {
        let (process, stream, hello, report) = launch_keeper(run);
        Self {
            run: run.to_owned(),
            address,
            port,
            process,
            stream,
            hello,
            report,
            pulse: None,
            signs: 0,
            asked: 0,
            grants: false,
            answers: BTreeMap::new(),
            next_id: 0,
        }
    }

    /// Asks, and takes in the events that come before the answer.
    pub fn ask(&mut self, verb: Asked) -> Answer {
        let id = self.request(verb);
        loop {
            self.read();
            if let Some(answer) = self.answers.remove(&id) {
                return answer;
            }
        }
    }

    /// Asks, and waits for nothing; the answer is found in `answers`.
    fn request(&mut self, verb: Asked) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        let request = serde_json::to_string(&Request { id, verb }).unwrap();
        writeln!(self.stream.get_mut(), "{request}").unwrap();
        id
    }

    pub fn send(&mut self, order: Order) -> u64 {
        let body = serde_json::to_value(KeeperCall::Order { order }).unwrap();
        self.request(Asked::Call { body })
    }

    fn read(&mut self) {
        match read(&mut self.stream) {
            Message::Event(Event::Service { body }) => {
                self.report = serde_json::from_value(body).unwrap();
            }
            Message::Event(Event::Sign { body }) => {
                self.signed(&serde_json::from_value(body).unwrap())
            }
            Message::Event(Event::Phase { .. }) | Message::Hello(_) => {}
            Message::Reply { id, answer } => drop(self.answers.insert(id, answer)),
        }
    }

    fn signed(&mut self, sign: &KeeperSign) {
        assert_eq!(sign.incarnation, self.report.incarnation);
        self.signs += 1;
        self.pulse = Some(sign.pulse);
        if let Some(asked) = &sign.lease {
            self.asked += 1;
            if self.grants {
                let grant = LeaseGrant {
                    incarnation: asked.incarnation,
                    epoch: asked.epoch,
                    nonce: asked.nonce,
                };
                let body = serde_json::to_value(KeeperCall::Grant { grant }).unwrap();
                self.request(Asked::Call { body });
            }
        }
    }

    /// Takes in what comes for so long. Signs come all the time, so this ends.
    pub fn listen(&mut self, time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.read();
        }
    }

    /// Reads until a sign is as wanted. What came before does not count.
    pub fn until_sign(&mut self, what: &str, wanted: impl Fn(Pulse) -> bool) {
        let begun = Instant::now();
        self.pulse = None;
        while !self.pulse.is_some_and(&wanted) {
            assert!(
                begun.elapsed() < PATIENCE,
                "{what}: it did not come, but {:?}",
                self.pulse
            );
            self.read();
        }
    }

    pub fn order(&mut self, order: Order) -> OrderOutcome {
        let sequence = order.header.sequence;
        let body = serde_json::to_value(KeeperCall::Order { order }).unwrap();
        let Answer::Called { body } = self.ask(Asked::Call { body }) else {
            panic!("not an order's answer")
        };
        let reply: OrderReply = serde_json::from_value(body).unwrap();
        assert_eq!(reply.sequence, sequence);
        reply.outcome
    }

    /// Reads events until the report is as wanted.
    pub fn until(&mut self, what: &str, wanted: impl Fn(&MemberReport) -> bool) {
        let begun = Instant::now();
        while !wanted(&self.report) {
            assert!(
                begun.elapsed() < PATIENCE,
                "{what} did not come: {:?}",
                self.report
            );
            self.read();
        }
    }

    /// The facts as of now.
    pub fn fresh_facts(&mut self) -> ServerFacts {
        let begun = Instant::now();
        loop {
            let body = serde_json::to_value(KeeperCall::Report).unwrap();
            let Answer::Called { body } = self.ask(Asked::Call { body }) else {
                panic!("no report")
            };
            self.report = serde_json::from_value(body).unwrap();
            match &self.report.server {
                ServerState::Up { facts, .. } => return facts.clone(),
                ServerState::Starting { .. } if begun.elapsed() < PATIENCE => {}
                other => panic!("not up: {other:?}"),
            }
        }
    }

    pub fn server_pid(&self) -> u32 {
        match &self.report.server {
            ServerState::Up { incarnation, .. } | ServerState::Starting { incarnation } => {
                incarnation.pid
            }
            other => panic!("not up: {other:?}"),
        }
    }

    pub fn kill_server(&mut self) {
        let pid = self.server_pid();
        kill(pid);
        self.until("the server's end", |report| {
            matches!(report.server, ServerState::Down { .. })
        });
    }

    pub fn kill_keeper(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.process.wait().unwrap()
    }

    pub fn connected(report: &MemberReport) -> bool {
        matches!(&report.server, ServerState::Up { facts, .. }
            if matches!(facts.receiver, Receiver::Running { connected: true, error: None, .. }))
    }

    pub fn log(&self) -> String {
        let logs = self.run.with_file_name(
            self.run
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .replace('r', "l"),
        );
        std::fs::read_to_string(logs.join("out.log")).unwrap_or_default()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Its server dies with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(25).collect();
            eprintln!("--- {} {:?}", self.run.display(), self.report);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        if let Err(error) = homeostat_supervisor::leftovers::kill_leftovers(&self.run) {
            eprintln!("cannot clean up: {error}");
        }
    }
}

fn read(stream: &mut BufReader<UnixStream>) -> Message {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

pub fn kill(pid: u32) {
    signal(pid, rustix::process::Signal::KILL);
}

pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Runs one statement.
pub async fn run(conn: &mut Conn, sql: &str) -> Result<(), mysql_async::Error> {
    conn.query_drop(sql).await
}

/// The error number of a statement that must fail.
pub async fn error_of(conn: &mut Conn, sql: &str) -> u16 {
    match conn.query_drop(sql).await {
        Err(mysql_async::Error::Server(error)) => error.code,
        other => panic!("'{sql}' gave {other:?}"),
    }
}
