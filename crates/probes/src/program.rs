//! Probes and fixes in any language: a program that reads one line of JSON and writes one.
//!
//! ```text
//! request  {"version": 1, "do": "probe", "parameters": {…}, "deadline_ms": 5000}
//! answer   {"version": 1, "verdict": "pass", "expected": "…", "seen": "…", "evidence": "…"}
//! ```
//!
//! `do` is `probe` (answer: `pass`, `fail` or `not-run`), `plan` (`pass` when there is nothing to do; else `fail`, with
//! a list of texts as `steps`: what `fix` would do) or `fix` (`changed`, `unchanged` or `fail`). Whatever else an answer
//! holds is ignored, so that fields can be added. What the program writes to its error output is for people.
//!
//! A program that does not keep to this has said nothing of what it was to look at: that is *not run*, never a pass, and
//! no failure either. One that hangs is a failure, because what it waits for may be what hangs. Either way everything
//! that it started is ended (`family`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::call::{Args, CallError};
use crate::deadline::Deadline;
use crate::execute::{ExecuteError, Program, RunAs, execute};
use crate::shown;

/// The version of the protocol.
const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq)]
pub struct ProgramProbe {
    argv: Vec<String>,
    parameters: Map<String, Value>,
    run_as: Option<RunAs>,
    dir: PathBuf,
    env: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Do {
    Probe,
    Plan,
    Fix,
}

#[derive(Serialize)]
struct Request<'a> {
    version: u32,
    r#do: Do,
    parameters: &'a Map<String, Value>,
    deadline_ms: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Answer {
    version: u32,
    pub(crate) verdict: Verdict,
    #[serde(default)]
    pub(crate) expected: String,
    #[serde(default)]
    pub(crate) seen: String,
    /// Anything that people may want to see.
    #[serde(default)]
    evidence: Value,
    #[serde(default)]
    pub(crate) steps: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    Pass,
    Fail,
    NotRun,
    Changed,
    Unchanged,
}

impl Verdict {
    /// As it is written.
    fn word(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::NotRun => "not-run",
            Verdict::Changed => "changed",
            Verdict::Unchanged => "unchanged",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    /// It hung, which may be the fault of what it looks at.
    #[error("the program hangs")]
    Hangs(#[source] ExecuteError),
    #[error("the program cannot be run")]
    Execute(#[source] ExecuteError),
    #[error("the program ended with {how} instead of an answer{said}")]
    Ended { how: String, said: String },
    #[error("the program's answer is not of the protocol: {why}; it wrote: {wrote}")]
    Garbage { why: String, wrote: String },
    #[error("the program answers in version {0} of the protocol; {VERSION} is known")]
    Version(u32),
    #[error("the program answers '{}', which is no answer to this question", .0.word())]
    NoAnswer(Verdict),
    #[error("the program could not look: {0}")]
    NotRun(String),
    #[error("{0}")]
    Fails(String),
}

impl ProgramProbe {
    pub(crate) fn from_args(args: &Args<'_>) -> Result<Self, CallError> {
        let parameters = args.value("parameters").and_then(Value::as_object);
        Ok(Self {
            argv: args.command("command")?,
            parameters: parameters.cloned().unwrap_or_default(),
            run_as: args.text("user").map(|user| RunAs::User(user.to_owned())),
            dir: if args.has("dir") {
                args.path("dir")?
            } else {
                "/".into()
            },
            env: args.strings("env")?,
        })
    }

    pub(crate) fn expected(&self) -> String {
        format!("`{}` says that all is well", self.shown())
    }

    pub(crate) fn shown(&self) -> String {
        shown::head(self.argv.join(" ").as_bytes())
    }

    /// Asks the program one thing.
    pub(crate) async fn ask(&self, what: Do, within: Deadline) -> Result<Answer, ProgramError> {
        let request = Request {
            version: VERSION,
            r#do: what,
            parameters: &self.parameters,
            deadline_ms: within.left().as_millis().try_into().unwrap_or(u64::MAX),
        };
        // A map of JSON values and a few numbers are always JSON.
        let mut line = serde_json::to_vec(&request).unwrap_or_default();
        line.push(b'\n');
        let program = Program {
            run_as: self.run_as.as_ref(),
            dir: &self.dir,
            env: &self.env,
            input: Some(&line),
            ..Program::new(&self.argv)
        };
        let finished = execute(&program, within)
            .await
            .map_err(|error| match error {
                ExecuteError::OutOfTime { .. } => ProgramError::Hangs(error),
                ExecuteError::Empty
                | ExecuteError::NoUser(_)
                | ExecuteError::Start { .. }
                | ExecuteError::Watch { .. }
                | ExecuteError::TooMuch { .. } => ProgramError::Execute(error),
            })?;
        if !finished.status.success() {
            return Err(ProgramError::Ended {
                how: finished.how(),
                said: finished.said.shown(),
            });
        }
        let wrote = || shown::head(&finished.said.stdout);
        let garbage = |why: String| ProgramError::Garbage {
            why,
            wrote: wrote(),
        };
        let text = std::str::from_utf8(&finished.said.stdout)
            .map_err(|_| garbage("it is not UTF-8".to_owned()))?;
        if text.trim().is_empty() {
            let how = finished.how();
            let said = finished.said.shown();
            return Err(ProgramError::Ended { how, said });
        }
        let answer: Answer =
            serde_json::from_str(text).map_err(|error| garbage(error.to_string()))?;
        if answer.version != VERSION {
            return Err(ProgramError::Version(answer.version));
        }
        Ok(answer)
    }
}

/// What would have been right, and what the program found.
pub(crate) async fn look(
    probe: &ProgramProbe,
    within: Deadline,
) -> (Option<String>, Result<String, ProgramError>) {
    let answer = match probe.ask(Do::Probe, within).await {
        Ok(answer) => answer,
        Err(error) => return (None, Err(error)),
    };
    let seen = answer.shown();
    let expected = (!answer.expected.is_empty()).then(|| shown::head(answer.expected.as_bytes()));
    let looked = match answer.verdict {
        Verdict::Pass => Ok(seen),
        Verdict::Fail => Err(ProgramError::Fails(seen)),
        Verdict::NotRun => Err(ProgramError::NotRun(seen)),
        other @ (Verdict::Changed | Verdict::Unchanged) => Err(ProgramError::NoAnswer(other)),
    };
    (expected, looked)
}

impl ProgramError {
    /// Whether it says nothing about what was to be looked at.
    pub(crate) fn is_not_run(&self) -> bool {
        match self {
            ProgramError::Hangs(_) | ProgramError::Fails(_) => false,
            ProgramError::Execute(_)
            | ProgramError::Ended { .. }
            | ProgramError::Garbage { .. }
            | ProgramError::Version(_)
            | ProgramError::NoAnswer(_)
            | ProgramError::NotRun(_) => true,
        }
    }
}

impl Answer {
    /// What was seen, with the evidence.
    pub(crate) fn shown(&self) -> String {
        let evidence = match &self.evidence {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let both = match (self.seen.as_str(), evidence.as_str()) {
            (seen, "") => seen.to_owned(),
            ("", evidence) => evidence.to_owned(),
            (seen, evidence) => format!("{seen} ({evidence})"),
        };
        shown::head(both.as_bytes())
    }
}
