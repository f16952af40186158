//! What holds of every log, however it came about.
//!
//! Two worlds. In the first an executor does what `next` says while steps fail, controllers die and people interfere at
//! random; a checker which knows nothing of the journal's own state watches the records. In the second the events themselves
//! are random, and whatever is accepted must still satisfy the checker.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::{Journal, alice, draft, failed, undo_failed};
use homeostat_journal::*;
use homeostat_model::UnixMillis;
use proptest::prelude::*;

/// What happens next in the first world.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Good,
    Bad,
    Hopeless,
    /// The controller dies in the middle of the attempt.
    CrashInside,
    /// The controller dies between two records.
    CrashOutside,
    Pause,
    Cancel,
    /// Somebody cancels while the attempt is under way.
    CancelInside,
    Abandon,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        12 => Just(Fate::Good),
        6 => Just(Fate::Bad),
        2 => Just(Fate::Hopeless),
        4 => Just(Fate::CrashInside),
        2 => Just(Fate::CrashOutside),
        2 => Just(Fate::Pause),
        1 => Just(Fate::Cancel),
        1 => Just(Fate::CancelInside),
        1 => Just(Fate::Abandon),
    ]
}

fn plans() -> impl Strategy<Value = Draft> {
    let undo = prop_oneof![
        6 => Just(Undo::ByProcedure),
        1 => Just(Undo::Nothing),
        1 => Just(Undo::ByHand { instructions: "put it back".into() }),
        1 => Just(Undo::Impossible { why: "it is gone".into() }),
    ];
    let steps = prop::collection::vec((undo, 1..4u32, prop::bool::weighted(0.2)), 1..5);
    let on_failure = prop_oneof![Just(OnFailure::Undo), Just(OnFailure::Stop)];
    (steps, on_failure).prop_map(|(steps, on_failure)| {
        let mut plan = draft();
        plan.on_failure = on_failure;
        plan.steps = steps
            .into_iter()
            .enumerate()
            .map(|(n, (undo, attempts, manual))| {
                let mut step = common::step(&format!("s{n}"));
                step.undo = undo;
                step.retry.max_attempts = attempts;
                step.manual = manual.then(|| "turn the key".to_owned());
                step
            })
            .collect();
        plan
    })
}

/// Watches events go by. Deliberately written without the journal's own notions: lists and counters only.
struct Checker {
    plan: Plan,
    allowance: Allowance,
    touched: Vec<StepIndex>,
    passed: Vec<StepIndex>,
    undone: Vec<StepIndex>,
    in_flight: Option<(Way, StepIndex, Attempt)>,
    turned: bool,
    stuck: bool,
    over: bool,
    spent: BTreeMap<(Way, StepIndex), Spent>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Forward,
    Back,
}

#[derive(Default)]
struct Spent {
    failures: u32,
    interruptions: u32,
}

/// Limits are kept by `next`; `apply` leaves them to the program that wrote the log.
#[derive(Clone, Copy, PartialEq)]
enum Allowance {
    Checked,
    Open,
}

impl Checker {
    fn new(plan: Plan, allowance: Allowance) -> Self {
        Self {
            plan,
            allowance,
            touched: Vec::new(),
            passed: Vec::new(),
            undone: Vec::new(),
            in_flight: None,
            turned: false,
            stuck: false,
            over: false,
            spent: BTreeMap::new(),
        }
    }

    fn see(&mut self, event: &Event) {
        assert!(!self.over, "{event:?} after the end");
        match event {
            Event::StepStarted { step, attempt } => {
                self.its_turn(*step);
                self.start(Way::Forward, *step, *attempt);
            }
            Event::HandAsked { step } => self.its_turn(*step),
            Event::StepDone { step, attempt, .. } => self.end(Way::Forward, *step, *attempt),
            Event::StepFailed {
                step,
                attempt,
                kind,
                ..
            } => {
                self.end(Way::Forward, *step, *attempt);
                self.fail(Way::Forward, *step, *kind);
            }
            Event::VerifyPassed { step, .. } => self.passed.push(*step),
            Event::VerifyFailed { step, .. } => {
                self.fail(Way::Forward, *step, FailureKind::Retryable)
            }
            Event::UndoBegun { .. } | Event::CancelAsked { .. } => {
                assert!(!self.turned, "turned round twice");
                let blocker = self
                    .touched
                    .iter()
                    .find(|step| matches!(self.undo(**step), Undo::Impossible { .. }));
                assert_eq!(blocker, None, "half an undo was begun");
                self.turned = true;
                self.stuck = false;
            }
            Event::UndoStarted { step, attempt } => {
                assert_eq!(
                    self.to_undo().get(self.undone.len()),
                    Some(step),
                    "undo is not in reverse"
                );
                self.start(Way::Back, *step, *attempt);
            }
            Event::UndoDone { step, attempt } => {
                self.end(Way::Back, *step, *attempt);
                self.undone.push(*step);
            }
            Event::UndoFailed {
                step,
                attempt,
                kind,
                ..
            } => {
                self.end(Way::Back, *step, *attempt);
                self.fail(Way::Back, *step, *kind);
            }
            Event::UndoneByHand { step, .. } => {
                assert_eq!(
                    self.to_undo().get(self.undone.len()),
                    Some(step),
                    "undo is not in reverse"
                );
                self.undone.push(*step);
                self.stuck = false;
            }
            Event::TakenOver => {
                if let Some((way, step, _)) = self.in_flight.take() {
                    self.spent.entry((way, step)).or_default().interruptions += 1;
                }
            }
            Event::Stuck { .. } => self.stuck = true,
            Event::Resumed { .. } => {
                if self.stuck {
                    self.spent.clear();
                }
                self.stuck = false;
            }
            Event::DoneByHand { .. } => self.stuck = false,
            Event::Completed => {
                assert_eq!(
                    self.passed.len(),
                    self.plan.steps().len(),
                    "complete without all steps"
                );
                self.over = true;
            }
            Event::Undone => {
                assert_eq!(self.undone, self.to_undo(), "something was left behind");
                self.over = true;
            }
            Event::Abandoned { .. } => {
                assert_eq!(self.in_flight, None, "abandoned while something ran");
                self.over = true;
            }
            Event::Begun { .. } | Event::Approved { .. } | Event::Paused { .. } => {}
        }
    }

    fn undo(&self, step: StepIndex) -> &Undo {
        &self.plan.step(step).unwrap().undo
    }

    /// All that has to be undone, in the order in which it has to be.
    fn to_undo(&self) -> Vec<StepIndex> {
        self.touched
            .iter()
            .rev()
            .copied()
            .filter(|step| *self.undo(*step) != Undo::Nothing)
            .collect()
    }

    fn its_turn(&mut self, step: StepIndex) {
        assert!(!self.turned, "a step began while undoing");
        assert_eq!(
            self.passed.len(),
            step.position(),
            "a step began before the former was verified"
        );
        if !self.touched.contains(&step) {
            self.touched.push(step);
        }
    }

    fn start(&mut self, way: Way, step: StepIndex, attempt: Attempt) {
        assert_eq!(self.in_flight, None, "two attempts at once");
        assert_eq!(self.turned, way == Way::Back);
        self.in_flight = Some((way, step, attempt));
        if self.allowance == Allowance::Checked {
            let spent = self.spent.entry((way, step)).or_default();
            assert!(
                spent.failures < self.plan.step(step).unwrap().retry.max_attempts,
                "an attempt too many"
            );
            assert!(
                spent.interruptions < limits::INTERRUPTIONS,
                "an interruption too many"
            );
        }
    }

    fn end(&mut self, way: Way, step: StepIndex, attempt: Attempt) {
        assert_eq!(
            self.in_flight.take(),
            Some((way, step, attempt)),
            "the result of something else"
        );
    }

    fn fail(&mut self, way: Way, step: StepIndex, kind: FailureKind) {
        self.spent.entry((way, step)).or_default().failures += match kind {
            FailureKind::Retryable => 1,
            FailureKind::Final => limits::ATTEMPTS,
        };
    }
}

/// Carries out what `next` says, under one fate after the other. Returns the records.
fn live(plan: Draft, fates: &[Fate]) -> Journal {
    let mut journal = Journal::of(plan);
    let mut fates = fates.iter().copied();
    // Once the fates are used up all goes well: liveness, as opposed to the safety that the checker watches.
    for _ in 0..2000 {
        let todo = journal.settle();
        let fate = fates.next().unwrap_or(Fate::Good);
        meddle(&mut journal, fate);
        let todo = if journal.settle() == todo {
            todo
        } else {
            continue;
        };
        match todo {
            Next::Done { .. } => return journal,
            Next::Run { step, attempt } => {
                journal.add(Event::StepStarted { step, attempt });
                attempted(
                    &mut journal,
                    fate,
                    Event::StepDone {
                        step,
                        attempt,
                        output: serde_json::json!(step.0),
                    },
                    |kind| Event::StepFailed {
                        step,
                        attempt,
                        kind,
                        evidence: Evidence::new("no answer"),
                    },
                );
            }
            Next::Undo { step, attempt } => {
                journal.add(Event::UndoStarted { step, attempt });
                attempted(
                    &mut journal,
                    fate,
                    Event::UndoDone { step, attempt },
                    |kind| Event::UndoFailed {
                        step,
                        attempt,
                        kind,
                        evidence: Evidence::new("no answer"),
                    },
                );
            }
            Next::Verify { step, attempt } => {
                attempted(
                    &mut journal,
                    fate,
                    Event::VerifyPassed { step, attempt },
                    |_| Event::VerifyFailed {
                        step,
                        attempt,
                        evidence: Evidence::new("not there"),
                    },
                );
            }
            Next::NeedsOperator(need) => operate(&mut journal, need),
            other @ (Next::Note(_) | Next::InFlight { .. } | Next::Wait(_)) => {
                panic!("nothing in this world leads to {other:?}")
            }
        }
        journal.pass(10);
    }
    panic!(
        "it never ends:\n{}",
        render_log(journal.operation.plan(), &journal.log)
    );
}

fn attempted(journal: &mut Journal, fate: Fate, good: Event, bad: impl Fn(FailureKind) -> Event) {
    match fate {
        Fate::Bad => journal.add(bad(FailureKind::Retryable)),
        Fate::Hopeless => journal.add(bad(FailureKind::Final)),
        Fate::CrashInside => journal.crash(),
        Fate::CancelInside => {
            // Refused past the point of no return, and while it undoes itself.
            let _ = journal.try_add(Event::CancelAsked {
                by: Asker::Person(alice()),
                why: "no".into(),
            });
            journal.add(good);
        }
        Fate::Good | Fate::CrashOutside | Fate::Pause | Fate::Cancel | Fate::Abandon => {
            journal.add(good)
        }
    }
}

/// People, and death between two records. What is illegal at that moment is refused; that is part of the point.
fn meddle(journal: &mut Journal, fate: Fate) {
    let why = || "because".to_owned();
    let by = || Asker::Person(alice());
    let _ = match fate {
        Fate::CrashOutside if journal.operation.outcome().is_none() => {
            journal.crash();
            Ok(())
        }
        Fate::Pause => journal.try_add(Event::Paused {
            by: by(),
            why: why(),
        }),
        Fate::Cancel => journal.try_add(Event::CancelAsked {
            by: by(),
            why: why(),
        }),
        Fate::Abandon => journal.try_add(Event::Abandoned {
            by: alice(),
            why: why(),
        }),
        Fate::Good
        | Fate::Bad
        | Fate::Hopeless
        | Fate::CrashInside
        | Fate::CrashOutside
        | Fate::CancelInside => Ok(()),
    };
}

fn operate(journal: &mut Journal, need: Need) {
    journal.add(match need {
        Need::Approval { plan } => Event::Approved { by: alice(), plan },
        Need::ByHand { step, attempt, .. } => Event::DoneByHand {
            step,
            attempt,
            by: alice(),
            note: "done".into(),
        },
        Need::UndoByHand { step, .. } => Event::UndoneByHand {
            step,
            by: alice(),
            note: "undone".into(),
        },
        Need::Held(_) => Event::Resumed { by: alice() },
    });
}

/// Events out of nothing. Indexes and attempts are small so that many of them fit.
fn events() -> impl Strategy<Value = Event> {
    let step = || (0..3u32).prop_map(StepIndex);
    let attempt = || (1..3u32).prop_map(Attempt);
    let kind = || prop_oneof![Just(FailureKind::Retryable), Just(FailureKind::Final)];
    let evidence = || Evidence::new("no answer");
    let text = || "because".to_owned();
    prop_oneof![
        (step(), attempt()).prop_map(|(step, attempt)| Event::StepStarted { step, attempt }),
        (step(), attempt()).prop_map(|(step, attempt)| Event::StepDone {
            step,
            attempt,
            output: true.into()
        }),
        (step(), attempt(), kind()).prop_map(move |(step, attempt, kind)| Event::StepFailed {
            step,
            attempt,
            kind,
            evidence: evidence()
        }),
        (step(), attempt()).prop_map(|(step, attempt)| Event::VerifyPassed { step, attempt }),
        (step(), attempt()).prop_map(move |(step, attempt)| Event::VerifyFailed {
            step,
            attempt,
            evidence: evidence()
        }),
        step().prop_map(|step| Event::HandAsked { step }),
        (step(), attempt()).prop_map(move |(step, attempt)| Event::DoneByHand {
            step,
            attempt,
            by: alice(),
            note: text()
        }),
        step().prop_map(|failed| Event::UndoBegun { failed }),
        (step(), attempt()).prop_map(|(step, attempt)| Event::UndoStarted { step, attempt }),
        (step(), attempt()).prop_map(|(step, attempt)| Event::UndoDone { step, attempt }),
        (step(), attempt(), kind()).prop_map(move |(step, attempt, kind)| Event::UndoFailed {
            step,
            attempt,
            kind,
            evidence: evidence()
        }),
        step().prop_map(move |step| Event::UndoneByHand {
            step,
            by: alice(),
            note: text()
        }),
        step().prop_map(|step| Event::Stuck {
            why: StuckWhy::StepFailed { step }
        }),
        step().prop_map(|step| Event::Stuck {
            why: StuckWhy::UndoFailed { step }
        }),
        (step(), step()).prop_map(|(step, blocker)| Event::Stuck {
            why: StuckWhy::PastReturn { step, blocker }
        }),
        Just(Event::Begun {
            plan: PlanHash::from(String::new())
        }),
        Just(Event::TakenOver),
        Just(Event::Paused {
            by: Asker::Person(alice()),
            why: text()
        }),
        Just(Event::Resumed { by: alice() }),
        Just(Event::CancelAsked {
            by: Asker::Automation("drain".into()),
            why: text()
        }),
        Just(Event::Completed),
        Just(Event::Undone),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_life_is_safe_and_ends(plan in plans(), fates in prop::collection::vec(fate(), 0..60)) {
        let journal = live(plan, &fates);
        let mut checker = Checker::new(journal.operation.plan().clone(), Allowance::Checked);
        for record in &journal.log {
            checker.see(&record.event);
        }
        prop_assert!(checker.over);
        let again = Operation::replay(journal.operation.plan().clone(), &journal.log).unwrap();
        prop_assert_eq!(again, journal.operation);
    }

    #[test]
    fn no_log_that_is_accepted_breaks_a_rule(plan in plans(), events in prop::collection::vec(prop::option::weighted(0.7, events()), 0..200)) {
        let mut journal = Journal::of(plan);
        let mut checker = Checker::new(journal.operation.plan().clone(), Allowance::Open);
        journal.add(Event::Begun { plan: journal.operation.hash().clone() });
        for event in events {
            // Now and then what is expected, or hardly any log would come to its end.
            let event = event.unwrap_or_else(|| expected(&journal));
            if journal.try_add(event.clone()).is_ok() {
                checker.see(&event);
                what_next_says_is_accepted(&journal);
            }
        }
    }
}

/// What an executor to whom nothing ever happens would write next.
fn expected(journal: &Journal) -> Event {
    let by = alice;
    match next(&journal.operation, &Brake::Released, UnixMillis(u64::MAX)) {
        Next::Run { step, attempt } => Event::StepStarted { step, attempt },
        Next::Verify { step, attempt } => Event::VerifyPassed { step, attempt },
        Next::Undo { step, attempt } => Event::UndoStarted { step, attempt },
        Next::Note(event) => event,
        Next::InFlight { step } => match journal.operation.step_state(step).unwrap() {
            StepState::Undoing { attempt } => Event::UndoDone {
                step,
                attempt: *attempt,
            },
            StepState::Running { attempt } => Event::StepDone {
                step,
                attempt: *attempt,
                output: true.into(),
            },
            other => panic!("{other:?} is not in flight"),
        },
        Next::Wait(wait) => panic!("waiting for {wait:?} at the end of time"),
        Next::NeedsOperator(Need::Approval { plan }) => Event::Approved { by: by(), plan },
        Next::NeedsOperator(Need::ByHand { step, attempt, .. }) => Event::DoneByHand {
            step,
            attempt,
            by: by(),
            note: String::new(),
        },
        Next::NeedsOperator(Need::UndoByHand { step, .. }) => Event::UndoneByHand {
            step,
            by: by(),
            note: String::new(),
        },
        Next::NeedsOperator(Need::Held(_)) => Event::Resumed { by: by() },
        Next::Done { .. } => Event::TakenOver,
    }
}

/// Whatever the state, what `next` says to record is legal there.
fn what_next_says_is_accepted(journal: &Journal) {
    let mut copy = Journal {
        operation: journal.operation.clone(),
        log: Vec::new(),
        term: journal.term,
        now: journal.now,
    };
    copy.pass(3_600_000);
    match copy.next() {
        Next::Note(event) => copy.add(event),
        Next::Run { step, attempt } => {
            copy.add(Event::StepStarted { step, attempt });
            copy.add(failed(step, attempt));
        }
        Next::Undo { step, attempt } => {
            copy.add(Event::UndoStarted { step, attempt });
            copy.add(undo_failed(step, attempt));
        }
        Next::Verify { step, attempt } => copy.add(Event::VerifyPassed { step, attempt }),
        Next::NeedsOperator(need) => operate(&mut copy, need),
        Next::InFlight { .. } => copy.add(Event::TakenOver),
        Next::Done { outcome } => assert_eq!(copy.operation.outcome(), Some(outcome)),
        Next::Wait(wait) => panic!("waiting for {wait:?} an hour later"),
    }
}
