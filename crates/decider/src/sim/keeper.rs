//! The simulated keeper: drives the real [`KeeperCore`], and does to the simulated server what each verb says.

use std::collections::BTreeMap;
use std::time::Duration;

use homeostat_model::Sequence;

use super::copy::Copies;
use super::lease::OwnBarrier;
use super::server::{Event, Io, Process, What};
use super::sleep::Sleep;
use super::{Happening, LEASE, Member, Sim};
use crate::rules::Mutation;
use crate::{
    Acker, BootId, BootTime, Decision, KeeperCore, KeeperIncarnation, MemberReport, Order,
    OrderOutcome, Pulse, Receiver, ServerFacts, ServerIncarnation, ServerState, Source, Verb,
};

pub(super) struct Keeper {
    pub(super) core: KeeperCore,
    pub(super) number: u64,
    executing: Option<Executing>,
    pub(super) copies: Copies,
    pub(super) own_barrier: Option<OwnBarrier>,
    pub(super) barriers_begun: Option<BootTime>,
    /// When renewals were sent, and the last one that counts, truly.
    pub(super) asked: BTreeMap<u64, u64>,
    pub(super) renewed_truly: Option<u64>,
}

struct Executing {
    controller: usize,
    order: Order,
    verb: Verb,
    /// A verb that waits (a barrier, a demotion) gives up then.
    deadline: u64,
    begun: Begun,
    /// When that was: on the machine's clock, and truly.
    begun_at: (BootTime, u64),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Begun {
    No,
    /// Waits for the commits up to here in the binlog.
    Waiting(usize),
}

/// What a verb led to.
enum Step {
    Over(OrderOutcome),
    Waits(Begun),
}

impl Sim {
    /// A keeper process starts: its server is gone, its file is what it was (or is lost).
    pub(super) fn keeper_back(&mut self, member: usize) {
        if self.members[member].keeper.is_some() {
            return;
        }
        let number = self.id();
        let own = &mut self.members[member];
        let boot = BootId(format!("boot-{}", own.boot));
        let core = KeeperCore::new(
            own.name.clone(),
            KeeperIncarnation(number),
            boot,
            own.kept.clone(),
        )
        .with_lease(LEASE)
        .breaking(self.plan.rules);
        own.keeper = Some(Keeper {
            core,
            number,
            executing: None,
            copies: Copies::default(),
            own_barrier: None,
            barriers_begun: None,
            asked: BTreeMap::new(),
            renewed_truly: None,
        });
        for controller in 0..self.controllers.len() {
            let delay = self.delay();
            self.after(delay, Happening::LinkHeals { controller, member });
        }
    }

    pub(super) fn kill_keeper(&mut self, member: usize) {
        // The server is its child and dies with it.
        self.kill_server(member);
        if self.members[member].sleeping == Some(Sleep::Keeper) {
            self.wakes_anew(member);
        }
        if self.members[member].keeper.take().is_some() {
            for controller in 0..self.controllers.len() {
                let delay = self.delay();
                self.after(delay, Happening::LinkBreaks { controller, member });
            }
        }
    }

    pub(super) fn kill_server(&mut self, member: usize) {
        let own = &mut self.members[member];
        if let Some(keeper) = &mut own.keeper {
            keeper.core.server_ended();
            keeper.own_barrier = None;
            keeper.copies.lends = None;
        }
        if let Some(process) = own.process.take() {
            self.dumps_end(process.dumps.into_values().collect());
        }
        if self.members[member].sleeping == Some(Sleep::Server) {
            self.wakes_anew(member);
        }
    }

    /// What the keeper sees of its member.
    pub(super) fn look(&self, member: usize) -> Option<MemberReport> {
        let own = &self.members[member];
        let keeper = own.keeper.as_ref()?;
        Some(MemberReport {
            member: own.name.clone(),
            incarnation: KeeperIncarnation(keeper.number),
            boot: BootId(format!("boot-{}", own.boot)),
            host: "127.0.0.1".to_owned(),
            port: 3306,
            record: keeper.core.record().cloned(),
            held: keeper.core.held(),
            incomplete: keeper.core.incomplete(),
            pulse: Some(self.pulse_of(member)),
            rebuild: keeper.copies.rebuild.clone(),
            lends: self.lends_to(keeper),
            server: self.server_state(member),
        })
    }

    fn pulse_of(&self, member: usize) -> Pulse {
        let own = &self.members[member];
        let now = own.clock.boot_time(self.now);
        let ms = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let process = own.process.as_ref();
        let unanswered = process.and_then(|process| process.unanswered);
        let receives = process.filter(|process| process.io != Io::Stopped);
        Pulse {
            unanswered_ms: unanswered.map(|at| ms(now.0.saturating_sub(at.0))),
            source_ms: receives.and_then(|process| process.source_age).map(ms),
        }
    }

    pub(super) fn server_state(&self, member: usize) -> ServerState {
        let own = &self.members[member];
        let Some(process) = &own.process else {
            return ServerState::Down {
                initialised: own.disk.initialised,
                last: None,
            };
        };
        let source = own.disk.source.map(|source| self.source(source));
        let receiver = match (source, &process.io) {
            (None, _) => Receiver::None,
            (Some(source), Io::Stopped) => Receiver::Stopped {
                source,
                applying: process.applying,
            },
            (Some(source), Io::Connecting { error, .. }) => Receiver::Running {
                source,
                connected: false,
                applying: process.applying,
                error: error.clone(),
            },
            (Some(source), Io::Connected { .. }) => Receiver::Running {
                source,
                connected: true,
                applying: process.applying,
                error: None,
            },
        };
        let name = |member: &usize| self.names[*member].clone();
        let facts = ServerFacts {
            read_only: process.read_only,
            waits_for_ackers: process.semi_sync_master,
            acker: process.semi_sync_replica,
            receiver,
            received: process.io_position_known.then(|| own.disk.received_end()),
            applied: own.disk.applied_end(),
            needs_salvage: process.needs_salvage,
            admitted: process.admitted.iter().map(name).collect(),
            receiving: process.dumps.keys().map(name).collect(),
            barrier: process.barrier,
            broken: match &process.io {
                Io::Connecting { error, .. } => error.clone(),
                Io::Connected { .. } | Io::Stopped => None,
            },
            after_barrier: Some(own.disk.after_barrier()),
        };
        ServerState::Up {
            incarnation: process.incarnation.clone(),
            facts,
        }
    }

    fn source(&self, member: usize) -> Source {
        Source {
            member: self.names[member].clone(),
            host: "127.0.0.1".to_owned(),
            port: 3306,
        }
    }

    pub(super) fn order_arrives(&mut self, controller: usize, member: usize, order: &Order) {
        let server = self.server_state(member);
        let now = self.members[member].clock.boot_time(self.now);
        let Some(keeper) = &mut self.members[member].keeper else {
            return;
        };
        keeper.core.at(now);
        let decision = keeper.core.offer(order, &server);
        match decision {
            Decision::Refuse(reply) => {
                self.say(|| {
                    format!(
                        "  keeper {member} refuses {:?}: {:?}",
                        order.verb, reply.outcome
                    )
                });
                self.send_reply(controller, member, reply);
            }
            Decision::Obey { persist, verb } => {
                let number = keeper.number;
                let header = &order.header;
                self.checker
                    .led(self.controllers[controller].term, header.record.term);
                self.checker.obeyed(
                    member,
                    number,
                    header.incarnation.0,
                    (header.record.term, header.sequence),
                );
                if let Some(kept) = persist {
                    keeper.core.persisted(kept.clone());
                    self.checker.persisted(member, kept.record.rank());
                    self.members[member].kept = Some(kept);
                }
                let (took, patience) = self.durations(&verb);
                let executing = Executing {
                    controller,
                    order: order.clone(),
                    verb,
                    deadline: self.now + patience,
                    begun: Begun::No,
                    begun_at: (now, self.now),
                };
                if let Some(keeper) = &mut self.members[member].keeper
                    && keeper.executing.replace(executing).is_some()
                {
                    self.tally.count("kill-first");
                }
                self.watch_deadline(member);
                let sequence = order.header.sequence;
                self.after(
                    took,
                    Happening::Execute {
                        member,
                        keeper: number,
                        sequence,
                    },
                );
            }
        }
    }

    fn durations(&mut self, verb: &Verb) -> (u64, u64) {
        let took = match verb {
            Verb::Learn
            | Verb::Admit { .. }
            | Verb::Expel { .. }
            | Verb::Open
            | Verb::Lend { .. }
            | Verb::Rebuild { .. }
            | Verb::Reinstate => self.world.between(20, 200),
            Verb::Start { .. } => self.world.between(3_000, 60_000),
            Verb::Drain
            | Verb::Kill
            | Verb::StopReceiving
            | Verb::Repoint { .. }
            | Verb::Receive
            | Verb::TakeOver => self.world.between(200, 4_000),
            Verb::Barrier | Verb::Demote { .. } => self.world.between(20, 500),
        };
        let patience = match verb {
            Verb::Demote { patience_ms } => (*patience_ms).min(250) * 1_000,
            _ => 250_000,
        };
        (took, patience)
    }

    /// The verb is carried out, or looked at again when it waits.
    pub(super) fn execute(&mut self, member: usize, number: u64, sequence: Sequence) {
        let Some(keeper) = self.members[member]
            .keeper
            .as_mut()
            .filter(|keeper| keeper.number == number)
        else {
            return;
        };
        let Some(executing) = keeper
            .executing
            .take_if(|executing| executing.order.header.sequence == sequence)
        else {
            return;
        };
        // It queues in a server that stands still, and runs when that goes on, whoever gave up waiting meanwhile.
        let needs_server = !matches!(
            executing.verb,
            Verb::Learn | Verb::Kill | Verb::Start { .. }
        );
        if needs_server && self.members[member].sleeping == Some(Sleep::Server) {
            if let Some(keeper) = &mut self.members[member].keeper {
                keeper.executing = Some(executing);
            }
            self.after(
                10_000,
                Happening::Execute {
                    member,
                    keeper: number,
                    sequence,
                },
            );
            return;
        }
        match self.step(member, &executing) {
            Step::Waits(begun) => {
                let again = self.now.max(executing.deadline.min(self.now + 50_000)) + 1;
                let now = (self.members[member].clock.boot_time(self.now), self.now);
                if let Some(keeper) = &mut self.members[member].keeper {
                    let begun_at = match executing.begun {
                        Begun::No => now,
                        Begun::Waiting(_) => executing.begun_at,
                    };
                    keeper.executing = Some(Executing {
                        begun,
                        begun_at,
                        ..executing
                    });
                }
                self.at(
                    again,
                    Happening::Execute {
                        member,
                        keeper: number,
                        sequence,
                    },
                );
            }
            Step::Over(outcome) => {
                self.say(|| format!("  keeper {member} did {:?}: {outcome:?}", executing.verb));
                let Some(keeper) = &mut self.members[member].keeper else {
                    return;
                };
                if let OrderOutcome::BarrierDone { epoch, .. } = &outcome {
                    let (begun, truly) = executing.begun_at;
                    keeper.core.barrier_acknowledged(*epoch, begun);
                    keeper.renewed_truly = keeper.renewed_truly.max(Some(truly));
                }
                let reply = keeper.core.completed(outcome);
                self.watch_deadline(member);
                // The report may come before or after the reply.
                let report_first = self.world.chance(500);
                if report_first {
                    self.report(member);
                }
                if let Some(reply) = reply {
                    self.send_reply(executing.controller, member, reply);
                }
                if !report_first {
                    self.report(member);
                }
            }
        }
    }

    /// Commits were acknowledged: an order that waits for them goes on.
    pub(super) fn waiting_changed(&mut self, member: usize) {
        let Some(keeper) = &self.members[member].keeper else {
            return;
        };
        if let Some(executing) = keeper
            .executing
            .as_ref()
            .filter(|executing| executing.begun != Begun::No)
        {
            let (keeper, sequence) = (keeper.number, executing.order.header.sequence);
            self.after(
                1,
                Happening::Execute {
                    member,
                    keeper,
                    sequence,
                },
            );
        }
    }

    fn step(&mut self, member: usize, executing: &Executing) -> Step {
        let record = &executing.order.header.record;
        let late = self.now >= executing.deadline;
        let pid = u32::try_from(self.id()).unwrap_or(u32::MAX);
        let start_fails = !self.faults_over && self.world.chance(40);
        self.copies_give_way(member, &executing.verb);
        if let Verb::Start { recovery } = &executing.verb {
            if start_fails || self.members[member].process.is_some() || self.is_copied(member) {
                return failed("the server did not start");
            }
            let Member {
                disk,
                process,
                boot,
                ..
            } = &mut self.members[member];
            let cut = disk.recover(*recovery);
            let server = ServerIncarnation {
                boot: BootId(format!("boot-{boot}")),
                pid,
                start_ticks: self.now,
            };
            *process = Some(Process::closed(server.clone(), disk));
            self.removed(&cut);
            return Step::Over(OrderOutcome::Started { server });
        }
        match &executing.verb {
            Verb::Learn => return Step::Over(OrderOutcome::Done),
            Verb::Lend { to, .. } => return Step::Over(self.lend(member, to)),
            Verb::Rebuild { source, offer, .. } => {
                return Step::Over(self.rebuild(member, source, offer));
            }
            Verb::Kill => {
                self.kill_server(member);
                return Step::Over(OrderOutcome::Exited { server: None });
            }
            _ => {}
        }
        let rules = self.plan.rules;
        let now = self.members[member].clock.boot_time(self.now);
        let Member { disk, process, .. } = &mut self.members[member];
        let Some(process) = process else {
            return Step::Over(OrderOutcome::Exited { server: None });
        };
        let mut purged: Vec<Event> = Vec::new();
        let outcome = match &executing.verb {
            Verb::Learn
            | Verb::Kill
            | Verb::Start { .. }
            | Verb::Lend { .. }
            | Verb::Rebuild { .. } => OrderOutcome::Done,
            Verb::StopReceiving => {
                process.io = Io::Stopped;
                let received = process.io_position_known.then(|| disk.received_end());
                OrderOutcome::Stopped {
                    received,
                    drained: received.filter(|end| *end == disk.applied_end()),
                }
            }
            Verb::Drain => {
                disk.apply_all();
                disk.engine = disk.binlog.len();
                process.needs_salvage = false;
                OrderOutcome::Drained {
                    applied: disk.applied_end(),
                }
            }
            Verb::Repoint { source, acker } => {
                process.io = Io::Stopped;
                let skipped = rules.broken(Mutation::RepointWithoutDrain)
                    || (rules.broken(Mutation::StartWithoutSalvage) && process.needs_salvage);
                if !skipped {
                    disk.apply_all();
                    disk.engine = disk.binlog.len();
                }
                purged = std::mem::take(&mut disk.relay);
                process.needs_salvage = false;
                process.applying = false;
                process.semi_sync_master = false;
                process.barrier = None;
                process.semi_sync_replica = *acker == Acker::Counts;
                disk.source = self.names.iter().position(|name| *name == source.member);
                OrderOutcome::Done
            }
            Verb::Receive => {
                if process.io != Io::Stopped {
                    OrderOutcome::Done
                } else {
                    // A start with both threads stopped purges what was received and not applied.
                    if !process.applying {
                        purged = std::mem::take(&mut disk.relay);
                        process.needs_salvage = false;
                    }
                    process.applying = true;
                    process.heard = Some(now);
                    process.source_age = Some(Duration::ZERO);
                    process.heard_truly.come(self.now);
                    self.begin_receiving(member);
                    OrderOutcome::Done
                }
            }
            Verb::TakeOver => {
                process.io = Io::Stopped;
                process.applying = false;
                process.semi_sync_replica = false;
                process.admitted.clear();
                process.epoch = record.epoch;
                // What it received from is forgotten only when it is opened.
                let dumps = std::mem::take(&mut process.dumps);
                self.dumps_end(dumps.into_values().collect());
                OrderOutcome::Done
            }
            Verb::Admit { member: other } => {
                process
                    .admitted
                    .extend(self.names.iter().position(|name| name == other));
                OrderOutcome::Done
            }
            Verb::Expel { member: other } => {
                if let Some(other) = self.names.iter().position(|name| name == other) {
                    process.admitted.remove(&other);
                    let dump = process.dumps.remove(&other);
                    self.dumps_end(dump.into_iter().collect());
                }
                OrderOutcome::Done
            }
            Verb::Barrier => match executing.begun {
                Begun::No => {
                    process.semi_sync_master = true;
                    process.epoch = record.epoch;
                    let upto = disk.binlog.len() + 1;
                    self.commit(member, What::Barrier(record.epoch));
                    return Step::Waits(Begun::Waiting(upto));
                }
                Begun::Waiting(upto) if process.waiting.contains(&upto) => {
                    if !late {
                        return Step::Waits(executing.begun);
                    }
                    // The connection is killed: the row stays, nobody is told that it was acknowledged.
                    process.waiting.retain(|at| *at != upto);
                    return failed("the barrier was not acknowledged in time");
                }
                Begun::Waiting(upto) => {
                    process.barrier = Some(record.epoch);
                    match disk.binlog.get(upto - 1) {
                        Some(event) => OrderOutcome::BarrierDone {
                            epoch: record.epoch,
                            at: event.gtid,
                        },
                        None => return failed("the barrier is gone"),
                    }
                }
            },
            Verb::Open | Verb::Reinstate => {
                if process.read_only {
                    process.read_only = false;
                    disk.source = None;
                    self.opens(member, record.epoch);
                }
                OrderOutcome::Done
            }
            Verb::Demote { .. } => {
                process.read_only = true;
                if !process.waiting.is_empty() && !late {
                    return Step::Waits(Begun::Waiting(0));
                }
                if !process.waiting.is_empty() {
                    return failed("commits still wait for an acknowledgement");
                }
                disk.engine = disk.binlog.len();
                OrderOutcome::Demoted {
                    position: disk.applied_end(),
                }
            }
        };
        self.removed(&purged);
        Step::Over(outcome)
    }
}

fn failed(why: &str) -> Step {
    Step::Over(OrderOutcome::Failed {
        why: why.to_owned(),
    })
}
