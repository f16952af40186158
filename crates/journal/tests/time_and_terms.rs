//! Clocks that go back, controllers that come and go, and logs that are not as they were written.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Journal, complete, draft, failed};
use homeostat_journal::*;
use homeostat_model::{OperationId, Term, UnixMillis};

#[test]
fn back_off_waits_and_a_clock_set_back_does_not_wait_for_ever() {
    let mut journal = Journal::of(draft());
    let (step, attempt) = (StepIndex(0), Attempt(1));
    journal.settle();
    journal.add(Event::StepStarted { step, attempt });
    journal.add(failed(step, attempt));
    let until = UnixMillis(journal.now.0 + 1000);
    assert_eq!(journal.next(), Next::Wait(Wait::BackOff { step, until }));
    journal.pass(999);
    assert_eq!(journal.next(), Next::Wait(Wait::BackOff { step, until }));
    journal.pass(1);
    assert_eq!(
        journal.next(),
        Next::Run {
            step,
            attempt: Attempt(2)
        }
    );
    journal.now = UnixMillis(5);
    assert_eq!(
        journal.next(),
        Next::Run {
            step,
            attempt: Attempt(2)
        }
    );
}

#[test]
fn terms_fence() {
    let mut journal = Journal::of(draft());
    let (step, attempt) = (StepIndex(0), Attempt(1));
    journal.settle();
    journal.add(Event::StepStarted { step, attempt });
    journal.term = Term(2);
    let done = Event::StepDone {
        step,
        attempt,
        output: true.into(),
    };
    assert_eq!(
        journal.try_add(done.clone()).unwrap_err().why,
        Illegal::NotTakenOver { last: Term(1) }
    );
    journal.add(Event::TakenOver);
    journal.term = Term(1);
    assert_eq!(
        journal.try_add(done.clone()).unwrap_err().why,
        Illegal::OldTerm {
            last: Term(2),
            found: Term(1)
        }
    );
    journal.term = Term(2);
    assert_eq!(
        journal.try_add(done).unwrap_err().why,
        Illegal::Stale,
        "the attempt was interrupted"
    );
}

#[test]
fn records_out_of_place_are_refused() {
    let whole = complete(draft());
    let plan = || whole.operation.plan().clone();
    let why = |log: &[Record]| Operation::replay(plan(), log).unwrap_err().why;
    assert_eq!(
        why(&whole.log[1..]),
        Illegal::OutOfOrder {
            expected: LogSeq(1)
        }
    );
    let mut gap = whole.log.clone();
    gap.remove(3);
    assert_eq!(
        why(&gap),
        Illegal::OutOfOrder {
            expected: LogSeq(4)
        }
    );
    let mut stranger = whole.log.clone();
    stranger[2].operation = OperationId::new("drain-1").unwrap();
    assert_eq!(
        why(&stranger),
        Illegal::OtherOperation {
            found: stranger[2].operation.clone()
        }
    );
    let mut after = whole.log.clone();
    let mut more = whole.log[1].clone();
    more.seq = LogSeq(whole.log.len() as u32 + 1);
    after.push(more);
    assert_eq!(
        why(&after),
        Illegal::Over {
            outcome: Outcome::Done
        }
    );
    let mut headless = whole.log[1..2].to_vec();
    headless[0].seq = LogSeq(1);
    headless[0].term = Term(0);
    assert_eq!(why(&headless), Illegal::NotBegun);
}
