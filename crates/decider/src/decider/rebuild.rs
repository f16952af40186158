//! Rebuilding a member as a copy of a peer: one that cannot follow the primary, and one that has no data.
//!
//! A member that is rebuilt gives up what it received. So it is done only under `Serving`, to a member that is in no A:
//! an acker leaves A first, by the way that proves that the others have all it acknowledged.
//!
//! Who lends: a replica that is not needed as an acker now, else an acker where more than k of them work, else the holder,
//! which is paced. One member of a cluster at a time. A copy that fails is begun anew after a pause, from whoever can
//! lend then; one whose outcome is not known is seen in the member's reports.

use std::num::NonZeroU64;

use homeostat_model::Epoch;

use super::Decider;
use super::member::{Member, RebuildStep, Rebuilding};
use super::sight::Sight;
use crate::{
    Former, MemberId, NoteEvent, OrderOutcome, RebuildNote, RebuildReason, RebuildStage,
    RebuildState, Record, ServerState, Verb, Wait,
};

impl Decider {
    /// Gives a member that has to be rebuilt its next step. Says whether it is one: then nothing else is done with it.
    pub(super) fn rebuild(&mut self, record: &Record, member: &MemberId) -> bool {
        self.see_rebuild(record, member);
        let Some(known) = self.members.get(member) else {
            return false;
        };
        let state = known
            .report
            .as_ref()
            .and_then(|report| report.rebuild.as_ref());
        if let Some(state) = state.filter(|state| state.under_way()) {
            let wait = self.copying(member, state.source().clone());
            self.waits.push(wait);
            return true;
        }
        let Some(rebuild) = known.rebuild.clone() else {
            return false;
        };
        let stage = self.rebuild_step(record, member, &rebuild);
        self.waits.push(Wait::Rebuild {
            member: member.clone(),
            reason: rebuild.reason,
            stage,
        });
        true
    }

    fn rebuild_step(
        &mut self,
        record: &Record,
        member: &MemberId,
        rebuild: &Rebuilding,
    ) -> RebuildStage {
        if record.ackers.contains(member) {
            return RebuildStage::LeavesAckers;
        }
        match &rebuild.step {
            RebuildStep::Begun { source } => RebuildStage::Copy {
                source: source.clone(),
            },
            RebuildStep::Lent { source, offer } => {
                let former = match rebuild.reason {
                    RebuildReason::Empty => Former::Discarded,
                    RebuildReason::Diverged { .. } | RebuildReason::Unfinished => Former::KeptAside,
                };
                let verb = Verb::Rebuild {
                    source: source.clone(),
                    offer: offer.clone(),
                    former,
                };
                self.order(record, member, verb);
                RebuildStage::Copy {
                    source: source.clone(),
                }
            }
            RebuildStep::Wanted if self.now < rebuild.not_before => {
                self.wake_after(rebuild.not_before.since(self.now));
                RebuildStage::Pause
            }
            RebuildStep::Wanted if self.another_is_rebuilt(member) => RebuildStage::Turn,
            RebuildStep::Wanted => {
                let Some((source, bytes_per_second)) = self.lender(record, member) else {
                    return RebuildStage::Source;
                };
                if self.members.get(member).is_some_and(Member::is_down) {
                    let to = member.clone();
                    self.order(
                        record,
                        &source,
                        Verb::Lend {
                            to,
                            bytes_per_second,
                        },
                    );
                } else {
                    self.order(record, member, Verb::Kill);
                }
                RebuildStage::Copy { source }
            }
        }
    }

    /// Takes in what the member's report says of its rebuilding, and whether it needs one.
    fn see_rebuild(&mut self, record: &Record, member: &MemberId) {
        let (now, retry) = (self.now, self.config.rebuild_retry);
        let needed = self.needs_rebuilding(record, member);
        let Some(known) = self.members.get_mut(member) else {
            return;
        };
        // What was needed against another holder's log has to be seen anew.
        known
            .rebuild
            .take_if(|rebuild| rebuild.epoch != record.epoch);
        let state = known
            .report
            .as_ref()
            .and_then(|report| report.rebuild.clone());
        let what = match (state, &mut known.rebuild) {
            (Some(RebuildState::Done { source }), Some(rebuild)) => {
                let took = now.since(rebuild.since);
                known.rebuild = None;
                RebuildNote::Done { source, took }
            }
            (Some(RebuildState::Failed { why, .. }), Some(rebuild))
                if matches!(rebuild.step, RebuildStep::Begun { .. }) =>
            {
                rebuild.step = RebuildStep::Wanted;
                rebuild.not_before = now.after(retry);
                RebuildNote::Failed { why }
            }
            (_, Some(rebuild)) => {
                if matches!(rebuild.step, RebuildStep::Wanted) && known.away_since.is_none() {
                    // It follows after all.
                    known.rebuild = None;
                }
                return;
            }
            (_, None) => {
                let Some(reason) = needed else { return };
                known.rebuild = Some(Rebuilding {
                    reason: reason.clone(),
                    epoch: record.epoch,
                    since: now,
                    step: RebuildStep::Wanted,
                    not_before: now,
                });
                RebuildNote::Needed { reason }
            }
        };
        let member = member.clone();
        self.note(Some(record.clone()), NoteEvent::Rebuild { member, what });
    }

    fn needs_rebuilding(&self, record: &Record, member: &MemberId) -> Option<RebuildReason> {
        let known = self.members.get(member)?;
        let report = known.report.as_ref()?;
        match &report.rebuild {
            Some(RebuildState::Failed { .. }) => return Some(RebuildReason::Unfinished),
            Some(RebuildState::Done { .. }) => return None,
            Some(RebuildState::Copying { .. } | RebuildState::Preparing { .. }) | None => {}
        }
        match &report.server {
            ServerState::Down {
                initialised: false, ..
            } => (!self.is_short(record)).then_some(RebuildReason::Empty),
            ServerState::Down { .. } | ServerState::Starting { .. } => None,
            ServerState::Up { facts, .. } => {
                let source = facts.receiver.source()?;
                let error = facts.broken.clone()?;
                (source.member == record.holder).then_some(RebuildReason::Diverged { error })
            }
        }
    }

    /// Is the primary's whole log replicated as quickly as copied?
    fn is_short(&self, record: &Record) -> bool {
        let holder = self.members.get(&record.holder);
        let length = holder.and_then(|holder| holder.facts()?.after_barrier);
        record.epoch == Epoch(1) && length.is_some_and(|length| length < self.config.short_log)
    }

    /// An acker that has to be rebuilt, or lost what it acknowledged, where enough others acknowledge.
    pub(super) fn leaves(&self, record: &Record) -> Option<MemberId> {
        let wanted = |member: &&MemberId| {
            self.members.get(*member).is_some_and(|known| {
                let report = known.report.as_ref();
                let incomplete = report.and_then(|report| report.incomplete);
                known.rebuild.is_some() || incomplete >= Some(record.epoch)
            })
        };
        let working = self.working_ackers(record);
        let leaves = record.ackers.iter().find(wanted)?;
        let others = working.iter().filter(|member| *member != leaves).count();
        (others >= usize::from(record.k)).then(|| leaves.clone())
    }

    fn working_ackers(&self, record: &Record) -> Vec<MemberId> {
        let works = |member: &&MemberId| {
            let known = self.members.get(*member);
            known.is_some_and(|known| known.away_since.is_none())
        };
        record.ackers.iter().filter(works).cloned().collect()
    }

    fn another_is_rebuilt(&self, member: &MemberId) -> bool {
        self.members.iter().any(|(other, known)| {
            let under_way = known.reachable
                && known
                    .report
                    .as_ref()
                    .and_then(|report| report.rebuild.as_ref())
                    .is_some_and(RebuildState::under_way);
            let promised = known.reachable
                && known
                    .rebuild
                    .as_ref()
                    .is_some_and(|rebuild| !matches!(rebuild.step, RebuildStep::Wanted));
            let lends = known
                .order
                .as_ref()
                .is_some_and(|order| matches!(&order.verb, Verb::Lend { to, .. } if to != member));
            lends || (other != member && (under_way || promised))
        })
    }

    /// Who lends a copy to `member`, and how fast at most.
    fn lender(&self, record: &Record, member: &MemberId) -> Option<(MemberId, Option<NonZeroU64>)> {
        let can_lend = |other: &MemberId| {
            let known = self.members.get(other)?;
            let report = known.report.as_ref()?;
            let facts = known.facts()?;
            let under = report.record.as_ref()?.epoch == record.epoch;
            let free = report.lends.as_ref().is_none_or(|to| to == member);
            let whole = facts.applied.barrier == record.epoch;
            (self.sight(other) == Sight::Well && under && free && whole).then_some(())
        };
        let working = self.working_ackers(record);
        let spare = working.len() > usize::from(record.k);
        let mut replicas: Vec<&MemberId> = self
            .members
            .iter()
            .filter(|(other, known)| {
                **other != record.holder && *other != member && known.away_since.is_none()
            })
            .map(|(other, _)| other)
            .filter(|other| spare || !record.ackers.contains(*other))
            .filter(|other| can_lend(other).is_some())
            .collect();
        replicas.sort_by_key(|other| record.ackers.contains(*other));
        if let Some(replica) = replicas.first() {
            return Some(((*replica).clone(), None));
        }
        // Without anybody to acknowledge, its last lock would wait for a commit that waits for ever.
        let served = working.len() >= usize::from(record.k);
        (served && can_lend(&record.holder).is_some())
            .then(|| (record.holder.clone(), self.config.holder_pace))
    }

    /// The answer, or the loss, of an order that has to do with a copy.
    pub(super) fn copy_replied(&mut self, member: &MemberId, verb: &Verb, outcome: &OrderOutcome) {
        let again = self.now.after(self.config.rebuild_retry);
        let (target, step) = match (verb, outcome) {
            (Verb::Lend { to, .. }, OrderOutcome::Lent { offer }) => {
                let (source, offer) = (member.clone(), offer.clone());
                (to, RebuildStep::Lent { source, offer })
            }
            (Verb::Rebuild { source, .. }, OrderOutcome::Done) => {
                let source = source.clone();
                (member, RebuildStep::Begun { source })
            }
            (Verb::Lend { to, .. }, _) => (to, RebuildStep::Wanted),
            (Verb::Rebuild { .. }, _) => (member, RebuildStep::Wanted),
            (_, _) => return,
        };
        let known = self.members.get_mut(target);
        if let Some(rebuild) = known.and_then(|known| known.rebuild.as_mut()) {
            if matches!(step, RebuildStep::Wanted) {
                rebuild.not_before = again;
            }
            rebuild.step = step;
        }
    }

    pub(super) fn copying(&self, member: &MemberId, source: MemberId) -> Wait {
        let known = self.members.get(member);
        let reason = known.and_then(|known| known.rebuild.as_ref());
        Wait::Rebuild {
            member: member.clone(),
            reason: reason.map_or(RebuildReason::Unfinished, |rebuild| rebuild.reason.clone()),
            stage: RebuildStage::Copy { source },
        }
    }

    /// It has no data folder.
    pub(super) fn is_empty(&self, member: &MemberId) -> bool {
        let report = self
            .members
            .get(member)
            .and_then(|known| known.report.as_ref());
        report.is_some_and(|report| {
            matches!(
                report.server,
                ServerState::Down {
                    initialised: false,
                    ..
                }
            )
        })
    }
}
