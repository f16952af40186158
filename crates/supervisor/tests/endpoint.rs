//! The forwarder between real sockets: where it leads, when it cuts, what it holds, what it remembers.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use common::{BINARY, PATIENCE, wait_exit};
use homeostat_model::{Epoch, RecordVersion};
use homeostat_supervisor::endpoint::protocol::{
    Answer, Durability, Event, Hello, Listening, Message, OnChange, Request, ServiceStatus,
    ServiceTarget, Verb, Verdict,
};
use homeostat_supervisor::endpoint::{EndpointFile, FoundForwarder, identify};
use homeostat_supervisor::find::Wire;

/// A forwarder process in a folder of its own.
struct Forwarder {
    dir: tempfile::TempDir,
    child: Child,
}

impl Forwarder {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        EndpointFile::new("m1".parse().unwrap())
            .store(dir.path())
            .unwrap();
        let child = spawn(dir.path());
        Self { dir, child }
    }

    /// As the power cord does it, for one process.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn agent(&self) -> Agent {
        let until = Instant::now() + PATIENCE;
        loop {
            match identify(self.dir.path(), PATIENCE).unwrap() {
                FoundForwarder::Alive { hello, wire } => {
                    return Agent {
                        hello,
                        wire,
                        next: 0,
                    };
                }
                // The lock comes a moment after the process.
                FoundForwarder::Gone { .. } if Instant::now() < until => std::thread::yield_now(),
                other => panic!("no forwarder: {other:?}"),
            }
        }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path) -> Child {
    let mut command = Command::new(BINARY);
    command.arg("endpoint").arg(dir).stdin(Stdio::null());
    command.spawn().unwrap()
}

struct Agent {
    hello: Hello,
    wire: Wire,
    next: u64,
}

impl Agent {
    fn ask(&mut self, verb: Verb) -> Answer {
        self.next += 1;
        self.wire
            .send(&Request {
                id: self.next,
                verb,
            })
            .unwrap();
        loop {
            match self.wire.receive(PATIENCE).unwrap() {
                Message::Reply { id, answer } => {
                    assert_eq!(id, self.next);
                    return answer;
                }
                Message::Event(_) => {}
                Message::Hello(hello) => panic!("a second hello: {hello:?}"),
            }
        }
    }

    fn set(&mut self, target: &ServiceTarget) -> Verdict {
        let targets = vec![target.clone()];
        match self.ask(Verb::Set { targets }) {
            Answer::Taken {
                services,
                durability,
            } => {
                assert_eq!(durability, Durability::Synced);
                assert_eq!(services[0].service, target.service);
                services[0].verdict.clone()
            }
            other => panic!("not taken: {other:?}"),
        }
    }

    fn status(&mut self) -> ServiceStatus {
        match self.ask(Verb::Status) {
            Answer::Status { services } => services.into_iter().next().unwrap(),
            other => panic!("no status: {other:?}"),
        }
    }

    fn event(&mut self) -> Event {
        match self.wire.receive(PATIENCE).unwrap() {
            Message::Event(event) => event,
            other => panic!("no event: {other:?}"),
        }
    }
}

/// A server that says its name, then echoes. It tells of every connection and of its end.
struct Server {
    address: SocketAddr,
    accepted: Arc<AtomicU64>,
    ended: Receiver<()>,
}

impl Server {
    fn start(name: &str) -> Self {
        Self::listen(name, TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn listen(name: &str, listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicU64::new(0));
        let (end, ended) = channel();
        let (name, count) = (name.to_owned(), Arc::clone(&accepted));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, name, end) = (stream.unwrap(), name.clone(), end.clone());
                count.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    let _ = stream.write_all(format!("{name}\n").as_bytes());
                    let mut piece = [0u8; 8192];
                    while let Ok(n @ 1..) = stream.read(&mut piece) {
                        if stream.write_all(&piece[..n]).is_err() {
                            break;
                        }
                    }
                    let _ = stream.shutdown(Shutdown::Both);
                    let _ = end.send(());
                });
            }
        });
        Self {
            address,
            accepted,
            ended,
        }
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

fn record(listen: SocketAddr, epoch: u64, version: u64, targets: &[&Server]) -> ServiceTarget {
    ServiceTarget {
        service: "shop-db".parse().unwrap(),
        listen,
        epoch: Epoch(epoch),
        version: RecordVersion(version),
        targets: targets.iter().map(|server| server.address).collect(),
        on_change: OnChange::Close,
        hold_ms: 20_000,
    }
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The server's name, or nothing when the connection was ended without one.
fn name(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    let mut byte = [0u8];
    while let Ok(1) = stream.read(&mut byte) {
        if byte[0] == b'\n' {
            break;
        }
        text.push(byte[0].into());
    }
    text
}

fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"ping")?;
    stream.read_exact(&mut [0u8; 4])
}

/// Waits for the end of a connection, by goodbye or by reset.
fn await_cut(stream: &mut TcpStream) {
    match stream.read(&mut [0u8; 64]) {
        Ok(0) => {}
        Ok(n) => panic!("{n} bytes instead of the end"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
}

#[test]
fn bytes_go_both_ways_unchanged_and_goodbyes_are_passed_on() {
    let (forwarder, server, listen) = (Forwarder::start(), Server::start("a"), free());
    let mut agent = forwarder.agent();
    assert_eq!(agent.set(&record(listen, 1, 1, &[&server])), Verdict::Newer);
    let mut client = connect(listen);
    assert_eq!(name(&mut client), "a");

    // Far more than all buffers hold, and nobody reads at first.
    let sent: Vec<u8> = (0..16_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut reader = client.try_clone().unwrap();
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || {
            client.write_all(&sent).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        }
    });
    let mut received = Vec::new();
    reader.read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert!(
        received == sent,
        "{} of {} bytes, or others",
        received.len(),
        sent.len()
    );
    server.ended.recv_timeout(PATIENCE).unwrap();
    assert_eq!(agent.status().open, 0);
}

#[test]
fn a_higher_epoch_cuts_and_leads_to_the_new_target() {
    let forwarder = Forwarder::start();
    let (a, b, listen) = (Server::start("a"), Server::start("b"), free());
    let mut agent = forwarder.agent();
    agent.set(&record(listen, 1, 1, &[&a]));
    let mut old: Vec<TcpStream> = (0..20).map(|_| connect(listen)).collect();
    assert!(old.iter_mut().all(|client| name(client) == "a"));

    assert_eq!(agent.set(&record(listen, 2, 0, &[&b])), Verdict::Newer);
    old.iter_mut().for_each(await_cut);
    for _ in 0..20 {
        a.ended.recv_timeout(PATIENCE).unwrap();
    }
    let mut client = connect(listen);
    assert_eq!(name(&mut client), "b");
    ask(&mut client).unwrap();

    let older = Verdict::Older {
        epoch: Epoch(2),
        version: RecordVersion(0),
    };
    assert_eq!(agent.set(&record(listen, 1, 9, &[&a])), older);
    assert_eq!(agent.set(&record(listen, 2, 0, &[&b])), Verdict::Same);
    assert!(matches!(
        agent.set(&record(listen, 2, 0, &[&a])),
        Verdict::Conflict { .. }
    ));
    ask(&mut client).unwrap();
    assert_eq!(name(&mut connect(listen)), "b");
    let status = agent.status();
    assert_eq!(status.counters.closed_on_change, 20);
    assert_eq!(status.listening, Listening::Yes);
}

#[test]
fn within_an_epoch_only_departed_targets_are_cut() {
    let forwarder = Forwarder::start();
    let (a, b, listen) = (Server::start("a"), Server::start("b"), free());
    let mut agent = forwarder.agent();
    agent.set(&record(listen, 1, 1, &[&a]));
    let mut client = connect(listen);
    assert_eq!(name(&mut client), "a");
    agent.set(&record(listen, 1, 2, &[&a]));
    ask(&mut client).unwrap();
    agent.set(&record(listen, 1, 3, &[&a, &b]));
    ask(&mut client).unwrap();
    agent.set(&record(listen, 1, 4, &[&b]));
    await_cut(&mut client);
}

#[test]
fn where_it_is_declared_connections_outlive_a_change() {
    let forwarder = Forwarder::start();
    let (a, b, listen) = (Server::start("a"), Server::start("b"), free());
    let mut agent = forwarder.agent();
    let keep = |epoch, server| ServiceTarget {
        on_change: OnChange::Keep,
        ..record(listen, epoch, 1, &[server])
    };
    agent.set(&keep(1, &a));
    let mut client = connect(listen);
    assert_eq!(name(&mut client), "a");
    agent.set(&keep(2, &b));
    ask(&mut client).unwrap();
    assert_eq!(name(&mut connect(listen)), "b");
}

#[test]
fn while_there_is_no_target_new_connections_wait() {
    let (forwarder, a, listen) = (Forwarder::start(), Server::start("a"), free());
    let mut agent = forwarder.agent();
    agent.set(&record(listen, 1, 1, &[&a]));
    let mut open = connect(listen);
    assert_eq!(name(&mut open), "a");
    agent.set(&record(listen, 2, 1, &[]));
    await_cut(&mut open);

    let mut waits = connect(listen);
    waits.write_all(b"early").unwrap();
    let leaves = connect(listen);
    leaves.shutdown(Shutdown::Both).unwrap();
    // The one that left is not counted any more; the one that waits is.
    while agent.status().held != 1 || agent.status().counters.accepted != 3 {
        std::thread::yield_now();
    }
    agent.set(&record(listen, 2, 2, &[&a]));
    assert_eq!(name(&mut waits), "a");
    let mut echo = [0u8; 5];
    waits.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"early");
    assert_eq!(
        a.accepted.load(Ordering::SeqCst),
        2,
        "a client that left was led to the server"
    );
}

#[test]
fn nobody_waits_longer_than_declared() {
    let (forwarder, listen) = (Forwarder::start(), free());
    let mut agent = forwarder.agent();
    let short = ServiceTarget {
        hold_ms: 100,
        ..record(listen, 1, 1, &[])
    };
    agent.set(&short);
    let begun = Instant::now();
    assert_eq!(name(&mut connect(listen)), "");
    assert!(begun.elapsed() >= Duration::from_millis(100));
    // The same with a target that refuses.
    let refuses = ServiceTarget {
        version: RecordVersion(2),
        targets: vec![free()],
        ..short
    };
    agent.set(&refuses);
    let begun = Instant::now();
    assert_eq!(name(&mut connect(listen)), "");
    assert!(begun.elapsed() >= Duration::from_millis(100));
    let counters = agent.status().counters;
    assert_eq!(counters.expired, 2);
    assert!(counters.refused_by_target > 1, "it was tried once only");
}

#[test]
fn a_target_that_does_not_listen_yet_is_tried_until_it_does() {
    let (forwarder, listen, address) = (Forwarder::start(), free(), free());
    let mut agent = forwarder.agent();
    agent.set(&ServiceTarget {
        targets: vec![address],
        ..record(listen, 1, 1, &[])
    });
    let mut client = connect(listen);
    while agent.status().counters.refused_by_target == 0 {
        std::thread::yield_now();
    }
    let _server = Server::listen("late", TcpListener::bind(address).unwrap());
    assert_eq!(name(&mut client), "late");
}

#[test]
fn several_targets_take_turns_and_one_that_refuses_is_skipped() {
    let forwarder = Forwarder::start();
    let (a, b, listen) = (Server::start("a"), Server::start("b"), free());
    let mut target = record(listen, 1, 1, &[&a, &b]);
    target.targets.insert(1, free());
    forwarder.agent().set(&target);
    let mut names: Vec<String> = (0..12).map(|_| name(&mut connect(listen))).collect();
    names.sort();
    let a = names.iter().filter(|name| *name == "a").count();
    let b = names.iter().filter(|name| *name == "b").count();
    assert_eq!(a + b, 12);
    assert!(a >= 3 && b >= 3, "{names:?}");
}

#[test]
fn a_restarted_forwarder_knows_its_targets_without_being_told() {
    let mut forwarder = Forwarder::start();
    let (a, b, listen) = (Server::start("a"), Server::start("b"), free());
    forwarder.agent().set(&record(listen, 7, 3, &[&a]));
    let mut client = connect(listen);
    assert_eq!(name(&mut client), "a");
    forwarder.kill();
    await_cut(&mut client);
    assert!(matches!(
        identify(forwarder.dir.path(), Duration::ZERO).unwrap(),
        FoundForwarder::Gone { .. }
    ));
    forwarder.child = spawn(forwarder.dir.path());
    let mut agent = forwarder.agent();
    assert_eq!(agent.hello.services[0].target, record(listen, 7, 3, &[&a]));
    assert_eq!(name(&mut connect(listen)), "a");
    assert!(matches!(
        agent.set(&record(listen, 7, 2, &[&b])),
        Verdict::Older { .. }
    ));
    assert_eq!(agent.set(&record(listen, 8, 0, &[&b])), Verdict::Newer);
    assert_eq!(name(&mut connect(listen)), "b");
}

#[test]
fn an_occupied_port_is_said_and_taken_when_it_is_free() {
    let (forwarder, a) = (Forwarder::start(), Server::start("a"));
    let occupant = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = occupant.local_addr().unwrap();
    let mut agent = forwarder.agent();
    let targets = vec![record(listen, 1, 1, &[&a])];
    agent
        .wire
        .send(&Request {
            id: 1,
            verb: Verb::Set { targets },
        })
        .unwrap();
    let Event::ListenFailed { why, .. } = agent.event() else {
        panic!("no failure");
    };
    assert_eq!(why, format!("{listen} is occupied by another process"));
    assert!(matches!(
        agent.wire.receive(PATIENCE).unwrap(),
        Message::Reply { .. }
    ));
    let hello = forwarder.agent().hello;
    assert_eq!(hello.services[0].listening, Listening::No { why });
    drop(occupant);
    assert!(matches!(agent.event(), Event::Listening { .. }));
    assert_eq!(name(&mut connect(listen)), "a");
}

#[test]
fn a_forgotten_service_is_closed_unless_something_newer_is_known() {
    let (forwarder, a, listen) = (Forwarder::start(), Server::start("a"), free());
    let mut agent = forwarder.agent();
    let target = record(listen, 2, 1, &[&a]);
    agent.set(&target);
    let mut client = connect(listen);
    assert_eq!(name(&mut client), "a");
    let remove = |epoch| Verb::Remove {
        service: target.service.clone(),
        epoch: Epoch(epoch),
        version: RecordVersion(1),
    };
    assert!(matches!(agent.ask(remove(1)), Answer::Refused { .. }));
    ask(&mut client).unwrap();
    assert_eq!(agent.ask(remove(2)), Answer::Accepted);
    await_cut(&mut client);
    assert_eq!(
        TcpStream::connect(listen).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
}

#[test]
fn a_draining_forwarder_makes_way_and_finishes_what_it_has() {
    let mut forwarder = Forwarder::start();
    let (a, listen) = (Server::start("a"), free());
    let mut agent = forwarder.agent();
    agent.set(&record(listen, 1, 1, &[&a]));
    let mut client = connect(listen);
    assert_eq!(name(&mut client), "a");
    assert_eq!(
        agent.ask(Verb::Drain { within_ms: 600_000 }),
        Answer::Accepted
    );

    let mut old = std::mem::replace(&mut forwarder.child, spawn(forwarder.dir.path()));
    let successor = forwarder.agent();
    assert_ne!(successor.hello.forwarder, agent.hello.forwarder);
    assert_eq!(name(&mut connect(listen)), "a");
    ask(&mut client).unwrap();
    drop(client);
    assert_eq!(agent.event(), Event::Drained { cut_off: 0 });
    assert!(wait_exit(&mut old).success());
    assert!(
        forwarder.dir.path().join("e").exists(),
        "it took its successor's socket along"
    );
}

#[test]
fn what_it_does_not_understand_is_refused_or_put_aside() {
    let mut forwarder = Forwarder::start();
    let (a, listen) = (Server::start("a"), free());
    let mut agent = forwarder.agent();
    agent.set(&record(listen, 1, 1, &[&a]));
    let dance = serde_json::json!({"id": 5, "verb": {"do": "dance"}});
    agent.wire.send(&dance).unwrap();
    let reply = agent.wire.receive(PATIENCE).unwrap();
    assert!(matches!(
        reply,
        Message::Reply {
            id: 5,
            answer: Answer::Refused { .. }
        }
    ));

    let second = spawn(forwarder.dir.path()).wait().unwrap();
    assert_eq!(second.code(), Some(1), "two forwarders in one folder");

    forwarder.kill();
    let path = forwarder.dir.path().join("targets.json");
    let good = fs::read(&path).unwrap();
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    forwarder.child = spawn(forwarder.dir.path());
    assert_eq!(forwarder.agent().hello.services, []);
    assert!(forwarder.dir.path().join("targets.bad").exists());

    forwarder.kill();
    fs::write(&path, r#"{"format": 99}"#).unwrap();
    assert_eq!(spawn(forwarder.dir.path()).wait().unwrap().code(), Some(1));
    assert_eq!(fs::read(&path).unwrap(), br#"{"format": 99}"#);
}

#[test]
fn connections_are_bounded_and_the_others_wait_their_turn() {
    let dir = tempfile::tempdir().unwrap();
    EndpointFile::new("m1".parse().unwrap())
        .store(dir.path())
        .unwrap();
    let mut command = Command::new(BINARY);
    command.arg("endpoint").arg(dir.path()).stdin(Stdio::null());
    // SAFETY: setrlimit(2) is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit {
                rlim_cur: 360,
                rlim_max: 360,
            };
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
            Ok(())
        });
    }
    let child = command.spawn().unwrap();
    let mut forwarder = Forwarder { dir, child };
    let (server, listen) = (Server::start("a"), free());
    let mut agent = forwarder.agent();
    agent.set(&record(listen, 1, 1, &[&server]));
    let mut clients: Vec<TcpStream> = (0..30).map(|_| connect(listen)).collect();
    // 360 descriptors less those kept for other things, two for each.
    for client in &mut clients[..20] {
        assert_eq!(name(client), "a");
    }
    assert_eq!(agent.status().open, 20);
    assert_eq!(agent.status().counters.accepted, 20);
    let mut waiting = clients.split_off(20);
    drop(clients);
    for client in &mut waiting {
        assert_eq!(name(client), "a");
    }
    common::send(forwarder.child.id(), rustix::process::Signal::TERM);
    assert!(wait_exit(&mut forwarder.child).success());
    assert!(!forwarder.dir.path().join("e").exists());
}

/// Printed, not asserted closely: machines differ.
#[test]
fn switching_latency_round_trips_and_memory() {
    let forwarder = Forwarder::start();
    let (a, b, listen) = (Server::start("a"), Server::start("b"), free());
    let mut agent = forwarder.agent();
    agent.set(&record(listen, 1, 1, &[&a]));
    let (mut cuts, mut switches) = (Vec::new(), Vec::new());
    for epoch in 2..42 {
        let mut client = connect(listen);
        name(&mut client);
        let mut others: Vec<TcpStream> = (0..15).map(|_| connect(listen)).collect();
        others.iter_mut().for_each(|other| drop(name(other)));
        let target = record(listen, epoch, 1, &[if epoch % 2 == 0 { &b } else { &a }]);
        let targets = vec![target];
        let begun = Instant::now();
        agent
            .wire
            .send(&Request {
                id: epoch,
                verb: Verb::Set { targets },
            })
            .unwrap();
        await_cut(&mut client);
        cuts.push(begun.elapsed());
        name(&mut connect(listen));
        switches.push(begun.elapsed());
        assert!(matches!(
            agent.wire.receive(PATIENCE).unwrap(),
            Message::Reply { .. }
        ));
    }
    cuts.sort();
    switches.sort();
    let mut crowd: Vec<TcpStream> = (0..200).map(|_| connect(listen)).collect();
    crowd.iter_mut().for_each(|client| drop(name(client)));
    let mut trips = Vec::new();
    crowd[0].set_nodelay(true).unwrap();
    for _ in 0..500 {
        let begun = Instant::now();
        ask(&mut crowd[0]).unwrap();
        trips.push(begun.elapsed());
    }
    trips.sort();
    println!(
        "order to the old connection's end, 16 open: median {:?}, longest {:?}",
        cuts[20], cuts[39]
    );
    println!(
        "order to the new server's greeting: median {:?}, longest {:?}",
        switches[20], switches[39]
    );
    println!("round trip: median {:?}", trips[250]);
    let rollup =
        fs::read_to_string(format!("/proc/{}/smaps_rollup", forwarder.child.id())).unwrap();
    for line in rollup
        .lines()
        .filter(|l| l.starts_with("Pss:") || l.starts_with("Private_Dirty"))
    {
        println!("with 200 connections (debug build): {line}");
    }
    assert!(switches[20] < Duration::from_millis(200), "{switches:?}");
}
