//! `Promoting(e, N, A')`: make N the primary and close the epochs before it (failover.md section 4, steps 5 to 7).
//!
//! N takes over while A' is pointed at it; each acker is let in as it answers; the barrier goes out as soon as enough
//! are let in, and is acknowledged when the first of them receives it.

use super::Decider;
use crate::rules::Mutation;
use crate::{
    Acker, Evidence, MemberId, Phase, Record, Recovery, ServerState, Source, Verb, Wait, proof,
};

impl Decider {
    pub(super) fn plan_promoting(&mut self, record: &Record) {
        let holder = record.holder.clone();
        let Some(known) = self.members.get(&holder) else {
            return;
        };
        if known.is_down() && !self.is_first_start(record, &holder) {
            self.end_epoch(record, Evidence::ServerExited { holder });
            return;
        }
        let barrier = self.gathered.barrier.or_else(|| {
            known
                .facts()
                .and_then(|facts| facts.barrier)
                .filter(|epoch| *epoch == record.epoch)
        });
        if let Some(new) =
            proof::serve(self.rules, record, self.term, barrier).filter(|_| self.may_serve())
        {
            self.cas(new);
            return;
        }
        for acker in record.ackers.clone() {
            self.connect_acker(record, &acker);
        }
        self.work_at_holder(record, &holder);
    }

    /// With the barrier rule broken nothing else would be waited for.
    fn may_serve(&self) -> bool {
        !self.rules.broken(Mutation::SkipBarrier) || !self.gathered.admitted.is_empty()
    }

    /// A holder of epoch 1 that was never started cannot have acknowledged: it is only not started yet.
    fn is_first_start(&self, record: &Record, holder: &MemberId) -> bool {
        let fresh = self
            .members
            .get(holder)
            .and_then(|known| known.report.as_ref())
            .is_some_and(|report| {
                matches!(
                    report.server,
                    ServerState::Down {
                        initialised: false,
                        ..
                    }
                )
            });
        fresh && record.epoch.0 == 1
    }

    fn work_at_holder(&mut self, record: &Record, holder: &MemberId) {
        let Some(known) = self.members.get(holder) else {
            return;
        };
        if known.is_down() {
            self.order(
                record,
                holder,
                Verb::Start {
                    recovery: Recovery::KeepTail,
                },
            );
            return;
        }
        if !known.is_up() {
            return;
        }
        if !self.gathered.taken_over && !self.rules.broken(Mutation::ReconnectWithoutLocks) {
            self.order(record, holder, Verb::TakeOver);
            return;
        }
        let next = record
            .ackers
            .iter()
            .find(|member| {
                self.gathered.repointed.contains(*member)
                    && !self.gathered.admitted.contains(*member)
            })
            .cloned();
        if let Some(member) = next {
            self.order(record, holder, Verb::Admit { member });
        } else if self.gathered.admitted.len() >= usize::from(record.k) {
            if self.rules.broken(Mutation::OpenBeforeServing) {
                self.order(record, holder, Verb::Open);
            }
            self.order(record, holder, Verb::Barrier);
        } else {
            let why = record
                .ackers
                .iter()
                .map(|member| (member.clone(), "not connected yet".to_owned()))
                .collect();
            self.waits.push(Wait::Ackers {
                holder: holder.clone(),
                why,
            });
        }
    }

    fn connect_acker(&mut self, record: &Record, member: &MemberId) {
        let Some(known) = self.members.get(member) else {
            return;
        };
        if known.is_down() {
            // Also one that held an epoch: when A' was named its log was read and contained, and it was closed since.
            self.order(
                record,
                member,
                Verb::Start {
                    recovery: Recovery::KeepTail,
                },
            );
            return;
        }
        let Some(facts) = known.facts() else { return };
        if !self.gathered.repointed.contains(member) {
            if facts.needs_salvage && !self.rules.broken(Mutation::RepointWithoutDrain) {
                self.order(record, member, Verb::Drain);
                return;
            }
            if let Some(source) = self.source_of(&record.holder) {
                self.order(
                    record,
                    member,
                    Verb::Repoint {
                        source,
                        acker: Acker::Counts,
                    },
                );
            }
        } else if self.gathered.admitted.contains(member)
            && !self.gathered.received.contains(member)
        {
            self.order(record, member, Verb::Receive);
        }
    }

    pub(super) fn source_of(&self, holder: &MemberId) -> Option<Source> {
        let report = self.members.get(holder)?.report.as_ref()?;
        Some(Source {
            member: holder.clone(),
            host: report.host.clone(),
            port: report.port,
        })
    }

    /// Step 1 of a change of epoch: nobody holds the next epoch yet.
    pub(super) fn end_epoch(&mut self, record: &Record, evidence: Evidence) {
        self.changing_since = Some(self.now);
        self.note(
            Some(record.clone()),
            crate::NoteEvent::Evidence { evidence },
        );
        let mut unclosed = record.unclosed.clone();
        // A serving epoch has closed the ones before it.
        if record.phase == Phase::Serving {
            unclosed.clear();
        }
        self.cas(Record {
            epoch: record.epoch.next(),
            version: record.version.next(),
            term: self.term,
            phase: Phase::Revoking,
            holder: record.holder.clone(),
            ackers: record.ackers.clone(),
            leaving: None,
            k: record.k,
            unclosed,
        });
    }
}
