//! Repairs: each makes one thing as it should be, and brings the probe that sees whether it is.
//!
//! A fix works in two parts. [`Fix::plan`] looks and says in steps what is to be done, which is nothing when all is in
//! order; [`Fix::apply`] looks again and carries the steps out. So what `--plan` shows is what `--fix` does, and doing
//! it twice does nothing the second time. What is there is never assumed: a step that another one prepared is planned
//! from what the machine shows, not from what was done before.
//!
//! Every step is safe to be cut off: a file, a folder or a link appears under its name only when it is complete.

mod account;
mod act;
mod atomic;
mod begun;
mod files;
mod local;
mod locks;
mod sql;
mod step;

use std::time::{Duration, Instant};

use homeostat_model::library::Call;
use sha2::{Digest, Sha256};

use crate::call::{Args, As, CallError};
use crate::deadline::{Deadline, OutOfTime};
use crate::execute::ExecuteError;
use crate::http::HttpError;
use crate::local::{LocalError, hex};
use crate::managed::ManagedError;
use crate::probe::Probe;
use crate::program::ProgramError;
use crate::shown;
use crate::sql::SqlError;
use act::Act;

/// A repair, with its arguments checked.
#[derive(Debug, Clone)]
pub struct Fix {
    call: Call,
    check: Option<Probe>,
    act: Act,
}

/// What came of an application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    pub outcome: AppliedOutcome,
    /// What was done, and what went wrong, for people.
    pub evidence: String,
    pub took: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppliedOutcome {
    Changed,
    /// All was in order.
    Unchanged,
    /// Something went wrong; part of it may be done.
    Failed,
}

/// Where it can be shown that a fix is idempotent, without harm to anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// A copy of the file system that nothing leaves, with processes and a network of its own.
    Sandbox,
    /// A SQL server made for it.
    SqlServer,
    Nowhere {
        reason: &'static str,
    },
}

/// Why a fix cannot be planned or carried out.
#[derive(Debug, thiserror::Error)]
pub enum FixError {
    #[error("{0}")]
    Refused(String),
    #[error("cannot {doing}")]
    Io {
        doing: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{program} ended with {how}{said}")]
    Failed {
        program: String,
        how: String,
        said: String,
    },
    #[error("{0}")]
    Other(String),
}

macro_rules! told {
    ($($error:ty),+) => {
        $(impl From<$error> for FixError {
            fn from(error: $error) -> Self {
                Self::Other(shown::error(&error))
            }
        })+
    };
}

// What these say is all that is needed of them here.
told!(
    ExecuteError,
    HttpError,
    LocalError,
    ManagedError,
    OutOfTime,
    ProgramError,
    SqlError
);

pub(crate) fn trouble(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> FixError {
    let doing = doing.into();
    |source| FixError::Io { doing, source }
}

impl Fix {
    /// # Errors
    /// When the call is of no kind of fix, or an argument does not fit; the error names it.
    pub fn from_call(call: &Call) -> Result<Self, CallError> {
        let args = Args::bind(call, As::Fix)?;
        let act = Act::from_args(&args)?;
        let check = act.check(&args)?;
        Ok(Self {
            call: call.clone(),
            check,
            act,
        })
    }

    /// The probe that sees whether all is in order; `None` for what changes something that only its check can see.
    pub fn check(&self) -> Option<&Probe> {
        self.check.as_ref()
    }

    /// What must be locked while it is applied: two fixes with the same resource must not run at once.
    pub fn resource(&self) -> String {
        self.act.resource()
    }

    /// For people: `user kim`.
    pub fn summary(&self) -> String {
        format!("{} {}", self.call.kind, self.act.subject())
    }

    /// Of its definition: kind, arguments, version of what carries it out, and of programs that it runs their content.
    /// 64 hex digits; a proof is bound to it.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        part(self.call.kind.as_bytes());
        part(&self.act.implementation().to_be_bytes());
        // A map with ordered keys; the values are JSON, whose maps are ordered too.
        part(&serde_json::to_vec(&self.call.args).unwrap_or_default());
        for file in self.act.files() {
            // One that cannot be read counts as empty: it cannot be run either.
            part(&std::fs::read(file).unwrap_or_default());
        }
        hex(&hash.finalize())
    }

    pub fn proving_ground(&self) -> Ground {
        self.act.proving_ground()
    }

    /// Exactly what [`apply`](Self::apply) would do now, a line for each step; nothing when all is in order.
    ///
    /// # Errors
    /// When it cannot look, or what it finds must not be changed.
    pub async fn plan(&self, deadline: Duration) -> Result<Vec<String>, FixError> {
        let steps = self.act.plan(Deadline::starting_now(deadline)).await?;
        Ok(steps.iter().map(ToString::to_string).collect())
    }

    /// Looks, and does what is needed. Takes at most `deadline`, and a moment more where a program has to be killed.
    ///
    /// Dropping the future ends it and everything that it started, at a point between two steps or within one that is
    /// safe to be cut off.
    pub async fn apply(&self, deadline: Duration) -> Applied {
        let started = Instant::now();
        let within = Deadline::starting_now(deadline);
        let mut done = Vec::new();
        let failure = self.carry_out(within, &mut done).await.err();
        let outcome = match (&failure, done.is_empty()) {
            (Some(_), _) => AppliedOutcome::Failed,
            (None, true) => AppliedOutcome::Unchanged,
            (None, false) => AppliedOutcome::Changed,
        };
        let done = done.join("; ");
        let evidence = match (failure, done.is_empty()) {
            (None, true) => "in order".to_owned(),
            (None, false) => done,
            (Some(error), true) => shown::error(&error),
            (Some(error), false) => format!("{}; after: {done}", shown::error(&error)),
        };
        Applied {
            outcome,
            evidence,
            took: started.elapsed(),
        }
    }

    /// Puts out of order what the fix keeps in order, for a proof. `false`: nobody knows how.
    ///
    /// Only ever called in a sandbox.
    pub(crate) async fn disturb(&self, deadline: Duration) -> Result<bool, FixError> {
        let within = Deadline::starting_now(deadline);
        let steps = self.act.disturbance();
        let known = !steps.is_empty();
        for step in steps {
            step.perform(within).await?;
        }
        Ok(known)
    }

    async fn carry_out(&self, within: Deadline, done: &mut Vec<String>) -> Result<(), FixError> {
        for step in self.act.plan(within).await? {
            if let Some(said) = step.perform(within).await? {
                done.push(said);
            }
        }
        Ok(())
    }
}
