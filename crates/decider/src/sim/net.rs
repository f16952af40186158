//! Messages, connections and replication traffic. Reports and replies are in order per connection; orders are not, may
//! be very late and may arrive twice. What was on its way when a source died still arrives.

use std::time::Duration;

use homeostat_model::Sequence;

use super::server::{Disk, Dump, Event, Io};
use super::{Connection, Happening, Member, Sim};
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
        let calm = self.faults_over;
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
        self.after(
            delay,
            Happening::OrderArrives {
                controller,
                member,
                order,
            },
        );
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
    fn on_link(
        &mut self,
        controller: usize,
        member: usize,
        happening: impl FnOnce(u64) -> Happening,
    ) {
        let delay = self.delay();
        let now = self.now;
        let link = &mut self.controllers[controller].links[member];
        link.last = link.last.max(now + delay) + 1;
        let (at, number) = (link.last, link.number);
        self.at(at, happening(number));
    }

    pub(super) fn send_reply(&mut self, controller: usize, member: usize, reply: OrderReply) {
        if !self.faults_over && self.net.chance(20) {
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
        self.members[member].report_at = self.now;
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
        if !self.controllers[controller].alive || self.controllers[controller].links[member].up {
            return;
        }
        let Some(report) = self.look(member) else {
            return;
        };
        let link = &mut self.controllers[controller].links[member];
        link.up = true;
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
        let let_in = source_process
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
            ends.last_data = ends.last_data.max(now + delay) + 1;
            let at = ends.last_data;
            self.at(
                at,
                Happening::Data {
                    connection,
                    event,
                    upto,
                },
            );
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
        if ends.semi_sync {
            let delay = self.delay();
            let now = self.now;
            if let Some(ends) = self.connections.get_mut(&connection) {
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
            let delay = self.delay();
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
