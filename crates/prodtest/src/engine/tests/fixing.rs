//! Scripted repairs, with everything that is announced.

use super::*;
use crate::{Applied, FixOutcome, FixPolicy, Repeatable};

/// `"web ~dnsmasq; page after web ~dnsmasq"`: what follows `~` is the resource of the fix.
fn stage(graph: &str, confirm: u32, repeatable: Repeatable) -> Stage {
    let name = |text: &str| CheckName::new(text).unwrap();
    let check = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let resource = words.iter().find_map(|word| word.strip_prefix('~'));
        let after = words.iter().skip(1).filter(|word| !word.starts_with('~'));
        Check {
            name: name(words[0]),
            after: after
                .filter(|word| **word != "after")
                .map(|word| name(word))
                .collect(),
            every: Duration::from_secs(10),
            timeout: Duration::from_secs(2),
            confirm,
            target: None,
            fix: resource.map(|resource| FixPolicy {
                resource: resource.to_owned(),
                repeatable,
                attempts: 3,
                timeout: Duration::from_secs(30),
                settle: Duration::from_secs(4),
            }),
        }
    };
    Stage::of(graph.split(';').map(check).collect(), 8)
}

impl Stage {
    fn fixed(&mut self, name: &str, outcome: FixOutcome) {
        let id = self.id(name);
        let position = self.fixing.iter().position(|run| run.check == id).unwrap();
        let run = self.fixing.remove(position);
        writeln!(self.log, "{:>6} {name}: {outcome:?}", self.now).unwrap();
        let changes = self
            .engine
            .fix_finished(&run, applied(outcome), self.now())
            .unwrap();
        self.note(changes);
        self.due();
    }

    /// Answers every probe with a failure for so long, or until a fix is to be applied.
    fn keep_failing(&mut self, millis: u64) {
        let end = self.now + millis;
        loop {
            while let Some(run) = self.running.first() {
                let name = self.engine.suite().name(run.check).to_string();
                self.fail(&name);
            }
            if !self.fixing.is_empty() {
                return;
            }
            match self.engine.wake_at().map(Moment::as_millis) {
                Some(at) if at <= end => {
                    self.now = at;
                    self.due();
                }
                Some(_) | None => break,
            }
        }
        self.now = end;
    }
}

fn applied(outcome: FixOutcome) -> Applied {
    Applied {
        outcome,
        said: "what it did".to_owned(),
    }
}

#[test]
fn a_confirmed_failure_is_fixed_settles_and_lets_its_dependents_go_on() {
    let mut stage = stage("web ~web; page after web", 2, Repeatable::Proved);
    stage.fail("web");
    stage.wait(500);
    stage.fail("web");
    stage.wait(100);
    stage.fixed("web", FixOutcome::Changed);
    stage.fail("web");
    stage.wait(62);
    stage.fail("web");
    stage.wait(125);
    stage.pass("web page");
    insta::assert_snapshot!(stage.log());
}

#[test]
fn a_fix_that_does_not_help_is_tried_again_later_and_then_given_up() {
    let mut stage = stage("web ~web; page after web", 1, Repeatable::Proved);
    stage.fail("web");
    for _ in 0..3 {
        stage.fixed("web", FixOutcome::Changed);
        stage.keep_failing(30_000);
    }
    assert_eq!(stage.word("web"), "gave-up");
    assert!(stage.fixing.is_empty());
    assert_eq!(stage.word("page"), "blocked");
    while stage.running.is_empty() {
        stage.wait(100);
    }
    stage.pass("web");
    assert_eq!(stage.word("web"), "pass");
    stage.wait(10_000);
    stage.fail("web");
    assert_eq!(stage.fixing.len(), 1, "who passed has new attempts");
    let lines = stage.log();
    let story: Vec<&str> = lines
        .lines()
        .filter(|line| !line.contains("run ") && !line.contains("Failed"))
        .collect();
    insta::assert_snapshot!(story.join("\n"));
}

#[test]
fn what_is_not_proved_has_one_attempt() {
    let mut stage = stage("web ~web", 1, Repeatable::NotProved);
    stage.fail("web");
    stage.fixed("web", FixOutcome::Changed);
    stage.keep_failing(60_000);
    assert_eq!(stage.word("web"), "gave-up");
}

#[test]
fn a_fix_of_many_is_applied_once_and_the_others_look_again() {
    let mut stage = stage(
        "a ~dnsmasq; b ~dnsmasq; c ~dnsmasq; d ~other",
        1,
        Repeatable::Proved,
    );
    stage.fail("a b c d");
    assert_eq!(stage.fixing.len(), 2, "a and d");
    stage.fixed("a", FixOutcome::Changed);
    assert_eq!(stage.fixing.len(), 1, "it settles first");
    stage.pass("a");
    stage.pass("b");
    stage.fail("c");
    assert_eq!(stage.fixing.len(), 2, "c fails still");
    assert_eq!(stage.word("b"), "pass");
    insta::assert_snapshot!(stage.log());
}

#[test]
fn nothing_is_fixed_while_something_beneath_stirs() {
    let mut stage = stage("db; web after db ~web; lock ~web", 1, Repeatable::Proved);
    stage.pass("db");
    stage.fail("lock");
    stage.fail("web");
    stage.pass("db");
    // Its failure is confirmed, but the resource is taken. Then the database goes away.
    stage.wait(500);
    stage.fail("web");
    assert_eq!(stage.word("web"), "fixing");
    while stage.engine.verdict(stage.id("db")).passes() {
        match stage.running.first() {
            Some(_) => {
                let name = stage
                    .engine
                    .suite()
                    .name(stage.running[0].check)
                    .to_string();
                stage.fail(&name);
            }
            None => stage.wait(100),
        }
    }
    stage.fixed("lock", FixOutcome::Changed);
    stage.pass("lock");
    assert_eq!(stage.word("web"), "blocked");
    assert!(stage.fixing.is_empty());
}

#[test]
fn a_lost_fix_is_given_up_and_its_late_report_dropped() {
    let mut stage = stage("web ~web", 1, Repeatable::Proved);
    stage.fail("web");
    let lost = stage.fixing.remove(0);
    stage.keep_failing(60_000);
    assert!(stage.log.contains("fix web"));
    let again = stage.fixing.remove(0);
    assert!(again.fence > lost.fence);
    let now = stage.now();
    let stale = stage
        .engine
        .fix_finished(&lost, applied(FixOutcome::Changed), now)
        .unwrap_err();
    assert_eq!(
        stale.to_string(),
        "fix 1 of check web is not being applied, so its report is dropped"
    );
}

#[test]
fn a_fix_that_found_nothing_to_do_counts_as_a_flake() {
    let mut stage = stage("web ~web", 1, Repeatable::Proved);
    stage.pass("web");
    let mut fixes = 0;
    for _ in 0..60 {
        while stage.running.is_empty() {
            stage.wait(100);
        }
        stage.fail("web");
        if stage.word("web") == "fail" {
            break;
        }
        fixes += 1;
        stage.fixed("web", FixOutcome::Unchanged);
        stage.pass("web");
    }
    assert_eq!(stage.word("web"), "fail", "in quarantine it reports");
    assert!(stage.fixing.is_empty());
    assert!((8..15).contains(&fixes), "{fixes} needless fixes");
}

#[test]
fn one_target_is_not_crowded() {
    let check = |n: u32| Check {
        name: CheckName::new(format!("check-{n}")).unwrap(),
        after: Vec::new(),
        every: Duration::from_secs(10),
        timeout: Duration::from_secs(2),
        confirm: 1,
        target: (n < 5).then(|| "127.0.0.1:80".to_owned()),
        fix: None,
    };
    let mut stage = Stage::of((0..7).map(check).collect(), 100);
    assert_eq!(
        stage.running.len(),
        4,
        "two of the target, and the two without one"
    );
    stage.pass("check-0");
    assert_eq!(stage.running.len(), 4);
    stage.pass("check-1 check-2 check-3 check-4 check-5 check-6");
    assert!(stage.running.is_empty());
}

#[test]
fn one_round_ends() {
    let mut config = config(8);
    config.rounds = Rounds::One;
    let stage = stage("a ~a; b after a; c; d after c ~d", 2, Repeatable::Proved);
    let mut engine = Engine::new(stage.engine.suite().clone(), config, Moment::from_millis(0));
    let (mut now, mut probes, mut fixes) = (0, 0, 0);
    loop {
        let due = engine.due(Moment::from_millis(now));
        for run in &due.runs {
            probes += 1;
            let outcome = match engine.suite().name(run.check).as_str() {
                "c" => Outcome::NotRun,
                "a" => Outcome::Failed,
                _ => Outcome::Passed,
            };
            engine
                .finished(run, observation(outcome), Moment::from_millis(now))
                .unwrap();
        }
        for fix in &due.fixes {
            fixes += 1;
            engine
                .fix_finished(fix, applied(FixOutcome::Failed), Moment::from_millis(now))
                .unwrap();
        }
        match engine.wake_at() {
            Some(at) => now = now.max(at.as_millis()),
            None => break,
        }
    }
    assert!(!engine.is_under_way());
    let words: Vec<&str> = engine
        .verdicts()
        .map(|(_, verdict)| verdict.word())
        .collect();
    assert_eq!(words, ["gave-up", "blocked", "unknown", "unknown"]);
    assert_eq!((probes, fixes), (14, 3), "at {now} ms");
}

#[test]
fn what_was_learnt_before_counts() {
    let round = |remembered: Remembered, outcomes: &[Outcome]| {
        let stage = stage("web ~web", 2, Repeatable::Proved);
        let mut config = config(8);
        config.rounds = Rounds::One;
        let suite = stage.engine.suite().clone();
        let mut engine = Engine::new(suite, config, Moment::from_millis(0));
        let web = stage.id("web");
        engine.recall(web, remembered);
        for (index, outcome) in outcomes.iter().enumerate() {
            let now = Moment::from_millis(index as u64 * 500);
            let due = engine.due(now);
            engine
                .finished(&due.runs[0], observation(*outcome), now)
                .unwrap();
        }
        let fixes = engine.due(Moment::from_millis(5_000)).fixes.len();
        (engine.remembered(web), fixes)
    };
    use Outcome::{Failed, Passed};
    let mut remembered = Remembered::default();
    (remembered, _) = round(remembered, &[Failed, Passed]);
    assert_eq!(
        (remembered.flaked, remembered.count),
        (0, 1),
        "it may have been starting"
    );
    for _ in 0..12 {
        (remembered, _) = round(remembered, &[Failed, Passed]);
    }
    assert_eq!(remembered.count, 25);
    let (after, fixes) = round(remembered, &[Failed, Failed]);
    assert_eq!(fixes, 0, "it is in quarantine");
    assert!(!after.passed);
    assert_eq!(round(Remembered::default(), &[Failed, Failed]).1, 1);
}
