#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;

use homeostat_model::CheckName;

use super::*;
use crate::{Check, Outcome};

mod fixing;
mod lint;

fn config(most_at_once: usize) -> EngineConfig {
    EngineConfig {
        most_at_once: NonZeroUsize::new(most_at_once).unwrap(),
        most_per_target: NonZeroUsize::new(2).unwrap(),
        most_fixes_at_once: NonZeroUsize::new(2).unwrap(),
        retry: Duration::from_millis(500),
        back_off: Duration::from_secs(4),
        longest_back_off: Duration::from_secs(60),
        rounds: Rounds::Endless,
        seed: 7,
        fence: Fence(0),
    }
}

/// A suite in a few words: `"base; left after base; top after left right"`, a moment, and who runs.
struct Stage {
    engine: Engine,
    now: u64,
    running: Vec<Run>,
    fixing: Vec<FixRun>,
    log: String,
}

impl Stage {
    fn new(graph: &str, confirm: u32, most_at_once: usize) -> Self {
        let name = |text: &str| CheckName::new(text).unwrap();
        let check = |line: &str| {
            let mut words = line.split_whitespace().filter(|word| *word != "after");
            Check {
                name: name(words.next().unwrap()),
                after: words.map(name).collect(),
                every: Duration::from_secs(10),
                timeout: Duration::from_secs(2),
                confirm,
                target: None,
                fix: None,
            }
        };
        Self::of(graph.split(';').map(check).collect(), most_at_once)
    }

    fn of(checks: Vec<Check>, most_at_once: usize) -> Self {
        let suite = Suite::new(checks).unwrap();
        let engine = Engine::new(suite, config(most_at_once), Moment::from_millis(0));
        let mut stage = Self {
            engine,
            now: 0,
            running: Vec::new(),
            fixing: Vec::new(),
            log: String::new(),
        };
        stage.due();
        stage
    }

    fn now(&self) -> Moment {
        Moment::from_millis(self.now)
    }

    fn id(&self, name: &str) -> CheckId {
        self.engine
            .suite()
            .id(&CheckName::new(name).unwrap())
            .unwrap()
    }

    fn due(&mut self) {
        let due = self.engine.due(self.now());
        self.note(due.changes);
        for run in &due.runs {
            writeln!(
                self.log,
                "{:>6} run {}",
                self.now,
                self.engine.suite().name(run.check)
            )
            .unwrap();
        }
        self.running.extend(due.runs);
        for fix in &due.fixes {
            let name = self.engine.suite().name(fix.check);
            writeln!(self.log, "{:>6} fix {name}", self.now).unwrap();
        }
        self.fixing.extend(due.fixes);
        self.engine.lint().unwrap();
    }

    fn note(&mut self, changes: Vec<Change>) {
        for change in changes {
            let name = self.engine.suite().name(change.check);
            let detail = match &change.is {
                Verdict::Blocked(roots) => {
                    let names: Vec<&str> = roots
                        .named()
                        .iter()
                        .map(|root| self.engine.suite().name(*root).as_str())
                        .collect();
                    format!(" by {}", names.join(", "))
                }
                Verdict::Unknown(why) => format!(": {why}"),
                Verdict::Fixing(repair) => format!(": {}", repair.stage),
                Verdict::GaveUp(repair) => format!(" after {}", repair.applied),
                Verdict::Pass(_) | Verdict::Flaky { .. } | Verdict::Fail(_) => String::new(),
            };
            writeln!(
                self.log,
                "{:>6} {name} is {}{detail}",
                self.now,
                change.is.word()
            )
            .unwrap();
        }
    }

    fn report(&mut self, name: &str, outcome: Outcome) {
        let id = self.id(name);
        let position = self.running.iter().position(|run| run.check == id).unwrap();
        let run = self.running.remove(position);
        writeln!(self.log, "{:>6} {name}: {outcome:?}", self.now).unwrap();
        let changes = self
            .engine
            .finished(&run, observation(outcome), self.now())
            .unwrap();
        self.note(changes);
        self.due();
    }

    fn pass(&mut self, names: &str) {
        names
            .split_whitespace()
            .for_each(|name| self.report(name, Outcome::Passed));
    }

    fn fail(&mut self, names: &str) {
        names
            .split_whitespace()
            .for_each(|name| self.report(name, Outcome::Failed));
    }

    fn wait(&mut self, millis: u64) {
        let end = self.now + millis;
        while let Some(at) = self
            .engine
            .wake_at()
            .map(Moment::as_millis)
            .filter(|at| *at <= end)
        {
            self.now = at;
            self.due();
        }
        self.now = end;
    }

    fn log(&mut self) -> String {
        std::mem::take(&mut self.log)
    }

    fn word(&self, name: &str) -> &'static str {
        self.engine.verdict(self.id(name)).word()
    }
}

fn observation(outcome: Outcome) -> Observation {
    let seen = "what it saw".to_owned();
    Observation {
        outcome,
        expected: "what is right".to_owned(),
        seen,
        took: Duration::from_millis(1),
    }
}

#[test]
fn from_unknown_to_pass_in_order() {
    let mut stage = Stage::new(
        "top after left right; left after base; right after base; base",
        2,
        8,
    );
    assert_eq!(stage.engine.waits_for(stage.id("top")), [stage.id("base")]);
    stage.pass("base left right top");
    insta::assert_snapshot!(stage.log(), @r"
    0 run base
    0 base: Passed
    0 base is pass
    0 left is unknown: not run yet
    0 right is unknown: not run yet
    0 run left
    0 run right
    0 left: Passed
    0 left is pass
    0 right: Passed
    0 right is pass
    0 top is unknown: not run yet
    0 run top
    0 top: Passed
    0 top is pass
    ");
}

#[test]
fn a_flake_changes_nothing_and_is_looked_at_again_soon() {
    let mut stage = Stage::new("web", 2, 8);
    stage.pass("web");
    let turn = stage.engine.wake_at().unwrap().as_millis();
    stage.wait(turn);
    stage.fail("web");
    stage.wait(500);
    stage.pass("web");
    let rate = stage.engine.flake_rate(stage.id("web"));
    assert_eq!((rate.flakes, rate.of), (1, 3));
    assert_eq!(
        stage.engine.wake_at().unwrap().as_millis(),
        turn + 10_000,
        "back on its own grid"
    );
    insta::assert_snapshot!(stage.log(), @r"
       0 run web
       0 web: Passed
       0 web is pass
    1521 run web
    1521 web: Failed
    2021 run web
    2021 web: Passed
    ");
}

#[test]
fn the_check_beneath_takes_the_blame() {
    let mut stage = Stage::new("db; api after db; web after api", 2, 8);
    stage.pass("db api web");
    stage.log();
    stage.now = 100_000;
    // The database died; the check at the far end happens to look first.
    stage.due();
    stage.pass("db");
    stage.pass("api");
    stage.fail("web");
    stage.fail("api");
    stage.fail("db");
    stage.wait(500);
    stage.fail("db");
    stage.wait(10_000);
    stage.pass("db");
    stage.pass("api");
    stage.pass("web");
    insta::assert_snapshot!(stage.log(), @r"
    100000 run db
    100000 run web
    100000 run api
    100000 db: Passed
    100000 api: Passed
    100000 web: Failed
    100000 run api
    100000 api: Failed
    100000 run db
    100000 db: Failed
    100500 run db
    100500 db: Failed
    100500 db is fail
    100500 api is blocked by db
    100500 web is blocked by db
    110371 run db
    110500 db: Passed
    110500 db is pass
    110500 api is unknown: not run yet
    110500 web is unknown: waits for what it depends on
    110500 run api
    110500 api: Passed
    110500 api is pass
    110500 web is unknown: not run yet
    110500 run web
    110500 web: Passed
    110500 web is pass
    ");
}

#[test]
fn blocked_names_all_origins_and_only_those() {
    let mut stage = Stage::new("a; b; c; mid after a b; far after mid c", 1, 8);
    stage.fail("a c");
    stage.pass("b");
    assert_eq!(stage.word("far"), "blocked");
    insta::assert_snapshot!(stage.log(), @r"
    0 run a
    0 run b
    0 run c
    0 a: Failed
    0 a is fail
    0 mid is blocked by a
    0 far is blocked by a
    0 c: Failed
    0 c is fail
    0 far is blocked by a, c
    0 b: Passed
    0 b is pass
    ");
}

#[test]
fn many_origins_are_counted_as_more() {
    let names: Vec<String> = (10..40).map(|n| format!("part-{n}")).collect();
    let mut stage = Stage::new(
        &format!("{}; all after {}", names.join("; "), names.join(" ")),
        1,
        100,
    );
    stage.fail(&names[..16].join(" "));
    let roots = |stage: &Stage| match stage.engine.verdict(stage.id("all")) {
        Verdict::Blocked(roots) => (roots.named().len(), roots.and_more()),
        other => panic!("{other:?}"),
    };
    assert_eq!(roots(&stage), (16, false));
    stage.fail(&names[16..].join(" "));
    assert_eq!(roots(&stage), (16, true));
}

#[test]
fn events_bring_a_look_forward_but_not_endlessly() {
    let mut stage = Stage::new("web", 2, 8);
    stage.pass("web");
    stage.log();
    let web = stage.id("web");
    stage.wait(1000);
    for _ in 0..100 {
        let now = stage.now();
        stage.engine.look_again(web, now);
        stage.due();
    }
    stage.pass("web");
    stage.wait(500);
    stage.pass("web");
    stage.wait(500);
    insta::assert_snapshot!(stage.log(), @r"
    1000 run web
    1000 web: Passed
    1500 run web
    1500 web: Passed
    1521 run web
    ");
}

#[test]
fn what_nobody_reports_is_unknown_and_tried_again() {
    let mut stage = Stage::new("db; web after db", 2, 8);
    stage.pass("db web");
    stage.log();
    let turn = stage.engine.wake_at().unwrap().as_millis();
    stage.wait(turn);
    let lost = stage.running.remove(0);
    stage.wait(8_000);
    let now = stage.now();
    assert_eq!(
        stage
            .engine
            .finished(&lost, observation(Outcome::Passed), now)
            .unwrap_err()
            .attempt,
        lost.attempt
    );
    let db = stage.id("db");
    assert!(
        stage
            .running
            .iter()
            .any(|run| run.check == db && run.attempt != lost.attempt)
    );
    insta::assert_snapshot!(stage.log(), @r"
     371 run db
    1521 run web
    7371 db is unknown: was run, and nobody reported what came of it
    7371 web is unknown: waits for what it depends on
    7871 run db
    ");
}

#[test]
fn a_prober_in_trouble_proves_nothing_and_is_asked_less_and_less() {
    let mut stage = Stage::new("web", 1, 8);
    for _ in 0..7 {
        stage.report("web", Outcome::NotRun);
        while stage.running.is_empty() {
            stage.wait(500);
        }
    }
    assert_eq!(stage.word("web"), "unknown");
    insta::assert_snapshot!(stage.log(), @r"
        0 run web
        0 web: NotRun
        0 web is unknown: could not be run: what it saw
      500 run web
      500 web: NotRun
     1500 run web
     1500 web: NotRun
     3500 run web
     3500 web: NotRun
     7500 run web
     7500 web: NotRun
    15500 run web
    15500 web: NotRun
    25500 run web
    25500 web: NotRun
    35500 run web
    ");
}

#[test]
fn a_check_that_flakes_beyond_doubt_is_flaky_and_its_dependents_still_run() {
    let mut stage = Stage::new("web; page after web", 2, 8);
    stage.pass("web page");
    for _ in 0..20 {
        while !stage.running.iter().any(|run| run.check == stage.id("web")) {
            stage.wait(100);
            if stage
                .running
                .iter()
                .any(|run| run.check == stage.id("page"))
            {
                stage.pass("page");
            }
        }
        if stage
            .engine
            .flake_rate(stage.id("web"))
            .of
            .is_multiple_of(4)
        {
            stage.fail("web");
            stage.wait(500);
        }
        stage.pass("web");
    }
    assert_eq!(stage.word("web"), "flaky");
    assert_eq!(stage.word("page"), "pass");
    for _ in 0..64 {
        stage.wait(10_000);
        while let Some(run) = stage.running.first() {
            let name = stage.engine.suite().name(run.check).to_string();
            stage.pass(&name);
        }
    }
    assert_eq!(stage.word("web"), "pass", "it was good for long enough");
}

#[test]
fn turns_are_spread_over_the_interval() {
    let names: Vec<String> = (0..1000).map(|n| format!("check-{n}")).collect();
    let mut stage = Stage::new(&names.join(";"), 1, 1000);
    stage.pass(&names.join(" "));
    let mut tenths = [0; 10];
    for tenth in &mut tenths {
        stage.wait(1_000);
        *tenth = stage.running.len();
        for run in std::mem::take(&mut stage.running) {
            let now = stage.now();
            stage
                .engine
                .finished(&run, observation(Outcome::Passed), now)
                .unwrap();
        }
    }
    assert_eq!(tenths.iter().sum::<usize>(), 1000);
    assert!(
        tenths.iter().all(|count| (60..140).contains(count)),
        "{tenths:?}"
    );
}

#[test]
fn a_hundred_thousand_checks_and_a_deep_chain_stay_cheap() {
    // Work, not time: the number of steps is what must not explode, and a quadratic engine would not end here.
    let chain: Vec<String> = (1..10_000)
        .map(|n| format!("link-{n} after link-{}", n - 1))
        .collect();
    let wide: Vec<String> = (0..90_000)
        .map(|n| format!("leaf-{n} after link-{}", n % 100))
        .collect();
    let mut stage = Stage::new(
        &format!("link-0; {}; {}", chain.join(";"), wide.join(";")),
        1,
        64,
    );
    let mut engine = stage.engine;
    let mut runs = std::mem::take(&mut stage.running);
    let mut finished = 0;
    let now = Moment::from_millis(1);
    while let Some(run) = runs.pop() {
        engine
            .finished(&run, observation(Outcome::Passed), now)
            .unwrap();
        finished += 1;
        runs.extend(engine.due(now).runs);
    }
    assert_eq!(finished, 100_000);
    assert!(engine.verdicts().all(|(_, verdict)| verdict.passes()));
}
