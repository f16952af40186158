//! A program exits with code 0.
//!
//! It runs in a process group of its own with an environment of next to nothing, so that a check does not pass on one
//! machine because of what somebody exported there. When it ends, what it left in its group is killed; when it runs
//! out of time, says too much or is cancelled, everything it started is (`strays`).
//!
//! The child is watched through a pidfd and reaped by us, last: until then its number cannot be given to another
//! process, so that killing its group never hits a stranger. A library that reaps on its own leaves that race open.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::deadline::{Deadline, OutOfTime};
use crate::shown;
use crate::strays::{self, Mark};

/// Where programs are found by default.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The most a command may write, in bytes, before it is ended: nobody would read it.
const LONGEST_OUTPUT: usize = 1 << 20;

/// How much of its end is remembered.
const REMEMBERED: usize = 4096;

/// How long to wait for killed processes to be gone. One that hangs in the kernel (a dead network filesystem) cannot be
/// waited for; a thread does that, and the probe reports.
const KILL_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandProbe {
    /// The program and its arguments; not given to a shell.
    pub argv: Vec<String>,
    /// Whom it runs as; `None`: as the prober.
    pub run_as: Option<RunAs>,
    /// Where it runs.
    pub dir: PathBuf,
    /// In addition to `PATH` and `LANG`, or instead of them.
    pub env: BTreeMap<String, String>,
}

/// A user and group of the host, by number. Supplementary groups are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunAs {
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("the command is empty")]
    Empty,
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
    #[error("{how}{}", said(.output))]
    Failed { how: String, output: Vec<u8> },
    #[error("wrote more than {LONGEST_OUTPUT} bytes{}", said(.output))]
    TooMuch { output: Vec<u8> },
    #[error("{limit}{}", said(.output))]
    OutOfTime { limit: OutOfTime, output: Vec<u8> },
}

/// The end of an output, as an appendix to what happened.
fn said(output: &[u8]) -> String {
    match shown::tail(output).as_str() {
        "" => String::new(),
        text => format!("; it said: {text}"),
    }
}

impl CommandProbe {
    pub(crate) fn expected(&self) -> String {
        format!(
            "`{}` exits with code 0",
            shown::head(self.argv.join(" ").as_bytes())
        )
    }
}

pub(crate) async fn look(probe: &CommandProbe, within: Deadline) -> Result<String, CommandError> {
    let (program, arguments) = probe.argv.split_first().ok_or(CommandError::Empty)?;
    let start = |source| CommandError::Start {
        program: program.clone(),
        dir: probe.dir.clone(),
        source,
    };
    let watch = |source| CommandError::Watch {
        program: program.clone(),
        source,
    };
    let (reader, family) = spawn(probe, program, arguments).map_err(start)?;
    let mut reader = pipe::Receiver::from_owned_fd(reader).map_err(watch)?;
    let exit = family.exit().map_err(watch)?;

    let mut output = Output::default();
    let ended = tokio::time::timeout_at(within.at, follow(&exit, &mut reader, &mut output)).await;
    match ended {
        Ok(Ok(Ended::Exited)) => {}
        Ok(Ok(Ended::TooMuch)) => {
            family.destroy().await;
            return Err(CommandError::TooMuch { output: output.end });
        }
        Ok(Err(error)) => {
            family.destroy().await;
            return Err(watch(error));
        }
        Err(_) => {
            family.destroy().await;
            let limit = within.out_of_time("running");
            return Err(CommandError::OutOfTime {
                limit,
                output: output.end,
            });
        }
    }
    let status = family.reap().map_err(watch)?;
    output.take_what_is_there(&mut reader);
    if status.success() {
        Ok(format!("exit code 0{}", said(&output.end)))
    } else {
        Err(CommandError::Failed {
            how: describe(status),
            output: output.end,
        })
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

/// Starts the command. Its output, both streams in the order in which they were written, comes through one pipe.
fn spawn(
    probe: &CommandProbe,
    program: &str,
    arguments: &[String],
) -> io::Result<(OwnedFd, Family)> {
    let mark = Mark::new();
    let (reader, writer) = io::pipe()?;
    let mut command = std::process::Command::new(program);
    command
        .args(arguments)
        .current_dir(&probe.dir)
        .env_clear()
        .env("PATH", PATH)
        .env("LANG", "C.UTF-8")
        .envs(&probe.env)
        .env(strays::VARIABLE, mark.as_str())
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0);
    if let Some(RunAs { uid, gid }) = probe.run_as {
        // As root the standard library drops the supplementary groups, too.
        command.uid(uid).gid(gid);
    }
    let child = command.spawn()?;
    Ok((
        reader.into(),
        Family {
            leader: Some(child),
            mark,
        },
    ))
}

enum Ended {
    Exited,
    TooMuch,
}

/// Reads along until the command itself ends. Not until its output does: a child that it left may hold the pipe.
async fn follow(
    exit: &AsyncFd<OwnedFd>,
    reader: &mut pipe::Receiver,
    output: &mut Output,
) -> io::Result<Ended> {
    let mut buffer = [0; 4096];
    let mut more = true;
    loop {
        tokio::select! {
            ready = exit.readable() => {
                ready?.retain_ready();
                return Ok(Ended::Exited);
            }
            read = reader.read(&mut buffer), if more => {
                let count = read?;
                more = count > 0;
                output.push(&buffer[..count]);
                if output.total > LONGEST_OUTPUT {
                    return Ok(Ended::TooMuch);
                }
            }
        }
    }
}

/// The end of an output, and how long all of it was.
#[derive(Debug, Default)]
struct Output {
    end: Vec<u8>,
    total: usize,
}

impl Output {
    fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len();
        self.end.extend_from_slice(bytes);
        let surplus = self.end.len().saturating_sub(REMEMBERED);
        self.end.drain(..surplus);
    }

    /// What the command wrote just before it ended. A pipe holds less than the limit.
    fn take_what_is_there(&mut self, reader: &mut pipe::Receiver) {
        let mut buffer = [0; 4096];
        while self.total <= LONGEST_OUTPUT
            && let Ok(count @ 1..) = reader.try_read(&mut buffer)
        {
            self.push(&buffer[..count]);
        }
    }
}

/// A command and all that it starts. Dropping it ends them.
#[derive(Debug)]
struct Family {
    /// Not reaped yet; `None` once it is, or somebody else will do it.
    leader: Option<Child>,
    mark: Mark,
}

impl Family {
    /// Becomes readable when the leader has ended.
    fn exit(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let leader = self
            .leader
            .as_ref()
            .and_then(group_of)
            .ok_or(io::ErrorKind::NotFound)?;
        let process = pidfd_open(leader, PidfdFlags::NONBLOCK)?;
        // SAFETY: an OwnedFd is the same open descriptor for as long as it lives, and nobody can reach into the
        // AsyncFd to replace it.
        Ok(unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) }?)
    }

    /// After the leader ended by itself: kills what it left in its group, and takes its status.
    fn reap(mut self) -> io::Result<ExitStatus> {
        let mut leader = self.leader.take().ok_or(io::ErrorKind::NotFound)?;
        kill_group(&leader);
        leader.wait()
    }

    /// Kills everything and waits until it is gone, within limits.
    async fn destroy(mut self) {
        if let Some(gone) = self.begin_to_destroy() {
            // Either way there is nothing more to do: gone, or out of reach.
            let _ = tokio::time::timeout(KILL_WITHIN, gone).await;
        }
    }

    /// Kills the group at once, and the rest on a thread: searching `/proc` and waiting for a process both block.
    fn begin_to_destroy(&mut self) -> Option<oneshot::Receiver<()>> {
        let mut leader = self.leader.take()?;
        kill_group(&leader);
        let (done, gone) = oneshot::channel();
        let mark = self.mark.clone();
        let work = move || {
            mark.kill_all();
            // Fails only if it was reaped already, which nobody else does.
            let _ = leader.wait();
            let _ = done.send(());
        };
        // Without a thread to be had the group is dead all the same; its leader stays a zombie.
        std::thread::Builder::new()
            .name("probe-reaper".to_owned())
            .spawn(work)
            .ok()?;
        Some(gone)
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        self.begin_to_destroy();
    }
}

/// The leader must not be reaped yet (see the module).
fn kill_group(leader: &Child) {
    if let Some(group) = group_of(leader) {
        // Fails only when nobody is left in it.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

fn group_of(leader: &Child) -> Option<Pid> {
    i32::try_from(leader.id()).ok().and_then(Pid::from_raw)
}
