//! Finding, starting, hearing and burying supervisors.

use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use homeostat_model::{Generation, MachineLayout, TaskName, TaskState};
use homeostat_supervisor::launch::LaunchFile;
use homeostat_supervisor::protocol::{LONGEST_LINE, Message, Request};
use homeostat_supervisor::{leftovers, read_exit, read_launch};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::AgentError;
use crate::wake::Wake;

/// How long a new supervisor may take until it listens, and how often the agent looks.
const LISTEN_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Requests to one supervisor that may wait.
const QUEUE: usize = 64;

/// Which of the two kinds of supervisor a task has.
fn verb(launch: &LaunchFile) -> &'static str {
    if launch.keeper.is_some() { "keeper" } else { "supervise" }
}

/// Starts the supervisor of a prepared task in a session of its own, so that it outlives this agent.
pub(crate) fn spawn(program: &Path, launch: &LaunchFile) -> Result<(), AgentError> {
    let log_path = launch.logs.join("supervisor.log");
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(|error| AgentError::io("cannot open", &log_path, error))?;
    detached(program, &[verb(launch), &launch.run.display().to_string()], log)
        .map_err(|error| AgentError::io("cannot start", program, error))
}

/// Starts one of homeostat's own processes so that nothing ties it to this one.
pub(crate) fn detached(program: &Path, arguments: &[&str], log: File) -> std::io::Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).env_clear();
    // SAFETY: setsid is async-signal-safe and touches nothing of this process.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid().map(|_| ()).map_err(std::io::Error::from)
        });
    }
    let child = command.spawn()?;
    // Reaped here while this agent lives; by the cell's own process (a subreaper) or init afterwards.
    std::thread::Builder::new().name("reap".into()).stack_size(32 * 1024).spawn(move || {
        let mut child = child;
        drop(child.wait());
    })?;
    Ok(())
}

/// The launch files of every task this machine was given and has not forgotten.
pub(crate) fn inventory(layout: &MachineLayout) -> Vec<LaunchFile> {
    let Ok(entries) = std::fs::read_dir(layout.tasks_run()) else { return Vec::new() };
    let mut found: Vec<LaunchFile> =
        entries.flatten().filter_map(|entry| read_launch(&entry.path()).ok()).collect();
    found.sort_by(|a, b| a.task.cmp(&b.task));
    found
}

/// Talks to one supervisor until the connection ends. The caller gets everything as [`Wake`]s.
pub(crate) fn connect(
    task: TaskName,
    connection: u64,
    run: PathBuf,
    patience: Patience,
    wakes: mpsc::Sender<Wake>,
) -> mpsc::Sender<Request> {
    let (requests, mut outgoing) = mpsc::channel::<Request>(QUEUE);
    tokio::spawn(async move {
        if let Some(stream) = reach(&run.join("s"), patience).await {
            let (read, mut write) = stream.into_split();
            let mut lines = BufReader::new(read);
            let mut line = Vec::new();
            loop {
                tokio::select! {
                    request = outgoing.recv() => {
                        let Some(request) = request else { break };
                        let Ok(mut text) = serde_json::to_vec(&request) else { break };
                        text.push(b'\n');
                        if write.write_all(&text).await.is_err() {
                            break;
                        }
                    }
                    // Cancel-safe: what was read so far stays in `line`.
                    read = (&mut lines).take(LONGEST_LINE as u64).read_until(b'\n', &mut line) => {
                        match read {
                            Ok(n) if n > 0 && line.ends_with(b"\n") => {
                                if let Ok(message) = serde_json::from_slice::<Message>(&line) {
                                    let wake = Wake::Supervisor { task: task.clone(), connection, message };
                                    if wakes.send(wake).await.is_err() {
                                        return;
                                    }
                                }
                                line.clear();
                            }
                            Ok(_) | Err(_) => break,
                        }
                    }
                }
            }
        }
        // The loop may be gone already when the agent ends.
        drop(wakes.send(Wake::SupervisorGone { task, connection }).await);
    });
    requests
}

/// Whether a supervisor is expected to be still on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Patience {
    JustStarted,
    ShouldListen,
}

async fn reach(socket: &Path, patience: Patience) -> Option<UnixStream> {
    let deadline = tokio::time::Instant::now()
        + match patience {
            Patience::JustStarted => LISTEN_WITHIN,
            Patience::ShouldListen => Duration::ZERO,
        };
    loop {
        if let Ok(stream) = UnixStream::connect(socket).await {
            return Some(stream);
        }
        if tokio::time::Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// After the end of a supervisor: makes sure that nothing of the task runs any more, then says how it ended.
/// Blocking (it kills and waits).
pub(crate) fn bury(run: &Path, generation: Generation) -> TaskState {
    if let Err(error) = leftovers(run) {
        // Unknown state: it is not called ended. The agent tries again.
        eprintln!("cannot verify that everything below {} is gone: {error}", run.display());
        return TaskState::Stopping { pid: 0 };
    }
    match read_exit(run) {
        Some(exit) if exit.generation == generation => TaskState::Exited { cause: exit.cause },
        Some(_) | None => TaskState::Lost,
    }
}
