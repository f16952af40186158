//! What inputs change: the record as last seen, the members as last heard of, and what was gathered under the record.
//! Nothing is decided here.

use homeostat_model::Term;

use super::member::{Gathered, RebuildStep};
use super::words::{name_of, summary};
use super::{Decider, Standing};
use crate::proof::{Demoted, KnownLog, Revocation};
use crate::rules::Mutation;
use crate::{
    CasOutcome, Effect, Evidence, KeeperIncarnation, LogEnd, LogOrder, MemberId, MemberReport,
    NoteEvent, OrderOutcome, OrderReply, Phase, Pulse, Record, Refusal, SwitchoverRefused, Verb,
};

impl Decider {
    pub(super) fn record_read(&mut self, record: Option<Record>) {
        let Some(look) = self.reading.take() else {
            return;
        };
        // A compare-and-set begun since then knows better, whether it is still under way or was quicker than this read.
        if self.cas.is_some() || look < self.look_done {
            return;
        }
        self.look_done = look;
        if self.standing == Standing::Unread {
            self.standing = Standing::Read;
        }
        self.adopt(record);
    }

    pub(super) fn cas_done(&mut self, attempt: u64, outcome: CasOutcome) {
        let Some(cas) = self.cas.take_if(|cas| cas.attempt == attempt) else {
            return;
        };
        match outcome {
            CasOutcome::Committed => {
                self.look_done = cas.look;
                self.adopt(Some(cas.new));
            }
            CasOutcome::Lost { current } => {
                self.look_done = cas.look;
                self.adopt(current);
            }
            CasOutcome::Unknown => self.read(),
        }
    }

    /// The record is this now. Whatever was gathered under another one is void.
    pub(super) fn adopt(&mut self, record: Option<Record>) {
        if let Some(new) = &record {
            if new.term > self.term {
                self.supersede(new.term);
                return;
            }
            if new.term == self.term && self.standing == Standing::Read {
                self.standing = Standing::Leading;
                self.note(Some(new.clone()), NoteEvent::Leading { term: self.term });
                if new.phase != Phase::Serving && self.changing_since.is_none() {
                    let evidence = Evidence::Resumed { phase: new.phase };
                    self.note(Some(new.clone()), NoteEvent::Evidence { evidence });
                    self.changing_since = Some(self.now);
                }
            }
        }
        if self.rules.broken(Mutation::LeaderDoesNotCasFirst)
            && record.is_some()
            && self.standing == Standing::Read
        {
            self.standing = Standing::Leading;
        }
        if record == self.record {
            return;
        }
        if let Some(new) = &record {
            self.gathered = Gathered::under(new.rank());
            self.note(
                Some(new.clone()),
                NoteEvent::Record {
                    record: new.clone(),
                },
            );
            if new.phase != Phase::Serving {
                self.tell_endpoints(new, None);
            }
        }
        self.record = record;
    }

    pub(super) fn supersede(&mut self, by: Term) {
        self.standing = Standing::Superseded { by };
        self.note(self.record.clone(), NoteEvent::Superseded { by });
        if let Some(switchover) = self.switchover.take() {
            let result = Err(SwitchoverRefused::LeaderChanged);
            self.out.push(Effect::SwitchoverDone {
                request: switchover.request,
                result,
            });
        }
    }

    pub(super) fn reported(&mut self, report: MemberReport) {
        let looks = self.looks_begun;
        let member = report.member.clone();
        let Some(known) = self.members.get_mut(&report.member) else {
            return;
        };
        let earlier = known.report.as_ref();
        let other_keeper = earlier.is_none_or(|earlier| earlier.incarnation != report.incarnation);
        if other_keeper && report.record.is_none() {
            known.needs_read = looks + 1;
        }
        if other_keeper && let Some(rebuild) = &mut known.rebuild {
            // Half a copy died with its keeper.
            rebuild.step = RebuildStep::Wanted;
        }
        let same_server = earlier.and_then(MemberReport::running) == report.running();
        if other_keeper || !same_server {
            self.gathered.forget(&report.member);
        }
        known.report = Some(report);
        self.heard(&member);
    }

    /// A keeper gave a sign of life. Of a keeper that has not reported yet it says nothing.
    pub(super) fn alive(
        &mut self,
        member: &MemberId,
        incarnation: KeeperIncarnation,
        pulse: Pulse,
    ) {
        let report = self
            .members
            .get_mut(member)
            .and_then(|known| known.report.as_mut())
            .filter(|report| report.incarnation == incarnation);
        if let Some(report) = report {
            report.pulse = Some(pulse);
            self.heard(member);
        }
    }

    fn heard(&mut self, member: &MemberId) {
        let now = self.now;
        let gap = self.config.pulse.saturating_mul(3);
        let backlog_believed = self.rules.broken(Mutation::BacklogBelieved);
        let Some(known) = self.members.get_mut(member) else {
            return;
        };
        known.reachable = true;
        let steady = known.heard_at.is_some_and(|at| now.since(at) <= gap);
        if !steady && !backlog_believed {
            known.steady_since = Some(now);
        }
        known.heard_at = Some(now);
    }

    pub(super) fn replied(&mut self, reply: &OrderReply) {
        let Some(known) = self.members.get_mut(&reply.member) else {
            return;
        };
        let Some(order) = known
            .order
            .take_if(|order| order.sequence == reply.sequence)
        else {
            return;
        };
        let same_keeper = known
            .report
            .as_ref()
            .is_some_and(|report| report.incarnation == reply.incarnation);
        if !same_keeper {
            return;
        }
        known.retry = None;
        match &reply.outcome {
            OrderOutcome::Refused(refusal) => {
                if let (Refusal::Stale { persisted }, Some(report)) = (refusal, &mut known.report) {
                    report.record = Some((**persisted).clone());
                }
                let why = format!("{} was refused: {refusal:?}", name_of(&order.verb));
                known.retry = Some((self.now.after(self.config.retry), why));
            }
            OrderOutcome::Failed { why } => {
                let why = format!("{} failed: {why}", name_of(&order.verb));
                known.retry = Some((self.now.after(self.config.retry), why));
            }
            OrderOutcome::Done
            | OrderOutcome::Started { .. }
            | OrderOutcome::Exited { .. }
            | OrderOutcome::Stopped { .. }
            | OrderOutcome::Drained { .. }
            | OrderOutcome::BarrierDone { .. }
            | OrderOutcome::Lent { .. }
            | OrderOutcome::Demoted { .. } => {}
        }
        known.apply(&order.record, &order.verb, &reply.outcome);
        let event = NoteEvent::OrderDone {
            member: reply.member.clone(),
            order: name_of(&order.verb),
            took: self.now.since(order.since),
            outcome: summary(&reply.outcome),
        };
        self.note(Some(order.record.clone()), event);
        self.copy_replied(&reply.member, &order.verb, &reply.outcome);
        if self.gathered.rank == order.record.rank() {
            self.gather(reply, &order.verb);
        }
    }

    /// A reply to an order of the current record is evidence.
    pub(super) fn gather(&mut self, reply: &OrderReply, verb: &Verb) {
        let member = reply.member.clone();
        let report = self
            .members
            .get(&member)
            .and_then(|known| known.report.as_ref());
        let incomplete = report.and_then(|report| report.incomplete);
        let gathered = &mut self.gathered;
        match &reply.outcome {
            OrderOutcome::Stopped { received, drained } => {
                gathered.stopped.insert(member.clone(), reply.incarnation);
                gathered
                    .revoked
                    .insert(member.clone(), Revocation::IoStopped);
                let received = match received {
                    None if self.rules.broken(Mutation::EmptyReceivedAsZero) => Some(LogEnd::EMPTY),
                    None => None,
                    Some(end) => Some(*end),
                };
                if let Some(received) = received {
                    gathered.logs.insert(
                        member,
                        KnownLog {
                            incomplete,
                            received,
                            drained: *drained,
                        },
                    );
                }
            }
            OrderOutcome::Drained { applied } => {
                // Also where the received end was unknown: after salvage it is the applied one.
                let received = match gathered.logs.get(&member) {
                    Some(known) if known.received.compare_prefixes(applied) == LogOrder::Ahead => {
                        known.received
                    }
                    Some(_) | None => *applied,
                };
                gathered.logs.insert(
                    member,
                    KnownLog {
                        incomplete,
                        received,
                        drained: Some(*applied),
                    },
                );
            }
            OrderOutcome::Demoted { position } => {
                gathered.demoted = Some(Demoted {
                    rank: gathered.rank,
                    member: member.clone(),
                    position: *position,
                });
                gathered.logs.insert(
                    member,
                    KnownLog {
                        incomplete,
                        received: *position,
                        drained: Some(*position),
                    },
                );
            }
            OrderOutcome::BarrierDone { epoch, .. } => gathered.barrier = Some(*epoch),
            OrderOutcome::Exited { .. } => gathered.forget(&member),
            OrderOutcome::Failed { .. } => {
                if matches!(verb, Verb::Demote { .. }) {
                    gathered.demote_failed.insert(member);
                }
            }
            OrderOutcome::Done => match verb {
                Verb::TakeOver => gathered.taken_over = true,
                Verb::Repoint { .. } => {
                    gathered.repointed.insert(member);
                }
                Verb::Admit { member } => {
                    gathered.admitted.insert(member.clone());
                }
                Verb::Expel { member } => {
                    gathered.expelled = Some(member.clone());
                    // A barrier begun before does not count.
                    gathered.barrier = None;
                }
                Verb::Receive => {
                    gathered.received.insert(member);
                }
                Verb::Learn
                | Verb::Start { .. }
                | Verb::Kill
                | Verb::StopReceiving
                | Verb::Drain
                | Verb::Barrier
                | Verb::Open
                | Verb::Demote { .. }
                | Verb::Reinstate
                | Verb::Lend { .. }
                | Verb::Rebuild { .. } => {}
            },
            OrderOutcome::Started { .. } | OrderOutcome::Lent { .. } | OrderOutcome::Refused(_) => {
            }
        }
    }

    pub(super) fn order_lost(&mut self, member: &MemberId, sequence: homeostat_model::Sequence) {
        let Some(known) = self.members.get_mut(member) else {
            return;
        };
        let Some(order) = known.order.take_if(|order| order.sequence == sequence) else {
            return;
        };
        if matches!(order.verb, Verb::Demote { .. }) && self.gathered.rank == order.record.rank() {
            self.gathered.demote_failed.insert(member.clone());
        }
        let why = format!("the outcome of {} is unknown", name_of(&order.verb));
        known.retry = Some((self.now.after(self.config.retry), why));
        self.copy_replied(
            member,
            &order.verb,
            &OrderOutcome::Failed { why: String::new() },
        );
    }
}
