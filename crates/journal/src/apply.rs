//! What may follow what. [`Operation::apply`] is the only way for an operation to change; everything that does not fit is
//! a typed error and leaves it as it was.
//!
//! The executor applies every record before it writes it, so an illegal record never reaches the store; and again when it reads
//! it back, so a log that was tampered with, or written by a program with other ideas, is found out.

use homeostat_model::{OperationId, Term, UnixMillis};

use crate::operation::{Hold, Operation, Phase, Setback, UndoCause};
use crate::plan::{Approval, Plan, PlanHash};
use crate::record::{Attempt, Event, LogSeq, Outcome, Record, StepIndex};

/// Why a record cannot come next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    #[error("it belongs to {found}")]
    OtherOperation { found: OperationId },
    #[error("record {expected} comes next")]
    OutOfOrder { expected: LogSeq },
    #[error("term {found} is over, the operation is at term {last}")]
    OldTerm { last: Term, found: Term },
    #[error("a new term has to take the operation over first (it is at term {last})")]
    NotTakenOver { last: Term },
    #[error("the operation has not begun")]
    NotBegun,
    #[error("the operation has begun already")]
    BegunTwice,
    #[error("it is about plan {}, this is plan {}", .found.short(), .planned.short())]
    OtherPlan { planned: PlanHash, found: PlanHash },
    #[error("the operation is over ({outcome})")]
    Over { outcome: Outcome },
    #[error("the operation is not approved")]
    NotApproved,
    #[error("no approval is awaited")]
    NoApprovalAwaited,
    #[error("the operation is paused or stuck")]
    Held,
    #[error("the operation is neither paused nor stuck")]
    NotHeld,
    #[error("the operation undoes itself")]
    Undoing,
    #[error("the operation does not undo itself")]
    NotUndoing,
    #[error("it is not this step's turn")]
    NotItsTurn { turn: Option<StepIndex> },
    #[error("attempt {expected} comes next")]
    OtherAttempt { expected: Attempt },
    #[error("no such attempt is under way")]
    Stale,
    #[error("step number {} is under way", .step.0 + 1)]
    InFlight { step: StepIndex },
    #[error("the step is not in a state for that")]
    WrongState,
    #[error("this is not for a person to do by hand: the operation is not stuck at it")]
    NotByHand,
    #[error("step {} has been touched and cannot be undone", .step.0 + 1)]
    PastReturn { step: StepIndex },
    #[error("there is something left to do")]
    NotAllDone,
}

/// A record that does not fit the operation it was applied to.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("record {seq} of {operation} is impossible")]
pub struct IllegalRecord {
    pub operation: OperationId,
    pub seq: LogSeq,
    pub event: Box<Event>,
    #[source]
    pub why: Illegal,
}

impl Operation {
    /// Folds a log over its plan.
    ///
    /// # Errors
    /// The first record that does not fit.
    pub fn replay<'a>(
        plan: Plan,
        log: impl IntoIterator<Item = &'a Record>,
    ) -> Result<Self, IllegalRecord> {
        let mut operation = Self::planned(plan);
        for record in log {
            operation.apply(record)?;
        }
        Ok(operation)
    }

    /// Takes in one more record, or refuses it and stays as it was.
    ///
    /// # Errors
    /// [`IllegalRecord`] when it does not follow from what is there.
    pub fn apply(&mut self, record: &Record) -> Result<(), IllegalRecord> {
        self.check_head(record)
            .and_then(|()| self.transition(&record.event, record.at))
            .map_err(|why| IllegalRecord {
                operation: self.id().clone(),
                seq: record.seq,
                event: Box::new(record.event.clone()),
                why,
            })?;
        self.seq = record.seq;
        self.term = record.term;
        self.last_at = record.at;
        Ok(())
    }

    fn check_head(&self, record: &Record) -> Result<(), Illegal> {
        if record.operation != *self.id() {
            return Err(Illegal::OtherOperation {
                found: record.operation.clone(),
            });
        }
        if record.seq != self.seq.next() {
            return Err(Illegal::OutOfOrder {
                expected: self.seq.next(),
            });
        }
        if record.term < self.term {
            return Err(Illegal::OldTerm {
                last: self.term,
                found: record.term,
            });
        }
        let opens_term = matches!(record.event, Event::Begun { .. } | Event::TakenOver);
        if record.term > self.term && !opens_term {
            return Err(Illegal::NotTakenOver { last: self.term });
        }
        Ok(())
    }

    /// Checks before it changes anything.
    fn transition(&mut self, event: &Event, at: UnixMillis) -> Result<(), Illegal> {
        match (&self.phase, event) {
            (Phase::Planned, Event::Begun { plan }) => {
                self.same_plan(plan)?;
                self.begun_at = at;
                self.phase = Phase::Forward;
                return Ok(());
            }
            (Phase::Planned, _) => return Err(Illegal::NotBegun),
            (Phase::Over { outcome }, _) => return Err(Illegal::Over { outcome: *outcome }),
            (Phase::Forward | Phase::Undoing, _) => {}
        }
        match event {
            Event::Begun { .. } => return Err(Illegal::BegunTwice),
            Event::TakenOver => self.interrupt(at),
            Event::Approved { by, plan } => {
                self.same_plan(plan)?;
                self.forward()?;
                if self.plan.draft().approval == Approval::NotNeeded || self.approved_by.is_some() {
                    return Err(Illegal::NoApprovalAwaited);
                }
                self.approved_by = Some(by.clone());
            }
            Event::StepStarted { step, attempt } => self.step_started(*step, *attempt)?,
            Event::StepDone {
                step,
                attempt,
                output,
            } => self.step_done(*step, *attempt, output)?,
            Event::StepFailed {
                step,
                attempt,
                kind,
                evidence,
            } => {
                let setback = Setback::Failed {
                    kind: *kind,
                    evidence: evidence.clone(),
                };
                self.step_failed(*step, *attempt, at, setback)?;
            }
            Event::HandAsked { step } => self.hand_asked(*step)?,
            Event::DoneByHand {
                step,
                attempt,
                note,
                ..
            } => self.done_by_hand(*step, *attempt, note)?,
            Event::VerifyPassed { step, attempt } => self.verify_passed(*step, *attempt)?,
            Event::VerifyFailed {
                step,
                attempt,
                evidence,
            } => {
                self.verify_failed(
                    *step,
                    *attempt,
                    at,
                    Setback::NotVerified {
                        evidence: evidence.clone(),
                    },
                )?;
            }
            Event::UndoBegun { failed } => {
                self.failed_for_good(*failed)?;
                self.can_turn_round()?;
                self.turn_round(UndoCause::Failed { step: *failed });
            }
            Event::UndoStarted { step, attempt } => self.undo_started(*step, *attempt)?,
            Event::UndoDone { step, attempt } => self.undo_done(*step, *attempt)?,
            Event::UndoFailed {
                step,
                attempt,
                kind,
                evidence,
            } => {
                let setback = Setback::Failed {
                    kind: *kind,
                    evidence: evidence.clone(),
                };
                self.undo_failed(*step, *attempt, at, setback)?;
            }
            Event::UndoneByHand { step, .. } => self.undone_by_hand(*step)?,
            Event::Paused { by, why } => {
                self.not_held()?;
                self.hold = Some(Hold::Paused {
                    by: by.clone(),
                    why: why.clone(),
                });
            }
            Event::Stuck { why } => {
                self.may_be_stuck(why)?;
                self.hold = Some(Hold::Stuck { why: why.clone() });
            }
            Event::Resumed { .. } => match self.hold.take() {
                None => return Err(Illegal::NotHeld),
                Some(Hold::Paused { .. }) => {}
                Some(Hold::Stuck { why }) => self.new_allowance(&why),
            },
            Event::CancelAsked { by, why } => {
                self.forward()?;
                self.can_turn_round()?;
                self.turn_round(UndoCause::Cancelled {
                    by: by.clone(),
                    why: why.clone(),
                });
            }
            Event::Completed => {
                self.forward()?;
                self.not_held()?;
                if self.current().is_some() {
                    return Err(Illegal::NotAllDone);
                }
                self.phase = Phase::Over {
                    outcome: Outcome::Done,
                };
            }
            Event::Undone => {
                self.undoing()?;
                self.not_held()?;
                self.nothing_in_flight()?;
                if self.next_undo().is_some() {
                    return Err(Illegal::NotAllDone);
                }
                self.phase = Phase::Over {
                    outcome: Outcome::Undone,
                };
            }
            Event::Abandoned { .. } => {
                self.nothing_in_flight()?;
                self.hold = None;
                self.phase = Phase::Over {
                    outcome: Outcome::Abandoned,
                };
            }
        }
        Ok(())
    }

    fn same_plan(&self, found: &PlanHash) -> Result<(), Illegal> {
        if *found == self.hash {
            Ok(())
        } else {
            Err(Illegal::OtherPlan {
                planned: self.hash.clone(),
                found: found.clone(),
            })
        }
    }

    fn turn_round(&mut self, cause: UndoCause) {
        self.phase = Phase::Undoing;
        self.turned = Some(cause);
        self.hold = None;
    }
}
