//! Production tests: a graph of checks over live things, and the engine that decides what to look at next and what
//! to believe.
//!
//! Floor 1, pure: no IO, no clock, no async, no randomness. The caller owns a clock, carries out the [`Run`]s that
//! [`Engine::due`] hands out, and reports each with [`Engine::finished`]; what comes back are [`Change`]s of
//! verdicts. So the engine can be simulated through years of faults in seconds, and is (`simulation`).
//!
//! A check alone is a poor witness: it may flake, and it fails just as well when something *beneath* what it tests
//! is broken. So the engine believes a failure only under the rules of [`rules`], of which three matter most:
//!
//! - a check runs only while all it depends on pass; otherwise it is *blocked*, and names the failing checks at the
//!   origin, not its nearest neighbours;
//! - a failure counts only after `confirm` probes in a row;
//! - and only if everything it depends on was *seen to pass after it began to fail*. Without this, the check that
//!   happens to be probed first after a fault takes the blame for the one beneath it.
//!
//! A check may have a *fix*. It is applied on confirmed failures only ([`FixRun`]), one at a time to what it changes, and
//! judged by the check itself, once it has had its time to settle. What flakes too often to be believed is in
//! quarantine: it reports, and never triggers a fix. What the fix cannot mend is given up, for a person to look at.
//!
//! "Not run" is never shown as a pass: it is [`Verdict::Unknown`], and says why.

mod engine;
mod history;
mod rules;
mod suite;
mod time;
mod verdict;

#[cfg(test)]
mod simulation;

pub use engine::{
    Attempt, Due, Engine, EngineConfig, Fence, FixRun, Rounds, Run, StaleFix, StaleRun,
};
pub use history::{FlakeRate, Remembered};
pub use suite::{Check, CheckId, FixPolicy, Repeatable, Suite, SuiteError};
pub use time::Moment;
pub use verdict::{
    Applied, Change, Evidence, FixOutcome, Observation, Outcome, Repair, Roots, Stage, Unknown,
    Verdict,
};
