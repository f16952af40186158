//! One operation of three steps, with everything that can happen to a step happening to each of them in turn.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Journal, alice, attempts, draft, failed};
use homeostat_journal::*;
use homeostat_model::Term;

const STEPS: [StepIndex; 3] = [StepIndex(0), StepIndex(1), StepIndex(2)];

/// What happens when the step under test is attempted.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    FailsOnce,
    FailsAlways,
    FailsForGood,
    CrashOnce,
    CrashAlways,
    /// The last record before the crash is that it ran.
    CrashBeforeVerify,
    NotVerifiedOnce,
    NotVerifiedEver,
    CancelBefore,
    CancelDuring,
    CancelAfter,
}

/// Lives to the end with `fault` at `at`. Undoing goes well.
fn live(draft: Draft, at: StepIndex, fault: Fault) -> Journal {
    let mut journal = Journal::of(draft);
    let cancel = || Event::CancelAsked {
        by: Asker::Person(alice()),
        why: "changed my mind".into(),
    };
    for _ in 0..200 {
        match journal.settle() {
            Next::Run { step, .. } if step == at && fault == Fault::CancelBefore => {
                journal.add(cancel())
            }
            Next::Run { step, attempt } => {
                journal.add(Event::StepStarted { step, attempt });
                let done = Event::StepDone {
                    step,
                    attempt,
                    output: step.0.into(),
                };
                match fault {
                    Fault::FailsOnce if step == at && attempt == Attempt(1) => {
                        journal.add(failed(step, attempt))
                    }
                    Fault::FailsAlways if step == at => journal.add(failed(step, attempt)),
                    Fault::FailsForGood if step == at => journal.add(Event::StepFailed {
                        step,
                        attempt,
                        kind: FailureKind::Final,
                        evidence: Evidence::new("refused"),
                    }),
                    Fault::CrashOnce if step == at && attempt == Attempt(1) => journal.crash(),
                    Fault::CrashAlways if step == at => journal.crash(),
                    Fault::CancelDuring if step == at => {
                        journal.add(cancel());
                        assert_eq!(
                            journal.next(),
                            Next::InFlight { step },
                            "the result comes first"
                        );
                        journal.add(done);
                    }
                    Fault::CrashBeforeVerify if step == at => {
                        journal.add(done);
                        journal.crash();
                        assert_eq!(
                            journal.next(),
                            Next::Verify { step, attempt },
                            "it is not run again"
                        );
                    }
                    _ => journal.add(done),
                }
            }
            Next::Verify { step, attempt } => {
                let not_there = Event::VerifyFailed {
                    step,
                    attempt,
                    evidence: Evidence::new("not there"),
                };
                match fault {
                    Fault::NotVerifiedOnce if step == at && attempt == Attempt(1) => {
                        journal.add(not_there)
                    }
                    Fault::NotVerifiedEver if step == at => journal.add(not_there),
                    Fault::CancelAfter if step == at => {
                        journal.add(Event::VerifyPassed { step, attempt });
                        journal.add(cancel());
                    }
                    _ => journal.add(Event::VerifyPassed { step, attempt }),
                }
            }
            Next::Undo { step, attempt } => {
                journal.add(Event::UndoStarted { step, attempt });
                journal.add(Event::UndoDone { step, attempt });
            }
            Next::Done { .. } => return journal,
            other => panic!("{fault:?} at {at:?} leads to {other:?}"),
        }
    }
    panic!("{fault:?} at {at:?} never ends");
}

fn undone(journal: &Journal) -> Vec<u32> {
    let step = |record: &Record| match record.event {
        Event::UndoDone { step, .. } => Some(step.0),
        _ => None,
    };
    journal.log.iter().filter_map(step).collect()
}

#[test]
fn every_fault_at_every_step() {
    for at in STEPS {
        let back_from = |step: StepIndex| (0..=step.0).rev().collect::<Vec<u32>>();
        let before = (0..at.0).rev().collect::<Vec<u32>>();
        // Fault, how often the step is attempted, how it ends, what is undone.
        let table = [
            (Fault::None, 1, Outcome::Done, vec![]),
            (Fault::FailsOnce, 2, Outcome::Done, vec![]),
            (Fault::CrashOnce, 2, Outcome::Done, vec![]),
            (Fault::CrashBeforeVerify, 1, Outcome::Done, vec![]),
            (Fault::NotVerifiedOnce, 2, Outcome::Done, vec![]),
            (Fault::FailsAlways, 2, Outcome::Undone, back_from(at)),
            (Fault::FailsForGood, 1, Outcome::Undone, back_from(at)),
            (
                Fault::CrashAlways,
                limits::INTERRUPTIONS as usize,
                Outcome::Undone,
                back_from(at),
            ),
            (Fault::NotVerifiedEver, 2, Outcome::Undone, back_from(at)),
            (Fault::CancelBefore, 0, Outcome::Undone, before),
            (Fault::CancelDuring, 1, Outcome::Undone, back_from(at)),
            (Fault::CancelAfter, 1, Outcome::Undone, back_from(at)),
        ];
        for (fault, tries, outcome, back) in table {
            let journal = live(draft(), at, fault);
            assert_eq!(
                journal.operation.outcome(),
                Some(outcome),
                "{fault:?} at {at:?}"
            );
            assert_eq!(attempts(&journal, at), tries, "{fault:?} at {at:?}");
            assert_eq!(undone(&journal), back, "{fault:?} at {at:?}");
        }
    }
}

#[test]
fn a_crash_after_every_record_changes_nothing_but_the_term() {
    for fault in [Fault::None, Fault::FailsAlways] {
        let whole = live(draft(), StepIndex(1), fault);
        for cut in 1..whole.log.len() {
            let mut journal = Journal::of(draft());
            journal.log = whole.log[..cut].to_vec();
            journal.crash();
            assert_eq!(journal.operation.term(), Term(2));
            let Next::Done { outcome } = finish(&mut journal, fault) else {
                unreachable!()
            };
            assert_eq!(
                Some(outcome),
                whole.operation.outcome(),
                "{fault:?}, cut after {cut}"
            );
            assert_eq!(
                undone(&journal),
                undone(&whole),
                "{fault:?}, cut after {cut}"
            );
        }
    }
}

/// The successor's part: the same faults, from wherever the log ends.
fn finish(journal: &mut Journal, fault: Fault) -> Next {
    for _ in 0..200 {
        match journal.settle() {
            Next::Run { step, attempt } => {
                journal.add(Event::StepStarted { step, attempt });
                if fault == Fault::FailsAlways && step == StepIndex(1) {
                    journal.add(failed(step, attempt));
                } else {
                    journal.add(Event::StepDone {
                        step,
                        attempt,
                        output: step.0.into(),
                    });
                }
            }
            Next::Verify { step, attempt } => journal.add(Event::VerifyPassed { step, attempt }),
            Next::Undo { step, attempt } => {
                journal.add(Event::UndoStarted { step, attempt });
                journal.add(Event::UndoDone { step, attempt });
            }
            done @ Next::Done { .. } => return done,
            other => panic!("{fault:?} leads to {other:?}"),
        }
    }
    panic!("{fault:?} never ends");
}
