//! Messages, connections and replication traffic. Reports and replies are in order per connection; orders are not, may
//! be very late and may arrive twice. What was on its way when a source died still arrives.

use std::time::Duration;

use homeostat_model::Sequence;

use super::cut::{Place, site_of};
use super::server::{Disk, Dump, Event, Io};
use super::{Connection, Happening, Member, Scene, Sim};
use crate::{Input, MemberReport, Order, OrderReply};

impl Sim {
    pub(super) fn delay(&mut self) -> u64 {
        match self.net.below(100) {
            0..=79 => self.net.between(50, 400),
            80..=97 => self.net.between(400, 3_000),
            _ => self.net.between(3_000, 30_000),
        }
    }

    pub(super) fn send_order(
        &mut self,
        controller: usize,
        member: usize,
        order: Order,
        timeout: Duration,
    ) {
        let sequence = order.header.sequence;
        self.controllers[controller].links[member].outstanding = Some(sequence);
        let timeout = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
        self.after(
            timeout,
            Happening::OrderTimesOut {
                controller,
                member,
                sequence,
            },
        );
        let calm = self.calm();
        if !calm && self.net.chance(20) {
            return;
        }
        let mut delay = self.delay();
        if !calm && self.net.chance(20) {
            delay += self.net.below(800_000);
        }
        if !calm && self.net.chance(60) {
            let later = delay + self.net.below(60_000);
            self.after(
                later,
                Happening::OrderArrives {
                    controller,
                    member,
                    order: order.clone(),
                },
            );
        }
        let (from, to) = (site_of(controller), Place::Machine(member));
        let arrives = Happening::OrderArrives {
            controller,
            member,
            order,
        };
        if self.cuts.free(from, to) {
            self.after(delay, arrives);
        } else if self.net.chance(700) {
            self.cuts.hold(from, to, arrives);
        }
    }

    /// Nothing but the one fault of a scene, or none any more.
    pub(super) fn calm(&self) -> bool {
        self.faults_over || self.plan.scene != Scene::Anything
    }

    pub(super) fn order_lost(&mut self, controller: usize, member: usize, sequence: Sequence) {
        let link = &mut self.controllers[controller].links[member];
        if link.outstanding == Some(sequence) {
            link.outstanding = None;
            let member = self.names[member].clone();
            self.tell(controller, Input::OrderLost { member, sequence });
        }
    }

    /// In order on this connection.
    pub(super) fn on_link(
        &mut self,
        controller: usize,
        member: usize,
        happening: impl FnOnce(u64) -> Happening,
    ) {
        let delay = self.delay();
        let now = self.now;
        let link = &mut self.controllers[controller].links[member];
        let number = link.number;
        let (from, to) = (Place::Machine(member), site_of(controller));
        if !self.cuts.free(from, to) {
            self.cuts.hold(from, to, happening(number));
            return;
        }
        link.last = link.last.max(now + delay) + 1;
        let at = link.last;
        self.at(at, happening(number));
    }

    pub(super) fn send_reply(&mut self, controller: usize, member: usize, reply: OrderReply) {
        if !self.calm() && self.net.chance(20) {
            return;
        }
        self.on_link(controller, member, |link| Happening::ReplyArrives {
            controller,
            member,
            link,
            reply,
        });
    }

    pub(super) fn report(&mut self, member: usize) {
        if !self.keeper_awake(member) {
            return;
        }
        let Some(report) = self.look(member) else {
            return;
        };
        for controller in 0..self.controllers.len() {
            let up = self.controllers[controller].links[member].up;
            if self.controllers[controller].alive && up {
                self.send_report(controller, member, report.clone());
            }
        }
    }

    fn send_report(&mut self, controller: usize, member: usize, report: MemberReport) {
        self.on_link(controller, member, |link| Happening::ReportArrives {
            controller,
            member,
            link,
            report,
        });
    }

    pub(super) fn link_breaks(&mut self, controller: usize, member: usize) {
        let link = &mut self.controllers[controller].links[member];
        if !link.up {
            return;
        }
        link.up = false;
        let outstanding = link.outstanding.take();
        let name = self.names[member].clone();
        self.tell(
            controller,
            Input::KeeperGone {
                member: name.clone(),
            },
        );
        if let Some(sequence) = outstanding {
            self.tell(
                controller,
                Input::OrderLost {
                    member: name,
                    sequence,
                },
            );
        }
    }

    pub(super) fn link_heals(&mut self, controller: usize, member: usize) {
        if !self.controllers[controller].alive {
            return;
        }
        let Some(keeper) = self.members[member]
            .keeper
            .as_ref()
            .map(|keeper| keeper.number)
        else {
            return;
        };
        let link = &self.controllers[controller].links[member];
        if link.up && link.keeper == keeper {
            return;
        }
        if link.up {
            // A connection of a keeper that is gone, of which nobody heard.
            self.link_breaks(controller, member);
        }
        if !self.linked(controller, member) || !self.keeper_awake(member) {
            self.after(20_000, Happening::LinkHeals { controller, member });
            return;
        }
        let Some(report) = self.look(member) else {
            return;
        };
        let link = &mut self.controllers[controller].links[member];
        link.up = true;
        link.keeper = keeper;
        link.number += 1;
        self.send_report(controller, member, report);
    }

    // Replication.

    /// A replica's IO thread starts to ask its source.
    pub(super) fn begin_receiving(&mut self, member: usize) {
        let connection = self.id();
        let delay = self.delay();
        let Some(process) = &mut self.members[member].process else {
            return;
        };
        process.io = Io::Connecting {
            connection,
            error: None,
        };
        self.after(delay, Happening::Connect { member, connection });
    }

    pub(super) fn connect(&mut self, member: usize, connection: u64) {
        let Member { disk, process, .. } = &self.members[member];
        let Some(process) = process else { return };
        if !matches!(&process.io, Io::Connecting { connection: own, .. } if *own == connection) {
            return;
        }
        let Some(source) = disk.source else { return };
        let semi_sync = process.semi_sync_replica;
        let from = disk
            .relay
            .last()
            .or(disk.binlog.last())
            .map(|event| event.gtid);
        let Member {
            disk: source_disk,
            process: source_process,
            ..
        } = &self.members[source];
        let (here, there) = (Place::Machine(member), Place::Machine(source));
        let reaches = self.cuts.free(here, there) && self.cuts.free(there, here);
        let let_in = reaches
            && self.answers(source)
            && source_process
                .as_ref()
                .is_some_and(|source| source.admitted.contains(&member));
        if !let_in {
            self.after(20_000, Happening::Connect { member, connection });
            return;
        }
        let start = match from {
            None => Some(0),
            Some(gtid) => source_disk.position_of(gtid).map(|at| at + 1),
        };
        let Some(start) = start else {
            let error = "error 1236: the position is not in the source's binlog".to_owned();
            if let Some(process) = &mut self.members[member].process {
                process.io = Io::Connecting {
                    connection,
                    error: Some(error),
                };
            }
            self.report(member);
            self.after(500_000, Happening::Connect { member, connection });
            return;
        };
        let Some(process) = &mut self.members[source].process else {
            return;
        };
        process.dumps.insert(
            member,
            Dump {
                connection,
                semi_sync,
                sent: start,
            },
        );
        let source_pid = process.incarnation.pid;
        let ends = Connection {
            replica: member,
            source,
            source_pid,
            last_data: 0,
            last_ack: 0,
            semi_sync,
        };
        self.connections.insert(connection, ends);
        if let Some(process) = &mut self.members[member].process {
            process.io = Io::Connected { connection };
            process.io_position_known = true;
        }
        self.heard(member, connection);
        // Not measured yet whether the position asked from counts as an acknowledgement: both happen here.
        if semi_sync && start > 0 && self.world.chance(500) {
            let delay = self.delay();
            self.after(
                delay,
                Happening::Ack {
                    connection,
                    upto: start,
                },
            );
        }
        self.send_to_replicas(source);
        self.report(member);
        self.report(source);
    }

    pub(super) fn send_to_replicas(&mut self, source: usize) {
        let Member { disk, process, .. } = &mut self.members[source];
        let Some(process) = process else { return };
        let mut messages: Vec<(u64, Event, usize)> = Vec::new();
        for dump in process.dumps.values_mut() {
            for at in dump.sent..disk.binlog.len() {
                messages.push((dump.connection, disk.binlog[at], at + 1));
            }
            dump.sent = disk.binlog.len();
        }
        for (connection, event, upto) in messages {
            let delay = self.delay();
            let now = self.now;
            let Some(ends) = self.connections.get_mut(&connection) else {
                continue;
            };
            let arrives = Happening::Data {
                connection,
                event,
                upto,
            };
            let (from, to) = (Place::Machine(source), Place::Machine(ends.replica));
            if !self.cuts.free(from, to) {
                self.cuts.hold(from, to, arrives);
                continue;
            }
            ends.last_data = ends.last_data.max(now + delay) + 1;
            let at = ends.last_data;
            self.at(at, arrives);
        }
    }

    pub(super) fn data(&mut self, connection: u64, event: Event, upto: usize) {
        let Some(ends) = self.connections.get(&connection).cloned() else {
            return;
        };
        let member = ends.replica;
        let Member { disk, process, .. } = &mut self.members[member];
        let Some(process) = process else { return };
        if process.io != (Io::Connected { connection }) {
            return;
        }
        disk.relay.push(event);
        let pid = process.incarnation.pid;
        self.heard(member, connection);
        if ends.semi_sync {
            self.receipt(&ends, event);
            let delay = self.delay();
            let now = self.now;
            let (from, to) = (Place::Machine(member), Place::Machine(ends.source));
            if !self.cuts.free(from, to) {
                self.cuts
                    .hold(from, to, Happening::Ack { connection, upto });
            } else if let Some(ends) = self.connections.get_mut(&connection) {
                ends.last_ack = ends.last_ack.max(now + delay) + 1;
                let at = ends.last_ack;
                self.at(at, Happening::Ack { connection, upto });
            }
        }
        let slow = match self.world.below(100) {
            0..=89 => self.world.between(100, 2_000),
            90..=97 => self.world.between(2_000, 50_000),
            _ => self.world.between(50_000, 400_000),
        };
        self.after(slow, Happening::Apply { member, pid });
    }

    fn receipt(&mut self, ends: &Connection, event: Event) {
        let source = self.members[ends.source]
            .process
            .as_ref()
            .filter(|source| source.incarnation.pid == ends.source_pid)
            .map(|source| source.epoch);
        let disks: Vec<&Disk> = self.members.iter().map(|member| &member.disk).collect();
        if let Some(epoch) = source {
            self.checker.receipt(
                event,
                (ends.source, epoch),
                ends.replica,
                &disks,
                &self.names,
                self.store.as_ref(),
            );
        }
    }

    pub(super) fn apply(&mut self, member: usize, pid: u32) {
        let Member { disk, process, .. } = &mut self.members[member];
        if process
            .as_ref()
            .is_some_and(|process| process.incarnation.pid == pid && process.applying)
        {
            disk.apply_one();
            self.send_to_replicas(member);
        }
    }

    pub(super) fn ack(&mut self, connection: u64, upto: usize) {
        let Some(ends) = self.connections.get(&connection) else {
            return;
        };
        let (source, replica, pid) = (ends.source, ends.replica, ends.source_pid);
        let Some(process) = &self.members[source].process else {
            return;
        };
        let counts = process.incarnation.pid == pid
            && process
                .dumps
                .get(&replica)
                .is_some_and(|dump| dump.connection == connection && dump.semi_sync);
        if counts {
            self.acknowledged(source, upto);
        }
    }

    /// Commits up to here are acknowledged: clients are told, and the engine commits a little later.
    pub(super) fn acknowledged(&mut self, member: usize, upto: usize) {
        let Member { disk, process, .. } = &mut self.members[member];
        let Some(process) = process else { return };
        let done: Vec<usize> = process
            .waiting
            .iter()
            .copied()
            .filter(|at| *at <= upto)
            .collect();
        process.waiting.retain(|at| *at > upto);
        let pid = process.incarnation.pid;
        let events: Vec<Event> = done
            .iter()
            .filter_map(|at| disk.binlog.get(at - 1).copied())
            .collect();
        let disks: Vec<&Disk> = self.members.iter().map(|member| &member.disk).collect();
        for event in events {
            self.checker
                .acknowledged(event, &disks, &self.names, self.store.as_ref());
        }
        self.own_barrier_over(member, upto);
        if !done.is_empty() {
            let later = self.world.between(10, 1_500);
            self.after(later, Happening::EngineCommits { member, pid, upto });
            self.waiting_changed(member);
        }
    }

    /// The replica notices that its source is gone, and asks again.
    pub(super) fn connection_lost(&mut self, connection: u64) {
        let Some(ends) = self.connections.remove(&connection) else {
            return;
        };
        let lost = Io::Connected { connection };
        if self.members[ends.replica]
            .process
            .as_ref()
            .is_some_and(|process| process.io == lost)
        {
            self.begin_receiving(ends.replica);
            self.report(ends.replica);
        }
    }

    /// The source end of these connections is gone: what was sent still arrives, then the replicas notice.
    pub(super) fn dumps_end(&mut self, ended: Vec<Dump>) {
        for dump in ended {
            let mut delay = self.delay();
            let ends = self.connections.get(&dump.connection);
            let unseen = ends.is_some_and(|ends| {
                let (from, to) = (Place::Machine(ends.source), Place::Machine(ends.replica));
                !self.cuts.free(from, to) || self.members[ends.source].sleeping.is_some()
            });
            if unseen {
                // Nothing says so: it is found by a timeout.
                delay += 400_000;
            }
            let last = self
                .connections
                .get(&dump.connection)
                .map_or(0, |ends| ends.last_data);
            let at = last.max(self.now + delay) + 1;
            self.at(
                at,
                Happening::ConnectionLost {
                    connection: dump.connection,
                },
            );
        }
    }
}
