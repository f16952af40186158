//! The transitions of single steps, one function for each kind of event, and the conditions they share. Each function
//! checks everything before it changes anything.
//!
//! Beginnings need the right phase, the right turn and nothing in the way. *Results* are taken in whatever else happened
//! meanwhile (a pause, a cancel): they are facts, and dropping one would leave an attempt in flight for ever.

use homeostat_model::UnixMillis;
use serde_json::Value;

use crate::apply::Illegal;
use crate::operation::{Hold, Operation, Phase, Setback, StepState, StepTrack, Tries};
use crate::plan::Undo;
use crate::record::{Attempt, StepIndex, StuckWhy};

impl Operation {
    pub(crate) fn step_started(
        &mut self,
        step: StepIndex,
        attempt: Attempt,
    ) -> Result<(), Illegal> {
        self.turn_to_run(step)?;
        self.not_held()?;
        if self.plan.steps()[step.position()].manual.is_some() {
            return Err(Illegal::WrongState);
        }
        let track = self.track_mut(step);
        match track.state {
            StepState::NotStarted | StepState::Failed { .. } => {}
            StepState::Running { .. }
            | StepState::AskedByHand
            | StepState::Ran { .. }
            | StepState::Passed { .. }
            | StepState::Undoing { .. }
            | StepState::UndoFailed { .. }
            | StepState::Undone => return Err(Illegal::WrongState),
        }
        same_attempt(track.attempt, attempt)?;
        track.attempt = attempt;
        track.output = None;
        track.state = StepState::Running { attempt };
        Ok(())
    }

    pub(crate) fn step_done(
        &mut self,
        step: StepIndex,
        attempt: Attempt,
        output: &Value,
    ) -> Result<(), Illegal> {
        let track = self.running(step, attempt)?;
        track.state = StepState::Ran { attempt };
        track.output = Some(output.clone());
        Ok(())
    }

    pub(crate) fn step_failed(
        &mut self,
        step: StepIndex,
        attempt: Attempt,
        at: UnixMillis,
        setback: Setback,
    ) -> Result<(), Illegal> {
        self.running(step, attempt)?.set_back(attempt, at, setback);
        Ok(())
    }

    pub(crate) fn hand_asked(&mut self, step: StepIndex) -> Result<(), Illegal> {
        self.turn_to_run(step)?;
        self.not_held()?;
        let manual = self.plan.steps()[step.position()].manual.is_some();
        let track = self.track_mut(step);
        if !manual || track.state != StepState::NotStarted {
            return Err(Illegal::WrongState);
        }
        track.state = StepState::AskedByHand;
        Ok(())
    }

    /// Not refused during a pause: the person has already done it.
    pub(crate) fn done_by_hand(
        &mut self,
        step: StepIndex,
        attempt: Attempt,
        note: &str,
    ) -> Result<(), Illegal> {
        self.turn_to_run(step)?;
        let stuck_here = match &self.hold {
            Some(Hold::Stuck {
                why: StuckWhy::StepFailed { step: at } | StuckWhy::PastReturn { step: at, .. },
            }) => *at == step,
            Some(
                Hold::Stuck {
                    why: StuckWhy::UndoFailed { .. },
                }
                | Hold::Paused { .. },
            )
            | None => false,
        };
        if self.plan.steps()[step.position()].manual.is_none() && !stuck_here {
            return Err(Illegal::NotByHand);
        }
        let track = self.track_mut(step);
        let (StepState::AskedByHand | StepState::Failed { .. }) = track.state else {
            return Err(Illegal::WrongState);
        };
        same_attempt(track.attempt, attempt)?;
        track.attempt = attempt;
        track.state = StepState::Ran { attempt };
        track.output = Some(Value::String(note.to_owned()));
        if stuck_here {
            self.hold = None;
        }
        Ok(())
    }

    pub(crate) fn verify_passed(
        &mut self,
        step: StepIndex,
        attempt: Attempt,
    ) -> Result<(), Illegal> {
        self.ran(step, attempt)?.state = StepState::Passed { attempt };
        Ok(())
    }

    pub(crate) fn verify_failed(
        &mut self,
        step: StepIndex,
        attempt: Attempt,
        at: UnixMillis,
        setback: Setback,
    ) -> Result<(), Illegal> {
        self.ran(step, attempt)?.set_back(attempt, at, setback);
        Ok(())
    }

    pub(crate) fn undo_started(
        &mut self,
        step: StepIndex,
        attempt: Attempt,
    ) -> Result<(), Illegal> {
        self.turn_to_undo(step)?;
        self.not_held()?;
        if *self.planned_undo(step) != Undo::ByProcedure {
            return Err(Illegal::WrongState);
        }
        let track = self.track_mut(step);
        same_attempt(track.undo_attempt, attempt)?;
        track.undo_attempt = attempt;
        track.state = StepState::Undoing { attempt };
        Ok(())
    }

    pub(crate) fn undo_done(&mut self, step: StepIndex, attempt: Attempt) -> Result<(), Illegal> {
        let track = self.being_undone(step, attempt)?;
        track.state = StepState::Undone;
        track.output = None;
        Ok(())
    }

    pub(crate) fn undo_failed(
        &mut self,
        step: StepIndex,
        attempt: Attempt,
        at: UnixMillis,
        setback: Setback,
    ) -> Result<(), Illegal> {
        self.being_undone(step, attempt)?
            .undo_set_back(attempt, at, setback);
        Ok(())
    }

    pub(crate) fn undone_by_hand(&mut self, step: StepIndex) -> Result<(), Illegal> {
        self.turn_to_undo(step)?;
        let stuck_here = self.hold
            == Some(Hold::Stuck {
                why: StuckWhy::UndoFailed { step },
            });
        match self.planned_undo(step) {
            Undo::ByHand { .. } => {}
            Undo::ByProcedure | Undo::Nothing | Undo::Impossible { .. } if stuck_here => {}
            Undo::ByProcedure | Undo::Nothing | Undo::Impossible { .. } => {
                return Err(Illegal::NotByHand);
            }
        }
        let track = self.track_mut(step);
        track.state = StepState::Undone;
        track.output = None;
        if stuck_here {
            self.hold = None;
        }
        Ok(())
    }

    /// Whoever ran attempts is gone. What ran is interrupted; what was being verified is verified again, which changes
    /// nothing in the world.
    pub(crate) fn interrupt(&mut self, at: UnixMillis) {
        for track in &mut self.steps {
            match track.state {
                StepState::Running { attempt } => track.set_back(attempt, at, Setback::Interrupted),
                StepState::Undoing { attempt } => {
                    track.undo_set_back(attempt, at, Setback::Interrupted)
                }
                StepState::NotStarted
                | StepState::AskedByHand
                | StepState::Ran { .. }
                | StepState::Failed { .. }
                | StepState::Passed { .. }
                | StepState::UndoFailed { .. }
                | StepState::Undone => {}
            }
        }
    }

    pub(crate) fn new_allowance(&mut self, why: &StuckWhy) {
        match *why {
            StuckWhy::StepFailed { step } | StuckWhy::PastReturn { step, .. } => {
                self.track_mut(step).tries = Tries::default();
            }
            StuckWhy::UndoFailed { step } => self.track_mut(step).undo_tries = Tries::default(),
        }
    }

    pub(crate) fn may_be_stuck(&self, why: &StuckWhy) -> Result<(), Illegal> {
        match *why {
            StuckWhy::StepFailed { step } => self.failed_for_good(step),
            StuckWhy::PastReturn { step, blocker } => {
                self.failed_for_good(step)?;
                if self.point_of_no_return() == Some(blocker) {
                    Ok(())
                } else {
                    Err(Illegal::WrongState)
                }
            }
            StuckWhy::UndoFailed { step } => {
                self.turn_to_undo(step)?;
                self.not_held()
            }
        }
    }

    /// Whether `step` failed last. That it is out of attempts is for `next` to say: the limits are not those of the
    /// program which wrote the log.
    pub(crate) fn failed_for_good(&self, step: StepIndex) -> Result<(), Illegal> {
        self.turn_to_run(step)?;
        self.not_held()?;
        if matches!(self.track(step).state, StepState::Failed { .. }) {
            Ok(())
        } else {
            Err(Illegal::WrongState)
        }
    }

    pub(crate) fn can_turn_round(&self) -> Result<(), Illegal> {
        self.point_of_no_return()
            .map_or(Ok(()), |step| Err(Illegal::PastReturn { step }))
    }

    pub(crate) fn forward(&self) -> Result<(), Illegal> {
        match &self.phase {
            Phase::Forward => Ok(()),
            Phase::Undoing => Err(Illegal::Undoing),
            Phase::Planned => Err(Illegal::NotBegun),
            Phase::Over { outcome } => Err(Illegal::Over { outcome: *outcome }),
        }
    }

    pub(crate) fn undoing(&self) -> Result<(), Illegal> {
        match &self.phase {
            Phase::Undoing => Ok(()),
            Phase::Forward => Err(Illegal::NotUndoing),
            Phase::Planned => Err(Illegal::NotBegun),
            Phase::Over { outcome } => Err(Illegal::Over { outcome: *outcome }),
        }
    }

    pub(crate) fn not_held(&self) -> Result<(), Illegal> {
        if self.hold.is_some() {
            Err(Illegal::Held)
        } else {
            Ok(())
        }
    }

    pub(crate) fn nothing_in_flight(&self) -> Result<(), Illegal> {
        self.in_flight()
            .map_or(Ok(()), |step| Err(Illegal::InFlight { step }))
    }

    fn turn_to_run(&self, step: StepIndex) -> Result<(), Illegal> {
        self.forward()?;
        if self.approval_missing() {
            return Err(Illegal::NotApproved);
        }
        self.nothing_in_flight()?;
        let turn = self.current();
        if turn == Some(step) {
            Ok(())
        } else {
            Err(Illegal::NotItsTurn { turn })
        }
    }

    fn turn_to_undo(&self, step: StepIndex) -> Result<(), Illegal> {
        self.undoing()?;
        self.nothing_in_flight()?;
        let turn = self.next_undo();
        if turn == Some(step) {
            Ok(())
        } else {
            Err(Illegal::NotItsTurn { turn })
        }
    }

    fn running(&mut self, step: StepIndex, attempt: Attempt) -> Result<&mut StepTrack, Illegal> {
        let track = self.steps.get_mut(step.position()).ok_or(Illegal::Stale)?;
        if track.state == (StepState::Running { attempt }) {
            Ok(track)
        } else {
            Err(Illegal::Stale)
        }
    }

    fn being_undone(
        &mut self,
        step: StepIndex,
        attempt: Attempt,
    ) -> Result<&mut StepTrack, Illegal> {
        let track = self.steps.get_mut(step.position()).ok_or(Illegal::Stale)?;
        if track.state == (StepState::Undoing { attempt }) {
            Ok(track)
        } else {
            Err(Illegal::Stale)
        }
    }

    fn ran(&mut self, step: StepIndex, attempt: Attempt) -> Result<&mut StepTrack, Illegal> {
        let track = self.steps.get_mut(step.position()).ok_or(Illegal::Stale)?;
        if track.state == (StepState::Ran { attempt }) {
            Ok(track)
        } else {
            Err(Illegal::Stale)
        }
    }

    /// Only after `turn_to_run`, `turn_to_undo` or the like have found `step` in the plan.
    fn track_mut(&mut self, step: StepIndex) -> &mut StepTrack {
        &mut self.steps[step.position()]
    }
}

impl StepTrack {
    fn set_back(&mut self, attempt: Attempt, at: UnixMillis, setback: Setback) {
        self.tries.count(&setback);
        self.last_setback = Some((attempt, setback.clone()));
        self.state = StepState::Failed {
            attempt,
            at,
            setback,
        };
    }

    fn undo_set_back(&mut self, attempt: Attempt, at: UnixMillis, setback: Setback) {
        self.undo_tries.count(&setback);
        self.state = StepState::UndoFailed {
            attempt,
            at,
            setback,
        };
    }
}

fn same_attempt(last: Attempt, found: Attempt) -> Result<(), Illegal> {
    let expected = last.next();
    if found == expected {
        Ok(())
    } else {
        Err(Illegal::OtherAttempt { expected })
    }
}
