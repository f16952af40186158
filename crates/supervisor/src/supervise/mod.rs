//! The body of `homeostat supervise RUN_DIR`: one task, from its start until nothing of it runs any more.
//!
//! One thread in one `poll`: signals, the socket, the agents, the task's output. One thread is not only small: the
//! parent-death signal of the task is tied to the thread that started it.
//!
//! The order in which a task ends is the promise this process makes. Its own process is reaped; the rest of it is
//! killed; only when the cgroup is empty *and* the kernel says that this process has no children left (it is a child
//! subreaper, so whatever forked away came back to it) is the end written to `exit.json` and told to the agents. If
//! something does not die, the end is never told.

mod life;
mod turn;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use homeostat_model::{ExitCause, Generation, TaskName};
use rustix::fs::Mode;
use rustix::process::{Pid, getpid, set_child_subreaper, setsid, umask};

use crate::cgroup::{self, TaskGroup, group_name};
use crate::control::{self, Peer};
use crate::launch::LaunchFile;
use crate::leftovers::{self, LeftoverError, Swept};
use crate::logs::{Limits, Log};
use crate::process;
use crate::protocol::{Phase, Process};
use crate::run::{ExitFile, RunError, RunLock, RunRecord, SOCKET, remove_if_there};
use crate::signals::Signals;
use crate::spawn::{self, Membership, NotStarted, Plan, Started};
use life::Life;

/// How long an ended supervisor waits for an agent to hear of it; the exit file says it to later ones.
const LINGER: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(
        "there is no launch file in {run_dir}: an agent writes it before it starts a supervisor"
    )]
    NoLaunchFile { run_dir: PathBuf },
    #[error("the launch file of {run_dir} is for {found}: it was copied or moved")]
    Misplaced { run_dir: PathBuf, found: PathBuf },
    #[error("the launch file of {task} is for a keeper, and this is a plain supervisor")]
    ForKeeper { task: TaskName },
    #[error(
        "a supervisor must be its process's only thread, there are {threads}: start it before any runtime"
    )]
    Threads { threads: usize },
    #[error("an earlier supervisor's task could not be cleaned up")]
    Leftovers(#[from] LeftoverError),
    #[error("cannot {what}")]
    System {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot listen on {path}")]
    Listen {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> SuperviseError {
    move |source| SuperviseError::System { what, source }
}

/// Runs the task that `launch.json` describes and returns when it has ended, however it ended. Must be called from the
/// only thread of its process, best as the first thing in `main`.
///
/// # Errors
/// When the task was never tried: another supervisor lives, the launch file is missing or of a newer format, the machine
/// refuses something basic. A program that does not start is no error here but an end of the task
/// ([`ExitCause::NotStarted`]).
pub fn supervise(run_dir: &Path) -> Result<(), SuperviseError> {
    let threads = fs::read_dir("/proc/self/task")
        .map_err(system("read /proc"))?
        .count();
    if threads != 1 {
        return Err(SuperviseError::Threads { threads });
    }
    let run_dir = fs::canonicalize(run_dir).map_err(RunError::io("open", run_dir))?;
    let lock = RunLock::take(&run_dir)?;
    let launch = load_launch(&run_dir)?;
    let signals = become_supervisor()?;
    if let Swept::Killed(killed) = leftovers::sweep(&run_dir, Some(&launch.task))? {
        let killed = killed.len();
        note(
            &launch.task,
            &format!("killed {killed} processes that an earlier supervisor left"),
        );
    }
    ExitFile::remove(&run_dir)?;
    let supervisor = Supervisor::begin(run_dir, launch, signals, lock)?;
    supervisor.run()
}

fn load_launch(run_dir: &Path) -> Result<LaunchFile, SuperviseError> {
    let launch = LaunchFile::load(run_dir)?.ok_or_else(|| SuperviseError::NoLaunchFile {
        run_dir: run_dir.to_owned(),
    })?;
    if launch.keeper.is_some() {
        return Err(SuperviseError::ForKeeper { task: launch.task });
    }
    if !fs::canonicalize(&launch.run).is_ok_and(|path| path == run_dir) {
        return Err(SuperviseError::Misplaced {
            run_dir: run_dir.to_owned(),
            found: launch.run,
        });
    }
    Ok(launch)
}

/// What the process is from now on, for itself and for its children.
fn become_supervisor() -> Result<Signals, SuperviseError> {
    // Fails when the agent made it the leader already, which is as good.
    let _ = setsid();
    umask(Mode::from_raw_mode(0o077));
    set_child_subreaper(Some(getpid()))
        .map_err(|error| system("become a child subreaper")(error.into()))?;
    // So that no mount is kept busy by where the agent happened to be.
    std::env::set_current_dir("/").map_err(system("enter /"))?;
    Signals::take().map_err(system("block signals"))
}

/// Everything a supervisor has. The launch file is not kept: this process is counted for every task of a cell.
struct Supervisor {
    run_dir: PathBuf,
    task: TaskName,
    generation: Generation,
    grace: Duration,
    me: Process,
    boot_id: String,
    group: TaskGroup,
    log: Log,
    /// The task's output, until all of it that had it open are gone.
    output: Option<OwnedFd>,
    life: Life,
    /// What the agents that are connected know.
    told: Phase,
    signals: Signals,
    listener: UnixListener,
    peers: Vec<Peer>,
    _lock: RunLock,
}

impl Supervisor {
    fn begin(
        run_dir: PathBuf,
        launch: LaunchFile,
        signals: Signals,
        lock: RunLock,
    ) -> Result<Self, SuperviseError> {
        let me = process::current().map_err(system("read /proc"))?;
        let boot_id = process::boot_id().map_err(system("read /proc"))?;
        let name = group_name(&launch.task, &run_dir);
        let (group, notes) = TaskGroup::create(&cgroup::detect(), &name, launch.memory_limit);
        for text in notes {
            note(&launch.task, &text);
        }
        let path = run_dir.join(SOCKET);
        let listener = control::listen(&path).map_err(|source| {
            // Nothing was started: leave nothing.
            let _ = group.remove();
            SuperviseError::Listen { path, source }
        })?;
        let mut record = RunRecord {
            format: RunRecord::FORMAT,
            task: launch.task.clone(),
            generation: launch.generation,
            boot_id: boot_id.clone(),
            supervisor: me,
            child: None,
            uid: launch
                .user
                .map_or_else(|| rustix::process::geteuid().as_raw(), |user| user.uid),
            cgroups: group.paths().to_vec(),
        };
        // Before the child exists, so that there is no moment at which it runs and nobody could find its cgroup.
        record.store(&run_dir)?;
        let mut this = Self {
            log: Log::new(&launch.logs, Limits::DEFAULT),
            task: launch.task.clone(),
            generation: launch.generation,
            grace: Duration::from_millis(launch.grace_ms),
            me,
            boot_id,
            group,
            output: None,
            life: Life::Starting,
            told: Phase::Starting,
            signals,
            listener,
            peers: Vec::new(),
            _lock: lock,
            run_dir,
        };
        let started = this.start(&launch);
        match started {
            Ok(started) => {
                record.child = Some(started.process);
                if let Err(error) = record.store(&this.run_dir) {
                    // The marker in its environment still leads to it.
                    this.note(&error.to_string());
                }
                this.output = Some(started.output);
                this.life = Life::Running {
                    child: started.process,
                };
            }
            Err(NotStarted(why)) => this.end(ExitCause::NotStarted { why }),
        }
        this.told = this.life.phase();
        Ok(this)
    }

    fn start(&self, launch: &LaunchFile) -> Result<Started, NotStarted> {
        let doors = self.group.doors().unwrap_or_else(|error| {
            self.note(&format!("cannot open its cgroup: {error}"));
            Vec::new()
        });
        let started = spawn::start(&Plan {
            argv: &launch.argv,
            env: &launch.env,
            folder: &launch.data,
            user: launch.user,
            run_dir: &self.run_dir,
            doors: &doors,
        })?;
        if started.membership == Membership::Refused {
            self.note(
                "the kernel did not let it into its cgroup: it is kept together by parentage",
            );
        }
        Ok(started)
    }

    /// Nothing of the task runs: says so in the exit file and to every agent.
    fn end(&mut self, cause: ExitCause) {
        let exit = ExitFile {
            format: ExitFile::FORMAT,
            task: self.task.clone(),
            generation: self.generation,
            boot_id: self.boot_id.clone(),
            supervisor: self.me,
            cause: cause.clone(),
            at: crate::run::now(),
        };
        if let Err(error) = exit.store(&self.run_dir) {
            // The agents that are connected hear it all the same.
            self.note(&error.to_string());
        }
        if let Err(error) = self.group.remove() {
            self.note(&format!("its cgroup stays behind: {error}"));
        }
        self.life = Life::Ended {
            cause,
            until: Instant::now() + LINGER,
        };
    }

    fn note(&self, text: &str) {
        note(&self.task, text);
    }

    fn run(mut self) -> Result<(), SuperviseError> {
        let result = self.turns();
        // Only now: a socket that is gone says that there is nobody to ask.
        remove_if_there(&self.run_dir.join(SOCKET))?;
        result
    }
}

fn note(task: &TaskName, text: &str) {
    control::note(&format!("supervisor of {task}"), text);
}

/// A pid as the kernel's calls want it.
fn raw(process: Process) -> Option<Pid> {
    i32::try_from(process.pid).ok().and_then(Pid::from_raw)
}
