//! Operations as a journal: what was planned, what happened, and therefore what comes next.
//!
//! Everything this system does of its own accord is an *operation*: a [`Plan`] written down before anything runs,
//! followed by [`Record`]s, one for each thing that happened. There is no other state. [`Operation::replay`] folds the
//! records over the plan, [`next`] says what to do now, the executor (`homeostat-ops`) does it and writes down how it
//! went. A controller that dies between any two records is replaced by one that reads the same log and
//! gets the same answer.
//!
//! Invariants, each with a property test in `tests/`:
//!
//! * **Written before done.** An attempt is recorded as started before it runs. A started attempt without a result is
//!   an *interrupted* attempt, never a success, so steps have to be idempotent: they will be run again.
//! * **In order.** No step runs before the one above it has run and was verified. Undo goes from the last step touched
//!   back to the first, and includes the step that failed: it may have run partly, or not at all, and its undo
//!   has to put up with both.
//! * **Whole or not at all.** Where a step that has been touched cannot be undone, nothing is undone. The operation is
//!   stuck and a person decides; half an undo is a state nobody has ever tested.
//! * **Bounded.** Attempts, interruptions, steps, sizes and waits all have limits. What is out of attempts is
//!   *stuck*, which is a state of its own and not a kind of done.
//! * **Decisions are records.** That an operation began to undo itself, got stuck or finished is written down and not
//!   derived again later: a newer program with other limits reads an old log as what it was.
//! * **One writer.** Terms in a log never fall, and a new term opens with [`Event::TakenOver`].
//!
//! Absent on purpose: IO, a clock (`now` is an argument), randomness, threads, and parallel steps. A group of things
//! done at once is one step.

mod apply;
mod lint;
mod next;
mod operation;
mod plan;
mod record;
mod render;
mod transitions;

pub use apply::{Illegal, IllegalRecord};
pub use lint::{LintError, Problem, lint};
pub use next::{Brake, Need, Next, Wait, next};
pub use operation::{Hold, Operation, Phase, Setback, Status, StepState, Tries, UndoCause};
pub use plan::{
    Approval, Asker, Draft, OnFailure, PLAN_FORMAT, Person, Plan, PlanError, PlanHash, Retry,
    StepPlan, Touched, Undo,
};
pub use record::{
    Attempt, Event, Evidence, FailureKind, LogSeq, Outcome, RECORD_FORMAT, Record, RecordError,
    StepIndex, StuckWhy,
};
pub use render::{describe, render, render_log};

/// The limits of this room, in one place so that they can be read together.
pub mod limits {
    use std::time::Duration;

    /// More steps than this is a plan that should have been several operations.
    pub const STEPS: usize = 64;
    /// Locks are taken in one store transaction of 128 operations at most, and submitting needs a few for itself.
    pub const SCOPE: usize = 64;
    /// A step that needs more attempts than this is waiting for something, and should say so in a check instead.
    pub const ATTEMPTS: u32 = 100;
    /// Attempts cut short by the death of the controller. They are no fault of the step, so they do not count as
    /// failures; but a step whose attempts end this way time after time is what kills the controller.
    pub const INTERRUPTIONS: u32 = 5;
    /// The longest one attempt may take.
    pub const TIMEOUT: Duration = Duration::from_secs(24 * 3600);
    /// The longest pause between two attempts.
    pub const BACK_OFF: Duration = Duration::from_secs(3600);
    /// A value of the store holds 1 MiB; a plan keeps well below.
    pub const PLAN_BYTES: usize = 512 * 1024;
    /// What a step may hand to those after it.
    pub const OUTPUT_BYTES: usize = 64 * 1024;
    /// What a record keeps of why something failed; the rest belongs into logs.
    pub const EVIDENCE_BYTES: usize = 4 * 1024;
    /// Texts for people: one paragraph.
    pub const TEXT_BYTES: usize = 1024;
    /// `<procedure>-<n>` has to be a name too (40 bytes); this leaves room for the number.
    pub const PROCEDURE_BYTES: usize = 28;
}
