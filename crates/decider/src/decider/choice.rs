//! Who comes next: the candidates in their order, their proofs, and who would acknowledge for them.

use std::collections::{BTreeMap, BTreeSet};

use super::Decider;
use super::sight::Sight;
use crate::proof::{self, CompleteProof, KnownLog, Premise};
use crate::rules::Mutation;
use crate::{Automatic, MemberId, Promotion, Record, Unclosed, Verb, Wait};

/// A candidate with its proofs, and who would acknowledge for it.
pub(super) struct Choice {
    pub(super) member: MemberId,
    pub(super) complete: Vec<CompleteProof>,
    pub(super) ackers: BTreeSet<MemberId>,
}

impl Decider {
    pub(super) fn choose(
        &mut self,
        record: &Record,
        why: &mut BTreeMap<MemberId, String>,
    ) -> Result<Choice, Wait> {
        let mut lacking = BTreeMap::new();
        let mut without_ackers = None;
        for member in self.candidates(record) {
            match self.proofs_for(record, &member) {
                Err(reason) => {
                    why.insert(member.clone(), reason.clone());
                    lacking.insert(member, reason);
                }
                Ok(complete) => {
                    let (ackers, reasons) = self.ackers_for(record, &member);
                    if ackers.len() >= usize::from(record.k) {
                        self.say_the_others(record, &member, why);
                        return Ok(Choice {
                            member,
                            complete,
                            ackers,
                        });
                    }
                    why.insert(
                        member.clone(),
                        "nobody can acknowledge for it yet".to_owned(),
                    );
                    without_ackers = without_ackers.or(Some(Wait::Ackers {
                        holder: member,
                        why: reasons,
                    }));
                }
            }
        }
        for (member, rule) in &self.config.promotion {
            let complete = *rule == Promotion::MustNot && self.proofs_for(record, member).is_ok();
            if complete && *member != record.holder {
                lacking.insert(member.clone(), "it is, and must not be promoted".to_owned());
            }
        }
        Err(without_ackers.unwrap_or(Wait::Complete {
            epoch: record.ended(),
            why: lacking,
        }))
    }

    /// Reachable members with a running server, the preferred one first.
    pub(super) fn candidates(&self, record: &Record) -> Vec<MemberId> {
        let up = |member: &&MemberId| self.sight(member) == Sight::Well;
        let mut list: Vec<MemberId> = self.by_rack(
            &record.holder,
            self.members.keys().filter(up).cloned().collect(),
        );
        let in_time = self
            .switchover
            .as_ref()
            .filter(|switchover| self.now < switchover.deadline);
        if !self.rules.broken(Mutation::PromoteMustNot) {
            let may = |member: &MemberId| match self.config.promotion_of(member) {
                Promotion::Prefer | Promotion::Neutral => true,
                Promotion::MustNot => *member == record.holder,
            };
            list.retain(may);
        }
        list.sort_by_key(|member| self.config.promotion_of(member));
        list.sort_by_key(|member| match in_time {
            // While there is time nobody else than the one asked for is taken, unless the old holder is gone.
            Some(switchover) if switchover.to.as_ref() == Some(member) => 0,
            Some(_) if *member == record.holder => 3,
            None if *member == record.holder => 0,
            Some(_) | None => 1,
        });
        let stays = match self.config.automatic {
            Automatic::On => self.holder_comes_back(record),
            Automatic::Off => true,
        };
        if in_time.is_none() && stays {
            list.retain(|member| *member == record.holder);
        }
        if let Some(switchover) = in_time {
            let holder_up = self
                .members
                .get(&record.holder)
                .is_some_and(|known| known.is_up());
            if holder_up {
                list.retain(|member| {
                    *member != record.holder && switchover.to.as_ref().is_none_or(|to| to == member)
                });
            }
        }
        list
    }

    /// The fenced holder was, or is being, restarted in place. From then on its tail is part of what it serves and no
    /// recovery can drop it: electing another member now, who has all that was acknowledged but not that tail, would
    /// leave the old holder with a history that nobody else has. So it is waited for; if it ends again, others may be taken.
    ///
    /// One that never exited, but was fenced at its ackers, is not waited for: it is killed, and its tail can be dropped.
    fn holder_comes_back(&self, record: &Record) -> bool {
        let Some(holder) = self.members.get(&record.holder) else {
            return false;
        };
        let report = holder.report.as_ref();
        if report.and_then(|report| report.incomplete) >= Some(record.ended()) {
            return false;
        }
        let starts = holder
            .order
            .as_ref()
            .is_some_and(|order| matches!(order.verb, Verb::Start { .. }));
        let same_server = holder
            .facts()
            .is_some_and(|facts| facts.barrier == Some(record.ended()));
        let back = match self.sight(&record.holder) {
            Sight::Starting => true,
            Sight::Well => !same_server || self.gathered.demoted.is_some(),
            Sight::Down => starts,
            Sight::Silent | Sight::Hung => false,
        };
        self.gathered.fence.is_some() && back
    }

    /// Proofs that `member` has every acknowledged write of the ended epoch and of each unclosed one.
    pub(super) fn proofs_for(
        &self,
        record: &Record,
        member: &MemberId,
    ) -> Result<Vec<CompleteProof>, String> {
        let mut epochs: Vec<Unclosed> = record.unclosed.clone();
        epochs.push(record.ended_as_unclosed());
        epochs
            .iter()
            .map(|of| {
                CompleteProof::find(
                    self.rules,
                    of,
                    member,
                    &self.gathered.logs,
                    self.gathered.demoted.as_ref(),
                )
            })
            .collect()
    }

    /// A': members that persisted this epoch and whose received log the candidate contains.
    pub(super) fn ackers_for(
        &self,
        record: &Record,
        candidate: &MemberId,
    ) -> (BTreeSet<MemberId>, BTreeMap<MemberId, String>) {
        let mut why = BTreeMap::new();
        let mut ready = Vec::new();
        let Some(whole) = self
            .gathered
            .logs
            .get(candidate)
            .and_then(|log| log.drained)
        else {
            return (BTreeSet::new(), why);
        };
        for (member, known) in self
            .members
            .iter()
            .filter(|(member, _)| *member != candidate)
        {
            let log = self.gathered.logs.get(member);
            let reason = match log {
                Some(_) if self.sight(member) != Sight::Well => {
                    "it is not in sight, or hangs".to_owned()
                }
                Some(log) if self.contained(record, member, log, &whole) => {
                    ready.push(member.clone());
                    continue;
                }
                Some(_) => "its log is not known to be contained".to_owned(),
                None if !known.reachable => "its keeper is silent".to_owned(),
                None if !known.is_up() => "its server does not run".to_owned(),
                None => "its log is not known yet".to_owned(),
            };
            why.insert(member.clone(), reason);
        }
        ready.sort_by_key(|member| !record.ackers.contains(member));
        let ackers = self
            .by_rack(candidate, ready)
            .into_iter()
            .take(self.config.ackers)
            .collect();
        (ackers, why)
    }

    fn contained(
        &self,
        record: &Record,
        member: &MemberId,
        log: &KnownLog,
        whole: &crate::LogEnd,
    ) -> bool {
        if self.rules.broken(Mutation::DivergedAcker) {
            return true;
        }
        // The holder of the ended epoch and its ackers have prefixes of one log; of others only the ends are known.
        let same = record.ackers.contains(member) || record.holder == *member;
        let premise = if same { Premise::SameA } else { Premise::None };
        proof::contains(self.rules, whole, &log.received, premise)
    }

    fn say_the_others(
        &self,
        record: &Record,
        chosen: &MemberId,
        why: &mut BTreeMap<MemberId, String>,
    ) {
        for (member, known) in &self.members {
            if member == chosen || why.contains_key(member) {
                continue;
            }
            let reason = if !known.reachable {
                "its keeper is silent"
            } else if !known.is_up() {
                "its server does not run"
            } else if *member == record.holder {
                "it is being replaced"
            } else {
                "another was found first"
            };
            why.insert(member.clone(), reason.to_owned());
        }
    }
}
