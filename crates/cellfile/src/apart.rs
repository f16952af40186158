//! Reading a cell file in another process.
//!
//! Starlark cannot be held to limits from within (see [`crate::load`]). A process can: the child gives itself limits of
//! memory and processor time before it looks at the file, and the parent gives it a deadline. Whatever the file does, the
//! parent gets an answer and lives on.
//!
//! The child is the same program, started with a verb that does nothing but call [`answer`]. Both ends are one build, so
//! what passes between them is not a format to be kept.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use homeostat_model::CellSpec;
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{CellFileError, Problem, ProblemKind};
use crate::limits::STACK_BYTES;
use crate::site::{Judge, SiteSpec};

type Answer<T> = Result<T, CellFileError>;

/// Address space of the child: the stack of the reading thread and what the limits of the evaluation allow, twice.
const CHILD_ADDRESS_SPACE: u64 = STACK_BYTES as u64 + 1024 * 1024 * 1024;
const CHILD_CPU_SECONDS: u64 = 20;
/// By then a child that only computes was killed by its own limit.
const DEADLINE: Duration = Duration::from_secs(30);
/// No answer is longer: every file of the cell in it once, and as much again.
const LONGEST_ANSWER: u64 = 128 * 1024 * 1024;

/// The child's side: limits this process, reads the file and writes the answer. To be called by a process that does
/// nothing else.
///
/// # Errors
/// When the limits cannot be set or the answer cannot be written.
pub fn answer(path: &Path, out: impl Write) -> std::io::Result<()> {
    limit_oneself()?;
    say(crate::load(path), out)
}

/// Like [`answer`], for a file of checks. `parameters` is what [`load_site_apart`] passed on.
///
/// # Errors
/// When `parameters` is not that, the limits cannot be set or the answer cannot be written.
pub fn answer_site(
    path: &Path,
    parameters: &str,
    judge: Judge,
    out: impl Write,
) -> std::io::Result<()> {
    limit_oneself()?;
    let parameters = serde_json::from_str(parameters)?;
    say(crate::load_site(path, parameters, judge), out)
}

fn limit_oneself() -> std::io::Result<()> {
    limit(Resource::As, CHILD_ADDRESS_SPACE)?;
    limit(Resource::Cpu, CHILD_CPU_SECONDS)?;
    limit(Resource::Core, 0)
}

fn say<T: Serialize>(answer: Answer<T>, out: impl Write) -> std::io::Result<()> {
    let mut out = std::io::BufWriter::new(out);
    serde_json::to_writer(&mut out, &answer)?;
    out.flush()
}

/// The parent's side: starts `child`, whose only work is to call [`answer`] for `path` with its standard output, and
/// waits for what it says.
///
/// # Errors
/// The problems of the file, or one that says how the child failed.
pub fn load_apart(child: Command, path: &Path) -> Result<CellSpec, CellFileError> {
    ask(child, path)
}

/// Like [`load_apart`] for a file of checks: `child`, to which the parameters are added as its last argument, calls
/// [`answer_site`] with them.
///
/// # Errors
/// The problems of the file, or one that says how the child failed.
pub fn load_site_apart(
    mut child: Command,
    path: &Path,
    parameters: &BTreeMap<String, String>,
) -> Result<SiteSpec, CellFileError> {
    child.arg(serde_json::json!(parameters).to_string());
    ask(child, path)
}

fn ask<T: DeserializeOwned>(mut child: Command, path: &Path) -> Answer<T> {
    let file = path.display().to_string();
    let fail = |kind, message: String| {
        Err(CellFileError {
            problems: vec![Problem::without_place(&file, kind, message)],
        })
    };
    child
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut running = match child.spawn() {
        Ok(running) => running,
        Err(e) => {
            return fail(
                ProblemKind::Environment,
                format!("cannot start a process to read it: {e}"),
            );
        }
    };
    let heard = hear(&mut running);
    if heard.is_none() {
        // It may have ended meanwhile; then there is nothing to kill, and the wait below says how it ended.
        let _ = running.kill();
    }
    let status = match running.wait() {
        Ok(status) => status,
        Err(e) => {
            return fail(
                ProblemKind::Environment,
                format!("cannot wait for the process that reads it: {e}"),
            );
        }
    };
    let Some(heard) = heard else {
        return fail(
            ProblemKind::Declared,
            format!("reading it took longer than {DEADLINE:?}"),
        );
    };
    match serde_json::from_slice::<Answer<T>>(&heard) {
        Ok(answer) if status.success() => answer,
        Ok(_) | Err(_) => fail(ProblemKind::Declared, ended(status)),
    }
}

fn ended(status: ExitStatus) -> String {
    format!(
        "the process that read it ended with {status}: the file takes too much memory or time to evaluate"
    )
}

/// All that the child says, or nothing when it has not finished by the deadline.
fn hear(running: &mut Child) -> Option<Vec<u8>> {
    let output = running.stdout.take()?;
    let (sender, receiver) = mpsc::sync_channel(1);
    // The thread ends when the child's output does, at the latest when the child is killed.
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let result = output.take(LONGEST_ANSWER).read_to_end(&mut bytes);
        // Nobody listens any more after the deadline.
        let _ = sender.send(result.map(|_| bytes));
    });
    receiver.recv_timeout(DEADLINE).ok()?.ok()
}

fn limit(what: Resource, most: u64) -> std::io::Result<()> {
    let limit = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    Ok(setrlimit(what, limit)?)
}
