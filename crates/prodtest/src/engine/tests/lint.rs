//! The invariants of the engine, from scratch.

use super::*;
use crate::engine::state;

impl Engine {
    /// The invariants of this module, from scratch.
    pub(crate) fn lint(&self) -> Result<(), String> {
        for id in self.suite.ids() {
            let state = &self.states[id.index()];
            let mut tally = state::Tally {
                suspect: 0,
                unknown: 0,
                bad: 0,
            };
            for need in self.suite.needs(id) {
                tally.replace(state::Face::Passes, self.states[need.index()].face_now());
            }
            if tally != state.tally {
                return Err(format!(
                    "{id:?} counts {:?} where {tally:?} is true",
                    state.tally
                ));
            }
            let (waits_at, overdue_at) = match &state.turn {
                Turn::Waiting { at } => (Some(*at).filter(|_| state.may_run()), None),
                Turn::Running(running) => (None, Some(running.overdue_at)),
            };
            let waits_at = waits_at.filter(|at| *at < Moment::NEVER);
            let spot = state.spot.map(|(_, at)| at);
            if self.rules.hold(Rule::RunAfterDependencies) && spot != waits_at {
                return Err(format!(
                    "{id:?} is queued at {spot:?} where {waits_at:?} is true"
                ));
            }
            if overdue_at.is_some_and(|at| !self.overdue.contains(&(at, id))) {
                return Err(format!("{id:?} runs without a limit"));
            }
        }
        let parked: usize = self.targets.iter().map(|target| target.parked.len()).sum();
        let queued = self
            .states
            .iter()
            .filter(|state| state.spot.is_some())
            .count();
        let running = self
            .states
            .iter()
            .filter(|state| matches!(state.turn, Turn::Running(_)))
            .count();
        if (queued, running) != (self.queue.len() + parked, self.overdue.len()) {
            return Err("the indexes hold checks that do not belong there".into());
        }
        self.lint_targets()?;
        self.lint_fixes()
    }

    /// Who is parked is waited for by somebody who will fetch it.
    fn lint_targets(&self) -> Result<(), String> {
        for (index, target) in self.targets.iter().enumerate() {
            let is_of = |id: CheckId| self.suite.target(id).map(|id| id.index()) == Some(index);
            let queued = self.queue.iter().any(|(_, id)| is_of(*id));
            if !target.parked.is_empty() && target.running == 0 && !queued {
                return Err(format!("{:?} are parked for ever", target.parked));
            }
        }
        Ok(())
    }

    fn lint_fixes(&self) -> Result<(), String> {
        let mut applying = 0;
        for id in self.suite.ids() {
            let phase = self.states[id.index()].fix_phase();
            let timer = match phase {
                Some(state::Phase::Applying { overdue_at, .. }) => {
                    applying += 1;
                    Some(overdue_at)
                }
                Some(state::Phase::Settling { .. } | state::Phase::Idle | state::Phase::Ready)
                | None => None,
            };
            if self.rules.hold(Rule::GiveUpLostFixes)
                && timer.is_some_and(|at| !self.timers.contains(&(at, id)))
            {
                return Err(format!("the fix of {id:?} has no limit"));
            }
            self.lint_resource(id, phase)?;
        }
        if applying == self.applying {
            Ok(())
        } else {
            Err(format!(
                "{applying} fixes are applied, counted are {}",
                self.applying
            ))
        }
    }
}
