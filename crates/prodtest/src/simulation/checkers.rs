//! What must be true, worked out from the outside: from what was handed out, reported and announced, and from the
//! truth of the world. Deliberately simple and slow.

use std::collections::BTreeMap;

use super::repairs::Repairs;
use super::world::{MOST_PER_TARGET, RETRY};
use crate::{
    Change, CheckId, Engine, FixOutcome, FixRun, Moment, Outcome, Run, Stage, Suite, Unknown,
    Verdict,
};

pub(super) struct Watch {
    room: usize,
    checks: BTreeMap<CheckId, Watched>,
    repairs: Repairs,
    /// Counts what happens, to say what came first.
    tick: u64,
}

struct Watched {
    confirm: u32,
    target: Option<String>,
    needs: Vec<CheckId>,
    /// All it depends on, through whatever lies between.
    beneath: Vec<CheckId>,
    broken_since: Option<u64>,
    verdict: Verdict,
    running: Option<Flight>,
    /// Sound failures since the last pass or verdict.
    failures: u32,
    first_failure: u64,
    last_failure: Moment,
    /// A sound failure just reported, whose moment `changes` fills in.
    just_failed: bool,
}

struct Flight {
    run: Run,
    began: u64,
    spoiled: bool,
}

impl Watch {
    pub(super) fn new(suite: &Suite, room: usize, most_fixes: usize) -> Self {
        let mut checks: BTreeMap<CheckId, Watched> = BTreeMap::new();
        for id in suite.ids() {
            let needs = suite.needs(id).to_vec();
            let mut beneath = needs.clone();
            for need in &needs {
                beneath.extend(&checks[need].beneath);
            }
            beneath.sort_unstable();
            beneath.dedup();
            let why = if needs.is_empty() {
                Unknown::Due
            } else {
                Unknown::Waiting
            };
            checks.insert(
                id,
                Watched {
                    confirm: suite.check(id).confirm,
                    target: suite.check(id).target.clone(),
                    needs,
                    beneath,
                    broken_since: None,
                    verdict: Verdict::Unknown(why),
                    running: None,
                    failures: 0,
                    first_failure: 0,
                    last_failure: Moment::from_millis(0),
                    just_failed: false,
                },
            );
        }
        Self {
            room,
            checks,
            repairs: Repairs::new(suite, most_fixes),
            tick: 0,
        }
    }

    pub(super) fn break_(&mut self, id: CheckId) {
        self.tick += 1;
        let tick = self.tick;
        self.of(id).broken_since.get_or_insert(tick);
    }

    pub(super) fn mend(&mut self, id: CheckId) {
        self.of(id).broken_since = None;
    }

    pub(super) fn is_broken(&self, id: CheckId) -> bool {
        self.checks[&id].broken_since.is_some()
    }

    pub(super) fn is_broken_beneath(&self, id: CheckId) -> bool {
        self.checks[&id]
            .beneath
            .iter()
            .any(|&beneath| self.is_broken(beneath))
    }

    pub(super) fn looks_broken(&self, id: CheckId) -> bool {
        self.is_broken(id) || self.is_broken_beneath(id)
    }

    pub(super) fn started(&mut self, run: &Run) -> Result<(), String> {
        let check = &self.checks[&run.check];
        if check.running.is_some() {
            return Err(format!("{:?} runs twice at once", run.check));
        }
        if let Some(need) = check.needs.iter().find(|need| !self.is_open(**need)) {
            return Err(format!(
                "{:?} runs although {need:?} does not pass",
                run.check
            ));
        }
        self.tick += 1;
        let began = self.tick;
        self.of(run.check).running = Some(Flight {
            run: run.clone(),
            began,
            spoiled: false,
        });
        self.target_is_not_crowded(run.check)?;
        if self
            .checks
            .values()
            .filter(|check| check.running.is_some())
            .count()
            > self.room
        {
            return Err("too many probes at once".into());
        }
        Ok(())
    }

    fn target_is_not_crowded(&self, id: CheckId) -> Result<(), String> {
        let Some(target) = &self.checks[&id].target else {
            return Ok(());
        };
        if self.looking_at(target) > MOST_PER_TARGET {
            return Err(format!("too many probes of {target} at once"));
        }
        Ok(())
    }

    fn looking_at(&self, target: &String) -> usize {
        let beside = self
            .checks
            .values()
            .filter(|check| check.running.is_some() && check.target.as_ref() == Some(target));
        beside.count()
    }

    pub(super) fn is_being_fixed(&self, run: &FixRun) -> bool {
        self.repairs.is_applying(run)
    }

    pub(super) fn fix_started(
        &mut self,
        run: &FixRun,
        quarantined: bool,
        now: Moment,
    ) -> Result<(), String> {
        let check = &self.checks[&run.check];
        if let Some(need) = check.needs.iter().find(|need| !self.is_open(**need)) {
            return Err(format!(
                "{:?} is fixed although {need:?} does not pass",
                run.check
            ));
        }
        if let Some(flight) = &mut self.of(run.check).running {
            flight.spoiled = true;
        }
        self.repairs.started(run, quarantined, now)
    }

    pub(super) fn fix_ended(
        &mut self,
        run: &FixRun,
        outcome: FixOutcome,
        now: Moment,
    ) -> Result<(), String> {
        self.tick += 1;
        self.repairs.ended(run, outcome, now, self.tick)
    }

    pub(super) fn given_up(&mut self, run: &Run) -> Result<(), String> {
        let check = self.of(run.check);
        match check.running.take_if(|flight| flight.run == *run) {
            Some(flight) if !flight.spoiled => {
                check.failures = 0;
                self.repairs.disturbed(run.check);
            }
            Some(_) => {}
            None => return Err(format!("{run:?} was given up, but does not run")),
        }
        Ok(())
    }

    /// Whether a report is about a probe that runs.
    pub(super) fn finished(&mut self, run: &Run, outcome: Outcome) -> bool {
        self.tick += 1;
        let tick = self.tick;
        let check = self.of(run.check);
        let Some(flight) = check.running.take_if(|flight| flight.run == *run) else {
            return false;
        };
        if flight.spoiled {
            return true;
        }
        self.repairs.reported(run.check, outcome, flight.began);
        let check = self.of(run.check);
        match outcome {
            Outcome::Passed | Outcome::NotRun => check.failures = 0,
            Outcome::Failed => {
                if check.failures == 0 {
                    check.first_failure = tick;
                }
                check.failures += 1;
                check.just_failed = true;
            }
        }
        true
    }

    pub(super) fn changes(&mut self, changes: &[Change], now: Moment) -> Result<(), String> {
        for change in changes {
            let check = &self.checks[&change.check];
            if std::mem::discriminant(&check.verdict) != std::mem::discriminant(&change.was) {
                return Err(format!("a change was not announced before {change:?}"));
            }
            match (&change.was, &change.is) {
                (Verdict::Fixing(_), Verdict::Fixing(repair)) => match repair.stage {
                    Stage::Queued => self.may_fail(change.check)?,
                    Stage::LookingAgain
                    | Stage::Applying
                    | Stage::Settling { .. }
                    | Stage::BackingOff { .. }
                    | Stage::Over => {}
                },
                (_, Verdict::GaveUp(_)) => {
                    self.may_fail(change.check)?;
                    self.repairs.may_give_up(change.check, now)?;
                }
                (_, Verdict::Fail(_) | Verdict::Fixing(_)) => self.may_fail(change.check)?,
                (_, Verdict::Unknown(_) | Verdict::Blocked(_)) => {
                    self.repairs.disturbed(change.check);
                }
                (_, Verdict::Pass(_) | Verdict::Flaky { .. }) => self.repairs.passes(change.check),
            }
            let check = self.of(change.check);
            check.verdict = change.is.clone();
            check.failures = 0;
            check.just_failed = false;
        }
        for check in self.checks.values_mut() {
            if std::mem::take(&mut check.just_failed) {
                check.last_failure = now;
            }
            if matches!(check.verdict, Verdict::Fail(_) | Verdict::GaveUp(_)) {
                check.failures = 0;
            }
        }
        self.spoil();
        Ok(())
    }

    /// After everything that happened in a step.
    pub(super) fn inspect(&self, engine: &Engine, now: Moment) -> Result<(), String> {
        if engine.wake_at().is_some_and(|at| at <= now) {
            return Err("something is due, although it was just handed out".into());
        }
        let room = self
            .checks
            .values()
            .filter(|check| check.running.is_some())
            .count()
            < self.room;
        for (&id, check) in &self.checks {
            if check.verdict.is_news(engine.verdict(id)) {
                return Err(format!(
                    "{id:?} was announced as {:?}, is {:?}",
                    check.verdict,
                    engine.verdict(id)
                ));
            }
            self.follows_from_dependencies(id, check)?;
            if room {
                self.is_prompt(id, check, now)?;
            }
        }
        Ok(())
    }

    /// A confirmed failure is one: often enough in a row, and not the work of something beneath that was broken all
    /// the while.
    fn may_fail(&self, id: CheckId) -> Result<(), String> {
        let check = &self.checks[&id];
        if check.failures < check.confirm {
            return Err(format!(
                "{id:?} fails after {} of {} failures",
                check.failures, check.confirm
            ));
        }
        let culprit = |beneath: &&CheckId| {
            self.checks[beneath]
                .broken_since
                .is_some_and(|since| since < check.first_failure)
        };
        match check.beneath.iter().find(culprit) {
            Some(culprit) => Err(format!(
                "{id:?} takes the blame for {culprit:?}, broken since before it failed"
            )),
            None => Ok(()),
        }
    }

    fn follows_from_dependencies(&self, id: CheckId, check: &Watched) -> Result<(), String> {
        let fails = |beneath: &&CheckId| self.checks[beneath].verdict.is_root();
        let roots: Vec<CheckId> = check.beneath.iter().filter(fails).copied().collect();
        let unknown = check
            .needs
            .iter()
            .any(|need| matches!(self.checks[need].verdict, Verdict::Unknown(_)));
        let right = match &check.verdict {
            Verdict::Blocked(named) => named.named() == roots && !roots.is_empty(),
            Verdict::Unknown(Unknown::Waiting) => roots.is_empty() && unknown,
            Verdict::Unknown(Unknown::Due | Unknown::NotRun { .. } | Unknown::Lost { .. })
            | Verdict::Pass(_)
            | Verdict::Flaky { .. }
            | Verdict::Fail(_)
            | Verdict::Fixing(_)
            | Verdict::GaveUp(_) => roots.is_empty() && !unknown,
        };
        if right {
            Ok(())
        } else {
            Err(format!(
                "{id:?} is {:?}, but beneath it fail {roots:?}",
                check.verdict
            ))
        }
    }

    /// With room to run, nothing waits longer than it must.
    fn is_prompt(&self, id: CheckId, check: &Watched, now: Moment) -> Result<(), String> {
        let may_run = check.running.is_none() && check.needs.iter().all(|need| self.is_open(*need));
        if !may_run {
            return Ok(());
        }
        // While it is fixed or settles it is looked at on a curve of its own.
        let is_fixed = matches!(check.verdict, Verdict::Fixing(_))
            || self.repairs.settles(id, check.last_failure);
        let crowded = check
            .target
            .as_ref()
            .is_some_and(|target| self.looking_at(target) >= MOST_PER_TARGET);
        if is_fixed || crowded || self.repairs.settles(id, now) {
            return Ok(());
        }
        if check.failures == 0 && matches!(check.verdict, Verdict::Unknown(Unknown::Due)) {
            return Err(format!("{id:?} may run and does not"));
        }
        if check.failures > 0 && check.needs.is_empty() && now > check.last_failure.after(RETRY) {
            return Err(format!(
                "{id:?} failed at {} and was not looked at again",
                check.last_failure
            ));
        }
        Ok(())
    }

    /// A probe says nothing about its check once something beneath has stopped passing.
    fn spoil(&mut self) {
        let closed: Vec<CheckId> = self
            .checks
            .iter()
            .filter(|(_, check)| check.needs.iter().any(|need| !self.is_open(*need)))
            .map(|(&id, _)| id)
            .collect();
        for id in closed {
            self.repairs.stirred(id);
            if let Some(flight) = &mut self.of(id).running {
                flight.spoiled = true;
            }
        }
    }

    fn is_open(&self, id: CheckId) -> bool {
        let check = &self.checks[&id];
        check.verdict.passes() && check.failures == 0
    }

    fn of(&mut self, id: CheckId) -> &mut Watched {
        self.checks.get_mut(&id).expect("a check of the suite")
    }
}
