//! What to do now. A pure function of an operation, the brake and the time: asked twice it says the same, and whoever
//! carries out what it says and records how that went can ask again.
//!
//! [`Next::Note`] is how decisions become records: that an operation is complete, turns round or gets stuck is for the
//! caller to write down before anything follows from it.

use std::time::Duration;

use homeostat_model::UnixMillis;

use crate::operation::{Hold, Operation, Phase, Setback, StepState, StepTrack};
use crate::plan::{Asker, OnFailure, PlanHash, Retry, StepPlan, Undo};
use crate::record::{Attempt, Event, Outcome, StepIndex, StuckWhy};

/// Whether automation may act at present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Brake {
    Released,
    /// Somebody froze the cell. What people asked for goes on.
    Frozen {
        why: String,
    },
}

/// What to do now.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Record that this attempt starts, then run it, then record how it went.
    Run {
        step: StepIndex,
        attempt: Attempt,
    },
    /// Look whether the step had its effect, and record what was seen.
    Verify {
        step: StepIndex,
        attempt: Attempt,
    },
    /// Record that this attempt at undoing starts, then run it, then record how it went.
    Undo {
        step: StepIndex,
        attempt: Attempt,
    },
    /// Record this, and ask again.
    Note(Event),
    /// An attempt is under way; its result comes first. Whoever is sure that nobody runs it takes the operation over.
    InFlight {
        step: StepIndex,
    },
    Wait(Wait),
    NeedsOperator(Need),
    Done {
        outcome: Outcome,
    },
}

/// What will pass by itself, or when the brake is released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    BackOff { step: StepIndex, until: UnixMillis },
    Frozen { step: StepIndex, why: String },
}

/// What only a person can do.
#[derive(Debug, Clone, PartialEq)]
pub enum Need {
    Approval {
        plan: PlanHash,
    },
    ByHand {
        step: StepIndex,
        attempt: Attempt,
        instructions: String,
    },
    UndoByHand {
        step: StepIndex,
        instructions: String,
    },
    /// Resume, cancel or abandon.
    Held(Hold),
}

/// What to do now with `operation`.
pub fn next(operation: &Operation, brake: &Brake, now: UnixMillis) -> Next {
    match &operation.phase {
        Phase::Planned => {
            return Next::Note(Event::Begun {
                plan: operation.hash().clone(),
            });
        }
        Phase::Over { outcome } => return Next::Done { outcome: *outcome },
        Phase::Forward | Phase::Undoing => {}
    }
    if let Some(step) = operation.in_flight() {
        return Next::InFlight { step };
    }
    if let Some(hold) = operation.hold() {
        return Next::NeedsOperator(Need::Held(hold.clone()));
    }
    if let Phase::Undoing = operation.phase {
        return match operation.next_undo() {
            Some(step) => undo(operation, step, brake, now),
            None => Next::Note(Event::Undone),
        };
    }
    if operation.approval_missing() {
        return Next::NeedsOperator(Need::Approval {
            plan: operation.hash().clone(),
        });
    }
    match operation.current() {
        Some(step) => forward(operation, step, brake, now),
        None => Next::Note(Event::Completed),
    }
}

fn forward(operation: &Operation, step: StepIndex, brake: &Brake, now: UnixMillis) -> Next {
    let track = operation.track(step);
    let planned = &operation.plan().steps()[step.position()];
    let attempt = track.attempt.next();
    match (&track.state, &planned.manual) {
        (StepState::NotStarted, Some(_)) => Next::Note(Event::HandAsked { step }),
        (StepState::AskedByHand | StepState::Failed { .. }, Some(instructions)) => {
            Next::NeedsOperator(Need::ByHand {
                step,
                attempt,
                instructions: instructions.clone(),
            })
        }
        (StepState::NotStarted, None) => {
            braked(operation, step, brake).unwrap_or(Next::Run { step, attempt })
        }
        (StepState::Ran { attempt, .. }, _) => Next::Verify {
            step,
            attempt: *attempt,
        },
        (StepState::Failed { at, setback, .. }, None) => {
            if track.tries.spent(&planned.retry) {
                return give_up(operation, step);
            }
            braked(operation, step, brake)
                .or_else(|| {
                    backing_off(step, pause(track.tries.failed, setback, planned), *at, now)
                })
                .unwrap_or(Next::Run { step, attempt })
        }
        (StepState::Running { .. } | StepState::Undoing { .. }, _) => Next::InFlight { step },
        (StepState::AskedByHand, None)
        | (StepState::Passed { .. } | StepState::UndoFailed { .. } | StepState::Undone, _) => {
            unreachable!(
                "no transition leads there while the operation goes forward and it is this step's turn"
            )
        }
    }
}

/// A step is out of attempts.
fn give_up(operation: &Operation, step: StepIndex) -> Next {
    Next::Note(
        match (
            operation.plan().draft().on_failure,
            operation.point_of_no_return(),
        ) {
            (OnFailure::Stop, _) => Event::Stuck {
                why: StuckWhy::StepFailed { step },
            },
            (OnFailure::Undo, None) => Event::UndoBegun { failed: step },
            (OnFailure::Undo, Some(blocker)) => Event::Stuck {
                why: StuckWhy::PastReturn { step, blocker },
            },
        },
    )
}

fn undo(operation: &Operation, step: StepIndex, brake: &Brake, now: UnixMillis) -> Next {
    let planned = &operation.plan().steps()[step.position()];
    let track = operation.track(step);
    let stuck = Next::Note(Event::Stuck {
        why: StuckWhy::UndoFailed { step },
    });
    match &planned.undo {
        Undo::ByHand { instructions } => Next::NeedsOperator(Need::UndoByHand {
            step,
            instructions: instructions.clone(),
        }),
        // Neither occurs: an operation does not turn round past such a step, and `next_undo` passes over nothing.
        Undo::Impossible { .. } | Undo::Nothing => stuck,
        Undo::ByProcedure if track.undo_tries.spent(&planned.retry) => stuck,
        Undo::ByProcedure => braked(operation, step, brake)
            .or_else(|| undo_backing_off(step, track, planned, now))
            .unwrap_or(Next::Undo {
                step,
                attempt: track.undo_attempt.next(),
            }),
    }
}

fn undo_backing_off(
    step: StepIndex,
    track: &StepTrack,
    planned: &StepPlan,
    now: UnixMillis,
) -> Option<Next> {
    match &track.state {
        StepState::UndoFailed { at, setback, .. } => backing_off(
            step,
            pause(track.undo_tries.failed, setback, planned),
            *at,
            now,
        ),
        StepState::NotStarted
        | StepState::Running { .. }
        | StepState::AskedByHand
        | StepState::Ran { .. }
        | StepState::Failed { .. }
        | StepState::Passed { .. }
        | StepState::Undoing { .. }
        | StepState::Undone => None,
    }
}

/// Undoing is an action too: a freeze holds back both ways.
fn braked(operation: &Operation, step: StepIndex, brake: &Brake) -> Option<Next> {
    match (&operation.plan().draft().asked_by, brake) {
        (Asker::Automation(_), Brake::Frozen { why }) => Some(Next::Wait(Wait::Frozen {
            step,
            why: why.clone(),
        })),
        (Asker::Automation(_), Brake::Released)
        | (Asker::Person(_), Brake::Released | Brake::Frozen { .. }) => None,
    }
}

fn pause(failures: u32, setback: &Setback, planned: &StepPlan) -> Duration {
    let retry: &Retry = &planned.retry;
    match setback {
        // The step has not failed, and whoever restarts a controller waits for it.
        Setback::Interrupted => Duration::ZERO,
        // No failures: a person granted a new allowance, and is waiting too.
        Setback::Failed { .. } | Setback::NotVerified { .. } if failures == 0 => Duration::ZERO,
        Setback::Failed { .. } | Setback::NotVerified { .. } => retry.pause(failures),
    }
}

fn backing_off(
    step: StepIndex,
    pause: Duration,
    failed_at: UnixMillis,
    now: UnixMillis,
) -> Option<Next> {
    // A failure in the future means that the clock was set back. Waiting for it to catch up could take years; trying
    // early costs one attempt of a limited number.
    if failed_at > now {
        return None;
    }
    let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
    let until = UnixMillis(failed_at.0.saturating_add(pause_ms));
    (until > now).then_some(Next::Wait(Wait::BackOff { step, until }))
}
