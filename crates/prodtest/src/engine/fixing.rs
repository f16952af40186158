//! Repairs: from a confirmed failure to a pass that lasts, or to a person.
//!
//! A fix is applied only on a failure that was confirmed just now, under all the rules that a verdict takes, and while
//! all that the check depends on passes. So each attempt is preceded by a confirmation of its own: after an attempt
//! that did not help, after another check's fix on the same resource, after anything stirred beneath.
//!
//! Whoever is fixed holds its resource until it has *settled*: it passed, or its time to settle is over. A second check
//! that needs the same service restarted would otherwise restart it while it starts.

mod judging;

use std::collections::BTreeSet;
use std::time::Duration;

use homeostat_model::CheckName;

use crate::rules::Rule;
use crate::suite::{CheckId, FixPolicy, ResourceId};
use crate::time::Moment;
use crate::verdict::{Applied, Change, Evidence, FixOutcome, Repair, Stage, Verdict, clipped};

use super::believe::News;
use super::state::{FixState, Phase, Soundness, Turn};
use super::{Attempt, Engine, REPORT_WITHIN};

/// Numbers all fixes of an engine. A target that remembers the highest one it saw refuses whoever comes late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub u64);

/// A fix to apply now, and to report with [`Engine::fix_finished`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixRun {
    pub check: CheckId,
    /// Higher than that of every fix handed out before.
    pub fence: Fence,
    /// Which attempt it is since the check passed last, from 1.
    pub attempt: u32,
    /// It must be reported within this time, whatever happens.
    pub timeout: Duration,
}

/// A report about a fix that is not being applied: it was given up before, or reported already. It changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("fix {} of check {name} is not being applied, so its report is dropped", .fence.0)]
pub struct StaleFix {
    pub name: CheckName,
    pub fence: Fence,
}

/// What fixes change, one at a time.
#[derive(Debug, Default)]
pub(super) struct Resource {
    /// Whose fix is applied or settles.
    holder: Option<CheckId>,
    /// Whose failure is confirmed.
    waiting: BTreeSet<CheckId>,
    /// The latest probe that had started when it was let go of. Only a later one tells what it is like since.
    released: Attempt,
}

impl Engine {
    /// Takes in what came of a fix.
    ///
    /// # Errors
    /// [`StaleFix`] when that fix is not being applied; nothing is changed then.
    pub fn fix_finished(
        &mut self,
        run: &FixRun,
        applied: Applied,
        now: Moment,
    ) -> Result<Vec<Change>, StaleFix> {
        let is_it = match self.states[run.check.index()].fix_phase() {
            Some(Phase::Applying { fence, .. }) => {
                fence == run.fence || !self.rules.hold(Rule::DropStaleFixes)
            }
            Some(Phase::Idle | Phase::Ready | Phase::Settling { .. }) | None => false,
        };
        if !is_it {
            return Err(StaleFix {
                name: self.suite.name(run.check).clone(),
                fence: run.fence,
            });
        }
        let mut news = News::at(now);
        self.end_fix(run.check, applied, &mut news);
        self.follow_up(&mut news);
        Ok(news.changes)
    }

    pub(super) fn may_start_fixes(&self) -> bool {
        let room = self.applying < self.config.most_fixes_at_once.get()
            || !self.rules.hold(Rule::BoundFixes);
        room && !self.free.is_empty()
    }

    pub(super) fn start_fixes(&mut self, news: &mut News) -> Vec<FixRun> {
        let mut fixes = Vec::new();
        while self.may_start_fixes()
            && let Some(&resource) = self.free.first()
            && let Some(&id) = self.resources[resource.index()].waiting.first()
        {
            fixes.extend(self.start_fix(id, resource, news));
        }
        fixes
    }

    fn start_fix(&mut self, id: CheckId, resource: ResourceId, news: &mut News) -> Option<FixRun> {
        if self.rules.hold(Rule::RaiseFence) {
            self.fence.0 += 1;
        }
        let fence = self.fence;
        let held = &mut self.resources[resource.index()];
        held.waiting.remove(&id);
        held.holder = Some(id);
        self.offer(resource);
        let timeout = self.suite.check(id).fix.as_ref()?.timeout;
        let overdue_at = news.now.after(timeout).after(REPORT_WITHIN);
        self.timers.insert((overdue_at, id));
        self.applying += 1;
        let state = &mut self.states[id.index()];
        if let Turn::Running(running) = &mut state.turn {
            running.soundness = Soundness::Spoiled;
        }
        let fix = state.fix.as_mut()?;
        fix.phase = Phase::Applying { fence, overdue_at };
        fix.applied += 1;
        fix.looks = 0;
        let attempt = fix.applied;
        self.set_stage(id, Stage::Applying, news);
        self.place(id);
        Some(FixRun {
            check: id,
            fence,
            attempt,
            timeout,
        })
    }

    /// Gives up fixes that nobody reported, and takes the resource from those whose time to settle has passed unused.
    pub(super) fn watch_fixes(&mut self, news: &mut News) -> Vec<FixRun> {
        let mut given_up = Vec::new();
        while let Some(&(at, id)) = self.timers.first()
            && at <= news.now
        {
            self.timers.pop_first();
            match self.states[id.index()].fix_phase() {
                Some(Phase::Applying { fence, .. }) => {
                    if self.rules.hold(Rule::GiveUpLostFixes) {
                        given_up.extend(self.lost_fix(id, fence));
                        let said = "nobody reported what came of it".to_owned();
                        let outcome = FixOutcome::Failed;
                        self.end_fix(id, Applied { outcome, said }, news);
                    }
                }
                // With an open gate the last look of its curve says how it ended.
                Some(Phase::Settling { .. }) => {
                    if !self.states[id.index()].tally.all_pass() {
                        self.abandon_settling(id, news);
                    }
                }
                Some(Phase::Idle | Phase::Ready) | None => {}
            }
        }
        given_up
    }

    fn lost_fix(&self, id: CheckId, fence: Fence) -> Option<FixRun> {
        let timeout = self.suite.check(id).fix.as_ref()?.timeout;
        let attempt = self.states[id.index()].fix.as_ref()?.applied;
        Some(FixRun {
            check: id,
            fence,
            attempt,
            timeout,
        })
    }

    /// The fix has ended, one way or another; now its check says whether it helped. One that failed may have helped all
    /// the same: one look.
    fn end_fix(&mut self, id: CheckId, applied: Applied, news: &mut News) {
        let Some((policy, fix)) = self.fix_of(id) else {
            return;
        };
        let settle = match applied.outcome {
            FixOutcome::Changed | FixOutcome::Unchanged => policy.settle,
            FixOutcome::Failed => Duration::ZERO,
        };
        let until = news.now.after(settle);
        let before = std::mem::replace(&mut fix.phase, Phase::Settling { until });
        fix.needless = applied.outcome == FixOutcome::Unchanged;
        fix.said = clipped(applied.said);
        if let Phase::Applying { overdue_at, .. } = before {
            self.timers.remove(&(overdue_at, id));
            self.applying -= 1;
        }
        self.timers.insert((until, id));
        if !self.rules.hold(Rule::HoldWhileSettling) {
            self.release(id, news);
        }
        self.set_stage(id, Stage::Settling { until }, news);
        self.hasten(id, news.now);
    }

    /// What the check depends on no longer all passes.
    pub(super) fn gate_closed(&mut self, id: CheckId, news: &mut News) {
        if !self.rules.hold(Rule::FixOnlyWithOpenGate) {
            return;
        }
        if self.unready(id) {
            self.look_again_first(id, news);
        }
        if let Some(Phase::Settling { until }) = self.states[id.index()].fix_phase()
            && until <= news.now
        {
            self.abandon_settling(id, news);
        }
    }

    /// Nothing was learnt of it, so it is not ready; and it does not hold a resource beyond its time.
    pub(super) fn not_run_while_fixing(&mut self, id: CheckId, news: &mut News) {
        self.unready(id);
        if let Some(Phase::Settling { until }) = self.states[id.index()].fix_phase()
            && until <= news.now
        {
            self.abandon_settling(id, news);
        }
    }

    fn abandon_settling(&mut self, id: CheckId, news: &mut News) {
        self.set_phase(id, Phase::Idle);
        self.release(id, news);
        self.look_again_first(id, news);
    }

    fn look_again_first(&mut self, id: CheckId, news: &mut News) {
        self.states[id.index()].suspicion = None;
        self.set_stage(id, Stage::LookingAgain, news);
        self.hasten(id, news.now);
    }

    /// Takes a check out of those that wait for a resource; whether it was among them.
    fn unready(&mut self, id: CheckId) -> bool {
        let was = self.states[id.index()].fix_phase() == Some(Phase::Ready);
        if was && let Some(resource) = self.suite.resource(id) {
            self.set_phase(id, Phase::Idle);
            self.resources[resource.index()].waiting.remove(&id);
            self.offer(resource);
        }
        was
    }

    /// Lets go of a resource. Who waited for it knows nothing of what it is like now.
    fn release(&mut self, id: CheckId, news: &mut News) {
        let Some(resource) = self.suite.resource(id) else {
            return;
        };
        let held = &mut self.resources[resource.index()];
        if held.holder != Some(id) {
            return;
        }
        held.holder = None;
        held.released = self.latest;
        let waiting = held.waiting.clone();
        self.offer(resource);
        if !self.rules.hold(Rule::LookAgainAfterOthers) {
            return;
        }
        for other in waiting {
            self.unready(other);
            if let Turn::Running(running) = &mut self.states[other.index()].turn {
                running.soundness = Soundness::Spoiled;
            }
            self.look_again_first(other, news);
        }
    }

    /// Puts a resource among the free ones, or takes it out. To be called whenever its holder or who waits changed.
    fn offer(&mut self, id: ResourceId) {
        let resource = &self.resources[id.index()];
        let is_free = resource.holder.is_none() || !self.rules.hold(Rule::OneFixPerResource);
        if is_free && !resource.waiting.is_empty() {
            self.free.insert(id);
        } else {
            self.free.remove(&id);
        }
    }

    /// Shows another stage of the repair, if the check shows a repair.
    fn set_stage(&mut self, id: CheckId, stage: Stage, news: &mut News) {
        if let Verdict::Fixing(repair) = self.verdict(id) {
            let evidence = repair.evidence.clone();
            let repair = self.repair(id, evidence, stage);
            self.set_verdict(id, Verdict::Fixing(repair), news);
        }
    }

    fn repair(&self, id: CheckId, evidence: Evidence, stage: Stage) -> Repair {
        let fix = self.states[id.index()].fix.as_ref();
        Repair {
            evidence,
            applied: fix.map_or(0, |fix| fix.applied),
            stage,
            said: fix.map(|fix| fix.said.clone()).unwrap_or_default(),
        }
    }

    fn set_phase(&mut self, id: CheckId, phase: Phase) {
        if let Some(fix) = &mut self.states[id.index()].fix {
            fix.phase = phase;
        }
    }

    fn fix_of(&mut self, id: CheckId) -> Option<(&FixPolicy, &mut FixState)> {
        let policy = self.suite.check(id).fix.as_ref()?;
        let fix = self.states[id.index()].fix.as_mut()?;
        Some((policy, fix))
    }
}

#[cfg(test)]
impl Engine {
    /// Who holds, waits and is free agrees with the phases.
    pub(super) fn lint_resource(&self, id: CheckId, phase: Option<Phase>) -> Result<(), String> {
        let Some(resource) = self.suite.resource(id) else {
            return Ok(());
        };
        let held = &self.resources[resource.index()];
        let holds = matches!(phase, Some(Phase::Applying { .. } | Phase::Settling { .. }));
        let strict =
            self.rules.hold(Rule::OneFixPerResource) && self.rules.hold(Rule::HoldWhileSettling);
        if strict && holds != (held.holder == Some(id)) {
            return Err(format!(
                "{id:?} is {phase:?}, the holder is {:?}",
                held.holder
            ));
        }
        if (phase == Some(Phase::Ready)) != held.waiting.contains(&id) {
            return Err(format!(
                "{id:?} is {phase:?}, waiting are {:?}",
                held.waiting
            ));
        }
        let is_free = held.holder.is_none() && !held.waiting.is_empty();
        if strict && is_free != self.free.contains(&resource) {
            return Err(format!(
                "{resource:?} is {held:?}, free are {:?}",
                self.free
            ));
        }
        Ok(())
    }
}
