//! Starts a task's program, so that it cannot outlive its supervisor.
//!
//! Between fork and exec the child does, in this order: join its cgroups, become the leader of a session of its own,
//! drop its user, ask for SIGKILL at its parent's death, enter its folder. The order matters: only root may join, and
//! **the kernel forgets a parent-death signal at every change of credentials**, so it is asked for after the user was
//! dropped. It also belongs to the parent's *thread*: a supervisor has one.
//!
//! Only async-signal-safe calls happen there. Which step failed cannot be told by an errno, so the child writes one
//! byte into a pipe before each step; [`explain`] turns step and errno into a sentence that names the path.

mod explain;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::pipe::{PipeFlags, pipe_with};

use crate::launch::UserIds;
use crate::process;
use crate::protocol::Process;

/// The variable by which the processes of a task are found when nothing else is left: its run folder.
pub const MARKER: &str = "HOMEOSTAT_TASK_RUN";

/// What to start.
#[derive(Debug)]
pub struct Plan<'a> {
    pub argv: &'a [String],
    /// The whole environment apart from [`MARKER`].
    pub env: &'a BTreeMap<String, String>,
    pub folder: &'a Path,
    pub user: Option<UserIds>,
    pub run_dir: &'a Path,
    /// `cgroup.procs` of each group to join.
    pub doors: &'a [File],
}

#[derive(Debug)]
pub struct Started {
    pub process: Process,
    /// Everything it writes to standard output and standard error; reading does not block.
    pub output: OwnedFd,
    /// Whether it is in all of its cgroups.
    pub membership: Membership,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    Joined,
    /// The kernel did not let it in: it runs without.
    Refused,
}

/// Where a program reads and writes, when that is not simply its log.
#[derive(Debug)]
pub struct Streams {
    pub stdin: Stdio,
    pub stdout: Stdio,
    pub stderr: Stdio,
}

/// Why nothing was started: a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotStarted(pub String);

/// What the child is about to do; the last one written is the one that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    Fork = b'f',
    Join = b'j',
    /// Written after a failed join, which is no reason to stop.
    Refused = b'r',
    Session = b's',
    User = b'u',
    DeathSignal = b'd',
    Folder = b'c',
    Exec = b'x',
}

impl Step {
    const ALL: [Step; 8] = [
        Step::Fork,
        Step::Join,
        Step::Refused,
        Step::Session,
        Step::User,
        Step::DeathSignal,
        Step::Folder,
        Step::Exec,
    ];

    fn from_byte(byte: u8) -> Option<Step> {
        Step::ALL.into_iter().find(|step| *step as u8 == byte)
    }
}

/// Starts it. Must be called from the thread that lives as long as the supervisor does.
///
/// # Errors
/// [`NotStarted`]: nothing runs.
pub fn start(plan: &Plan<'_>) -> Result<Started, NotStarted> {
    let (output, input) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed("make a pipe", e.into()))?;
    rustix::io::ioctl_fionbio(&output, true).map_err(|e| failed("set up a pipe", e.into()))?;
    let copy = input
        .try_clone()
        .map_err(|e| failed("copy a descriptor", e))?;
    let streams = Streams {
        stdin: Stdio::null(),
        stdout: input.into(),
        stderr: copy.into(),
    };
    let (process, membership) = start_with(plan, streams)?;
    Ok(Started {
        process,
        output,
        membership,
    })
}

/// As [`start`], for a program whose output is more than a log.
///
/// # Errors
/// [`NotStarted`]: nothing runs.
pub fn start_with(plan: &Plan<'_>, streams: Streams) -> Result<(Process, Membership), NotStarted> {
    let Some((program, arguments)) = plan.argv.split_first() else {
        return Err(NotStarted("the command is empty".to_owned()));
    };
    let (steps, steps_in) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed("make a pipe", e.into()))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(plan.env)
        .env(MARKER, plan.run_dir)
        .stdin(streams.stdin)
        .stdout(streams.stdout)
        .stderr(streams.stderr);
    let folder = CString::new(plan.folder.as_os_str().as_bytes())
        .map_err(|_| NotStarted(format!("the folder {:?} contains a zero byte", plan.folder)))?;
    let child = Child {
        steps: steps_in.as_raw_fd(),
        doors: plan.doors.iter().map(AsRawFd::as_raw_fd).collect(),
        user: plan.user.filter(changes_user),
        folder,
        parent: process::current().map_err(|e| failed("read /proc", e))?.pid,
    };
    // SAFETY: `Child::prepare` makes only async-signal-safe calls and allocates nothing; the descriptors it uses are
    // kept open by this function until `spawn` has returned.
    unsafe { command.pre_exec(move || child.prepare()) };
    let spawned = command.spawn();
    // Closes our copies of the pipe's writing end, which `command` owns: the end of output must be seen.
    drop(command);
    drop(steps_in);
    let trace = read_trace(steps);
    let child = spawned.map_err(|error| {
        let step = trace.last().copied().unwrap_or(Step::Fork);
        NotStarted(explain::explain(step, plan, &error))
    })?;
    let membership = if trace.contains(&Step::Refused) {
        Membership::Refused
    } else {
        Membership::Joined
    };
    Ok((identify(child)?, membership))
}

fn failed(what: &str, error: io::Error) -> NotStarted {
    NotStarted(format!("cannot {what}: {error}"))
}

/// A child that cannot be named could not be found again either: then it must not run.
fn identify(mut child: std::process::Child) -> Result<Process, NotStarted> {
    let pid = child.id();
    // It is not reaped yet, so even if it has already ended it is still there to be looked at.
    let why = match process::start_ticks(pid) {
        Ok(Some(start_ticks)) => return Ok(Process { pid, start_ticks }),
        Ok(None) => "/proc does not show it".to_owned(),
        Err(error) => error.to_string(),
    };
    // Our own child that was not reaped: both can only fail if it is gone.
    let _ = child.kill();
    let _ = child.wait();
    Err(NotStarted(format!("cannot look at the new process: {why}")))
}

/// An ordinary user who starts a task as himself needs no rights for it.
fn changes_user(user: &UserIds) -> bool {
    let me = rustix::process::geteuid().as_raw();
    me == 0 || me != user.uid
}

/// By now the child has called exec or is gone: either way its end of the pipe is closed.
fn read_trace(steps: OwnedFd) -> Vec<Step> {
    let mut bytes = Vec::new();
    let mut steps = File::from(steps);
    // What was read before an error is still the best explanation there is.
    let _ = steps.read_to_end(&mut bytes);
    bytes.into_iter().filter_map(Step::from_byte).collect()
}

/// What the child needs between fork and exec, all of it allocated before.
struct Child {
    steps: RawFd,
    doors: Vec<RawFd>,
    user: Option<UserIds>,
    folder: CString,
    parent: u32,
}

impl Child {
    fn prepare(&self) -> io::Result<()> {
        // SAFETY (whole function): every call is async-signal-safe; pointers are to values that outlive the calls; the
        // signal set is an integer array that sigemptyset initialises.
        self.at(Step::Join);
        for door in &self.doors {
            let joined = unsafe { libc::write(*door, b"0".as_ptr().cast(), 1) };
            if joined != 1 {
                self.at(Step::Refused);
            }
        }
        self.at(Step::Session);
        unsafe {
            check(libc::setsid())?;
            libc::umask(0o077);
            // Ignored signals and the mask would be inherited through exec: a task must be able to hear SIGTERM.
            for signal in 1..=64 {
                libc::signal(signal, libc::SIG_DFL);
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            check(libc::sigprocmask(
                libc::SIG_SETMASK,
                &none,
                std::ptr::null_mut(),
            ))?;
            // Nothing but 0, 1, 2 goes on to the task, whoever opened it. Kernels before 5.11 cannot; everything of
            // ours is close-on-exec anyway.
            let close_on_exec = libc::CLOSE_RANGE_CLOEXEC;
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, close_on_exec);
        }
        if let Some(UserIds { uid, gid }) = self.user {
            self.at(Step::User);
            unsafe {
                check(libc::setgroups(0, std::ptr::null()))?;
                check(libc::setresgid(gid, gid, gid))?;
                check(libc::setresuid(uid, uid, uid))?;
            }
        }
        self.at(Step::DeathSignal);
        unsafe {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            // It died before it could be asked: then nobody would ever send the signal.
            if libc::getppid() as u32 != self.parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
        }
        self.at(Step::Folder);
        unsafe { check(libc::chdir(self.folder.as_ptr()))? };
        self.at(Step::Exec);
        Ok(())
    }

    fn at(&self, step: Step) {
        let byte = step as u8;
        // SAFETY: one byte of a live value into a pipe that has room for it.
        unsafe { libc::write(self.steps, (&raw const byte).cast(), 1) };
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
