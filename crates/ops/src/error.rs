//! What can go wrong, by what the caller can do about it.

use homeostat_journal::{IllegalRecord, LintError, PlanError, RecordError, Touched};
use homeostat_model::{BadName, OperationId, ProcedureName, StepName, Term};
use homeostat_store::StoreError;

#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    #[error("cannot {doing}")]
    Store {
        doing: &'static str,
        #[source]
        source: StoreError,
    },
    /// There is a newer executor. This one has to stop, and everything that belongs to its leadership with it.
    #[error("term {own} is over: term {newer} has taken the operations over")]
    Fenced { own: Term, newer: Term },
    #[error("cannot read operation {operation}")]
    Unreadable {
        operation: OperationId,
        #[source]
        source: LoadError,
    },
    #[error("there is no operation {operation}; finished ones are kept for a while only")]
    NoSuch { operation: OperationId },
    #[error("{touched} is being changed by operation {holder}: wait for it, or cancel it")]
    Busy {
        touched: Touched,
        holder: OperationId,
    },
    #[error(
        "{count} operations are not over yet, that is the most there may be: finish or abandon some"
    )]
    TooMany { count: usize },
    #[error(transparent)]
    Lint(#[from] LintError),
    /// The journal says that this cannot happen now.
    #[error("operation {operation} cannot take this")]
    Refused {
        operation: OperationId,
        #[source]
        source: IllegalRecord,
    },
    #[error("operation {operation} has no step {step}")]
    NoStep {
        operation: OperationId,
        step: StepName,
    },
    #[error(
        "operation {operation} was planned for {wanted} v{wanted_version}, this is {found} v{found_version}"
    )]
    OtherProcedure {
        operation: OperationId,
        wanted: ProcedureName,
        wanted_version: u32,
        found: ProcedureName,
        found_version: u32,
    },
    #[error("operation {operation} is being run already")]
    AlreadyRuns { operation: OperationId },
    /// Whatever it does, it still does it; so nothing else may begin. The way out is to end this process.
    #[error("an attempt at step {step} of operation {operation} does not stop when it is told to")]
    Wedged {
        operation: OperationId,
        step: StepName,
    },
    #[error("lost against other writers {tries} times in a row while trying to {doing}")]
    Contended { doing: &'static str, tries: u32 },
    /// Another program wrote what this one cannot have written.
    #[error("the store's {what} is not understood: {why}")]
    Garbled { what: String, why: String },
}

/// Why a stored operation cannot be used. It is left alone: nothing is guessed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("its plan is missing")]
    NoPlan,
    #[error("its plan is of no use")]
    Plan(#[from] PlanError),
    #[error("a record is of no use")]
    Record(#[from] RecordError),
    #[error("its log contradicts itself")]
    Illegal(#[from] IllegalRecord),
    #[error("its name is no name")]
    Name(#[from] BadName),
}
