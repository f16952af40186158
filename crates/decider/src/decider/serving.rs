//! `Serving(e)`: keep the holder open, every other member replicating from it, and A at its size. And end the epoch the
//! moment its holder's server is known to have exited, or when a switchover is asked for.

use super::sight::Sight;
use super::{Decider, Switchover};
use crate::rules::Mutation;
use crate::{
    Acker, Effect, Evidence, MemberId, NoteEvent, Phase, Promotion, Receiver, Record, Recovery,
    SwitchoverRefused, Verb, Wait,
};

impl Decider {
    pub(super) fn plan_serving(&mut self, record: &Record) {
        let holder = record.holder.clone();
        let Some(known) = self.members.get(&holder) else {
            return;
        };
        if known.is_down() {
            self.end_epoch(record, Evidence::ServerExited { holder });
            return;
        }
        let persisted_serving = known
            .persisted()
            .is_some_and(|known| known.phase == Phase::Serving && known.epoch == record.epoch);
        if let Some(facts) = known.facts() {
            // A report made under this Serving record is younger than the barrier, so its server must show it.
            if persisted_serving
                && facts.barrier != Some(record.epoch)
                && !self.rules.broken(Mutation::SkipBarrier)
            {
                self.end_epoch(record, Evidence::ServerReplaced { holder });
                return;
            }
        }
        if let Some(evidence) = self.holder_at_fault(record) {
            self.end_epoch(record, evidence);
            return;
        }
        if self.sight(&holder) == Sight::Silent {
            self.waits.push(Wait::Member {
                member: holder.clone(),
            });
        }
        self.expiries.clear();
        self.watch_health(record);
        if !self.keep_open(record, &holder) {
            return;
        }
        self.close_former(record);
        let settled = self
            .changed_at
            .unwrap_or_default()
            .after(self.config.settle);
        if self.changed_at.is_some() && self.now < settled {
            self.wake_after(settled.since(self.now));
            return;
        }
        let others: Vec<MemberId> = self
            .members
            .keys()
            .filter(|member| **member != holder)
            .cloned()
            .collect();
        let mut admit = None;
        for member in others {
            admit = admit.or(self.tend(record, &member));
        }
        if let Some(member) = admit {
            self.order(record, &holder, Verb::Admit { member });
        } else {
            self.change_ackers(record, &holder);
        }
    }

    /// Opens the holder and tells the endpoints. Says whether it is open and up to date.
    fn keep_open(&mut self, record: &Record, holder: &MemberId) -> bool {
        let Some(known) = self.members.get(holder) else {
            return false;
        };
        let Some(facts) = known.facts() else {
            self.waits.push(Wait::Member {
                member: holder.clone(),
            });
            return false;
        };
        if facts.read_only {
            let back = self
                .switchover
                .as_ref()
                .is_some_and(|switchover| switchover.old == *holder);
            let verb = if back { Verb::Reinstate } else { Verb::Open };
            self.order(record, holder, verb);
            return false;
        }
        let lagging = known
            .persisted()
            .is_none_or(|persisted| persisted.rank() < record.rank());
        self.opened(record, holder);
        if lagging {
            self.order(record, holder, Verb::Learn);
            return false;
        }
        true
    }

    fn opened(&mut self, record: &Record, holder: &MemberId) {
        self.tell_endpoints(record, Some(holder.clone()));
        if let Some(since) = self.changing_since.take() {
            self.changed_at = Some(self.now);
            let took = self.now.since(since);
            self.note(
                Some(record.clone()),
                NoteEvent::Opened {
                    holder: holder.clone(),
                    took,
                },
            );
        }
        if let Some(switchover) = self.switchover.take() {
            let moved =
                switchover.old != *holder && switchover.to.as_ref().is_none_or(|to| to == holder);
            let result = if moved {
                Ok(holder.clone())
            } else {
                Err(SwitchoverRefused::OutOfTime {
                    holder: holder.clone(),
                })
            };
            self.out.push(Effect::SwitchoverDone {
                request: switchover.request,
                result,
            });
        }
    }

    /// Since when each acker has not been receiving, for the choice of whom to replace.
    fn watch_health(&mut self, record: &Record) {
        let now = self.now;
        let well: Vec<MemberId> = self
            .members
            .keys()
            .filter(|member| self.sight(member) == Sight::Well)
            .cloned()
            .collect();
        for (member, known) in &mut self.members {
            let working = well.contains(member)
                && known.facts().is_some_and(|facts| match &facts.receiver {
                    Receiver::Running {
                        source,
                        connected,
                        error,
                        ..
                    } => source.member == record.holder && *connected && error.is_none(),
                    Receiver::None | Receiver::Stopped { .. } => false,
                });
            known.away_since = if working {
                None
            } else {
                known.away_since.or(Some(now))
            };
        }
    }

    /// Gives a member its next step towards replicating from the holder. `Some`: it waits to be let in.
    fn tend(&mut self, record: &Record, member: &MemberId) -> Option<MemberId> {
        let counts = (record.ackers.contains(member) && record.leaving.as_ref() != Some(member))
            || self.rules.broken(Mutation::EnableAckerBeforeCas);
        let known = self.members.get(member)?;
        if !known.reachable || known.report.is_none() {
            self.waits.push(Wait::Member {
                member: member.clone(),
            });
            return None;
        }
        if self.rebuild(record, member) {
            return None;
        }
        let known = self.members.get(member)?;
        if known.is_down() {
            let recovery = match known.held() {
                // A member of A was contained when A was named: it has no tail, and what it has may be needed.
                Some(_) if record.ackers.contains(member) => Recovery::KeepTail,
                Some(held)
                    if held < record.epoch
                        || self.rules.broken(Mutation::HolderRestartedWithWrongRole) =>
                {
                    Recovery::DropTail
                }
                Some(_) | None => Recovery::KeepTail,
            };
            self.order(record, member, Verb::Start { recovery });
            return None;
        }
        // A former holder that was fenced at its ackers is back, or a replica hangs: what it received is on its disk.
        if known.is_open() || self.sight(member) == Sight::Hung {
            self.order(record, member, Verb::Kill);
            return None;
        }
        let facts = known.facts()?;
        if record.leaving.as_ref() == Some(member) {
            return None;
        }
        let lagging = known
            .persisted()
            .is_none_or(|persisted| persisted.rank() < record.rank());
        let right = facts
            .receiver
            .source()
            .is_some_and(|source| source.member == record.holder)
            && facts.acker == counts
            // One that began to hold an epoch and then did not is as a holder in all but its source, which it may not have
            // forgotten yet: it is pointed anew.
            && known.held().is_none();
        let admitted = self
            .members
            .get(&record.holder)
            .and_then(|holder| holder.facts())
            .is_some_and(|facts| facts.admitted.contains(member));
        match facts.receiver.clone() {
            Receiver::Running {
                error: Some(error), ..
            } if right && admitted => {
                let end = facts.applied;
                self.waits.push(Wait::Diverged {
                    member: member.clone(),
                    end,
                    error,
                });
            }
            Receiver::Running { .. } if right => {
                if lagging {
                    self.order(record, member, Verb::Learn);
                } else if !admitted {
                    return Some(member.clone());
                }
            }
            Receiver::Running { .. } => self.order(record, member, Verb::StopReceiving),
            Receiver::None | Receiver::Stopped { .. }
                if facts.needs_salvage && !self.salvage_skipped() =>
            {
                self.order(record, member, Verb::Drain);
            }
            Receiver::Stopped { .. } if right && !admitted && !lagging => {
                return Some(member.clone());
            }
            Receiver::Stopped { .. } if right => self.order(record, member, Verb::Receive),
            Receiver::None | Receiver::Stopped { .. } => {
                if let Some(source) = self.source_of(&record.holder) {
                    let acker = if counts {
                        Acker::Counts
                    } else {
                        Acker::Asynchronous
                    };
                    self.order(record, member, Verb::Repoint { source, acker });
                }
            }
        }
        None
    }

    fn salvage_skipped(&self) -> bool {
        self.rules.broken(Mutation::StartWithoutSalvage)
            || self.rules.broken(Mutation::RepointWithoutDrain)
    }

    /// Keeps A at its size, by section 2's rules. A replacement is added before anybody is removed.
    fn change_ackers(&mut self, record: &Record, holder: &MemberId) {
        if let Some(leaving) = record.leaving.clone() {
            self.remove(record, holder, &leaving);
            return;
        }
        if let Some(member) = self.leaves(record) {
            // Where somebody can take its place first, he does.
            let full = record.ackers.len() > self.config.ackers;
            let next = self.replacement(record, holder).filter(|_| !full);
            let mut new = self.successor(record);
            match next {
                Some(next) => drop(new.ackers.insert(next)),
                None => new.leaving = Some(member),
            }
            self.cas(new);
            return;
        }
        let wait = self.config.replace_acker_after;
        let away = |member: &MemberId| self.members.get(member).and_then(|known| known.away_since);
        let gone = record
            .ackers
            .iter()
            .filter_map(|member| Some((away(member)?, member.clone())))
            .min();
        let overdue = gone
            .clone()
            .filter(|(since, _)| self.now.since(*since) >= wait);
        if let Some((since, _)) = gone.filter(|_| overdue.is_none()) {
            self.wake_after(wait.saturating_sub(self.now.since(since)));
        }
        if record.ackers.len() > self.config.ackers {
            if let Some((_, member)) = overdue {
                let new = Record {
                    leaving: Some(member),
                    ..self.successor(record)
                };
                self.cas(new);
            }
            return;
        }
        let wanted = record.ackers.len() < self.config.ackers || overdue.is_some();
        if let Some(member) = self.replacement(record, holder).filter(|_| wanted) {
            let mut new = self.successor(record);
            new.ackers.insert(member);
            self.cas(new);
        }
    }

    /// A member that could count: it replicates asynchronously and has the barrier of this epoch, so it contains all
    /// that was acknowledged before it and is a prefix of the holder's log.
    fn replacement(&self, record: &Record, holder: &MemberId) -> Option<MemberId> {
        let ready = |member: &MemberId| {
            self.members.get(member).is_some_and(|known| {
                let facts = known.facts();
                let caught_up = facts
                    .and_then(|facts| facts.received)
                    .is_some_and(|received| received.barrier == record.epoch);
                let report = known.report.as_ref();
                let incomplete = report.and_then(|report| report.incomplete);
                known.away_since.is_none()
                    && caught_up
                    // It has to know that it did not count, before it counts again.
                    && incomplete < Some(record.epoch)
                    && known
                        .persisted()
                        .is_some_and(|known| known.epoch == record.epoch)
            })
        };
        let list = self
            .members
            .keys()
            .filter(|member| *member != holder && !record.ackers.contains(*member))
            .cloned();
        self.by_rack(holder, list.collect()).into_iter().find(ready)
    }

    /// Locked out first, then a barrier begun after that is acknowledged by the rest; only then it is gone from A.
    fn remove(&mut self, record: &Record, holder: &MemberId, leaving: &MemberId) {
        if self.gathered.expelled.as_ref() != Some(leaving) {
            let member = leaving.clone();
            self.order(record, holder, Verb::Expel { member });
        } else if self.gathered.barrier != Some(record.epoch) {
            self.order(record, holder, Verb::Barrier);
        } else {
            let mut new = self.successor(record);
            new.ackers.remove(leaving);
            new.leaving = None;
            self.cas(new);
        }
    }

    fn successor(&self, record: &Record) -> Record {
        Record {
            version: record.version.next(),
            term: self.term,
            ..record.clone()
        }
    }

    pub(super) fn switchover_asked(&mut self, request: u64, to: Option<MemberId>) {
        match self.may_switch_over(to.as_ref()) {
            Err(refused) => self.out.push(Effect::SwitchoverDone {
                request,
                result: Err(refused),
            }),
            Ok(record) => {
                let deadline = self.now.after(self.config.switchover_bound);
                let old = record.holder.clone();
                self.switchover = Some(Switchover {
                    request,
                    to: to.clone(),
                    deadline,
                    old: old.clone(),
                });
                self.end_epoch(&record, Evidence::SwitchoverAsked { holder: old, to });
            }
        }
    }

    fn may_switch_over(&self, to: Option<&MemberId>) -> Result<Record, SwitchoverRefused> {
        if self.switchover.is_some() {
            return Err(SwitchoverRefused::UnderWay);
        }
        let serving = self
            .record
            .as_ref()
            .filter(|record| record.phase == Phase::Serving && self.cas.is_none());
        let open = self.endpoint.clone().flatten();
        let Some(record) = serving.filter(|record| {
            let holder = self.members.get(&record.holder);
            open.as_ref() == Some(&record.holder)
                && self.standing == super::Standing::Leading
                && holder.is_some_and(|holder| holder.reachable && holder.is_up())
        }) else {
            let state = self
                .record
                .as_ref()
                .map_or("no record".to_owned(), |record| {
                    format!("{:?}", record.phase)
                });
            return Err(SwitchoverRefused::NotServing { state });
        };
        let may = |member: &MemberId| self.config.promotion_of(member) != Promotion::MustNot;
        let ready = |member: &MemberId| {
            may(member)
                && record.ackers.contains(member)
                && self
                    .members
                    .get(member)
                    .is_some_and(|known| known.away_since.is_none() && known.reachable)
        };
        match to {
            Some(to) if !self.members.contains_key(to) => {
                Err(SwitchoverRefused::NotAMember { member: to.clone() })
            }
            Some(to) if *to == record.holder => {
                Err(SwitchoverRefused::AlreadyHolder { member: to.clone() })
            }
            Some(to) if !may(to) => {
                let why = "it must not be promoted, by the cluster's declaration".to_owned();
                Err(SwitchoverRefused::NotReady {
                    member: to.clone(),
                    why,
                })
            }
            Some(to) if !ready(to) => {
                let why = "it is not an acker that replicates from the primary".to_owned();
                Err(SwitchoverRefused::NotReady {
                    member: to.clone(),
                    why,
                })
            }
            None if !record.ackers.iter().any(ready) => Err(SwitchoverRefused::NobodyReady),
            Some(_) | None => Ok(record.clone()),
        }
    }
}
