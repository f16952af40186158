//! `Promoting(e, N, A')`: make N the primary and close the epochs before it (failover.md section 4, steps 5 to 7).
//!
//! N takes over while A' is pointed at it; each acker is let in as it answers; the barrier goes out as soon as enough
//! are let in, and is acknowledged when the first of them receives it.

use homeostat_model::{Epoch, Reads};

use super::Decider;
use super::member::Member;
use crate::rules::Mutation;
use crate::{Acker, Evidence, MemberId, Phase, Record, Recovery, Source, Verb, Wait, proof};

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
        // A first start waits for its members: nobody is served yet, and an epoch that nobody had data in cannot be proved.
        let evidence = self.holder_at_fault(record);
        if let Some(evidence) = evidence.filter(|_| self.has_data(record, &holder)) {
            self.end_epoch(record, evidence);
            return;
        }
        self.count_leases_down(record);
        self.close_former(record);
        let barrier = self.gathered.barrier.or_else(|| {
            self.members
                .get(&holder)?
                .facts()
                .and_then(|facts| facts.barrier)
                .filter(|epoch| *epoch == record.epoch)
        });
        if let Some(new) =
            proof::serve(self.rules, record, self.term, barrier).filter(|_| self.may_serve())
            && self.has_begun(record)
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

    /// The first epoch is served when all of A are known to have a data folder: one that is made later was lost before, with
    /// whatever it acknowledged.
    fn has_begun(&mut self, record: &Record) -> bool {
        let missing: Vec<MemberId> = record
            .ackers
            .iter()
            .filter(|member| !self.has_data(record, member))
            .cloned()
            .collect();
        let all = missing.is_empty();
        self.waits
            .extend(missing.into_iter().map(|member| Wait::Member { member }));
        all
    }

    fn has_data(&self, record: &Record, member: &MemberId) -> bool {
        let known = self.members.get(member);
        let heard = known.is_some_and(|known| known.report.is_some());
        record.epoch > Epoch(1) || (heard && !self.is_empty(member))
    }

    /// A holder of epoch 1 that was never started cannot have acknowledged: it is only not started yet.
    fn is_first_start(&self, record: &Record, holder: &MemberId) -> bool {
        self.is_empty(holder) && record.epoch.0 == 1
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
            if self.former_may_be_read(record) {
                return;
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

    /// A former holder that was fenced at its ackers may be alive, with clients that read there. Once it is heard it is
    /// ended; its tail is dropped by a restart when the new epoch serves.
    pub(super) fn close_former(&mut self, record: &Record) {
        let open: Vec<MemberId> = self
            .members
            .iter()
            .filter(|(member, known)| **member != record.holder && known.is_open())
            .map(|(member, _)| member.clone())
            .collect();
        for member in open {
            self.order(record, &member, Verb::Kill);
        }
    }

    /// `reads = "strict"`: the new primary acknowledges nothing before every former holder is known to be closed, or its
    /// lease has ended. That takes nothing from the fence; it ends stale reads.
    fn former_may_be_read(&mut self, record: &Record) -> bool {
        let strict = match self.config.reads {
            Reads::Strict => !self.rules.broken(Mutation::StrictWithoutExpiry),
            Reads::Bounded => false,
        };
        if !strict {
            return false;
        }
        let mut waits = false;
        for of in &record.unclosed {
            let closed = |known: &Member| {
                let newer = known
                    .persisted()
                    .is_some_and(|persisted| persisted.epoch > of.epoch);
                newer && (known.is_down() || (known.is_up() && !known.is_open()))
            };
            if of.holder == record.holder || self.members.get(&of.holder).is_some_and(closed) {
                continue;
            }
            let expiry = self.expiries.get(&of.epoch).copied();
            if let Some(expiry) = expiry.filter(|expiry| *expiry > self.now) {
                self.wake_after(expiry.since(self.now));
                self.waits.push(Wait::Expiry {
                    holder: of.holder.clone(),
                    epoch: of.epoch,
                });
                waits = true;
            }
        }
        waits
    }

    /// A leader that found the record like this does not know since when no lease was granted to the holders before: since
    /// now at the latest, for it looked at the record before.
    fn count_leases_down(&mut self, record: &Record) {
        let from_now = self.now.after(self.config.expiry());
        for of in &record.unclosed {
            self.expiries.entry(of.epoch).or_insert(from_now);
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
