//! What happens, and when.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::time::Duration;

use homeostat_model::CheckName;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::checkers::Watch;
use crate::rules::Rules;
use crate::{Check, Engine, EngineConfig, Moment, Observation, Outcome, Run, Suite};

pub(super) const RETRY: Duration = Duration::from_millis(500);
const TIMEOUT_MS: u64 = 2_000;
const CHAOS_EVENTS: usize = 400;
/// Long enough for anything to settle: lost probes to be given up and chains to be walked through.
const CALM: Duration = Duration::from_secs(60);

/// How likely each kind of trouble is, for each probe or moment.
struct Trouble {
    flake: f64,
    lost: f64,
    not_run: f64,
    /// Mean time between two breakages, mendings or events of the whole world.
    unrest_ms: u64,
}

enum Event {
    /// The moment within a probe at which it looks at the truth.
    Look(Run),
    Report(Run, Outcome),
    Unrest,
}

pub(super) struct World {
    graph: Pcg64Stream,
    probes: Pcg64Stream,
    unrest: Pcg64Stream,
    engine: Engine,
    watch: Watch,
    trouble: Trouble,
    now: Moment,
    /// By time, then in the order of planning.
    agenda: BTreeMap<(Moment, u64), Event>,
    planned: u64,
    trace: DefaultHasher,
}

/// Each part has randomness of its own, so that a change in one does not shift the others.
struct Pcg64Stream(Pcg64);

impl Pcg64Stream {
    fn new(seed: u64, stream: u64) -> Self {
        Self(Pcg64::seed_from_u64(
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ stream,
        ))
    }

    fn upto(&mut self, most: u64) -> u64 {
        self.0.random_range(0..=most)
    }

    fn chance(&mut self, p: f64) -> bool {
        self.0.random_bool(p)
    }
}

impl World {
    pub(super) fn new(seed: u64, rules: Rules) -> Self {
        let mut graph = Pcg64Stream::new(seed, 1);
        let suite = random_suite(&mut graph);
        let most_at_once = NonZeroUsize::new(1 + graph.upto(11) as usize).expect("one or more");
        let trouble = Trouble {
            flake: [0.0, 0.02, 0.2][graph.upto(2) as usize],
            lost: [0.0, 0.02][graph.upto(1) as usize],
            not_run: [0.0, 0.02][graph.upto(1) as usize],
            unrest_ms: [300, 3_000, 20_000][graph.upto(2) as usize],
        };
        let now = Moment::from_millis(graph.upto(100_000));
        let watch = Watch::new(&suite, most_at_once.get());
        let engine = Engine::with_rules(
            suite,
            EngineConfig {
                most_at_once,
                retry: RETRY,
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

    fn be_calm(&mut self) -> Result<(), String> {
        self.trouble = Trouble {
            flake: 0.0,
            lost: 0.0,
            not_run: 0.0,
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
        for run in &due.given_up {
            self.watch.given_up(run).or_else(|why| self.complain(why))?;
        }
        self.watch
            .changes(&due.changes, self.now)
            .or_else(|why| self.complain(why))?;
        for run in due.runs {
            self.watch.started(&run).or_else(|why| self.complain(why))?;
            self.launch(run);
        }
        let lint = self
            .engine
            .lint()
            .and_then(|()| self.watch.inspect(&self.engine, self.now));
        lint.or_else(|why| self.complain(why))
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
        let taken = self.engine.finished(run, observation, self.now);
        let known = self.watch.finished(run, outcome);
        match (taken, known) {
            (Ok(changes), true) => self
                .watch
                .changes(&changes, self.now)
                .or_else(|why| self.complain(why)),
            (Err(_), false) => Ok(()),
            (Ok(_), false) => self.complain(format!(
                "a report about a probe given up was taken: {run:?}"
            )),
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
        });
    }
    // The engine must not care in which order checks are declared.
    checks.reverse();
    Suite::new(checks).expect("a graph without cycles")
}
