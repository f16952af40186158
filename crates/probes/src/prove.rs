//! Shows that a fix is idempotent, in a place where it can do no harm.
//!
//! A fix is run in a sandbox (`sandbox`), and then again: the second time must change nothing, neither by its own word
//! nor on the disk. Then it is run with the first attempt killed at several points, each in a fresh sandbox, and then
//! once more: the state must be the one of an undisturbed run. States are compared by content, type, mode, owner, links
//! and extended attributes (`snapshot`); times are not part of a state.
//!
//! Where all is in order a fix has nothing to do, and would prove nothing. So what it keeps in order is disturbed first, in
//! each sandbox: the file is removed, the user is deleted. Of programs of others nobody knows how; nothing is proved then.
//!
//! A proof is about one definition of a fix on one machine as it is. It is bound to the fix's hash and lapses when that
//! changes. Where nothing can be shown, nothing is proved, and the reason is said.

mod sandbox;
mod server;
mod snapshot;

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use homeostat_model::library::Call;

use crate::{CallError, Fix, Ground};
use sandbox::{Layers, Message, Outcome, Task, ToDo};
pub use snapshot::Difference;
use snapshot::Snapshot;

/// A program whose whole body, with these arguments, is [`inside`].
#[derive(Debug, Clone)]
pub struct Worker {
    pub program: PathBuf,
    pub args: Vec<OsString>,
}

/// What was shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Of the fix that it is about ([`Fix::hash`]).
    pub hash: String,
    pub finding: Finding,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It is idempotent, also when it was killed so many times.
    Proved { kills: u32 },
    /// It is not.
    Refuted(Refutation),
    /// Nothing was shown, for this reason.
    Nothing(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refutation {
    #[error("it fails: {0}")]
    Fails(String),
    #[error("its own check does not pass after it: {0}")]
    CheckFails(String),
    #[error("the second time it changes something: {0}")]
    SaysChanged(String),
    #[error("the second time it changes {0}")]
    Changes(Difference),
    #[error("killed after {after:?} and run again, it ends elsewhere: {difference}")]
    KilledEndsElsewhere {
        after: Duration,
        difference: Difference,
    },
    #[error("killed after {after:?} and run again, it fails: {why}")]
    KilledFails { after: Duration, why: String },
}

/// At so many points of its run a fix is killed.
const KILLS: u32 = 6;

/// The body of a [`Worker`]. To be called first thing, before there are threads.
pub fn inside() -> ExitCode {
    match sandbox::body() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the sandbox's process ends: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Tries to prove a fix. Blocks, for some runs of the fix, and must not be called within an async runtime; `deadline` is for each of them. `scratch` is a folder for
/// layers, on a file system that holds files (not on an overlay).
///
/// # Errors
/// When the call is no fix.
pub fn prove(
    call: &Call,
    worker: &Worker,
    scratch: &Path,
    deadline: Duration,
) -> Result<Proof, CallError> {
    let fix = Fix::from_call(call)?;
    let finding = match fix.proving_ground() {
        Ground::Nowhere { reason } => Finding::Nothing(reason.to_owned()),
        Ground::SqlServer => server::prove(call, scratch, deadline)
            .unwrap_or_else(|error| Finding::Nothing(format!("there is no server: {error}"))),
        Ground::Sandbox => match sandbox::possible() {
            Err(reason) => Finding::Nothing(format!("there is no sandbox: {reason}")),
            Ok(()) => {
                let trial = Trial {
                    call,
                    worker,
                    scratch,
                    deadline,
                };
                match trial.run() {
                    Ok(finding) => finding,
                    Err(error) => Finding::Nothing(format!("there is no sandbox: {error}")),
                }
            }
        },
    };
    Ok(Proof {
        hash: fix.hash(),
        finding,
    })
}

struct Trial<'a> {
    call: &'a Call,
    worker: &'a Worker,
    scratch: &'a Path,
    deadline: Duration,
}

/// From where a fix is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    AsItIs,
    Disturbed,
}

/// A run to its end.
struct Ended {
    outcome: Outcome,
    evidence: String,
    /// What the check saw, if it failed.
    check_fails: Option<String>,
    took: Duration,
}

impl Trial<'_> {
    fn run(&self) -> io::Result<Finding> {
        let layer = Scratch::new(self.scratch)?;
        let first = self.apply(&layer)?;
        match (first.refuted(), first.outcome) {
            (Some(refuted), _) => Ok(Finding::Refuted(refuted)),
            (None, Outcome::Unchanged) => self.run_from(Start::Disturbed),
            (None, Outcome::Changed | Outcome::Failed) => self.run_from(Start::AsItIs),
        }
    }

    fn run_from(&self, start: Start) -> io::Result<Finding> {
        let layer = Scratch::new(self.scratch)?;
        if let Some(why) = self.prepare(&layer, start)? {
            let why = format!("all is in order here already, so it has nothing to do: {why}");
            return Ok(Finding::Nothing(why));
        }
        let disturbed = layer.snapshot()?;
        let first = self.apply(&layer)?;
        if let Some(refuted) = first.refuted() {
            return Ok(Finding::Refuted(refuted));
        }
        let reached = layer.snapshot()?;
        if reached == disturbed {
            return Ok(Finding::Nothing(
                "what it changes is not on the disk".to_owned(),
            ));
        }
        let second = self.apply(&layer)?;
        if let Some(refuted) = second.refuted() {
            return Ok(Finding::Refuted(refuted));
        }
        if let Some(difference) = reached.difference(&layer.snapshot()?) {
            return Ok(Finding::Refuted(Refutation::Changes(difference)));
        }
        if second.outcome == Outcome::Changed {
            return Ok(Finding::Refuted(Refutation::SaysChanged(second.evidence)));
        }
        for kill in 1..=KILLS {
            let after = first.took * kill / (KILLS + 1);
            if let Some(refuted) = self.killed(start, after, &reached)? {
                return Ok(Finding::Refuted(refuted));
            }
        }
        Ok(Finding::Proved { kills: KILLS })
    }

    /// `Some`: there is nothing to repair, for this reason.
    fn prepare(&self, layer: &Scratch, start: Start) -> io::Result<Option<String>> {
        match start {
            Start::AsItIs => Ok(None),
            Start::Disturbed => self.start(layer, ToDo::Disturb)?.disturbed(),
        }
    }

    /// Kills the first attempt, and runs it again.
    fn killed(
        &self,
        start: Start,
        after: Duration,
        reached: &Snapshot,
    ) -> io::Result<Option<Refutation>> {
        let layer = Scratch::new(self.scratch)?;
        if let Some(why) = self.prepare(&layer, start)? {
            return Err(io::Error::other(why));
        }
        let session = self.start(&layer, ToDo::Apply)?;
        session.begins()?;
        std::thread::sleep(after);
        session.kill()?;
        let again = self.apply(&layer)?;
        if let Some(refuted) = again.refuted() {
            let why = refuted.to_string();
            return Ok(Some(Refutation::KilledFails { after, why }));
        }
        let difference = reached.difference(&layer.snapshot()?);
        Ok(difference.map(|difference| Refutation::KilledEndsElsewhere { after, difference }))
    }

    fn apply(&self, layer: &Scratch) -> io::Result<Ended> {
        self.start(layer, ToDo::Apply)?.end()
    }

    fn start(&self, layer: &Scratch, what: ToDo) -> io::Result<Session> {
        let task = Task::new(self.call.clone(), what, self.deadline, &layer.folder);
        Session::start(self.worker, &task, self.deadline)
    }
}

impl Ended {
    fn refuted(&self) -> Option<Refutation> {
        match (self.outcome, &self.check_fails) {
            (Outcome::Failed, _) => Some(Refutation::Fails(self.evidence.clone())),
            (Outcome::Changed | Outcome::Unchanged, Some(seen)) => {
                Some(Refutation::CheckFails(seen.clone()))
            }
            (Outcome::Changed | Outcome::Unchanged, None) => None,
        }
    }
}

/// The layers of a sandbox, which go with this value.
struct Scratch {
    folder: PathBuf,
}

impl Scratch {
    fn new(scratch: &Path) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = scratch.join(format!("prove-{}-{number}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
        Ok(Self { folder })
    }

    fn snapshot(&self) -> io::Result<Snapshot> {
        Snapshot::take(&Layers::of(&self.folder)?)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It is in a folder for such things; there is nobody to tell.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Processes in a sandbox. Dropping it ends them.
struct Session {
    process: std::process::Child,
    messages: mpsc::Receiver<Message>,
    patience: Duration,
}

impl Session {
    fn start(worker: &Worker, task: &Task, deadline: Duration) -> io::Result<Self> {
        use std::io::{BufRead, BufReader, Write};
        let mut process = Command::new(&worker.program)
            .args(&worker.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (send, messages) = mpsc::channel();
        let (stdin, stdout) = (process.stdin.take(), process.stdout.take());
        let session = Self {
            process,
            messages,
            // Beyond the fix and its check: time to make and to leave the sandbox.
            patience: deadline * 2 + Duration::from_secs(10),
        };
        if let Some(stdout) = stdout {
            // Ends when the last process of the sandbox does, since all of them hold the pipe.
            std::thread::Builder::new()
                .name("sandbox-reader".to_owned())
                .spawn(move || {
                    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                        let message = line.strip_prefix(sandbox::MARK);
                        if let Some(message) =
                            message.and_then(|text| serde_json::from_str(text).ok())
                            && send.send(message).is_err()
                        {
                            return;
                        }
                    }
                })?;
        }
        if let Some(mut stdin) = stdin {
            stdin.write_all(&serde_json::to_vec(task)?)?;
        }
        Ok(session)
    }

    fn next(&self) -> io::Result<Option<Message>> {
        match self.messages.recv_timeout(self.patience) {
            Ok(Message::NoSandbox(why)) => Err(io::Error::other(why)),
            Ok(message) => Ok(Some(message)),
            Err(mpsc::RecvTimeoutError::Disconnected) => Ok(None),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// `Some`: it is not, for this reason.
    fn disturbed(self) -> io::Result<Option<String>> {
        let mut said = None;
        while let Some(message) = self.next()? {
            said = Some(message);
        }
        match said {
            Some(Message::Disturbed) => Ok(None),
            Some(Message::NotDisturbed(why)) => Ok(Some(why)),
            other => Err(io::Error::other(format!("its process said {other:?}"))),
        }
    }

    fn begins(&self) -> io::Result<()> {
        match self.next()? {
            Some(Message::Begins) => Ok(()),
            other => Err(io::Error::other(format!(
                "its process said {other:?} first"
            ))),
        }
    }

    /// Waits until the fix is done and everything is gone.
    fn end(self) -> io::Result<Ended> {
        self.begins()?;
        let began = Instant::now();
        let mut ended = None;
        while let Some(message) = self.next()? {
            match message {
                Message::Applied { outcome, evidence } => {
                    ended = Some(Ended {
                        outcome,
                        evidence,
                        check_fails: None,
                        took: began.elapsed(),
                    });
                }
                Message::Checked {
                    passed: false,
                    seen,
                } => {
                    if let Some(ended) = &mut ended {
                        ended.check_fails = Some(seen);
                    }
                }
                Message::Checked { passed: true, .. }
                | Message::Begins
                | Message::Disturbed
                | Message::NotDisturbed(_) => {}
                Message::NoSandbox(why) => return Err(io::Error::other(why)),
            }
        }
        ended.ok_or_else(|| io::Error::other("its process ended without a result"))
    }

    /// Ends everything at once, and waits until it is gone.
    fn kill(mut self) -> io::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        while self.next()?.is_some() {}
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Gone already, or ended now; in both cases it is reaped.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
