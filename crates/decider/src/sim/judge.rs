//! What deciders say is held against what is: evidence that is not true is a false failover, a proof ends an epoch.

use super::Sim;
use super::cut::Place;
use super::server::Event;
use crate::{
    Evidence, MemberId, Note, NoteEvent, Phase, Promotion, RebuildNote, RebuildReason, Wait,
};

/// When something came last, and the last time that nothing came for long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Coming {
    last: u64,
    long_gap_ended: Option<u64>,
}

/// What is long, by any clock.
const LONG: u64 = 144_000;
/// What a decider says may be this old: reports are late by that much.
const LATE: u64 = 120_000;

impl Coming {
    pub(super) fn come(&mut self, now: u64) {
        if now.saturating_sub(self.last) >= LONG {
            self.long_gap_ended = Some(now);
        }
        self.last = self.last.max(now);
    }

    /// Nothing came for long, now or a moment ago.
    fn was_silent(&self, now: u64) -> bool {
        now.saturating_sub(self.last) >= LONG
            || self
                .long_gap_ended
                .is_some_and(|at| now.saturating_sub(at) <= LATE)
    }
}

impl Sim {
    pub(super) fn opens(&mut self, member: usize, epoch: homeostat_model::Epoch) {
        let open = |other: usize| {
            let process = self.members[other].process.as_ref()?;
            (!process.read_only).then_some((other, process.epoch))
        };
        let others: Vec<(usize, homeostat_model::Epoch)> = (0..self.members.len())
            .filter(|other| *other != member)
            .filter_map(open)
            .collect();
        self.checker.opens(
            member,
            epoch,
            &self.members[member].disk,
            &others,
            (self.reads, self.now),
        );
        if self.promotion.get(&self.names[member]) == Some(&Promotion::MustNot) {
            self.checker.promoted_against_its_rule(member);
        }
        self.scene_opens(member);
    }

    pub(super) fn removed(&mut self, events: &[Event]) {
        if !events.is_empty() {
            let disks: Vec<_> = self.members.iter().map(|member| &member.disk).collect();
            self.checker
                .removed(events, &disks, &self.names, self.store.as_ref());
        }
    }

    pub(super) fn noted(&mut self, note: &Note) {
        match &note.event {
            NoteEvent::Evidence { evidence } => self.evidence(evidence),
            NoteEvent::Fence { proof } => {
                let kind = ["Exited", "Revoked", "Demoted", "NeverHeld"]
                    .into_iter()
                    .find(|kind| proof.contains(kind))
                    .unwrap_or("assumed");
                self.tally.count(kind);
                if kind == "Revoked" {
                    self.checker
                        .revoked(homeostat_model::Epoch(note.epoch.0 - 1), self.now);
                }
            }
            NoteEvent::Choice { complete, .. } => {
                for proof in complete {
                    let kind = [
                        ("has all that the ackers", "complete-ackers"),
                        ("wrote that log", "complete-old-log"),
                        ("contains the barrier", "complete-closed"),
                        ("before the switchover", "complete-position"),
                    ];
                    let kind = kind.into_iter().find(|(text, _)| proof.contains(text));
                    self.tally
                        .count(kind.map_or("complete-other", |(_, kind)| kind));
                }
            }
            NoteEvent::Opened { .. } => self.tally.count("opened"),
            NoteEvent::Waiting { waits } => {
                for wait in waits {
                    let kind = match wait {
                        Wait::Fence { .. } => "wait-fence",
                        Wait::Expiry { .. } => "wait-expiry",
                        Wait::Complete { .. } => "wait-complete",
                        Wait::Ackers { .. } => "wait-ackers",
                        Wait::Diverged { .. } => "wait-diverged",
                        Wait::Rebuild { .. } => "wait-rebuild",
                        Wait::RecordRead
                        | Wait::Cas
                        | Wait::Superseded { .. }
                        | Wait::StoreBehind { .. }
                        | Wait::FirstReports { .. }
                        | Wait::RecordLost { .. }
                        | Wait::Order { .. }
                        | Wait::AutomaticOff { .. }
                        | Wait::Retry { .. }
                        | Wait::Member { .. } => continue,
                    };
                    self.tally.count(kind);
                }
            }
            NoteEvent::Rebuild { what, .. } => self.tally.count(match what {
                RebuildNote::Needed { reason } => match reason {
                    RebuildReason::Diverged { .. } => "rebuild-diverged",
                    RebuildReason::Empty => "rebuild-empty",
                    RebuildReason::Unfinished => "rebuild-unfinished",
                },
                RebuildNote::Done { .. } => "rebuild-done",
                RebuildNote::Failed { .. } => "rebuild-failed",
            }),
            NoteEvent::Leading { .. }
            | NoteEvent::Record { .. }
            | NoteEvent::OrderSent { .. }
            | NoteEvent::OrderDone { .. }
            | NoteEvent::Superseded { .. } => {}
        }
    }

    fn evidence(&mut self, evidence: &Evidence) {
        let (kind, judged) = match evidence {
            Evidence::Hung { holder, .. } => ("hung", Some(holder)),
            Evidence::CutOff { holder, .. } => ("cut-off", Some(holder)),
            Evidence::ServerExited { .. } => ("exited", None),
            Evidence::ServerReplaced { .. } => ("replaced", None),
            Evidence::SwitchoverAsked { .. } => ("switchover", None),
            Evidence::FirstStart => ("first-start", None),
            Evidence::Resumed { .. } => ("resumed", None),
        };
        self.tally.count(kind);
        self.checker.evidence(kind);
        let Some(record) = &self.store else { return };
        if let Some(holder) = judged
            && record.phase == Phase::Serving
            && record.holder == *holder
        {
            let (holder, ackers) = (holder.clone(), record.ackers.clone());
            let hung = matches!(evidence, Evidence::Hung { .. });
            self.judge_silence(kind, hung.then_some(&holder), ackers.iter());
        }
    }

    /// Of a serving primary it must be true: the server stood still for H, or nothing came from it to any acker for H.
    fn judge_silence<'a>(
        &mut self,
        kind: &str,
        hung: Option<&MemberId>,
        ackers: impl Iterator<Item = &'a MemberId>,
    ) {
        let now = self.now;
        let index = |name: &MemberId| self.names.iter().position(|other| other == name);
        if let Some(member) = hung.and_then(index)
            && !self.checker.stood_still(member, LONG, LATE, now)
            && self.members[member].process.is_some()
        {
            self.checker
                .false_failover(format!("{kind}: the server of {member} answers reads"));
        }
        let hears = |member: &usize| {
            self.answers(*member)
                && self.members[*member]
                    .process
                    .as_ref()
                    .is_some_and(|process| {
                        matches!(process.io, super::server::Io::Connected { .. })
                            && !process.heard_truly.was_silent(now)
                    })
        };
        let ackers: Vec<usize> = ackers.filter_map(index).collect();
        // Of a hang only those that can be asked must say so.
        let hearing = ackers
            .iter()
            .copied()
            .find(hears)
            .filter(|_| hung.is_none());
        if let Some(member) = hearing {
            self.checker
                .false_failover(format!("{kind}: {member} hears the primary"));
        }
    }

    /// Cut off from every controller and every other machine.
    pub(super) fn isolate(&self, member: usize) -> Vec<(Place, Place)> {
        let machine = Place::Machine(member);
        let others = (0..self.members.len())
            .filter(|other| *other != member)
            .map(Place::Machine);
        (0..super::cut::SITES)
            .map(Place::Site)
            .chain(others)
            .flat_map(|other| [(machine, other), (other, machine)])
            .collect()
    }
}
