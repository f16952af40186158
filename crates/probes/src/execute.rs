//! Runs a program to its end, within limits on time and output.
//!
//! It runs in a process group of its own with an environment of next to nothing, so that a check does not pass on one
//! machine because of what somebody exported there. When it ends, what it left in its group is killed; when it runs
//! out of time, says too much or is cancelled, everything it started is (`family`, `strays`).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

use crate::accounts;
use crate::deadline::{Deadline, OutOfTime};
use crate::family::Family;
use crate::shown;

/// Where programs are found by default.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The most a program may write to one of its outputs, in bytes, before it is ended: nobody would read it.
pub(crate) const LONGEST_OUTPUT: usize = 1 << 20;

/// Whom a program runs as. Supplementary groups are dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunAs {
    /// By number.
    Ids { uid: u32, gid: u32 },
    /// A user of the machine, looked up when it runs.
    User(String),
}

#[derive(Debug, Clone)]
pub(crate) struct Program<'a> {
    pub(crate) argv: &'a [String],
    pub(crate) run_as: Option<&'a RunAs>,
    pub(crate) dir: &'a Path,
    pub(crate) env: &'a BTreeMap<String, String>,
    /// What it reads; `None`: nothing at all.
    pub(crate) input: Option<&'a [u8]>,
}

impl<'a> Program<'a> {
    /// As the prober, in `/`, with nothing to read.
    pub(crate) fn new(argv: &'a [String]) -> Self {
        const NOTHING: &BTreeMap<String, String> = &BTreeMap::new();
        Self {
            argv,
            run_as: None,
            dir: Path::new("/"),
            env: NOTHING,
            input: None,
        }
    }
}

/// What a program that ended said.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) said: Said,
}

#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecuteError {
    #[error("the command is empty")]
    Empty,
    #[error("there is no user '{0}' to run it as")]
    NoUser(String),
    #[error("cannot start {program} in {}", .dir.display())]
    Start {
        program: String,
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot watch {program}")]
    Watch {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("wrote more than {LONGEST_OUTPUT} bytes{}", said.shown())]
    TooMuch { said: Said },
    #[error("{limit}{}", said.shown())]
    OutOfTime { limit: OutOfTime, said: Said },
}

impl Said {
    /// The end of it, as an appendix to what happened.
    pub(crate) fn shown(&self) -> String {
        let both = [&self.stdout[..], &self.stderr[..]].concat();
        match shown::tail(&both).as_str() {
            "" => String::new(),
            text => format!("; it said: {text}"),
        }
    }
}

impl Finished {
    /// For people: `exit code 3`.
    pub(crate) fn how(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("ended by signal {signal}"),
            (None, None) => "ended in an unknown way".to_owned(),
        }
    }
}

pub(crate) async fn execute(
    program: &Program<'_>,
    within: Deadline,
) -> Result<Finished, ExecuteError> {
    let (name, arguments) = program.argv.split_first().ok_or(ExecuteError::Empty)?;
    let ids = identity(program.run_as)?;
    let start = |source| ExecuteError::Start {
        program: name.clone(),
        dir: program.dir.to_owned(),
        source,
    };
    let watch = |source| ExecuteError::Watch {
        program: name.clone(),
        source,
    };
    let mut command = std::process::Command::new(name);
    command
        .args(arguments)
        .current_dir(program.dir)
        .env_clear()
        .env("PATH", PATH)
        .env("LANG", "C.UTF-8")
        .envs(program.env);
    if let Some((uid, gid)) = ids {
        // As root the standard library drops the supplementary groups, too.
        command.uid(uid).gid(gid);
    }
    let (family, mut pipes) = Pipes::start(command, program.input).map_err(start)?;
    let exit = family.exit().map_err(watch)?;

    let mut said = Said::default();
    let ended =
        tokio::time::timeout_at(within.at, pipes.follow(&exit, program.input, &mut said)).await;
    match ended {
        Ok(Ok(Ended::Exited)) => {}
        Ok(Ok(Ended::TooMuch)) => {
            family.destroy().await;
            return Err(ExecuteError::TooMuch { said });
        }
        Ok(Err(error)) => {
            family.destroy().await;
            return Err(watch(error));
        }
        Err(_) => {
            family.destroy().await;
            let limit = within.out_of_time("running");
            return Err(ExecuteError::OutOfTime { limit, said });
        }
    }
    let status = family.reap().map_err(watch)?;
    take_what_is_there(&mut pipes.stdout, &mut said.stdout);
    take_what_is_there(&mut pipes.stderr, &mut said.stderr);
    Ok(Finished { status, said })
}

fn identity(run_as: Option<&RunAs>) -> Result<Option<(u32, u32)>, ExecuteError> {
    match run_as {
        None => Ok(None),
        Some(RunAs::Ids { uid, gid }) => Ok(Some((*uid, *gid))),
        Some(RunAs::User(name)) => match accounts::user(name) {
            Ok(Some(user)) => Ok(Some((user.uid, user.gid))),
            Ok(None) | Err(_) => Err(ExecuteError::NoUser(name.clone())),
        },
    }
}

enum Ended {
    Exited,
    TooMuch,
}

struct Pipes {
    stdin: Option<pipe::Sender>,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
}

impl Pipes {
    fn start(
        mut command: std::process::Command,
        input: Option<&[u8]>,
    ) -> io::Result<(Family, Self)> {
        let (stdout, its_stdout) = io::pipe()?;
        let (stderr, its_stderr) = io::pipe()?;
        command.stdout(its_stdout).stderr(its_stderr);
        let stdin = match input {
            None => {
                command.stdin(Stdio::null());
                None
            }
            Some(_) => {
                let (its_stdin, stdin) = io::pipe()?;
                command.stdin(its_stdin);
                Some(pipe::Sender::from_owned_fd(stdin.into())?)
            }
        };
        // The command goes with it, and our copies of the program's ends.
        let family = Family::start(command)?;
        Ok((
            family,
            Self {
                stdin,
                stdout: pipe::Receiver::from_owned_fd(stdout.into())?,
                stderr: pipe::Receiver::from_owned_fd(stderr.into())?,
            },
        ))
    }

    /// Reads along until the program itself ends. Not until its output does: a child that it left may hold the pipe.
    async fn follow(
        &mut self,
        exit: &AsyncFd<OwnedFd>,
        input: Option<&[u8]>,
        said: &mut Said,
    ) -> io::Result<Ended> {
        let (mut out, mut err) = ([0; 4096], [0; 4096]);
        let (mut more_out, mut more_err) = (true, true);
        let mut rest = input.unwrap_or_default();
        loop {
            if rest.is_empty() {
                self.stdin = None;
            }
            tokio::select! {
                ready = exit.readable() => {
                    ready?.retain_ready();
                    return Ok(Ended::Exited);
                }
                read = self.stdout.read(&mut out), if more_out => {
                    let count = read?;
                    more_out = count > 0;
                    said.stdout.extend_from_slice(&out[..count]);
                }
                read = self.stderr.read(&mut err), if more_err => {
                    let count = read?;
                    more_err = count > 0;
                    said.stderr.extend_from_slice(&err[..count]);
                }
                written = write(&mut self.stdin, rest), if self.stdin.is_some() => match written {
                    Ok(count) => rest = &rest[count..],
                    // It does not want to read; what it says and how it ends tells whether that is right.
                    Err(_) => rest = &[],
                }
            }
            if said.stdout.len() > LONGEST_OUTPUT || said.stderr.len() > LONGEST_OUTPUT {
                return Ok(Ended::TooMuch);
            }
        }
    }
}

async fn write(stdin: &mut Option<pipe::Sender>, rest: &[u8]) -> io::Result<usize> {
    match stdin {
        Some(stdin) => stdin.write(rest).await,
        None => Ok(0),
    }
}

/// What the program wrote just before it ended. A pipe holds less than the limit.
fn take_what_is_there(pipe: &mut pipe::Receiver, said: &mut Vec<u8>) {
    let mut buffer = [0; 4096];
    while said.len() <= LONGEST_OUTPUT
        && let Ok(count @ 1..) = pipe.try_read(&mut buffer)
    {
        said.extend_from_slice(&buffer[..count]);
    }
}
