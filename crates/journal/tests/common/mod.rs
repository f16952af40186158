//! A journal in memory: the executor's part (number, stamp, write down) without an executor.
#![allow(dead_code)] // Each test file uses its own selection.

use std::collections::BTreeSet;
use std::time::Duration;

use homeostat_journal::*;
use homeostat_model::{OperationId, ProcedureName, ServiceName, StepName, Term, UnixMillis};

pub struct Journal {
    pub operation: Operation,
    pub log: Vec<Record>,
    pub term: Term,
    pub now: UnixMillis,
}

impl Journal {
    pub fn of(draft: Draft) -> Self {
        let id = OperationId::new(format!("{}-1", draft.procedure)).unwrap();
        let plan = Plan::seal(id, draft).unwrap();
        Self {
            operation: Operation::planned(plan),
            log: Vec::new(),
            term: Term(1),
            now: UnixMillis(1_700_000_000_000),
        }
    }

    pub fn try_add(&mut self, event: Event) -> Result<(), IllegalRecord> {
        let record = Record {
            format: RECORD_FORMAT,
            operation: self.operation.id().clone(),
            seq: self.operation.seq().next(),
            term: self.term,
            at: self.now,
            event,
        };
        let before = self.operation.clone();
        match self.operation.apply(&record) {
            Ok(()) => {
                // What is stored is what was meant.
                assert_eq!(Record::decode(&record.encode()).unwrap(), record);
                self.log.push(record);
                Ok(())
            }
            Err(error) => {
                assert_eq!(
                    self.operation, before,
                    "a refused record changed the operation"
                );
                Err(error)
            }
        }
    }

    #[track_caller]
    pub fn add(&mut self, event: Event) {
        if let Err(error) = self.try_add(event) {
            panic!("{:?}: {}", error.event, error.why);
        }
    }

    pub fn pass(&mut self, millis: u64) {
        self.now.0 += millis;
    }

    /// The controller dies and its successor takes over, with nothing but the log.
    pub fn crash(&mut self) {
        self.operation = Operation::replay(self.operation.plan().clone(), &self.log).unwrap();
        self.term = self.term.next();
        self.add(Event::TakenOver);
    }

    pub fn next(&self) -> Next {
        next(&self.operation, &Brake::Released, self.now)
    }

    /// Goes through waits and notes to the next thing that somebody has to do.
    pub fn settle(&mut self) -> Next {
        loop {
            match self.next() {
                Next::Note(event) => self.add(event),
                Next::Wait(Wait::BackOff { until, .. }) => {
                    assert!(until > self.now, "waiting for what has passed");
                    self.now = until;
                }
                other @ (Next::Run { .. }
                | Next::Verify { .. }
                | Next::Undo { .. }
                | Next::InFlight { .. }
                | Next::Wait(Wait::Frozen { .. })
                | Next::NeedsOperator(_)
                | Next::Done { .. }) => return other,
            }
        }
    }
}

pub fn step(name: &str) -> StepPlan {
    StepPlan {
        name: StepName::new(name).unwrap(),
        about: format!("do {name}"),
        parameters: serde_json::Value::Null,
        manual: None,
        retry: Retry {
            max_attempts: 2,
            first: Duration::from_secs(1),
            longest: Duration::from_secs(4),
        },
        timeout: Duration::from_secs(10),
        undo: Undo::ByProcedure,
    }
}

/// Three steps, everything undoable, asked by a person.
pub fn draft() -> Draft {
    Draft {
        procedure: ProcedureName::new("turnup").unwrap(),
        version: 1,
        scope: BTreeSet::from([Touched::Service(ServiceName::new("shop-db").unwrap())]),
        asked_by: Asker::Person(alice()),
        why: "first start of the cell".into(),
        approval: Approval::NotNeeded,
        on_failure: OnFailure::Undo,
        steps: vec![step("place"), step("start"), step("open")],
    }
}

pub fn alice() -> Person {
    Person("alice".into())
}

pub fn failed(step: StepIndex, attempt: Attempt) -> Event {
    Event::StepFailed {
        step,
        attempt,
        kind: FailureKind::Retryable,
        evidence: Evidence::new("no answer"),
    }
}

pub fn undo_failed(step: StepIndex, attempt: Attempt) -> Event {
    Event::UndoFailed {
        step,
        attempt,
        kind: FailureKind::Retryable,
        evidence: Evidence::new("no answer"),
    }
}

pub fn attempts(journal: &Journal, at: StepIndex) -> usize {
    journal
        .log
        .iter()
        .filter(|record| matches!(record.event, Event::StepStarted { step, .. } if step == at))
        .count()
}

/// Runs to the point where a person is needed, failing at `at` whenever it is attempted.
pub fn until_stuck(draft: Draft, at: StepIndex) -> Journal {
    let mut journal = Journal::of(draft);
    advance_to_stuck(&mut journal, at);
    journal
}

pub fn advance_to_stuck(journal: &mut Journal, at: StepIndex) {
    loop {
        match journal.settle() {
            Next::Run { step, attempt } => {
                journal.add(Event::StepStarted { step, attempt });
                journal.add(if step == at {
                    failed(step, attempt)
                } else {
                    Event::StepDone {
                        step,
                        attempt,
                        output: true.into(),
                    }
                });
            }
            Next::Verify { step, attempt } => journal.add(Event::VerifyPassed { step, attempt }),
            Next::NeedsOperator(Need::Held(Hold::Stuck { .. })) => return,
            other => panic!("{other:?}"),
        }
    }
}

/// An operation in which all goes well.
pub fn complete(draft: Draft) -> Journal {
    failing_at(draft, StepIndex(u32::MAX))
}

/// Lives to the end, with `at` failing whenever it is attempted and everything else going well.
pub fn failing_at(draft: Draft, at: StepIndex) -> Journal {
    let mut journal = Journal::of(draft);
    loop {
        match journal.settle() {
            Next::Run { step, attempt } => {
                journal.add(Event::StepStarted { step, attempt });
                journal.add(if step == at {
                    failed(step, attempt)
                } else {
                    Event::StepDone {
                        step,
                        attempt,
                        output: true.into(),
                    }
                });
            }
            Next::Verify { step, attempt } => journal.add(Event::VerifyPassed { step, attempt }),
            Next::Undo { step, attempt } => {
                journal.add(Event::UndoStarted { step, attempt });
                journal.add(Event::UndoDone { step, attempt });
            }
            Next::Done { .. } => return journal,
            other => panic!("{other:?}"),
        }
    }
}
