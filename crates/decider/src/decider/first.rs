//! No record in the store: the first start of a cluster, or a store that lost it.

use std::collections::{BTreeMap, BTreeSet};

use super::Decider;
use crate::proof::{FenceProof, found};
use crate::{Evidence, MemberId, MemberReport, NoteEvent, Promotion, ServerState, Wait};

impl Decider {
    /// `NeverHeld` needs every member's word that it has no data: one silent member could hold the only copy.
    pub(super) fn plan_first(&mut self) {
        let reports: BTreeMap<MemberId, MemberReport> = self
            .members
            .iter()
            .filter_map(|(member, known)| Some((member.clone(), known.report.clone()?)))
            .collect();
        for (member, report) in &reports {
            if let Some(record) = &report.record {
                // Usually another leader was quicker: look again.
                self.waits.push(Wait::StoreBehind {
                    member: member.clone(),
                    epoch: record.epoch,
                });
                self.read();
                self.wake_after(self.config.retry);
                return;
            }
            if !matches!(
                report.server,
                ServerState::Down {
                    initialised: false,
                    ..
                }
            ) {
                self.waits.push(Wait::RecordLost {
                    member: member.clone(),
                });
                return;
            }
        }
        let missing: Vec<MemberId> = self
            .config
            .members
            .iter()
            .filter(|member| !reports.contains_key(member))
            .cloned()
            .collect();
        if !missing.is_empty() {
            self.waits.push(Wait::FirstReports { missing });
            return;
        }
        let Some(fence) = FenceProof::never_held(&self.config.members, &reports) else {
            return;
        };
        let by_rule = |member: &&MemberId| self.config.promotion_of(member);
        let Some(holder) = self.config.members.iter().min_by_key(by_rule).cloned() else {
            return;
        };
        let others: Vec<MemberId> = self
            .config
            .members
            .iter()
            .filter(|member| **member != holder)
            .cloned()
            .collect();
        let ackers: BTreeSet<MemberId> = self
            .by_rack(&holder, others)
            .into_iter()
            .take(self.config.ackers)
            .collect();
        let Some((record, complete)) =
            found(&fence, self.term, holder.clone(), ackers, self.config.k)
        else {
            let why =
                BTreeMap::from([(holder.clone(), "the cluster has too few members".to_owned())]);
            self.waits.push(Wait::Ackers { holder, why });
            return;
        };
        self.changing_since = Some(self.now);
        self.note(
            Some(record.clone()),
            NoteEvent::Evidence {
                evidence: Evidence::FirstStart,
            },
        );
        self.note(
            Some(record.clone()),
            NoteEvent::Fence {
                proof: fence.to_string(),
            },
        );
        let complete = vec![complete.to_string()];
        self.note(
            Some(record.clone()),
            NoteEvent::Choice {
                chosen: holder,
                complete,
                others: BTreeMap::new(),
            },
        );
        self.cas(record);
    }

    /// Members that may be promoted first, of them those in racks other than the holder's; otherwise in the order given. An
    /// acker that must not be promoted can be the only one with some write.
    pub(super) fn by_rack(&self, holder: &MemberId, mut members: Vec<MemberId>) -> Vec<MemberId> {
        let rack = self.config.racks.get(holder);
        members.sort_by_key(|member| {
            let last = self.config.promotion_of(member) == Promotion::MustNot;
            let near = rack.is_some() && self.config.racks.get(member) == rack;
            (last, near)
        });
        members
    }
}
