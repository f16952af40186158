//! Every line that a person reads about an operation.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Journal, advance_to_stuck, alice, draft, failing_at, undo_failed};
use homeostat_journal::*;

#[test]
fn the_story_of_a_failure() {
    let journal = failing_at(draft(), StepIndex(1));
    insta::assert_snapshot!(render_log(journal.operation.plan(), &journal.log), @r"
    +0.000s    begun: first start of the cell
    +0.000s    place: attempt 1 begins
    +0.000s    place: ran
    +0.000s    place: verified
    +0.000s    start: attempt 1 begins
    +0.000s    start: attempt 1 failed: no answer
    +1.000s    start: attempt 2 begins
    +1.000s    start: attempt 2 failed: no answer
    +1.000s    undoes itself: start failed
    +1.000s    start: undo, attempt 1 begins
    +1.000s    start: undone
    +1.000s    place: undo, attempt 1 begins
    +1.000s    place: undone
    +1.000s    undone
    ");
    insta::assert_snapshot!(render(&journal.operation), @r"
    turnup-1  undone
      what   turnup v1 of service/shop-db
      asked  by alice: first start of the cell
      place  undone
      start  undone (attempt 2 failed: no answer)
      open   not started
      undid itself: start failed
    ");
}

#[test]
fn the_state_of_what_is_stuck() {
    let mut plan = draft();
    plan.approval = Approval::Needed;
    plan.steps[0].undo = Undo::Impossible {
        why: "the old data is gone".into(),
    };
    let mut journal = Journal::of(plan);
    journal.settle();
    insta::assert_snapshot!(render(&journal.operation), @r"
    turnup-1  awaiting-approval
      what   turnup v1 of service/shop-db
      asked  by alice: first start of the cell
      plan   96e6cd1b2322, not approved yet
      place  not started
      start  not started
      open   not started
    ");
    let hash = journal.operation.hash().clone();
    journal.add(Event::Approved {
        by: alice(),
        plan: hash,
    });
    advance_to_stuck(&mut journal, StepIndex(1));
    insta::assert_snapshot!(render(&journal.operation), @r"
    turnup-1  stuck
      what   turnup v1 of service/shop-db
      asked  by alice: first start of the cell
      plan   96e6cd1b2322, approved by alice
      place  done
      start  attempt 2 failed: no answer
      open   not started
      stuck: start is out of attempts, and place cannot be undone
    ");
}

#[test]
fn every_event_reads_well() {
    let mut plan = draft();
    plan.steps[1].manual = Some("turn the key".into());
    let mut journal = Journal::of(plan);
    let (first, second) = (StepIndex(0), StepIndex(1));
    let attempt = Attempt(1);
    journal.settle();
    journal.add(Event::StepStarted {
        step: first,
        attempt,
    });
    journal.pass(1250);
    journal.crash();
    journal.add(Event::StepStarted {
        step: first,
        attempt: Attempt(2),
    });
    journal.add(Event::Paused {
        by: Asker::Automation("guard".into()),
        why: "too much at once".into(),
    });
    journal.add(Event::StepDone {
        step: first,
        attempt: Attempt(2),
        output: true.into(),
    });
    journal.add(Event::VerifyFailed {
        step: first,
        attempt: Attempt(2),
        evidence: Evidence::new("not there"),
    });
    journal.add(Event::Resumed { by: alice() });
    journal.add(Event::StepStarted {
        step: first,
        attempt: Attempt(3),
    });
    journal.add(Event::StepDone {
        step: first,
        attempt: Attempt(3),
        output: true.into(),
    });
    journal.add(Event::VerifyPassed {
        step: first,
        attempt: Attempt(3),
    });
    journal.settle();
    journal.add(Event::DoneByHand {
        step: second,
        attempt,
        by: alice(),
        note: "turned".into(),
    });
    journal.add(Event::CancelAsked {
        by: Asker::Person(alice()),
        why: "wrong key".into(),
    });
    journal.add(Event::UndoStarted {
        step: second,
        attempt,
    });
    journal.add(undo_failed(second, attempt));
    journal.add(Event::Stuck {
        why: StuckWhy::UndoFailed { step: second },
    });
    journal.add(Event::UndoneByHand {
        step: second,
        by: alice(),
        note: "turned back".into(),
    });
    journal.add(Event::Abandoned {
        by: alice(),
        why: "good enough".into(),
    });
    insta::assert_snapshot!(render_log(journal.operation.plan(), &journal.log), @r"
    +0.000s    begun: first start of the cell
    +0.000s    place: attempt 1 begins
    +1.250s    taken over by the controller of term 2
    +1.250s    place: attempt 2 begins
    +1.250s    paused by guard (automation): too much at once
    +1.250s    place: ran
    +1.250s    place: attempt 2 had no effect: not there
    +1.250s    resumed by alice
    +1.250s    place: attempt 3 begins
    +1.250s    place: ran
    +1.250s    place: verified
    +1.250s    start: waits for a person
    +1.250s    start: done by alice: turned
    +1.250s    cancelled by alice: wrong key
    +1.250s    start: undo, attempt 1 begins
    +1.250s    start: undo, attempt 1 failed: no answer
    +1.250s    stuck: start cannot be undone
    +1.250s    start: undone by alice: turned back
    +1.250s    abandoned by alice: good enough
    ");
    insta::assert_snapshot!(render(&journal.operation), @r"
    turnup-1  abandoned
      what   turnup v1 of service/shop-db
      asked  by alice: first start of the cell
      place  done
      start  undone
      open   not started
      undid itself: cancelled by alice: wrong key
    ");
}
