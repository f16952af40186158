//! One operation as its records tell it: where it is, what each step went through, what holds it back.
//!
//! An [`Operation`] is nothing but its plan and its log, folded. It changes through
//! [`Operation::apply`](crate::Operation::apply) alone (see the `apply` module for what may follow what).

use homeostat_model::{OperationId, Term, UnixMillis};
use serde_json::Value;

use crate::limits;
use crate::plan::{Approval, Asker, Person, Plan, PlanHash, Retry, Undo};
use crate::record::{Attempt, Evidence, FailureKind, LogSeq, Outcome, StepIndex, StuckWhy};

#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    pub(crate) plan: Plan,
    pub(crate) hash: PlanHash,
    pub(crate) seq: LogSeq,
    pub(crate) term: Term,
    pub(crate) begun_at: UnixMillis,
    pub(crate) last_at: UnixMillis,
    pub(crate) approved_by: Option<Person>,
    pub(crate) phase: Phase,
    pub(crate) turned: Option<UndoCause>,
    pub(crate) hold: Option<Hold>,
    /// As many as the plan has.
    pub(crate) steps: Vec<StepTrack>,
}

/// Which way the operation goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Planned; its first record is not there yet.
    Planned,
    Forward,
    /// It turned round; see [`Operation::turned`].
    Undoing,
    Over {
        outcome: Outcome,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UndoCause {
    /// This step is out of attempts.
    Failed {
        step: StepIndex,
    },
    Cancelled {
        by: Asker,
        why: String,
    },
}

/// Why nothing new begins although there is something left to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    Paused { by: Asker, why: String },
    Stuck { why: StuckWhy },
}

/// What one step went through.
#[derive(Debug, Clone, PartialEq)]
pub enum StepState {
    NotStarted,
    Running {
        attempt: Attempt,
    },
    /// A person was asked to do it.
    AskedByHand,
    /// It ran; whether that had the desired effect is not known yet.
    Ran {
        attempt: Attempt,
    },
    Failed {
        attempt: Attempt,
        at: UnixMillis,
        setback: Setback,
    },
    /// It ran, and verification saw the effect.
    Passed {
        attempt: Attempt,
    },
    Undoing {
        attempt: Attempt,
    },
    UndoFailed {
        attempt: Attempt,
        at: UnixMillis,
        setback: Setback,
    },
    Undone,
}

/// How an attempt came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setback {
    Failed {
        kind: FailureKind,
        evidence: Evidence,
    },
    /// It ran, or so it said; verification did not see the effect.
    NotVerified { evidence: Evidence },
    /// Its controller went away in the middle.
    Interrupted,
}

/// One word for the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Planned,
    AwaitingApproval,
    Running,
    /// A person has to do something that is part of the plan.
    AwaitingHand,
    Undoing,
    Paused,
    Stuck,
    Done,
    Undone,
    Abandoned,
}

impl Status {
    pub fn word(self) -> &'static str {
        match self {
            Status::Planned => "planned",
            Status::AwaitingApproval => "awaiting-approval",
            Status::Running => "running",
            Status::AwaitingHand => "awaiting-hand",
            Status::Undoing => "undoing",
            Status::Paused => "paused",
            Status::Stuck => "stuck",
            Status::Done => "done",
            Status::Undone => "undone",
            Status::Abandoned => "abandoned",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StepTrack {
    pub(crate) state: StepState,
    /// The last attempt's number; 0 before the first.
    pub(crate) attempt: Attempt,
    pub(crate) tries: Tries,
    /// What the last attempt that ran handed on.
    pub(crate) output: Option<Value>,
    /// Outlives the state that it led to: after an undo people still want to know.
    pub(crate) last_setback: Option<(Attempt, Setback)>,
    pub(crate) undo_attempt: Attempt,
    pub(crate) undo_tries: Tries,
}

/// What has been used up of an allowance of attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tries {
    pub failed: u32,
    pub interrupted: u32,
    /// Failures after which trying again is pointless.
    pub final_failures: u32,
}

impl Tries {
    pub(crate) fn count(&mut self, setback: &Setback) {
        match setback {
            Setback::Failed {
                kind: FailureKind::Retryable,
                ..
            }
            | Setback::NotVerified { .. } => self.failed += 1,
            Setback::Failed {
                kind: FailureKind::Final,
                ..
            } => {
                self.failed += 1;
                self.final_failures += 1;
            }
            Setback::Interrupted => self.interrupted += 1,
        }
    }

    /// Whether no attempt is left.
    pub(crate) fn spent(&self, retry: &Retry) -> bool {
        self.final_failures > 0
            || self.failed >= retry.max_attempts
            || self.interrupted >= limits::INTERRUPTIONS
    }
}

impl StepTrack {
    fn new() -> Self {
        Self {
            state: StepState::NotStarted,
            attempt: Attempt(0),
            tries: Tries::default(),
            output: None,
            last_setback: None,
            undo_attempt: Attempt(0),
            undo_tries: Tries::default(),
        }
    }
}

impl StepState {
    /// Whether the world may be different for it.
    pub fn touched(&self) -> bool {
        match self {
            StepState::NotStarted | StepState::Undone => false,
            StepState::Running { .. }
            | StepState::AskedByHand
            | StepState::Ran { .. }
            | StepState::Failed { .. }
            | StepState::Passed { .. }
            | StepState::Undoing { .. }
            | StepState::UndoFailed { .. } => true,
        }
    }

    /// Whether an attempt, at it or at its undo, is under way.
    pub fn in_flight(&self) -> bool {
        match self {
            StepState::Running { .. } | StepState::Undoing { .. } => true,
            StepState::NotStarted
            | StepState::AskedByHand
            | StepState::Ran { .. }
            | StepState::Failed { .. }
            | StepState::Passed { .. }
            | StepState::UndoFailed { .. }
            | StepState::Undone => false,
        }
    }
}

impl Operation {
    /// An operation of which nothing is recorded yet.
    pub fn planned(plan: Plan) -> Self {
        Self {
            hash: plan.hash(),
            seq: LogSeq(0),
            term: Term(0),
            begun_at: UnixMillis(0),
            last_at: UnixMillis(0),
            approved_by: None,
            phase: Phase::Planned,
            turned: None,
            hold: None,
            steps: plan.steps().iter().map(|_| StepTrack::new()).collect(),
            plan,
        }
    }

    pub fn id(&self) -> &OperationId {
        self.plan.operation()
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn hash(&self) -> &PlanHash {
        &self.hash
    }

    /// The last record's number; 0 before the first.
    pub fn seq(&self) -> LogSeq {
        self.seq
    }

    /// The last record's term.
    pub fn term(&self) -> Term {
        self.term
    }

    pub fn begun_at(&self) -> UnixMillis {
        self.begun_at
    }

    pub fn last_at(&self) -> UnixMillis {
        self.last_at
    }

    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Why it undoes itself, or did.
    pub fn turned(&self) -> Option<&UndoCause> {
        self.turned.as_ref()
    }

    pub fn hold(&self) -> Option<&Hold> {
        self.hold.as_ref()
    }

    pub fn approved_by(&self) -> Option<&Person> {
        self.approved_by.as_ref()
    }

    pub fn step_state(&self, step: StepIndex) -> Option<&StepState> {
        self.steps.get(step.position()).map(|track| &track.state)
    }

    /// The number of the next attempt at a step.
    pub fn next_attempt(&self, step: StepIndex) -> Option<Attempt> {
        self.steps
            .get(step.position())
            .map(|track| track.attempt.next())
    }

    /// Whether it is over, and how it ended.
    pub fn outcome(&self) -> Option<Outcome> {
        match self.phase {
            Phase::Over { outcome } => Some(outcome),
            Phase::Planned | Phase::Forward | Phase::Undoing => None,
        }
    }

    /// The step with an attempt under way.
    pub fn in_flight(&self) -> Option<StepIndex> {
        self.indexes()
            .find(|step| self.track(*step).state.in_flight())
    }

    /// What the steps that ran, and were not undone since, handed on. In order.
    pub fn outputs(&self) -> impl Iterator<Item = (StepIndex, &Value)> {
        self.indexes()
            .filter_map(|step| Some((step, self.track(step).output.as_ref()?)))
    }

    pub fn status(&self) -> Status {
        match (&self.phase, &self.hold) {
            (
                Phase::Over {
                    outcome: Outcome::Done,
                },
                _,
            ) => Status::Done,
            (
                Phase::Over {
                    outcome: Outcome::Undone,
                },
                _,
            ) => Status::Undone,
            (
                Phase::Over {
                    outcome: Outcome::Abandoned,
                },
                _,
            ) => Status::Abandoned,
            (_, Some(Hold::Paused { .. })) => Status::Paused,
            (_, Some(Hold::Stuck { .. })) => Status::Stuck,
            (Phase::Planned, None) => Status::Planned,
            (Phase::Forward, None) if self.approval_missing() => Status::AwaitingApproval,
            (Phase::Forward, None) if self.current().is_some_and(|step| self.asks_hand(step)) => {
                Status::AwaitingHand
            }
            (Phase::Forward, None) => Status::Running,
            (Phase::Undoing, None) => match self.next_undo() {
                Some(step) if matches!(self.planned_undo(step), Undo::ByHand { .. }) => {
                    Status::AwaitingHand
                }
                Some(_) | None => Status::Undoing,
            },
        }
    }

    pub(crate) fn approval_missing(&self) -> bool {
        self.plan.draft().approval == Approval::Needed && self.approved_by.is_none()
    }

    /// The first step that has not passed: the only one that may run.
    pub fn current(&self) -> Option<StepIndex> {
        self.indexes()
            .find(|step| !matches!(self.track(*step).state, StepState::Passed { .. }))
    }

    /// The last step that is touched and needs undoing: the only one that may be undone.
    pub fn next_undo(&self) -> Option<StepIndex> {
        self.indexes().rev().find(|step| {
            self.track(*step).state.touched() && *self.planned_undo(*step) != Undo::Nothing
        })
    }

    /// A touched step that cannot be undone: with one, the operation goes forward or stays where it is.
    pub(crate) fn point_of_no_return(&self) -> Option<StepIndex> {
        self.indexes().find(|step| {
            self.track(*step).state.touched()
                && matches!(self.planned_undo(*step), Undo::Impossible { .. })
        })
    }

    fn asks_hand(&self, step: StepIndex) -> bool {
        self.plan.steps()[step.position()].manual.is_some()
            && matches!(
                self.track(step).state,
                StepState::AskedByHand | StepState::Failed { .. }
            )
    }

    pub(crate) fn planned_undo(&self, step: StepIndex) -> &Undo {
        &self.plan.steps()[step.position()].undo
    }

    /// `step` comes from `indexes` or was checked against the plan.
    pub(crate) fn track(&self, step: StepIndex) -> &StepTrack {
        &self.steps[step.position()]
    }

    fn indexes(&self) -> impl DoubleEndedIterator<Item = StepIndex> + use<> {
        // A sealed plan has at most `limits::STEPS` steps.
        (0..self.steps.len() as u32).map(StepIndex)
    }
}
