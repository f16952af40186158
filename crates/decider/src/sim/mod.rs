//! A simulated cluster: servers, keepers, controllers and clients under faults, on a virtual clock.
//!
//! The deciders and keeper cores are the real ones. A run is a function of its seed: the same seed gives the same
//! trace. Faults come in bursts, because two faults close together find what single ones do not. Then they stop, and
//! the cluster must come back within a bound. Checkers look at every acknowledgement, every opening, every removal of
//! log and every change of the record.
//!
//! What the world leaves out: hangs, cuts between servers, serving leases, `sync_relay_log=0`, clock rates (the decider
//! of this cut has no rule about them).

mod check;
mod control;
mod dice;
mod end;
mod faults;
mod keeper;
mod net;
mod server;
mod words;

use std::collections::BTreeMap;
use std::time::Duration;

use homeostat_model::{Epoch, RackName, RecordVersion, Sequence, ServiceName, TaskName, Term};

use self::check::Checker;
use self::dice::Dice;
use self::keeper::Keeper;
use self::server::{Disk, Event, Process, What};
use self::words::kind;
use crate::{
    CasOutcome, Config, Decider, Gtid, Input, Kept, MemberId, MemberReport, Now, Order, OrderReply,
    Record, Rules,
};

/// What a run is made of.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub seed: u64,
    /// How long faults go on, in virtual milliseconds.
    pub faults_ms: u64,
    /// Within how long after the last fault everything must work again.
    pub recover_ms: u64,
    pub rules: Rules,
    /// Print every step.
    pub trace: Trace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trace {
    Silent,
    Print,
}

/// How a run went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub hash: u64,
    pub events: u64,
    /// Writes that clients were promised.
    pub writes: usize,
    pub last_epoch: Epoch,
    /// Members that had to be rebuilt because their logs differed.
    pub rebuilt: u32,
    /// What went wrong.
    pub broken: Option<String>,
}

impl Plan {
    pub fn seeded(seed: u64) -> Self {
        Self {
            seed,
            faults_ms: 4_000,
            recover_ms: 20_000,
            rules: Rules::ALL_KEPT,
            trace: Trace::Silent,
        }
    }

    /// Runs it to the end, or to the first broken rule.
    pub fn run(self) -> Outcome {
        Sim::new(self).run()
    }
}

/// Things that happen. Times are virtual microseconds.
#[derive(Debug, Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "few exist at a time, and a box would hide the shape"
)]
enum Happening {
    ReadArrives {
        controller: usize,
    },
    ReadDone {
        controller: usize,
        record: Option<Record>,
    },
    CasArrives {
        controller: usize,
        attempt: u64,
        expected: Option<Record>,
        new: Record,
        answered: bool,
    },
    CasDone {
        controller: usize,
        attempt: u64,
        outcome: CasOutcome,
    },
    OrderArrives {
        controller: usize,
        member: usize,
        order: Order,
    },
    OrderTimesOut {
        controller: usize,
        member: usize,
        sequence: Sequence,
    },
    ReplyArrives {
        controller: usize,
        member: usize,
        link: u64,
        reply: OrderReply,
    },
    ReportArrives {
        controller: usize,
        member: usize,
        link: u64,
        report: MemberReport,
    },
    LinkBreaks {
        controller: usize,
        member: usize,
    },
    LinkHeals {
        controller: usize,
        member: usize,
    },
    WakeUp {
        controller: usize,
        at: Now,
    },
    Execute {
        member: usize,
        keeper: u64,
        sequence: Sequence,
    },
    Connect {
        member: usize,
        connection: u64,
    },
    Data {
        connection: u64,
        event: Event,
        upto: usize,
    },
    ConnectionLost {
        connection: u64,
    },
    Ack {
        connection: u64,
        upto: usize,
    },
    Apply {
        member: usize,
        pid: u32,
    },
    EngineCommits {
        member: usize,
        pid: u32,
        upto: usize,
    },
    Write,
    Report,
    Fault,
    KeeperBack {
        member: usize,
    },
    ControllerStarts,
    ControllerDies {
        controller: usize,
    },
    FaultsEnd,
    LastLook,
}

struct Member {
    name: MemberId,
    boot: u64,
    disk: Disk,
    process: Option<Process>,
    keeper: Option<Keeper>,
    /// The keeper's file.
    kept: Option<Kept>,
    report_at: u64,
}

struct Link {
    /// Counts connections; what was sent on an earlier one does not arrive.
    number: u64,
    up: bool,
    last: u64,
    outstanding: Option<Sequence>,
}

struct Controller {
    decider: Decider,
    term: Term,
    alive: bool,
    links: Vec<Link>,
    woken: Option<Now>,
}

#[derive(Debug, Clone)]
struct Connection {
    replica: usize,
    source: usize,
    source_pid: u32,
    last_data: u64,
    last_ack: u64,
    semi_sync: bool,
}

struct Sim {
    plan: Plan,
    now: u64,
    sequence: u64,
    agenda: BTreeMap<(u64, u64), Happening>,
    members: Vec<Member>,
    names: Vec<MemberId>,
    controllers: Vec<Controller>,
    term: Term,
    store: Option<Record>,
    endpoint: (Epoch, RecordVersion, Option<usize>),
    connections: BTreeMap<u64, Connection>,
    ids: u64,
    checker: Checker,
    net: Dice,
    chance: Dice,
    clients: Dice,
    world: Dice,
    faults_over: bool,
    done: bool,
    promised_at_end_of_faults: usize,
    rebuilt: u32,
    hash: u64,
    events: u64,
}

impl Sim {
    fn new(plan: Plan) -> Self {
        let mut world = Dice::new(plan.seed, 4);
        let size = if world.chance(350) { 5 } else { 3 };
        let names: Vec<MemberId> = (0..size)
            .filter_map(|i| TaskName::new(format!("m{i}")).ok())
            .collect();
        let members = names
            .iter()
            .map(|name| Member {
                name: name.clone(),
                boot: 1,
                disk: Disk::default(),
                process: None,
                keeper: None,
                kept: None,
                report_at: 0,
            })
            .collect();
        let mut sim = Self {
            plan,
            now: 0,
            sequence: 0,
            agenda: BTreeMap::new(),
            members,
            names,
            controllers: Vec::new(),
            term: Term(0),
            store: None,
            endpoint: (Epoch(0), RecordVersion(0), None),
            connections: BTreeMap::new(),
            ids: 0,
            checker: Checker::default(),
            net: Dice::new(plan.seed, 1),
            chance: Dice::new(plan.seed, 2),
            clients: Dice::new(plan.seed, 3),
            world,
            faults_over: false,
            done: false,
            promised_at_end_of_faults: 0,
            rebuilt: 0,
            hash: 0xcbf2_9ce4_8422_2325,
            events: 0,
        };
        for member in 0..size {
            sim.keeper_back(member);
        }
        sim.after(0, Happening::ControllerStarts);
        sim.after(1_000, Happening::Write);
        sim.after(100_000, Happening::Report);
        sim.after(300_000, Happening::Fault);
        sim.after(plan.faults_ms * 1_000, Happening::FaultsEnd);
        sim
    }

    fn config(&self) -> Config {
        let racks: BTreeMap<MemberId, RackName> = BTreeMap::new();
        let cluster = ServiceName::new("db").unwrap_or_else(|_| unreachable!("a valid name"));
        Config {
            order_timeout: Duration::from_millis(300),
            slow_order: Duration::from_millis(600),
            retry: Duration::from_millis(15),
            switchover_bound: Duration::from_millis(150),
            replace_acker_after: Duration::from_millis(250),
            ..Config::mariadb(cluster, self.names.clone(), racks)
        }
    }

    fn run(mut self) -> Outcome {
        // Far more than any run needs: a decider that acts for ever without time passing is a bug as well.
        let limit = 3_000_000;
        while !self.done && self.checker.broken.is_none() {
            let Some(((at, sequence), happening)) = self.agenda.pop_first() else {
                break;
            };
            self.now = at;
            self.events += 1;
            self.mix(at);
            self.mix(sequence);
            self.mix(kind(&happening));
            if self.events > limit {
                self.checker
                    .liveness("too many events: something repeats without end".to_owned());
            }
            self.happen(happening);
        }
        Outcome {
            hash: self.hash,
            events: self.events,
            writes: self.checker.promised(),
            last_epoch: self.store.as_ref().map_or(Epoch(0), |record| record.epoch),
            rebuilt: self.rebuilt,
            broken: self.checker.broken,
        }
    }

    fn mix(&mut self, value: u64) {
        self.hash = (self.hash ^ value)
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(5);
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.plan.trace == Trace::Print {
            println!("{:>10.3} ms  {}", self.now as f64 / 1000.0, text());
        }
    }

    fn after(&mut self, micros: u64, happening: Happening) {
        self.at(self.now + micros, happening);
    }

    fn at(&mut self, at: u64, happening: Happening) {
        self.sequence += 1;
        self.agenda.insert((at, self.sequence), happening);
    }

    fn id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::ReadArrives { controller } => {
                let record = self.store.clone();
                let delay = self.delay();
                self.after(delay, Happening::ReadDone { controller, record });
            }
            Happening::ReadDone { controller, record } => {
                self.tell(controller, Input::RecordRead(record))
            }
            Happening::CasArrives {
                controller,
                attempt,
                expected,
                new,
                answered,
            } => {
                self.cas_arrives(controller, attempt, expected, new, answered);
            }
            Happening::CasDone {
                controller,
                attempt,
                outcome,
            } => {
                self.tell(controller, Input::CasDone { attempt, outcome });
            }
            Happening::OrderArrives {
                controller,
                member,
                order,
            } => self.order_arrives(controller, member, &order),
            Happening::OrderTimesOut {
                controller,
                member,
                sequence,
            } => self.order_lost(controller, member, sequence),
            Happening::ReplyArrives {
                controller,
                member,
                link,
                reply,
            } => {
                let ends = &mut self.controllers[controller].links[member];
                if ends.up && ends.number == link && ends.outstanding == Some(reply.sequence) {
                    ends.outstanding = None;
                    self.tell(controller, Input::Reply(reply));
                }
            }
            Happening::ReportArrives {
                controller,
                member,
                link,
                report,
            } => {
                let ends = &self.controllers[controller].links[member];
                if ends.up && ends.number == link {
                    self.tell(controller, Input::Report(report));
                }
            }
            Happening::LinkBreaks { controller, member } => self.link_breaks(controller, member),
            Happening::LinkHeals { controller, member } => self.link_heals(controller, member),
            Happening::WakeUp { controller, at } => {
                if self.controllers[controller].woken == Some(at) {
                    self.controllers[controller].woken = None;
                    self.tell(controller, Input::Tick);
                }
            }
            Happening::Execute {
                member,
                keeper,
                sequence,
            } => self.execute(member, keeper, sequence),
            Happening::Connect { member, connection } => self.connect(member, connection),
            Happening::Data {
                connection,
                event,
                upto,
            } => self.data(connection, event, upto),
            Happening::ConnectionLost { connection } => self.connection_lost(connection),
            Happening::Ack { connection, upto } => self.ack(connection, upto),
            Happening::Apply { member, pid } => self.apply(member, pid),
            Happening::EngineCommits { member, pid, upto } => {
                let Member { disk, process, .. } = &mut self.members[member];
                if process
                    .as_ref()
                    .is_some_and(|process| process.incarnation.pid == pid)
                {
                    disk.engine = disk.engine.max(upto).min(disk.binlog.len());
                }
            }
            Happening::Write => self.write(),
            Happening::Report => {
                for member in 0..self.members.len() {
                    self.report(member);
                }
                self.rebuild_diverged();
                self.after(100_000, Happening::Report);
            }
            Happening::Fault => self.fault(),
            Happening::KeeperBack { member } => self.keeper_back(member),
            Happening::ControllerStarts => self.controller_starts(),
            Happening::ControllerDies { controller } => self.controllers[controller].alive = false,
            Happening::FaultsEnd => self.faults_end(),
            Happening::LastLook => self.last_look(),
        }
    }

    fn write(&mut self) {
        let pause = self.clients.between(1_000, 12_000);
        if !self.done {
            self.after(pause, Happening::Write);
        }
        // Through the endpoint, or straight to a server, as a connection from before would.
        let member = match self.endpoint.2 {
            Some(target) if self.clients.chance(600) => target,
            Some(_) | None => {
                usize::try_from(self.clients.below(self.members.len() as u64)).unwrap_or(0)
            }
        };
        if self.members[member]
            .process
            .as_ref()
            .is_some_and(|process| !process.read_only)
        {
            self.commit(member, What::Write);
        }
    }

    /// A commit reaches the binlog, synced, and is sent to whoever replicates.
    fn commit(&mut self, member: usize, what: What) {
        let id = self.id();
        let Member { disk, process, .. } = &mut self.members[member];
        let Some(process) = process else { return };
        let server = u32::try_from(member).unwrap_or(u32::MAX);
        let gtid = Gtid {
            domain: 0,
            server,
            sequence: disk.next_sequence(),
        };
        let under = match what {
            What::Barrier(epoch) => epoch,
            What::Write => disk.binlog.last().map_or(Epoch(0), |event| event.under),
        };
        let event = Event {
            id,
            gtid,
            epoch: process.epoch,
            under,
            what,
        };
        disk.binlog.push(event);
        let upto = disk.binlog.len();
        process.waiting.push(upto);
        if !process.semi_sync_master {
            // Nobody is asked: the client is told at once.
            self.acknowledged(member, upto);
        }
        self.send_to_replicas(member);
    }
}

#[cfg(test)]
mod tests;
