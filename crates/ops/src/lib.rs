//! Carrying out operations: the journal's [`next`](homeostat_journal::next) with a store, a clock and hands.
//!
//! A planner or a person hands in a [`Draft`](homeostat_journal::Draft). [`Executor::submit`] makes it an operation:
//! its plan, its first record and its locks appear in the store in one transaction. [`Executor::run`] then asks the journal
//! what comes next, does it through a [`Procedure`], and writes down how it went; until there is nothing left to do.
//!
//! What may be relied on:
//!
//! * **The store is the only state.** The driver reads the log anew before each decision; what is kept in memory
//!   serves to wake and to stop, never to decide. After kill -9 the next controller calls [`Executor::resume_all`] and
//!   goes on from the log.
//! * **One executor at a time.** Opening one raises the fence, a key which every transaction compares. From then on an
//!   older executor can neither submit nor append: it gets [`OpsError::Fenced`] and has to stop. What it has already
//!   asked of others carries its term, which is for them to refuse.
//! * **Recorded before it runs, verified after.** And every record is the audit: who asked, who approved, who paused.
//! * **One operation per thing.** Scopes that have something in common exclude each other by a lock per thing, held
//!   from submission to the last record.
//! * **The limits are enforced here**, in the same transaction as what they limit, and not by clients. A freeze is
//!   compared when the record of a step's beginning is written: no automatic step begins after it.
//! * **A step is isolated.** It runs in a task of its own; its panic is a failed attempt, its time is limited, and the
//!   next attempt does not begin while the last one is still there.
//!
//! Absent so far, from the list of limits which the design asks for: fractions and budgets per failure domain, rate limits,
//! undo windows of destructive verbs. They need the cell's population, which this room does not know yet.

mod attempt;
mod books;
mod clock;
mod driver;
mod error;
mod executor;
mod freeze;
mod keys;
mod patience;
mod procedure;
mod stored;

pub use clock::{Clock, SystemClock};
pub use error::{LoadError, OpsError};
pub use executor::{Executor, Listing, Progress, View};
pub use freeze::{freeze, frozen, unfreeze};
pub use procedure::{Cancellation, Procedure, StepContext, StepError};

/// The limits of this room.
pub mod limits {
    use std::time::Duration;

    /// Operations that are not over. More than this at once is not automation but an accident.
    pub const UNFINISHED: usize = 64;
    /// Operations that are over and kept for people to read.
    pub const FINISHED: usize = 200;
    /// From asking an attempt to stop (its time is up, or the operation was cancelled) to stopping it.
    pub const STOP_GRACE: Duration = Duration::from_secs(5);
    /// From stopping an attempt to concluding that it cannot be stopped.
    pub const ABORT_GRACE: Duration = Duration::from_secs(5);
    /// Tries of one write while the store is away or full, with pauses from the first to the longest: about 8 s in all.
    pub const STORE_TRIES: u32 = 9;
    pub const STORE_PAUSE: Duration = Duration::from_millis(50);
    pub const STORE_LONGEST_PAUSE: Duration = Duration::from_secs(2);
    /// Compare-and-set lost against others of this process, in a row.
    pub const CONFLICTS: u32 = 16;
    /// Records that wait for a slow listener, who is told afterwards how many were left out.
    pub const PROGRESS: usize = 1024;
}
