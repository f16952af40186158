//! A program ends with the right code, and says the right things if that matters.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::call::{Args, CallError};
use crate::deadline::Deadline;
use crate::execute::{ExecuteError, Finished, Program, RunAs, execute};
use crate::shown;
use crate::wants::{Facts, Wants};

#[derive(Debug, Clone, PartialEq)]
pub struct CommandProbe {
    /// The program and its arguments; not given to a shell.
    pub argv: Vec<String>,
    /// Whom it runs as; `None`: as the prober.
    pub run_as: Option<RunAs>,
    /// Where it runs.
    pub dir: PathBuf,
    /// In addition to `PATH` and `LANG`, or instead of them.
    pub env: BTreeMap<String, String>,
    /// Of `exit`, `stdout` and `stderr`. No wish about `exit` means 0.
    pub wants: Wants,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error(transparent)]
    Execute(#[from] ExecuteError),
    #[error("{how}{}", .finished.said.shown())]
    Failed { how: String, finished: Finished },
}

impl CommandProbe {
    /// Exit code 0, as the prober, in `/`.
    pub fn new(argv: Vec<String>) -> Self {
        Self {
            argv,
            run_as: None,
            dir: PathBuf::from("/"),
            env: BTreeMap::new(),
            wants: Wants::default(),
        }
    }

    pub(crate) fn from_args(args: &Args<'_>) -> Result<Self, CallError> {
        Ok(Self {
            argv: args.command("command")?,
            run_as: args.text("user").map(|user| RunAs::User(user.to_owned())),
            dir: if args.has("dir") {
                args.path("dir")?
            } else {
                PathBuf::from("/")
            },
            env: args.strings("env")?,
            wants: Wants::read(args, &["exit", "stdout", "stderr"])?,
        })
    }

    pub(crate) fn expected(&self) -> String {
        let command = shown::head(self.argv.join(" ").as_bytes());
        if self.wants.is_empty() {
            format!("`{command}` exits with code 0")
        } else {
            format!("`{command}`: {}", self.wants)
        }
    }
}

pub(crate) async fn look(probe: &CommandProbe, within: Deadline) -> Result<String, CommandError> {
    let program = Program {
        argv: &probe.argv,
        run_as: probe.run_as.as_ref(),
        dir: &probe.dir,
        env: &probe.env,
        input: None,
    };
    let finished = execute(&program, within).await?;
    let exit_is_right = probe.wants.asks("exit") || finished.status.success();
    match probe.wants.judge(&facts(&finished)) {
        Ok(_) if exit_is_right => Ok(format!("{}{}", finished.how(), finished.said.shown())),
        Ok(_) => Err(CommandError::Failed {
            how: finished.how(),
            finished,
        }),
        Err(unmet) => Err(CommandError::Failed {
            how: format!("{}; {unmet}", finished.how()),
            finished,
        }),
    }
}

/// A program that was ended by a signal has no exit code; −1, as goss and others say.
fn facts(finished: &Finished) -> Facts {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned().into();
    Facts::from([
        ("exit", finished.status.code().unwrap_or(-1).into()),
        ("stdout", text(&finished.said.stdout)),
        ("stderr", text(&finished.said.stderr)),
    ])
}
