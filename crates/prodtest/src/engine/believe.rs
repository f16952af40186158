//! From reports to verdicts, and how a verdict spreads to those that depend on it.

use std::collections::BTreeSet;

use crate::rules::Rule;
use crate::suite::CheckId;
use crate::time::Moment;
use crate::verdict::{Change, Evidence, Observation, Roots, Unknown, Verdict, clipped};

use super::state::{Face, Soundness, Suspicion, Turn};
use super::{Attempt, Engine, MOST_MISSES_IN_ONE_ROUND, Rounds};

/// What one call to the engine brings about.
pub(super) struct News {
    pub(super) now: Moment,
    pub(super) changes: Vec<Change>,
    /// Checks to look through because something they depend on shows another face. Taken smallest id first, which
    /// is dependencies first, so that each is looked at once.
    affected: BTreeSet<CheckId>,
}

impl News {
    pub(super) fn at(now: Moment) -> Self {
        Self {
            now,
            changes: Vec::new(),
            affected: BTreeSet::new(),
        }
    }
}

impl Engine {
    /// Each of these three takes in one outcome of a check whose gate was open throughout, and says when its next
    /// turn is.
    pub(super) fn passed(
        &mut self,
        id: CheckId,
        attempt: Attempt,
        observation: Observation,
        news: &mut News,
    ) -> Moment {
        let needless = self.passed_after_fix(id, news);
        let confirm = self.suite.check(id).confirm;
        let state = &mut self.states[id.index()];
        state.misses = 0;
        state.history.push_flakes(needless);
        // In quarantine nobody believed the failure and nobody repaired anything. If it did not count, a check could
        // leave the quarantine by failing often.
        if matches!(state.verdict, Verdict::Fail(_)) && state.history.rate().is_too_high() {
            state.history.push_flakes(confirm);
        }
        // Only what passed before and passes again has flaked; failures while starting up or during an outage have
        // a cause.
        let passed_before = state.verdict.passes() || state.passed_elsewhere;
        if let Some(suspicion) = state.suspicion.take()
            && passed_before
        {
            state.history.push_flakes(suspicion.failures);
        }
        state.history.push_pass();
        let rate = state.history.rate();
        let evidence = Evidence::new(observation, news.now);
        let verdict = if rate.is_too_high() {
            Verdict::Flaky { rate, evidence }
        } else {
            Verdict::Pass(evidence)
        };
        state.passed_elsewhere = false;
        let last_passed = state.passed.replace(attempt);
        self.set_verdict(id, verdict, news);
        self.verify_dependents(id, last_passed, attempt);
        self.next_turn(id, news.now)
    }

    pub(super) fn failed(
        &mut self,
        id: CheckId,
        attempt: Attempt,
        observation: Observation,
        news: &mut News,
    ) -> Moment {
        let needs = self.suite.needs(id).len() as u32;
        self.states[id.index()].misses = 0;
        if let Some(next) = self.failed_as_known(id, &observation, news) {
            return next;
        }
        if let Some(next) = self.failed_while_fixing(id, &observation, news) {
            return next;
        }
        let verify = if self.rules.hold(Rule::VerifyDependencies) {
            needs
        } else {
            0
        };
        let since = self.latest;
        let state = &mut self.states[id.index()];
        let suspicion = state.suspicion.get_or_insert(Suspicion {
            failures: 0,
            since,
            unverified: verify,
        });
        suspicion.failures += 1;
        let is_first = suspicion.failures == 1;
        let enough = if self.rules.hold(Rule::ConfirmFailures) {
            self.suite.check(id).confirm
        } else {
            1
        };
        if suspicion.failures >= enough && suspicion.unverified == 0 {
            state.suspicion = None;
            state.passed_elsewhere = false;
            return self.confirmed(id, attempt, observation, news);
        }
        self.show_face(id, news);
        if is_first && verify > 0 {
            for index in 0..self.suite.needs(id).len() {
                self.hasten(self.suite.needs(id)[index], news.now);
            }
        }
        // Not sooner either, even if a regular turn comes: failures in a row only count for something if what was
        // a blip has time to pass.
        if self.rules.hold(Rule::RetrySoon) {
            news.now
                .after(self.config.retry.min(self.suite.check(id).every))
        } else {
            self.next_turn(id, news.now)
        }
    }

    /// A failure that only confirms the verdict there is.
    fn failed_as_known(
        &mut self,
        id: CheckId,
        observation: &Observation,
        news: &mut News,
    ) -> Option<Moment> {
        let evidence = Evidence::new(observation.clone(), news.now);
        match &mut self.states[id.index()].verdict {
            Verdict::Fail(before) => *before = evidence,
            Verdict::GaveUp(repair) => repair.evidence = evidence,
            Verdict::Unknown(_)
            | Verdict::Pass(_)
            | Verdict::Flaky { .. }
            | Verdict::Fixing(_)
            | Verdict::Blocked(_) => return None,
        }
        Some(self.next_turn(id, news.now))
    }

    /// Nothing was learnt, so nothing is believed any more. The first repetition is soon, the later ones less and
    /// less so, down to the regular interval: what hinders the prober is often over in a moment, and if not, more
    /// attempts only make it worse.
    pub(super) fn not_run(&mut self, id: CheckId, why: Unknown, news: &mut News) -> Moment {
        const MOST_DOUBLINGS: u32 = 10;
        self.not_run_while_fixing(id, news);
        let state = &mut self.states[id.index()];
        let wait = self
            .config
            .retry
            .saturating_mul(1 << state.misses.min(MOST_DOUBLINGS));
        state.misses = state.misses.saturating_add(1);
        state.suspicion = None;
        let why = match why {
            Unknown::NotRun { why, at } => Unknown::NotRun {
                why: clipped(why),
                at,
            },
            Unknown::Due | Unknown::Waiting | Unknown::Lost { .. } => why,
        };
        let misses = state.misses;
        self.set_verdict(id, Verdict::Unknown(why), news);
        match self.config.rounds {
            Rounds::One if misses >= MOST_MISSES_IN_ONE_ROUND => Moment::NEVER,
            Rounds::One | Rounds::Endless => news.now.after(wait.min(self.suite.check(id).every)),
        }
    }

    /// Looks through all that is affected, until nothing is.
    pub(super) fn follow_up(&mut self, news: &mut News) {
        while let Some(id) = news.affected.pop_first() {
            self.follow_dependencies(id, news);
        }
    }

    /// Brings a check in line with what it depends on.
    fn follow_dependencies(&mut self, id: CheckId, news: &mut News) {
        let state = &mut self.states[id.index()];
        let tally = state.tally;
        if !tally.all_pass()
            && let Turn::Running(running) = &mut state.turn
        {
            running.soundness = Soundness::Spoiled;
        }
        if tally.bad > 0 {
            let roots = self.roots_beneath(id);
            self.forget(id, Verdict::Blocked(roots), news);
        } else if tally.unknown > 0 {
            self.forget(id, Verdict::Unknown(Unknown::Waiting), news);
        } else if matches!(
            state.verdict,
            Verdict::Blocked(_) | Verdict::Unknown(Unknown::Waiting)
        ) {
            self.forget(id, Verdict::Unknown(Unknown::Due), news);
            let promptly = self.rules.hold(Rule::RunPromptlyWhenUnblocked);
            let turn = if promptly {
                news.now
            } else {
                self.next_turn(id, news.now)
            };
            if let Turn::Waiting { at } = &mut self.states[id.index()].turn {
                *at = turn;
            }
        }
        if !tally.all_pass() {
            self.gate_closed(id, news);
        }
        self.place(id);
    }

    /// A verdict that does not come from a probe of its own: what its probes hinted at before is void.
    fn forget(&mut self, id: CheckId, verdict: Verdict, news: &mut News) {
        let state = &mut self.states[id.index()];
        state.suspicion = None;
        state.misses = 0;
        if state.verdict.is_news(&verdict) {
            self.set_verdict(id, verdict, news);
        }
    }

    pub(super) fn set_verdict(&mut self, id: CheckId, verdict: Verdict, news: &mut News) {
        let state = &mut self.states[id.index()];
        let is_news = state.verdict.is_news(&verdict);
        let was = std::mem::replace(&mut state.verdict, verdict);
        if is_news {
            let still_bad = state.face == Face::Bad && state.face_now() == Face::Bad;
            news.changes.push(Change {
                check: id,
                was,
                is: state.verdict.clone(),
                at: news.now,
            });
            if still_bad {
                // The face is the same, the root causes behind it are not.
                news.affected.extend(self.suite.dependents(id));
            }
        }
        self.show_face(id, news);
    }

    /// Tells the dependents, if they would see something else than before.
    fn show_face(&mut self, id: CheckId, news: &mut News) {
        let state = &mut self.states[id.index()];
        let face = state.face_now();
        let before = std::mem::replace(&mut state.face, face);
        if before == face {
            return;
        }
        for &dependent in self.suite.dependents(id) {
            self.states[dependent.index()].tally.replace(before, face);
            news.affected.insert(dependent);
        }
    }

    /// Strikes `id` off the list of what its suspect dependents wait to see passing.
    fn verify_dependents(&mut self, id: CheckId, passed_before: Option<Attempt>, passed: Attempt) {
        for index in 0..self.suite.dependents(id).len() {
            let dependent = self.suite.dependents(id)[index];
            let Some(suspicion) = &mut self.states[dependent.index()].suspicion else {
                continue;
            };
            let counted_before = passed_before.is_some_and(|before| before > suspicion.since);
            if passed > suspicion.since && !counted_before && suspicion.unverified > 0 {
                suspicion.unverified -= 1;
                self.place(dependent);
            }
        }
    }

    fn roots_beneath(&self, id: CheckId) -> Roots {
        let name_roots = self.rules.hold(Rule::NameRoots);
        let beneath = self
            .suite
            .needs(id)
            .iter()
            .flat_map(|need| match self.verdict(*need) {
                Verdict::Fail(_) | Verdict::Fixing(_) | Verdict::GaveUp(_) => {
                    std::slice::from_ref(need)
                }
                Verdict::Blocked(_) if !name_roots => std::slice::from_ref(need),
                Verdict::Blocked(roots) => roots.to_spread(),
                Verdict::Unknown(_) | Verdict::Pass(_) | Verdict::Flaky { .. } => &[],
            });
        Roots::of(beneath.copied())
    }
}
