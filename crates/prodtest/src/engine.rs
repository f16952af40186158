//! The state machine over a suite: what to probe next, and what to believe of the reports.
//!
//! One check is always either *waiting* for a moment or *running*. Whether a waiting one may be run at its moment
//! depends on its *gate*: it is open while everything the check depends on passes, the latest probe of each
//! included. Nobody computes a gate: each check keeps a [`Tally`] of what its dependencies look like, and a check
//! that changes its [`Face`] corrects the tallies of its dependents. So a probe costs the number of dependents at
//! most when something changed, and next to nothing when nothing did.
//!
//! A confirmed failure of a check with a fix makes it *ready*: it waits for its resource, is fixed, settles, and either
//! passes or is confirmed anew before the next attempt (`fixing`).
//!
//! Invariants, which the simulation checks after each step: a check in `queue`, or parked with a target that has no room,
//! is waiting with an open gate, and the other way round; `overdue` holds exactly the running ones; verdicts of checks
//! with a closed gate follow from those of their dependencies.

mod believe;
mod fixing;
mod state;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::time::Duration;

use homeostat_model::CheckName;

use crate::history::{FlakeRate, History, Remembered};
use crate::rules::{Rule, Rules};
use crate::suite::{CheckId, ResourceId, Suite};
use crate::time::Moment;
use crate::verdict::{Change, Observation, Outcome, Unknown, Verdict};

pub use fixing::{Fence, FixRun, StaleFix};

use believe::News;
use fixing::Resource;
use state::{Running, Soundness, Spot, State, Turn};

/// How long after its own time limit a probe may still be reported. Probers keep the limit themselves; this only
/// covers the way back, and a prober that died.
const REPORT_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy)]
pub struct EngineConfig {
    /// How many probes may run at the same moment.
    pub most_at_once: NonZeroUsize,
    /// How many of them may look at one target.
    pub most_per_target: NonZeroUsize,
    /// How many fixes may be applied at the same moment.
    pub most_fixes_at_once: NonZeroUsize,
    /// How soon an unconfirmed failure is looked at again, and the least time between two probes of a check that
    /// [`Engine::look_again`] asks for.
    pub retry: Duration,
    /// The pause after the first attempt of a fix that did not help; it doubles with each, and chance adds or takes off
    /// up to a half, so that what failed together is not tried again together.
    pub back_off: Duration,
    pub longest_back_off: Duration,
    pub rounds: Rounds,
    /// The chance in all of it.
    pub seed: u64,
    /// Fencing numbers are higher than this. A caller that comes after another passes on what the other reached.
    pub fence: Fence,
}

/// How often the suite is gone through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounds {
    /// Until each check has its verdict: the end is when [`Engine::wake_at`] has nothing more and nothing is under way.
    One,
    Endless,
}

/// In one round, so many probes of a check that cannot be run are enough.
const MOST_MISSES_IN_ONE_ROUND: u32 = 3;

/// Numbers all probes of an engine in the order in which they started. Orders them where time is too coarse: whether
/// a probe started before or after a report in the same millisecond decides what it proves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt(u64);

/// A probe to carry out now, and to report with [`Engine::finished`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub check: CheckId,
    pub attempt: Attempt,
    /// The prober must report within this time, whatever happens.
    pub timeout: Duration,
}

/// What is to be done at a moment.
#[derive(Debug, PartialEq, Eq)]
pub struct Due {
    pub runs: Vec<Run>,
    pub fixes: Vec<FixRun>,
    /// Probes that nobody reported in time. Their room is given to others, so end them if they still run.
    pub given_up: Vec<Run>,
    /// Fixes that nobody reported in time. What they change is given to others, so end them if they still run.
    pub fixes_given_up: Vec<FixRun>,
    /// Verdicts that changed because of that.
    pub changes: Vec<Change>,
}

/// A report about a probe that is not running: it was given up before, or reported already. It changes nothing; the
/// caller should log it, since it tells of a slow or confused prober.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("probe {} of check {name} is not running, so its report is dropped", .attempt.0)]
pub struct StaleRun {
    pub name: CheckName,
    pub attempt: Attempt,
}

#[derive(Debug)]
pub struct Engine {
    suite: Suite,
    config: EngineConfig,
    rules: Rules,
    states: Vec<State>,
    /// Of the latest probe handed out.
    latest: Attempt,
    /// Waiting checks with an open gate, by when their turn comes.
    queue: BTreeSet<(Moment, CheckId)>,
    /// Running checks, by when they are given up.
    overdue: BTreeSet<(Moment, CheckId)>,
    targets: Vec<Target>,
    resources: Vec<Resource>,
    /// Resources that nobody holds and somebody waits for.
    free: BTreeSet<ResourceId>,
    /// Fixes that are applied or settle, by when that is over.
    timers: BTreeSet<(Moment, CheckId)>,
    /// Fixes that are applied.
    applying: usize,
    /// Of the latest fix handed out.
    fence: Fence,
}

/// What several checks look at.
#[derive(Debug, Default)]
struct Target {
    running: usize,
    /// Whose turn came while it had no room. Whoever leaves it, or leaves the queue, sends the next one back there.
    parked: BTreeSet<(Moment, CheckId)>,
}

impl Engine {
    /// Everything is unknown, and what depends on nothing is due at once: a person who starts a cell waits for the
    /// verdicts. The second probes are spread over the intervals.
    pub fn new(suite: Suite, config: EngineConfig, now: Moment) -> Self {
        Self::with_rules(suite, config, now, Rules::ALL_HOLD)
    }

    pub(crate) fn with_rules(
        suite: Suite,
        config: EngineConfig,
        now: Moment,
        rules: Rules,
    ) -> Self {
        let states = suite.ids().map(|id| State::new(&suite, id, now)).collect();
        let mut engine = Self {
            targets: (0..suite.targets()).map(|_| Target::default()).collect(),
            resources: (0..suite.resources())
                .map(|_| Resource::default())
                .collect(),
            fence: config.fence,
            suite,
            config,
            rules,
            states,
            latest: Attempt(0),
            queue: BTreeSet::new(),
            overdue: BTreeSet::new(),
            free: BTreeSet::new(),
            timers: BTreeSet::new(),
            applying: 0,
        };
        for id in engine.suite.ids() {
            engine.place(id);
        }
        engine
    }

    pub fn suite(&self) -> &Suite {
        &self.suite
    }

    /// Hands out the probes and fixes whose turn has come, and gives up those that nobody reported.
    pub fn due(&mut self, now: Moment) -> Due {
        let mut news = News::at(now);
        let mut given_up = Vec::new();
        if self.rules.hold(Rule::GiveUpLostRuns) {
            while let Some(&(at, id)) = self.overdue.first()
                && at <= now
            {
                given_up.extend(self.give_up(id, &mut news));
            }
        }
        let fixes_given_up = self.watch_fixes(&mut news);
        self.follow_up(&mut news);
        let fixes = self.start_fixes(&mut news);
        self.follow_up(&mut news);
        let mut runs = Vec::new();
        while self.has_room()
            && let Some(&(at, id)) = self.queue.first()
            && at <= now
        {
            if self.target_is_full(id) {
                self.park(id, at);
            } else {
                runs.push(self.start(id, now));
            }
        }
        Due {
            runs,
            fixes,
            given_up,
            fixes_given_up,
            changes: news.changes,
        }
    }

    /// Takes in what came of a probe.
    ///
    /// # Errors
    /// [`StaleRun`] when that probe is not running; nothing is changed then.
    pub fn finished(
        &mut self,
        run: &Run,
        observation: Observation,
        now: Moment,
    ) -> Result<Vec<Change>, StaleRun> {
        let stale = || StaleRun {
            name: self.suite.name(run.check).clone(),
            attempt: run.attempt,
        };
        let running = match &self.states[run.check.index()].turn {
            Turn::Running(running) if running.attempt == run.attempt => running.clone(),
            Turn::Running(running) if !self.rules.hold(Rule::DropStaleReports) => running.clone(),
            Turn::Running(_) | Turn::Waiting { .. } => return Err(stale()),
        };
        let mut news = News::at(now);
        self.overdue.remove(&(running.overdue_at, run.check));
        self.leave_target(run.check);
        let next = match running.soundness {
            Soundness::Spoiled if self.rules.hold(Rule::DropSpoiledResults) => now,
            Soundness::Sound | Soundness::Spoiled => {
                self.believe(run.check, &running, observation, &mut news)
            }
        };
        self.wait_until(
            run.check,
            running.again.map_or(next, |again| again.min(next)),
        );
        self.follow_up(&mut news);
        Ok(news.changes)
    }

    /// Something happened to what a check is about, so it is worth a look before its turn: as soon as it may run,
    /// but not more often than the retry interval, however many events there are.
    pub fn look_again(&mut self, check: CheckId, now: Moment) {
        let rested = self.states[check.index()]
            .started
            .map_or(now, |started| started.after(self.config.retry));
        self.hasten(check, rested.max(now));
    }

    pub fn verdict(&self, check: CheckId) -> &Verdict {
        &self.states[check.index()].verdict
    }

    /// All verdicts, in an order in which nothing comes before what it depends on.
    pub fn verdicts(&self) -> impl Iterator<Item = (CheckId, &Verdict)> {
        self.suite.ids().map(|id| (id, self.verdict(id)))
    }

    /// What an engine before this one learnt of a check. To be called before anything is handed out.
    pub fn recall(&mut self, check: CheckId, remembered: Remembered) {
        let state = &mut self.states[check.index()];
        state.history = History::of(remembered);
        state.passed_elsewhere = remembered.passed;
    }

    /// What the next engine should know of a check.
    pub fn remembered(&self, check: CheckId) -> Remembered {
        let state = &self.states[check.index()];
        let learnt = state.verdict.evidence().is_some();
        let passed = state.verdict.passes() || (!learnt && state.passed_elsewhere);
        state.history.remembered(passed)
    }

    /// How often a check failed lately for no reason.
    pub fn flake_rate(&self, check: CheckId) -> FlakeRate {
        self.states[check.index()].history.rate()
    }

    /// The checks at the origin of a [`Unknown::Waiting`]: unknown themselves, and not because of others.
    pub fn waits_for(&self, check: CheckId) -> Vec<CheckId> {
        let mut origins = BTreeSet::new();
        let mut seen = BTreeSet::from([check]);
        let mut to_visit = vec![check];
        while let Some(id) = to_visit.pop() {
            for &need in self.suite.needs(id) {
                match self.verdict(need) {
                    Verdict::Unknown(Unknown::Waiting) if seen.insert(need) => to_visit.push(need),
                    Verdict::Unknown(
                        Unknown::Due | Unknown::NotRun { .. } | Unknown::Lost { .. },
                    ) => {
                        origins.insert(need);
                    }
                    Verdict::Unknown(Unknown::Waiting)
                    | Verdict::Pass(_)
                    | Verdict::Flaky { .. }
                    | Verdict::Fail(_)
                    | Verdict::Fixing(_)
                    | Verdict::GaveUp(_)
                    | Verdict::Blocked(_) => {}
                }
            }
        }
        origins.into_iter().collect()
    }

    /// When [`due`](Self::due) will have something to do, unless a report comes first. `None`: not before one does.
    pub fn wake_at(&self) -> Option<Moment> {
        let turn = if self.has_room() {
            self.queue.first()
        } else {
            None
        };
        let fix = self.may_start_fixes().then_some(Moment::from_millis(0));
        turn.into_iter()
            .chain(self.overdue.first())
            .chain(self.timers.first())
            .map(|&(at, _)| at)
            .chain(fix)
            .min()
    }

    /// Whether a probe or a fix was handed out and has not come back.
    pub fn is_under_way(&self) -> bool {
        !self.overdue.is_empty() || self.applying > 0
    }

    fn target_is_full(&self, id: CheckId) -> bool {
        self.rules.hold(Rule::BoundPerTarget)
            && self.suite.target(id).is_some_and(|target| {
                self.targets[target.index()].running >= self.config.most_per_target.get()
            })
    }

    fn park(&mut self, id: CheckId, at: Moment) {
        self.queue.remove(&(at, id));
        if let Some(target) = self.suite.target(id) {
            self.targets[target.index()].parked.insert((at, id));
            self.states[id.index()].spot = Some((Spot::Parked, at));
        }
    }

    /// Sends one that is parked where `id` looks back to the queue; it is parked again if there is no room after all.
    fn unpark_beside(&mut self, id: CheckId) {
        let Some(target) = self.suite.target(id) else {
            return;
        };
        if let Some((at, parked)) = self.targets[target.index()].parked.pop_first() {
            self.queue.insert((at, parked));
            self.states[parked.index()].spot = Some((Spot::Queue, at));
        }
    }

    fn leave_target(&mut self, id: CheckId) {
        if let Some(target) = self.suite.target(id) {
            self.targets[target.index()].running -= 1;
        }
        self.unpark_beside(id);
    }

    fn has_room(&self) -> bool {
        self.overdue.len() < self.config.most_at_once.get()
            || !self.rules.hold(Rule::BoundConcurrency)
    }

    fn start(&mut self, id: CheckId, now: Moment) -> Run {
        let timeout = self.suite.check(id).timeout;
        let overdue_at = now.after(timeout).after(REPORT_WITHIN);
        let attempt = Attempt(self.latest.0 + 1);
        self.latest = attempt;
        let state = &mut self.states[id.index()];
        state.started = Some(now);
        state.turn = Turn::Running(Running {
            attempt,
            overdue_at,
            soundness: Soundness::Sound,
            again: None,
        });
        self.overdue.insert((overdue_at, id));
        if let Some(target) = self.suite.target(id) {
            self.targets[target.index()].running += 1;
        }
        self.place(id);
        Run {
            check: id,
            attempt,
            timeout,
        }
    }

    fn give_up(&mut self, id: CheckId, news: &mut News) -> Option<Run> {
        let running = match &self.states[id.index()].turn {
            Turn::Running(running) => running.clone(),
            Turn::Waiting { .. } => return None,
        };
        self.overdue.remove(&(running.overdue_at, id));
        self.leave_target(id);
        let next = match running.soundness {
            // It would not have counted anyway, and the verdict follows from the dependencies.
            Soundness::Spoiled => news.now,
            Soundness::Sound => self.not_run(id, Unknown::Lost { at: news.now }, news),
        };
        self.wait_until(id, next);
        self.follow_up(news);
        Some(Run {
            check: id,
            attempt: running.attempt,
            timeout: self.suite.check(id).timeout,
        })
    }

    fn believe(
        &mut self,
        id: CheckId,
        running: &Running,
        observation: Observation,
        news: &mut News,
    ) -> Moment {
        match observation.outcome {
            Outcome::Passed => self.passed(id, running.attempt, observation, news),
            Outcome::Failed => self.failed(id, running.attempt, observation, news),
            Outcome::NotRun => self.not_run(
                id,
                Unknown::NotRun {
                    why: observation.seen,
                    at: news.now,
                },
                news,
            ),
        }
    }

    /// The moment of the next regular probe.
    fn next_turn(&self, id: CheckId, now: Moment) -> Moment {
        match self.config.rounds {
            Rounds::One => Moment::NEVER,
            Rounds::Endless => {
                now.next_slot(self.suite.check(id).every, self.states[id.index()].phase)
            }
        }
    }

    fn wait_until(&mut self, id: CheckId, at: Moment) {
        self.states[id.index()].turn = Turn::Waiting { at };
        self.place(id);
    }

    /// Moves a check's turn forward to `at`, unless it comes sooner anyway.
    fn hasten(&mut self, id: CheckId, at: Moment) {
        match &mut self.states[id.index()].turn {
            Turn::Waiting { at: turn } => *turn = at.min(*turn),
            // What runs now began before the event, and may not have seen it.
            Turn::Running(running) => {
                running.again = Some(running.again.map_or(at, |again| again.min(at)))
            }
        }
        self.place(id);
    }

    /// Puts a check where it belongs in the queue, or takes it out. To be called whenever its turn, its gate or what
    /// it waits for changed.
    fn place(&mut self, id: CheckId) {
        let state = &mut self.states[id.index()];
        let gated = !state.may_run() && self.rules.hold(Rule::RunAfterDependencies);
        let belongs = match state.turn {
            Turn::Waiting { at } if !gated && at < Moment::NEVER => Some(at),
            Turn::Waiting { .. } | Turn::Running(_) => None,
        };
        let spot = state.spot;
        if spot.map(|(_, at)| at) == belongs {
            return;
        }
        state.spot = belongs.map(|at| (Spot::Queue, at));
        if let Some(at) = belongs {
            self.queue.insert((at, id));
        }
        match spot {
            None => {}
            Some((Spot::Queue, at)) => {
                self.queue.remove(&(at, id));
                if belongs.is_none() {
                    self.unpark_beside(id);
                }
            }
            Some((Spot::Parked, at)) => {
                if let Some(target) = self.suite.target(id) {
                    self.targets[target.index()].parked.remove(&(at, id));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
