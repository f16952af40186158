//! A simulated cluster: servers, keepers, controllers and clients under faults, on a virtual clock.
//!
//! The deciders and keeper cores are the real ones. A run is a function of its seed: the same seed gives the same
//! trace. Faults come in bursts, because two faults close together find what single ones do not. Then they stop, and
//! the cluster must come back within a bound. Checkers look at every acknowledgement, every opening, every removal of
//! log and every change of the record.
//!
//! Machines stop and go on, servers and keepers on them too; what comes for one that sleeps waits for it. Any two places can
//! be cut off from one another, in one direction or both; what was on its way arrives, what was sent meanwhile may arrive
//! after the cut. Every machine and every controller has a clock with a rate of its own.
//!
//! What the world leaves out: `sync_relay_log=0`, a store restored from an old copy, overrides, the other flavour.

mod check;
mod clients;
mod clock;
mod control;
mod copy;
mod cut;
mod dice;
mod end;
mod faults;
mod happening;
mod judge;
mod keeper;
mod lease;
mod net;
mod scenes;
mod server;
mod sleep;
mod tally;
mod words;

use std::collections::BTreeMap;
use std::time::Duration;

use homeostat_model::{
    Epoch, RackName, Reads, RecordVersion, Sequence, ServiceName, TaskName, Term,
};

use self::check::Checker;
use self::clock::Clock;
use self::cut::Cuts;
use self::dice::Dice;
use self::happening::Happening;
use self::keeper::Keeper;
use self::lease::PULSE;
use self::server::{Disk, Process};
use self::sleep::Sleep;
pub use self::tally::Tally;
use self::words::kind;
use crate::{Config, Decider, Kept, MemberId, Now, Promotion, Record, Rules};

/// H and L of the simulated clusters: long against their messages (30 ms at most), short against a run.
const SILENCE: Duration = Duration::from_millis(150);
const LEASE: Duration = Duration::from_millis(300);
const KILL_TIME: Duration = Duration::from_millis(20);

/// What a run is made of.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub seed: u64,
    /// How long faults go on, in virtual milliseconds.
    pub faults_ms: u64,
    /// Within how long after the last fault everything must work again.
    pub recover_ms: u64,
    pub rules: Rules,
    pub scene: Scene,
    /// Print every step.
    pub trace: Trace,
}

/// Which faults there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scene {
    /// All kinds, in bursts.
    Anything,
    /// Once, at a working cluster: the primary's server stops, or its machine does, or is cut off from everybody. It must be
    /// replaced soon after H.
    PrimaryStops,
    PrimaryMachineStops,
    PrimaryCutOff,
    /// The primary and the old leader are on one side of a cut, a new leader and all other members on the other: what the old
    /// leader believes must not keep the old primary open.
    OldLeaderCutOff,
    /// The primary is cut off, but for a moment in which what the leader granted before comes through.
    LateGrant,
    /// The primary is cut off; then it reaches one acker again, which cannot be given orders: that one goes on acknowledging, so
    /// the primary may serve for as long as that lasts, and nobody else may.
    OneAckerRevoked,
    /// Everything is cut off from everything, for less than L; then all is well but that controllers cannot reach the primary.
    /// What the ackers said meanwhile arrives late: nothing may follow from it.
    Backlog,
    /// Every controller is cut off from every machine, for many times L: nothing may happen.
    ControllersCutOff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trace {
    Silent,
    Print,
}

impl Scene {
    pub const ALL: [Scene; 9] = [
        Scene::Anything,
        Scene::PrimaryStops,
        Scene::PrimaryMachineStops,
        Scene::PrimaryCutOff,
        Scene::OldLeaderCutOff,
        Scene::LateGrant,
        Scene::OneAckerRevoked,
        Scene::Backlog,
        Scene::ControllersCutOff,
    ];
}

/// How a run went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub hash: u64,
    pub events: u64,
    /// Writes that clients were promised.
    pub writes: usize,
    pub last_epoch: Epoch,
    /// What the run contained.
    pub tally: Tally,
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
            scene: Scene::Anything,
            trace: Trace::Silent,
        }
    }

    /// A calm run with one fault.
    pub fn scene(seed: u64, scene: Scene) -> Self {
        Self {
            scene,
            ..Self::seeded(seed)
        }
    }

    /// Runs it to the end, or to the first broken rule.
    pub fn run(self) -> Outcome {
        Sim::new(self).run()
    }
}

struct Member {
    name: MemberId,
    boot: u64,
    disk: Disk,
    process: Option<Process>,
    keeper: Option<Keeper>,
    /// The keeper's file.
    kept: Option<Kept>,
    clock: Clock,
    /// Asleep, and what came for it meanwhile.
    sleeping: Option<Sleep>,
    asleep: Vec<Happening>,
}

struct Link {
    /// Counts connections; what was sent on an earlier one does not arrive.
    number: u64,
    up: bool,
    last: u64,
    /// The keeper process at the other end.
    keeper: u64,
    outstanding: Option<Sequence>,
}

struct Controller {
    decider: Decider,
    term: Term,
    alive: bool,
    links: Vec<Link>,
    woken: Option<Now>,
    clock: Clock,
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
    cuts: Cuts,
    reads: Reads,
    promotion: BTreeMap<MemberId, Promotion>,
    ids: u64,
    checker: Checker,
    net: Dice,
    chance: Dice,
    clients: Dice,
    world: Dice,
    disks: Dice,
    faults_over: bool,
    done: bool,
    promised_at_end_of_faults: usize,
    tally: Tally,
    /// When the one fault of a scene struck, and whom (the primary of then).
    struck: Option<(u64, usize)>,
    scene_over: bool,
    hash: u64,
    events: u64,
}

impl Sim {
    fn new(plan: Plan) -> Self {
        let mut world = Dice::new(plan.seed, 4);
        let size = if world.chance(350) { 5 } else { 3 };
        let reads = match world.chance(300) {
            true => Reads::Strict,
            false => Reads::Bounded,
        };
        let names: Vec<MemberId> = (0..size)
            .filter_map(|i| TaskName::new(format!("m{i}")).ok())
            .collect();
        let mut promotion = BTreeMap::new();
        if world.chance(300) {
            for rule in [Promotion::Prefer, Promotion::MustNot] {
                let member = usize::try_from(world.below(names.len() as u64)).unwrap_or(0);
                promotion.extend(names.get(member).map(|name| (name.clone(), rule)));
            }
        }
        let members = names
            .iter()
            .map(|name| Member {
                name: name.clone(),
                boot: 1,
                disk: Disk::default(),
                process: None,
                keeper: None,
                kept: None,
                clock: Clock::random(&mut world),
                sleeping: None,
                asleep: Vec::new(),
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
            cuts: Cuts::default(),
            reads,
            promotion,
            ids: 0,
            checker: Checker::default(),
            net: Dice::new(plan.seed, 1),
            chance: Dice::new(plan.seed, 2),
            clients: Dice::new(plan.seed, 3),
            disks: Dice::new(plan.seed, 5),
            world,
            faults_over: false,
            done: false,
            promised_at_end_of_faults: 0,
            tally: Tally::default(),
            struck: None,
            scene_over: false,
            hash: 0xcbf2_9ce4_8422_2325,
            events: 0,
        };
        for member in 0..size {
            sim.keeper_back(member);
            let first = sim.world.below(PULSE);
            sim.after(first, Happening::Pulse { member });
            sim.after(first, Happening::Heartbeat { member });
        }
        sim.after(0, Happening::ControllerStarts);
        sim.after(1_000, Happening::Write);
        sim.after(1_000, Happening::Read);
        sim.after(100_000, Happening::Report);
        let first = match plan.scene {
            Scene::Anything => 300_000,
            Scene::PrimaryStops
            | Scene::PrimaryMachineStops
            | Scene::PrimaryCutOff
            | Scene::OldLeaderCutOff
            | Scene::LateGrant
            | Scene::OneAckerRevoked
            | Scene::Backlog
            | Scene::ControllersCutOff => 700_000 + sim.chance.below(60_000),
        };
        sim.after(first, Happening::Fault);
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
            settle: Duration::from_millis(10),
            switchover_bound: Duration::from_millis(150),
            replace_acker_after: Duration::from_millis(250),
            rebuild_retry: Duration::from_millis(40),
            short_log: 20,
            silence: SILENCE,
            pulse: Duration::from_micros(PULSE),
            lease: LEASE,
            kill_time: KILL_TIME,
            reads: self.reads,
            promotion: self.promotion.clone(),
            ..Config::mariadb(cluster, self.names.clone(), racks)
        }
    }

    fn run(mut self) -> Outcome {
        // Far more than any run needs: a decider that acts for ever without time passing is a bug as well.
        let limit = 4_000_000;
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
            match self.sleeper(&happening) {
                Some(member) => self.members[member].asleep.push(happening),
                None => self.happen(happening),
            }
        }
        Outcome {
            hash: self.hash,
            events: self.events,
            writes: self.checker.promised(),
            last_epoch: self.store.as_ref().map_or(Epoch(0), |record| record.epoch),
            tally: self.tally,
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
}

#[cfg(test)]
mod tests;
