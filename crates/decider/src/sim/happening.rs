//! Things that happen in the simulated world, and to whom they are handed.

use homeostat_model::Sequence;

use super::cut::Place;
use super::server::Event;
use super::sleep::Sleep;
use super::{Member, Sim};
use crate::{
    CasOutcome, Input, LeaseGrant, LeaseRequest, MemberReport, Now, Order, OrderReply, Record,
};

/// Things that happen. Times are virtual microseconds.
#[derive(Debug, Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "few exist at a time, and a box would hide the shape"
)]
pub(super) enum Happening {
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
    LeaseArrives {
        controller: usize,
        member: usize,
        link: u64,
        request: LeaseRequest,
    },
    GrantArrives {
        member: usize,
        keeper: u64,
        grant: LeaseGrant,
    },
    /// The keeper's regular work: a look at the server, a report, its own barrier, a renewal.
    Pulse {
        member: usize,
    },
    /// A server to its replicas.
    Heartbeat {
        member: usize,
    },
    Deadline {
        member: usize,
        keeper: u64,
    },
    Wakes {
        member: usize,
        who: Sleep,
    },
    CutBegins {
        ways: Vec<(Place, Place)>,
        micros: u64,
    },
    CutHeals {
        cut: u64,
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
    CopyEnds {
        member: usize,
        keeper: u64,
        copy: u64,
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
    Read,
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

impl Sim {
    pub(super) fn happen(&mut self, happening: Happening) {
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
            Happening::LeaseArrives {
                controller,
                member,
                link,
                request,
            } => {
                let ends = &self.controllers[controller].links[member];
                if ends.up && ends.number == link {
                    self.tell(controller, Input::LeaseAsked(request));
                }
            }
            Happening::GrantArrives {
                member,
                keeper,
                grant,
            } => self.grant_arrives(member, keeper, &grant),
            Happening::CopyEnds {
                member,
                keeper,
                copy,
            } => self.copy_ends(member, keeper, copy),
            Happening::Pulse { member } => self.pulse(member),
            Happening::Heartbeat { member } => self.heartbeat(member),
            Happening::Deadline { member, keeper } => self.deadline(member, keeper),
            Happening::Wakes { member, who } => self.wakes(member, who),
            Happening::CutBegins { ways, micros } => self.cut(ways, micros),
            Happening::CutHeals { cut } => self.cut_heals(cut),
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
            Happening::Read => self.read(),
            Happening::Report => {
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
}
