//! Finding, starting, hearing and burying supervisors.

use std::fs::{File, OpenOptions};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use homeostat_model::{Generation, MachineLayout, TaskName, TaskState};
use homeostat_supervisor::launch::LaunchFile;
use homeostat_supervisor::leftovers::{LeftoverError, kill_leftovers};
use homeostat_supervisor::protocol::{Message, Request};
use homeostat_supervisor::run::{ExitFile, RECORD, RunError, SOCKET};
use tokio::sync::mpsc;

use crate::AgentError;
use crate::talk::{LISTEN_WITHIN, Patience, talk};
use crate::wake::Wake;

/// First and longest pause between two attempts to bury a task.
const DIG: (Duration, Duration) = (Duration::from_millis(2), Duration::from_secs(1));

/// Which of the two kinds of supervisor a task has.
fn verb(launch: &LaunchFile) -> &'static str {
    if launch.keeper.is_some() {
        "keeper"
    } else {
        "supervise"
    }
}

/// Starts the supervisor of a prepared task in a session of its own, so that it outlives this agent.
pub(crate) fn spawn(program: &Path, launch: &LaunchFile) -> Result<(), AgentError> {
    let log_path = launch.logs.join("supervisor.log");
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(|error| AgentError::io("cannot open", &log_path, error))?;
    detached(
        program,
        &[verb(launch), &launch.run.display().to_string()],
        log,
    )
    .map_err(|error| AgentError::io("cannot start", program, error))
}

/// Starts one of homeostat's own processes so that nothing ties it to this one.
pub(crate) fn detached(program: &Path, arguments: &[&str], log: File) -> std::io::Result<()> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .env_clear();
    // SAFETY: setsid is async-signal-safe and touches nothing of this process.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()
                .map(|_| ())
                .map_err(std::io::Error::from)
        });
    }
    let child = command.spawn()?;
    // Reaped here while this agent lives; by the cell's own process (a subreaper) or init afterwards.
    std::thread::Builder::new()
        .name("reap".into())
        .stack_size(32 * 1024)
        .spawn(move || {
            let mut child = child;
            drop(child.wait());
        })?;
    Ok(())
}

/// The launch files of every task this machine was given and has not forgotten, and whether their supervisors may still
/// be on their way: an agent that starts one and dies leaves no other trace of it.
pub(crate) fn inventory(layout: &MachineLayout) -> Vec<(LaunchFile, Patience)> {
    let Ok(entries) = std::fs::read_dir(layout.tasks_run()) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for folder in entries.flatten().map(|entry| entry.path()) {
        match LaunchFile::load(&folder) {
            Ok(Some(launch)) => found.push((launch, patience(&folder))),
            Ok(None) => {}
            Err(error) => eprintln!("a task is left alone, its launch file is of no use: {error}"),
        }
    }
    found.sort_by(|(a, _), (b, _)| a.task.cmp(&b.task));
    found
}

fn patience(run: &Path) -> Patience {
    let written = |name| {
        std::fs::metadata(run.join(name))
            .and_then(|file| file.modified())
            .ok()
    };
    let Some(asked) = written(homeostat_supervisor::launch::FILE) else {
        return Patience::ShouldListen;
    };
    let began = written(RECORD).is_some_and(|began| began >= asked);
    // A time in the future says nothing: the clock was set back.
    let young = asked.elapsed().is_ok_and(|age| age <= LISTEN_WITHIN);
    if young && !began {
        Patience::JustStarted
    } else {
        Patience::ShouldListen
    }
}

/// Talks to one supervisor until the connection ends. The caller gets everything as [`Wake`]s.
pub(crate) fn connect(
    task: TaskName,
    connection: u64,
    run: &Path,
    patience: Patience,
    wakes: mpsc::Sender<Wake>,
) -> mpsc::Sender<Request> {
    let gone = Wake::SupervisorGone {
        task: task.clone(),
        connection,
    };
    let heard = move |message: Message| Wake::Supervisor {
        task: task.clone(),
        connection,
        message,
    };
    talk(run.join(SOCKET), patience, wakes, heard, gone)
}

/// What became of a task whose supervisor cannot be spoken to.
#[derive(Debug)]
pub(crate) enum Found {
    /// Nothing of it runs any more; it ended so.
    Ended(TaskState),
    /// A supervisor is there and listens.
    Lives,
}

/// After the end of a conversation with a supervisor: makes sure that nothing of the task runs any more, then says how it
/// ended. Blocks until that is certain, however long it takes: a task of which something may still run is never called
/// ended. Unless there is a supervisor after all: one that was slow to listen, or cut the connection.
pub(crate) fn bury(run: &Path, generation: Generation) -> Found {
    let mut pause = DIG.0;
    while let Err(error) = kill_leftovers(run) {
        // Its socket closes a moment before its lock is free.
        if !matches!(error, LeftoverError::Run(RunError::Locked { .. })) {
            eprintln!(
                "cannot verify that everything of {} is gone: {error}",
                run.display()
            );
        } else if UnixStream::connect(run.join(SOCKET)).is_ok() {
            return Found::Lives;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(DIG.1);
    }
    Found::Ended(match ExitFile::load(run) {
        Ok(Some(exit)) if exit.generation == generation => TaskState::Exited { cause: exit.cause },
        Ok(Some(_) | None) | Err(_) => TaskState::Lost,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::net::UnixListener;

    use homeostat_supervisor::run::RunLock;

    use super::*;

    #[test]
    fn a_supervisor_that_listens_after_all_is_not_buried() {
        let run = tempfile::tempdir().unwrap();
        let _alive = RunLock::take(run.path()).unwrap();
        let _listens = UnixListener::bind(run.path().join(SOCKET)).unwrap();
        assert!(matches!(bury(run.path(), Generation(1)), Found::Lives));
    }

    #[test]
    fn only_a_supervisor_that_may_be_on_its_way_is_waited_for() {
        let run = tempfile::tempdir().unwrap();
        let launch = run.path().join(homeostat_supervisor::launch::FILE);
        std::fs::write(&launch, "").unwrap();
        assert!(matches!(patience(run.path()), Patience::JustStarted));
        std::fs::write(run.path().join(RECORD), "").unwrap();
        assert!(
            matches!(patience(run.path()), Patience::ShouldListen),
            "it began, and does not listen"
        );
        std::fs::remove_file(run.path().join(RECORD)).unwrap();
        let long_ago = std::time::SystemTime::now() - 2 * LISTEN_WITHIN;
        File::options()
            .write(true)
            .open(&launch)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        assert!(
            matches!(patience(run.path()), Patience::ShouldListen),
            "it never came"
        );
    }

    #[test]
    fn what_left_no_word_is_lost() {
        let run = tempfile::tempdir().unwrap();
        assert!(matches!(
            bury(run.path(), Generation(1)),
            Found::Ended(TaskState::Lost)
        ));
    }
}
