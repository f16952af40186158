//! What a room that changes things implements: the hands of an operation.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;

use homeostat_journal::{Attempt, Evidence, FailureKind, StepPlan};
use homeostat_model::{OperationId, ProcedureName, StepName, Term};
use serde_json::Value;
use tokio::sync::watch;

/// A named, versioned change. Everything that it needs to know comes from the step's parameters, the outputs of earlier
/// steps, and its own observation of the world; never from what it remembers of an earlier call, which may have been
/// in another process.
#[async_trait::async_trait]
pub trait Procedure: Send + Sync + 'static {
    fn name(&self) -> &ProcedureName;

    /// Operations planned for another version are refused.
    fn version(&self) -> u32;

    /// Does the step. Idempotent: it is called again after a failure, and after a crash in the middle of which nobody
    /// knows anything. May be dropped at any await once its time is up or the operation is cancelled.
    async fn run(&self, step: &StepPlan, context: &StepContext) -> Result<Value, StepError>;

    /// Looks whether the step had its effect. Changes nothing.
    async fn verify(&self, step: &StepPlan, context: &StepContext) -> Result<(), Evidence>;

    /// Takes the step back. Has to cope with a step that never ran, that ran partly, and that was undone already.
    async fn undo(&self, step: &StepPlan, context: &StepContext) -> Result<(), StepError>;
}

/// What an attempt belongs to, and what it may use.
#[derive(Debug, Clone)]
pub struct StepContext {
    pub operation: OperationId,
    /// To be passed on to whatever is asked to act, so that it can refuse a lower one.
    pub term: Term,
    pub attempt: Attempt,
    pub cancellation: Cancellation,
    /// By step; what each handed on. When verifying and undoing, the step's own too, if it got so far.
    pub outputs: BTreeMap<StepName, Value>,
}

/// Tells an attempt that its result is not wanted any more. It has [`crate::limits::STOP_GRACE`] to come to an orderly end.
#[derive(Debug, Clone)]
pub struct Cancellation {
    stop: watch::Receiver<Wanted>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Yes,
    No,
}

impl Cancellation {
    pub(crate) fn channel() -> (watch::Sender<Wanted>, Self) {
        let (sender, stop) = watch::channel(Wanted::Yes);
        (sender, Self { stop })
    }

    pub fn is_cancelled(&self) -> bool {
        *self.stop.borrow() == Wanted::No
    }

    /// Returns once the result is not wanted any more.
    pub async fn cancelled(&self) {
        let mut stop = self.stop.clone();
        // The sender outlives the attempt; were it gone, nobody would want the result either.
        let _ = stop.wait_for(|wanted| *wanted == Wanted::No).await;
    }
}

/// A step that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepError {
    pub kind: FailureKind,
    pub evidence: Evidence,
}

impl StepError {
    /// Trying again may help.
    pub fn retryable(evidence: impl Into<Evidence>) -> Self {
        Self {
            kind: FailureKind::Retryable,
            evidence: evidence.into(),
        }
    }

    /// Trying again will not help.
    pub fn final_(evidence: impl Into<Evidence>) -> Self {
        Self {
            kind: FailureKind::Final,
            evidence: evidence.into(),
        }
    }

    /// An error with all its sources in one line, worth trying again.
    pub fn from_error(error: &(dyn Error + 'static)) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        Self::retryable(text)
    }
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.evidence.fmt(f)
    }
}

impl Error for StepError {}
