//! What happens, and when.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::time::Duration;

use homeostat_model::CheckName;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::checkers::Watch;
use super::crew::{Crew, Landing};
use crate::rules::Rules;
use crate::{
    Change, Check, CheckId, Due, Engine, EngineConfig, Fence, FixOutcome, FixPolicy, FixRun,
    Moment, Observation, Outcome, Repeatable, Rounds, Run, Suite, Unknown, Verdict,
};

pub(super) const RETRY: Duration = Duration::from_millis(500);
pub(super) const BACK_OFF: Duration = Duration::from_secs(4);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(8);
pub(super) const FIX_TIMEOUT_MS: u64 = 3_000;
pub(super) const MOST_PER_TARGET: usize = 2;
const TIMEOUT_MS: u64 = 2_000;
const CHAOS_EVENTS: usize = 1200;
/// Long enough for anything to settle: lost probes to be given up, chains to be walked through, and one fix after the
/// other to be tried as often as it may be.
const CALM: Duration = Duration::from_secs(300);

/// How likely each kind of trouble is, for each probe or moment.
struct Trouble {
    flake: f64,
    lost: f64,
    lost_fix: f64,
    not_run: f64,
    /// Mean time between two breakages, mendings or events of the whole world.
    unrest_ms: u64,
}

enum Event {
    /// The moment within a probe at which it looks at the truth.
    Look(Run),
    Report(Run, Outcome),
    /// The moment within a fix at which it takes effect, and the one at which it is reported.
    Land(Landing),
    FixReport(Landing),
    Unrest,
}

pub(super) struct World {
    graph: Pcg64Stream,
    probes: Pcg64Stream,
    unrest: Pcg64Stream,
    engine: Engine,
    watch: Watch,
    crew: Crew,
    pub(super) tally: Tally,
    trouble: Trouble,
    now: Moment,
    /// By time, then in the order of planning.
    agenda: BTreeMap<(Moment, u64), Event>,
    planned: u64,
    trace: DefaultHasher,
}

/// What happened in one or many worlds.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) evaluations: u64,
    pub(super) fixes: u64,
    /// From one verdict to another, how often.
    pub(super) transitions: BTreeMap<(&'static str, &'static str), u64>,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Tally) {
        self.evaluations += other.evaluations;
        self.fixes += other.fixes;
        for (transition, count) in &other.transitions {
            *self.transitions.entry(*transition).or_default() += count;
        }
    }
}

/// Each part has randomness of its own, so that a change in one does not shift the others.
pub(super) struct Pcg64Stream(Pcg64);

impl Pcg64Stream {
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        Self(Pcg64::seed_from_u64(
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ stream,
        ))
    }

    pub(super) fn upto(&mut self, most: u64) -> u64 {
        self.0.random_range(0..=most)
    }

    pub(super) fn chance(&mut self, p: f64) -> bool {
        self.0.random_bool(p)
    }
}

impl World {
    pub(super) fn new(seed: u64, rules: Rules, rounds: Rounds) -> Self {
        let mut graph = Pcg64Stream::new(seed, 1);
        let suite = random_suite(&mut graph);
        let most_at_once = NonZeroUsize::new(1 + graph.upto(11) as usize).expect("one or more");
        let trouble = Trouble {
            flake: [0.0, 0.02, 0.2][graph.upto(2) as usize],
            lost: [0.0, 0.02][graph.upto(1) as usize],
            not_run: [0.0, 0.02][graph.upto(1) as usize],
            lost_fix: [0.0, 0.1][graph.upto(1) as usize],
            unrest_ms: [300, 3_000, 20_000][graph.upto(2) as usize],
        };
        let now = Moment::from_millis(graph.upto(100_000));
        let most_fixes = NonZeroUsize::new(1 + graph.upto(2) as usize).expect("one or more");
        let watch = Watch::new(&suite, most_at_once.get(), most_fixes.get());
        let crew = Crew::new(seed, &suite);
        let engine = Engine::with_rules(
            suite,
            EngineConfig {
                most_at_once,
                most_per_target: NonZeroUsize::new(MOST_PER_TARGET).expect("one or more"),
                most_fixes_at_once: most_fixes,
                retry: RETRY,
                back_off: BACK_OFF,
                longest_back_off: LONGEST_BACK_OFF,
                rounds,
                seed,
                fence: Fence(0),
            },
            now,
            rules,
        );
        Self {
            graph,
            probes: Pcg64Stream::new(seed, 2),
            unrest: Pcg64Stream::new(seed, 3),
            engine,
            watch,
            crew,
            tally: Tally::default(),
            trouble,
            now,
            agenda: BTreeMap::new(),
            planned: 0,
            trace: DefaultHasher::new(),
        }
    }

    pub(super) fn trace_hash(&self) -> u64 {
        self.trace.finish()
    }

    pub(super) fn chaos(&mut self) -> Result<(), String> {
        self.plan(1, Event::Unrest);
        for _ in 0..CHAOS_EVENTS {
            self.step()?;
        }
        Ok(())
    }

    /// One round over a world in which things are broken and nothing else happens: it has an end, and every check a
    /// verdict.
    pub(super) fn one_round(&mut self) -> Result<(), String> {
        const MOST_STEPS: u32 = 50_000;
        for id in self.engine.suite().ids() {
            if self.graph.chance(0.3) {
                self.watch.break_(id);
            }
        }
        for _ in 0..MOST_STEPS {
            if self.engine.wake_at().is_none() && !self.engine.is_under_way() {
                return self.every_check_has_its_verdict();
            }
            self.step()?;
        }
        self.complain("the round has no end".into())
    }

    fn every_check_has_its_verdict(&self) -> Result<(), String> {
        for (id, verdict) in self.engine.verdicts() {
            let open = match verdict {
                Verdict::Fixing(_) | Verdict::Unknown(Unknown::Due) => true,
                Verdict::Unknown(Unknown::Waiting) => self.engine.waits_for(id).is_empty(),
                Verdict::Unknown(Unknown::NotRun { .. } | Unknown::Lost { .. })
                | Verdict::Pass(_)
                | Verdict::Flaky { .. }
                | Verdict::Fail(_)
                | Verdict::GaveUp(_)
                | Verdict::Blocked(_) => false,
            };
            if open {
                return self.complain(format!("the round ends, and {id:?} is {verdict:?}"));
            }
        }
        Ok(())
    }

    pub(super) fn calm_with_nothing_broken(&mut self) -> Result<(), String> {
        for id in self.engine.suite().ids() {
            self.watch.mend(id);
        }
        self.be_calm()?;
        match self
            .engine
            .verdicts()
            .find(|(_, verdict)| !verdict.passes())
        {
            Some((id, verdict)) => {
                self.complain(format!("nothing is broken, but {id:?} is {verdict:?}"))
            }
            None => Ok(()),
        }
    }

    pub(super) fn calm_with_something_broken(&mut self) -> Result<(), String> {
        for id in self.engine.suite().ids() {
            if self.graph.chance(0.2) {
                self.watch.break_(id);
            }
        }
        self.be_calm()?;
        for (id, verdict) in self.engine.verdicts() {
            let truth = if self.watch.is_broken_beneath(id) {
                "blocked"
            } else if self.watch.is_broken(id) && self.crew.mends(id) && !self.quarantined(id) {
                return self.complain(format!("{id:?} has a fix that works, is {verdict:?}"));
            } else if self.watch.is_broken(id) && self.crew.has(id) && !self.quarantined(id) {
                "gave-up"
            } else if self.watch.is_broken(id) {
                "fail"
            } else {
                "pass"
            };
            let said = if verdict.passes() {
                "pass"
            } else {
                verdict.word()
            };
            if said != truth {
                return self.complain(format!("{id:?} should be {truth}, is {verdict:?}"));
            }
        }
        Ok(())
    }

    fn quarantined(&self, id: CheckId) -> bool {
        self.engine.flake_rate(id).is_too_high()
    }

    fn be_calm(&mut self) -> Result<(), String> {
        self.trouble = Trouble {
            flake: 0.0,
            lost: 0.0,
            not_run: 0.0,
            lost_fix: 0.0,
            unrest_ms: 0,
        };
        self.agenda
            .retain(|_, event| !matches!(event, Event::Unrest));
        let end = self.now.after(CALM);
        while self.now < end {
            self.step()?;
        }
        Ok(())
    }

    /// Goes to the next moment at which anything happens, lets one thing happen, and asks the engine what is due.
    fn step(&mut self) -> Result<(), String> {
        let wake = self.engine.wake_at();
        let event = self.agenda.first_key_value().map(|(&(at, _), _)| at);
        let Some(next) = wake.into_iter().chain(event).min() else {
            return self.complain("nothing will ever happen again".into());
        };
        self.now = self.now.max(next);
        if event.is_some_and(|at| at <= self.now)
            && let Some((_, event)) = self.agenda.pop_first()
        {
            self.happen(event)?;
        }
        let due = self.engine.due(self.now);
        (
            self.now,
            &due.runs.iter().map(|run| run.check).collect::<Vec<_>>(),
        )
            .hash(&mut self.trace);
        self.carry_out(due).or_else(|why| self.complain(why))
    }

    fn carry_out(&mut self, due: Due) -> Result<(), String> {
        for run in &due.given_up {
            self.watch.given_up(run)?;
        }
        for run in &due.fixes_given_up {
            self.watch.fix_ended(run, FixOutcome::Failed, self.now)?;
        }
        self.count(&due.changes);
        self.watch.changes(&due.changes, self.now)?;
        for run in due.fixes {
            let quarantined = self.quarantined(run.check);
            self.watch.fix_started(&run, quarantined, self.now)?;
            self.launch_fix(run);
        }
        for run in due.runs {
            self.watch.started(&run)?;
            self.launch(run);
        }
        self.engine
            .lint()
            .and_then(|()| self.watch.inspect(&self.engine, self.now))
    }

    fn count(&mut self, changes: &[Change]) {
        for change in changes {
            let transition = (change.was.word(), change.is.word());
            *self.tally.transitions.entry(transition).or_default() += 1;
        }
    }

    fn launch_fix(&mut self, run: FixRun) {
        self.tally.fixes += 1;
        let lost = self.trouble.lost_fix;
        let settle = settle_of(self.engine.suite(), run.check);
        let plan = self.crew.set_out(run, settle, lost);
        if let Some(in_ms) = plan.lands_in_ms {
            self.plan(in_ms, Event::Land(plan.landing.clone()));
        }
        if let Some(in_ms) = plan.reported_in_ms {
            self.plan(in_ms, Event::FixReport(plan.landing));
        }
    }

    fn launch(&mut self, run: Run) {
        let took = self.probes.upto(TIMEOUT_MS);
        let looks_at = self.probes.upto(took);
        if self.probes.chance(self.trouble.lost) {
            // Half of them come to light much later, when nobody waits for them any more.
            if self.probes.chance(0.5) {
                let late = 8_000 + self.probes.upto(20_000);
                self.plan(late, Event::Report(run, Outcome::Failed));
            }
            return;
        }
        self.plan(looks_at, Event::Look(run.clone()));
        // Planned at once, so that the look comes first even in the same millisecond.
        self.plan(took, Event::Report(run, Outcome::Passed));
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Look(run) => {
                let flaked = self.probes.chance(self.trouble.flake);
                if flaked || self.watch.looks_broken(run.check) {
                    self.set_outcome(&run, Outcome::Failed);
                } else if self.probes.chance(self.trouble.not_run) {
                    self.set_outcome(&run, Outcome::NotRun);
                }
                Ok(())
            }
            Event::Report(run, outcome) => self.report(&run, outcome),
            Event::Land(landing) => {
                let broken = self.watch.is_broken(landing.run.check);
                if self.crew.land(&landing, broken)? {
                    self.watch.mend(landing.run.check);
                }
                Ok(())
            }
            Event::FixReport(landing) => self.report_fix(&landing),
            Event::Unrest => {
                self.stir();
                Ok(())
            }
        }
    }

    fn report(&mut self, run: &Run, outcome: Outcome) -> Result<(), String> {
        let seen = format!("{outcome:?}");
        let observation = Observation {
            outcome,
            expected: "Passed".into(),
            seen,
            took: Duration::ZERO,
        };
        (run.check, outcome as u8).hash(&mut self.trace);
        self.tally.evaluations += 1;
        let taken = self.engine.finished(run, observation, self.now);
        let known = self.watch.finished(run, outcome);
        match (taken, known) {
            (Ok(changes), true) => {
                self.count(&changes);
                self.watch
                    .changes(&changes, self.now)
                    .or_else(|why| self.complain(why))
            }
            (Err(_), false) => Ok(()),
            (Ok(_), false) => self.complain(format!(
                "a report about a probe given up was taken: {run:?}"
            )),
            (Err(stale), true) => self.complain(format!("a report was refused: {stale}")),
        }
    }

    fn report_fix(&mut self, landing: &Landing) -> Result<(), String> {
        let applied = self.crew.report(landing);
        (landing.run.check, applied.outcome as u8).hash(&mut self.trace);
        let outcome = applied.outcome;
        let taken = self.engine.fix_finished(&landing.run, applied, self.now);
        let known = self.watch.is_being_fixed(&landing.run);
        match (taken, known) {
            (Ok(changes), true) => {
                self.count(&changes);
                self.watch
                    .fix_ended(&landing.run, outcome, self.now)
                    .and_then(|()| self.watch.changes(&changes, self.now))
                    .or_else(|why| self.complain(why))
            }
            (Err(_), false) => Ok(()),
            (Ok(_), false) => self.complain(format!("a late report was taken: {landing:?}")),
            (Err(stale), true) => self.complain(format!("a report was refused: {stale}")),
        }
    }

    /// Breaks or mends something, or tells the engine that something happened.
    fn stir(&mut self) {
        let count = self.engine.suite().count() as u64;
        let which = self.unrest.upto(count - 1) as usize;
        let id = self
            .engine
            .suite()
            .ids()
            .nth(which)
            .expect("within the suite");
        match self.unrest.upto(4) {
            0 | 1 => self.watch.break_(id),
            2 | 3 => self.watch.mend(id),
            _ => self.engine.look_again(id, self.now),
        }
        let pause = self.unrest.upto(2 * self.trouble.unrest_ms);
        self.plan(pause, Event::Unrest);
    }

    fn set_outcome(&mut self, run: &Run, outcome: Outcome) {
        for event in self.agenda.values_mut() {
            if let Event::Report(reported, planned) = event
                && reported == run
            {
                *planned = outcome;
            }
        }
    }

    fn plan(&mut self, in_ms: u64, event: Event) {
        self.planned += 1;
        self.agenda.insert(
            (self.now.after(Duration::from_millis(in_ms)), self.planned),
            event,
        );
    }

    fn complain<T>(&self, what: String) -> Result<T, String> {
        Err(format!("at {}: {what}", self.now))
    }
}

fn settle_of(suite: &Suite, id: CheckId) -> Duration {
    let fix = suite.check(id).fix.as_ref();
    fix.map_or(Duration::ZERO, |fix| fix.settle)
}

fn random_fix(random: &mut Pcg64Stream) -> FixPolicy {
    FixPolicy {
        resource: format!("resource-{}", random.upto(2)),
        repeatable: if random.chance(0.7) {
            Repeatable::Proved
        } else {
            Repeatable::NotProved
        },
        attempts: 1 + random.upto(2) as u32,
        timeout: Duration::from_millis(FIX_TIMEOUT_MS),
        settle: Duration::from_millis(200 + random.upto(4_000)),
    }
}

/// Up to a dozen checks, in a graph between loose and dense.
fn random_suite(random: &mut Pcg64Stream) -> Suite {
    let count = 1 + random.upto(11) as usize;
    let density = [0.05, 0.2, 0.5][random.upto(2) as usize];
    let name = |n: usize| CheckName::new(format!("check-{n}")).expect("a valid name");
    let mut checks = Vec::new();
    for n in 0..count {
        let after = (0..n)
            .filter(|_| random.chance(density))
            .map(name)
            .collect();
        checks.push(Check {
            name: name(n),
            after,
            every: Duration::from_millis(1_000 + random.upto(9_000)),
            timeout: Duration::from_millis(TIMEOUT_MS),
            confirm: 1 + random.upto(2) as u32,
            target: random
                .chance(0.5)
                .then(|| format!("target-{}", random.upto(1))),
            fix: random.chance(0.6).then(|| random_fix(random)),
        });
    }
    // The engine must not care in which order checks are declared.
    checks.reverse();
    Suite::new(checks).expect("a graph without cycles")
}
