//! What people do to operations: approve, pause, resume, cancel, abandon, and steps by hand.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Journal, advance_to_stuck, alice, attempts, draft, failed, undo_failed, until_stuck};
use homeostat_journal::*;

#[test]
fn where_something_cannot_be_undone_nothing_is() {
    let mut plan = draft();
    plan.steps[0].undo = Undo::Impossible {
        why: "the old data is gone".into(),
    };
    let mut journal = until_stuck(plan, StepIndex(1));
    assert_eq!(
        journal.operation.hold(),
        Some(&Hold::Stuck {
            why: StuckWhy::PastReturn {
                step: StepIndex(1),
                blocker: StepIndex(0)
            }
        })
    );
    let refused = journal
        .try_add(Event::CancelAsked {
            by: Asker::Person(alice()),
            why: "no".into(),
        })
        .unwrap_err();
    assert_eq!(refused.why, Illegal::PastReturn { step: StepIndex(0) });
    journal.add(Event::Abandoned {
        by: alice(),
        why: "good enough".into(),
    });
    assert_eq!(journal.operation.status(), Status::Abandoned);
}

#[test]
fn resuming_what_is_stuck_grants_new_attempts_and_no_more() {
    let mut plan = draft();
    plan.on_failure = OnFailure::Stop;
    let mut journal = until_stuck(plan, StepIndex(1));
    assert_eq!(attempts(&journal, StepIndex(1)), 2);
    journal.add(Event::Resumed { by: alice() });
    let now = journal.now;
    assert_eq!(
        journal.next(),
        Next::Run {
            step: StepIndex(1),
            attempt: Attempt(3)
        }
    );
    assert_eq!(journal.now, now, "a person who resumes does not wait");
    advance_to_stuck(&mut journal, StepIndex(1));
    assert_eq!(attempts(&journal, StepIndex(1)), 4);
}

#[test]
fn a_person_may_do_what_the_machinery_could_not() {
    let mut plan = draft();
    plan.on_failure = OnFailure::Stop;
    let mut journal = until_stuck(plan, StepIndex(1));
    let by_hand = |step, attempt| Event::DoneByHand {
        step,
        attempt,
        by: alice(),
        note: "plugged it in".into(),
    };
    let early = journal
        .try_add(by_hand(StepIndex(2), Attempt(1)))
        .unwrap_err();
    assert_eq!(
        early.why,
        Illegal::NotItsTurn {
            turn: Some(StepIndex(1))
        }
    );
    journal.add(by_hand(StepIndex(1), Attempt(3)));
    // It is believed no more than a machine is.
    assert_eq!(
        journal.next(),
        Next::Verify {
            step: StepIndex(1),
            attempt: Attempt(3)
        }
    );
}

#[test]
fn an_undo_that_fails_is_stuck_and_not_done() {
    let mut journal = Journal::of(draft());
    let step = StepIndex(0);
    journal.settle();
    journal.add(Event::StepStarted {
        step,
        attempt: Attempt(1),
    });
    journal.add(Event::CancelAsked {
        by: Asker::Person(alice()),
        why: "no".into(),
    });
    journal.add(failed(step, Attempt(1)));
    for attempt in [Attempt(1), Attempt(2)] {
        assert_eq!(journal.settle(), Next::Undo { step, attempt });
        journal.add(Event::UndoStarted { step, attempt });
        journal.add(undo_failed(step, attempt));
    }
    let held = Hold::Stuck {
        why: StuckWhy::UndoFailed { step },
    };
    assert_eq!(journal.settle(), Next::NeedsOperator(Need::Held(held)));
    assert_eq!(journal.operation.status(), Status::Stuck);
    journal.add(Event::UndoneByHand {
        step,
        by: alice(),
        note: "removed it".into(),
    });
    assert_eq!(
        journal.settle(),
        Next::Done {
            outcome: Outcome::Undone
        }
    );
}

#[test]
fn a_manual_step_waits_for_its_person_and_is_verified() {
    let mut plan = draft();
    plan.steps[1].manual = Some("turn the key".into());
    plan.steps[1].undo = Undo::ByHand {
        instructions: "turn it back".into(),
    };
    let mut journal = Journal::of(plan);
    let (first, step) = (StepIndex(0), StepIndex(1));
    journal.settle();
    journal.add(Event::StepStarted {
        step: first,
        attempt: Attempt(1),
    });
    journal.add(Event::StepDone {
        step: first,
        attempt: Attempt(1),
        output: true.into(),
    });
    journal.add(Event::VerifyPassed {
        step: first,
        attempt: Attempt(1),
    });
    let need = |attempt| {
        Next::NeedsOperator(Need::ByHand {
            step,
            attempt,
            instructions: "turn the key".into(),
        })
    };
    assert_eq!(journal.settle(), need(Attempt(1)));
    assert_eq!(journal.operation.status(), Status::AwaitingHand);
    journal.add(Event::DoneByHand {
        step,
        attempt: Attempt(1),
        by: alice(),
        note: "turned".into(),
    });
    journal.add(Event::VerifyFailed {
        step,
        attempt: Attempt(1),
        evidence: Evidence::new("still locked"),
    });
    assert_eq!(
        journal.settle(),
        need(Attempt(2)),
        "a person is asked again, as often as it takes"
    );
    journal.add(Event::CancelAsked {
        by: Asker::Person(alice()),
        why: "wrong key".into(),
    });
    assert_eq!(
        journal.settle(),
        Next::NeedsOperator(Need::UndoByHand {
            step,
            instructions: "turn it back".into()
        })
    );
    journal.add(Event::UndoneByHand {
        step,
        by: alice(),
        note: "turned back".into(),
    });
    assert_eq!(
        journal.settle(),
        Next::Undo {
            step: first,
            attempt: Attempt(1)
        }
    );
}

#[test]
fn nothing_runs_before_the_very_plan_is_approved() {
    let mut plan = draft();
    plan.approval = Approval::Needed;
    let mut journal = Journal::of(plan);
    let hash = journal.operation.hash().clone();
    assert_eq!(
        journal.settle(),
        Next::NeedsOperator(Need::Approval { plan: hash.clone() })
    );
    let step = Event::StepStarted {
        step: StepIndex(0),
        attempt: Attempt(1),
    };
    assert_eq!(journal.try_add(step).unwrap_err().why, Illegal::NotApproved);
    let other = PlanHash::from("0".repeat(64));
    let wrong = journal
        .try_add(Event::Approved {
            by: alice(),
            plan: other.clone(),
        })
        .unwrap_err();
    assert_eq!(
        wrong.why,
        Illegal::OtherPlan {
            planned: hash.clone(),
            found: other
        }
    );
    journal.add(Event::Approved {
        by: alice(),
        plan: hash,
    });
    assert_eq!(
        journal.settle(),
        Next::Run {
            step: StepIndex(0),
            attempt: Attempt(1)
        }
    );
}

#[test]
fn a_freeze_holds_back_automation_and_not_people() {
    let frozen = Brake::Frozen {
        why: "investigating".into(),
    };
    for (asked_by, expect) in [
        (
            Asker::Person(alice()),
            Next::Run {
                step: StepIndex(0),
                attempt: Attempt(1),
            },
        ),
        (
            Asker::Automation("drain".into()),
            Next::Wait(Wait::Frozen {
                step: StepIndex(0),
                why: "investigating".into(),
            }),
        ),
    ] {
        let mut plan = draft();
        plan.asked_by = asked_by;
        let mut journal = Journal::of(plan);
        journal.settle();
        assert_eq!(next(&journal.operation, &frozen, journal.now), expect);
    }
}

#[test]
fn a_pause_lets_what_runs_end_and_nothing_begin() {
    let mut journal = Journal::of(draft());
    let (step, attempt) = (StepIndex(0), Attempt(1));
    journal.settle();
    journal.add(Event::StepStarted { step, attempt });
    let hold = Hold::Paused {
        by: Asker::Person(alice()),
        why: "lunch".into(),
    };
    journal.add(Event::Paused {
        by: Asker::Person(alice()),
        why: "lunch".into(),
    });
    assert_eq!(journal.next(), Next::InFlight { step });
    journal.add(Event::StepDone {
        step,
        attempt,
        output: true.into(),
    });
    assert_eq!(journal.next(), Next::NeedsOperator(Need::Held(hold)));
    journal.add(Event::Resumed { by: alice() });
    assert_eq!(journal.next(), Next::Verify { step, attempt });
}
