//! `Revoking(e+1)`: fence the holder of e, learn what everybody has, choose who comes next (`choice`).
//!
//! Who is preferred: a member asked for in a switchover; else the old holder when its server runs (the fault is over, or
//! it was restarted in place because the ackers could not be proved complete); else a complete acker, which is the fast
//! way: nothing has to start. Whoever is chosen, both proofs are taken.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Decider;
use super::member::Member;
use super::sight::Sight;
use crate::proof::{self, FenceProof, Revocation};
use crate::rules::Mutation;
use crate::{Automatic, LogOrder, MemberId, NoteEvent, Record, Recovery, Verb, Wait};

impl Decider {
    pub(super) fn plan_revoking(&mut self, record: &Record) {
        if let Some(deadline) = self
            .switchover
            .as_ref()
            .map(|switchover| switchover.deadline)
        {
            self.wake_after(deadline.since(self.now));
        }
        self.find_fence(record);
        if self.fence_holder(record) {
            // Not while the holder is being demoted: the commits that wait there need the others to receive them.
            self.gather_logs(record);
        }
        let mut why = BTreeMap::new();
        let choice = self.choose(record, &mut why);
        let Some(fence) = self.gathered.fence.clone() else {
            if self.sight(&record.holder) == Sight::Silent {
                self.waits.push(Wait::Fence {
                    holder: record.holder.clone(),
                    epoch: record.ended(),
                    missing: self.ackers_out_of_sight(record),
                });
            }
            return;
        };
        match choice {
            Ok(choice) => {
                let made = proof::promote(
                    self.rules,
                    record,
                    self.term,
                    &choice.member,
                    choice.ackers,
                    &fence,
                    &choice.complete,
                );
                if let Some(new) = made {
                    let complete = choice.complete.iter().map(ToString::to_string).collect();
                    why.remove(&choice.member);
                    let event = NoteEvent::Choice {
                        chosen: choice.member,
                        complete,
                        others: why,
                    };
                    self.note(Some(record.clone()), event);
                    self.cas(new);
                }
            }
            Err(wait) => self.waits.push(wait),
        }
    }

    fn find_fence(&mut self, record: &Record) {
        if self.gathered.fence.is_some() {
            return;
        }
        for member in &record.ackers {
            let knows = |known: &&Member| {
                known.is_down()
                    && known
                        .persisted()
                        .is_some_and(|persisted| persisted.epoch >= record.epoch)
            };
            if self.members.get(member).filter(knows).is_some() {
                let revoked = &mut self.gathered.revoked;
                revoked.entry(member.clone()).or_insert(Revocation::Exited);
            }
        }
        let report = self
            .members
            .get(&record.holder)
            .and_then(|holder| holder.report.as_ref());
        let fence = report
            .and_then(|report| FenceProof::exited(record, report))
            .or_else(|| FenceProof::demoted(record, self.gathered.demoted.as_ref()?))
            .or_else(|| FenceProof::revoked(self.rules, record, &self.gathered.revoked))
            .or_else(|| FenceProof::assumed(self.rules, record));
        if let Some(fence) = fence {
            if fence.leaves_it_open() {
                let expiry = self.now.after(self.config.expiry());
                self.expiries.insert(record.ended(), expiry);
            }
            self.note(
                Some(record.clone()),
                NoteEvent::Fence {
                    proof: fence.to_string(),
                },
            );
            self.gathered.fence = Some(fence);
        }
    }

    /// Works at the holder of the ended epoch. Says whether the others may be stopped.
    fn fence_holder(&mut self, record: &Record) -> bool {
        let holder = record.holder.clone();
        let Some(known) = self.members.get(&holder) else {
            return true;
        };
        if self.rules.broken(Mutation::NoFence) {
            return true;
        }
        let lagging = known
            .persisted()
            .is_none_or(|persisted| persisted.rank() < record.rank());
        match self.sight(&holder) {
            Sight::Silent => return self.fence_silent_holder(record, &holder),
            Sight::Down => {
                if self.gathered.fence.is_none() || lagging {
                    self.order(record, &holder, Verb::Learn);
                } else if !self.is_empty(&holder) && self.should_restart_in_place(record) {
                    let recovery = match self.rules.broken(Mutation::HolderRestartedWithWrongRole) {
                        false => Recovery::KeepTail,
                        true => Recovery::DropTail,
                    };
                    self.order(record, &holder, Verb::Start { recovery });
                }
                return true;
            }
            Sight::Starting => {
                self.waits.push(Wait::Order {
                    member: holder,
                    order: "start".to_owned(),
                });
                return true;
            }
            Sight::Hung => {
                self.order(record, &holder, Verb::Kill);
                return true;
            }
            Sight::Well => {}
        }
        if self.gathered.demoted.is_some() {
            return true;
        }
        // It runs: a switchover, a fault that is over, or it was restarted in place. Its end is read by the same order.
        let patience = match &self.switchover {
            Some(switchover) => switchover
                .deadline
                .since(self.now)
                .min(self.config.switchover_bound),
            None => self.config.order_timeout,
        };
        let failed = self.gathered.demote_failed.contains(&holder);
        let tries_left = match &self.switchover {
            Some(switchover) => self.now < switchover.deadline,
            None => !failed,
        };
        let patience_ms = u64::try_from(patience.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        let verb = if tries_left {
            Verb::Demote { patience_ms }
        } else {
            Verb::Kill
        };
        self.order(record, &holder, verb);
        !tries_left
    }

    /// It may well be serving, out of sight. Its ackers are left to it unless it is certain to be fenced by them: that is
    /// when all of them are in sight and it has been silent for H, which a new leader waits for too. It is told to end
    /// all the same, in case only its answers are lost.
    fn fence_silent_holder(&mut self, record: &Record, holder: &MemberId) -> bool {
        if self.gathered.fence.is_some() {
            return true;
        }
        let silent = self
            .silent_for(holder)
            .is_some_and(|silent| silent >= self.silence());
        let automatic = match self.config.automatic {
            Automatic::On => true,
            Automatic::Off => false,
        };
        let revocable = automatic && silent && self.ackers_out_of_sight(record).is_empty();
        let connected = self
            .members
            .get(holder)
            .is_some_and(|known| known.reachable);
        if revocable && connected {
            self.order(record, holder, Verb::Kill);
        }
        revocable
    }

    /// Stops every other reachable member's IO, then drains it; starts (closed) those whose logs may be needed.
    fn gather_logs(&mut self, record: &Record) {
        let others: Vec<MemberId> = self
            .members
            .keys()
            .filter(|member| **member != record.holder)
            .cloned()
            .collect();
        for member in others {
            let Some(known) = self.members.get(&member) else {
                continue;
            };
            if !known.reachable {
                self.waits.push(Wait::Member { member });
                continue;
            }
            if known.is_down() {
                // A holder of an earlier epoch may have a tail: it is started only where its log is needed.
                let needed = record.unclosed.iter().any(|of| of.holder == member);
                if known.held().is_none() || needed {
                    self.order(
                        record,
                        &member,
                        Verb::Start {
                            recovery: Recovery::KeepTail,
                        },
                    );
                }
                continue;
            }
            if !known.is_up() {
                continue;
            }
            if known.is_open() {
                // A former holder that was cut off and is back: alive, and with commits that nobody acknowledges.
                self.order(record, &member, Verb::Kill);
                continue;
            }
            let log = self.gathered.logs.get(&member);
            if !self.gathered.stopped.contains_key(&member) {
                self.order(record, &member, Verb::StopReceiving);
            } else if log.is_none_or(|log| log.drained.is_none()) {
                self.order(record, &member, Verb::Drain);
            } else if self.lacks_position(record, &member) {
                // It was stopped before the last commits reached it: let it have them.
                self.order(record, &member, Verb::Receive);
                if self
                    .members
                    .get(&member)
                    .is_some_and(|known| known.order.is_some())
                {
                    self.gathered.forget(&member);
                    self.wake_after(Duration::from_millis(10));
                }
            }
        }
    }

    /// In a switchover: is this member wanted, and short of the demoted holder's last commit?
    fn lacks_position(&self, record: &Record, member: &MemberId) -> bool {
        let (Some(switchover), Some(demoted)) = (&self.switchover, &self.gathered.demoted) else {
            return false;
        };
        let wanted = switchover.to.as_ref().is_none_or(|to| to == member);
        let Some(log) = self.gathered.logs.get(member) else {
            return false;
        };
        let behind = log.received.compare_prefixes(&demoted.position) == LogOrder::Behind;
        let follows = self
            .members
            .get(member)
            .and_then(|known| known.facts())
            .is_some_and(|facts| {
                facts
                    .receiver
                    .source()
                    .is_some_and(|source| source.member == record.holder)
            });
        wanted && behind && follows && self.now < switchover.deadline
    }

    /// Restarting the holder in place brings its tail back for good, so it is done only when no acker will do: one that
    /// is needed is not up, or all were read and none is complete or none has anybody to acknowledge for it.
    fn should_restart_in_place(&self, record: &Record) -> bool {
        let up = |member: &MemberId| self.sight(member) == Sight::Well;
        let hopeful = record.ackers.iter().all(up) && !record.ackers.is_empty();
        let read = |member: &&MemberId| {
            self.gathered
                .logs
                .get(*member)
                .is_some_and(|log| log.drained.is_some())
        };
        let settled = record.ackers.iter().all(|member| read(&member));
        let enough =
            |member: &MemberId| self.ackers_for(record, member).0.len() >= usize::from(record.k);
        let will_do = |member: &MemberId| self.proofs_for(record, member).is_ok() && enough(member);
        !hopeful || (settled && !self.candidates(record).iter().any(will_do))
    }
}
