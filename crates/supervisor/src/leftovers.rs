//! What is left of a task whose supervisor died.
//!
//! The task's own process dies with its supervisor (a parent-death signal), its children do not. They are found by
//! every trace there is: the cgroup, the process and the session the supervisor wrote down, and the variable that each
//! process of the task inherited ([`MARKER`]). They are killed, and *then looked for again*: only a pass that finds
//! nothing ends it. Before that nobody may say that the task is gone, and no successor may be started.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use homeostat_model::TaskName;

use crate::cgroup::{self, TaskGroup, group_name};
use crate::process::{self, Stat};
use crate::protocol::Process;
use crate::run::{RunError, RunLock, RunRecord, SOCKET, remove_if_there};
use crate::spawn::MARKER;

/// SIGKILL works at once unless a process sits in an uninterruptible wait, which then is the news.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum LeftoverError {
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("cannot look for what is left of the task in {run_dir}")]
    Look {
        run_dir: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("what is left of the task in {run_dir} does not die: pids {pids:?}")]
    Immortal { run_dir: PathBuf, pids: Vec<u32> },
}

/// Whether anything was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swept {
    Clean,
    /// These were seen; none of them runs any more.
    Killed(Vec<Process>),
}

/// Kills whatever is left of the task of this run folder, verifies that nothing is, and removes its cgroups and its
/// socket. Repeating it changes nothing. Blocks for up to ten seconds; usually a few milliseconds.
///
/// # Errors
/// [`RunError::Locked`] while a supervisor lives: ask that one. [`LeftoverError::Immortal`] when something survives.
pub fn kill_leftovers(run_dir: &Path) -> Result<Swept, LeftoverError> {
    let run_dir = absolute(run_dir)?;
    if !run_dir.is_dir() {
        return Ok(Swept::Clean);
    }
    let _lock = RunLock::take(&run_dir)?;
    let task = crate::launch::LaunchFile::load(&run_dir)
        .ok()
        .flatten()
        .map(|l| l.task);
    let swept = sweep(&run_dir, task.as_ref())?;
    remove_if_there(&run_dir.join(SOCKET))?;
    Ok(swept)
}

/// The processes of this task that run now, its supervisor not counted. Changes nothing.
///
/// # Errors
/// When /proc cannot be read.
pub fn verify_empty(run_dir: &Path) -> Result<Vec<Process>, LeftoverError> {
    let run_dir = absolute(run_dir)?;
    let record = RunRecord::load(&run_dir).ok().flatten();
    remains(&run_dir, record.as_ref()).map_err(|source| LeftoverError::Look { run_dir, source })
}

/// For the holder of the lock.
pub(crate) fn sweep(run_dir: &Path, task: Option<&TaskName>) -> Result<Swept, LeftoverError> {
    let look = |source| LeftoverError::Look {
        run_dir: run_dir.to_owned(),
        source,
    };
    // A record that cannot be read is as good as none: the other traces remain.
    let record = RunRecord::load(run_dir).ok().flatten();
    let groups = match (&record, task) {
        (Some(record), _) => TaskGroup::recorded(&record.cgroups),
        (None, Some(task)) => TaskGroup::expected(&cgroup::detect(), &group_name(task, run_dir)),
        (None, None) => TaskGroup::default(),
    };
    let mut seen: Vec<Process> = Vec::new();
    let until = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        let found = remains(run_dir, record.as_ref()).map_err(look)?;
        let members = !groups.is_empty().map_err(look)?;
        if found.is_empty() && !members {
            break;
        }
        if Instant::now() > until {
            let pids = found.iter().map(|process| process.pid).collect();
            let run_dir = run_dir.to_owned();
            return Err(LeftoverError::Immortal { run_dir, pids });
        }
        groups.kill();
        for process in found {
            process::kill(process).map_err(look)?;
            if !seen.contains(&process) {
                seen.push(process);
            }
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    groups.remove().map_err(look)?;
    Ok(if seen.is_empty() {
        Swept::Clean
    } else {
        Swept::Killed(seen)
    })
}

fn remains(run_dir: &Path, record: Option<&RunRecord>) -> io::Result<Vec<Process>> {
    let boot = process::boot_id()?;
    let all = process::all()?;
    let record = record.filter(|record| record.boot_id == boot);
    let child = record.and_then(|record| record.child.map(|child| (child, record.uid)));
    let mut marker = format!("{MARKER}=").into_bytes();
    marker.extend_from_slice(run_dir.as_os_str().as_bytes());
    let me = std::process::id();
    let belongs = |stat: &&Stat| {
        stat.runs()
            && stat.process.pid != me
            && (child.is_some_and(|(child, uid)| in_session(stat, child, uid, &all))
                || carries(stat.process.pid, &marker))
    };
    Ok(all.iter().filter(belongs).map(|s| s.process).collect())
}

/// Whether a process is the task's first one or in the session that it began.
///
/// The kernel does not use a number again while a session has it. So if its leader is *another* process than the
/// one written down, the whole old session is gone. If there is no leader any more, only processes of the task's user
/// that are younger than it are believed to be in the old session.
fn in_session(stat: &Stat, child: Process, uid: u32, all: &[Stat]) -> bool {
    if stat.process == child {
        return true;
    }
    if stat.session != child.pid || stat.process.start_ticks < child.start_ticks {
        return false;
    }
    let leader = all.iter().find(|other| other.process.pid == child.pid);
    match leader {
        Some(leader) => leader.process == child,
        None => {
            fs::metadata(format!("/proc/{}", stat.process.pid)).is_ok_and(|meta| meta.uid() == uid)
        }
    }
}

fn carries(pid: u32, marker: &[u8]) -> bool {
    fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
        environ
            .split(|byte| *byte == 0)
            .any(|entry| entry == marker)
    })
}

/// The marker and the cgroup's name are made of the absolute path.
pub(crate) fn absolute(run_dir: &Path) -> Result<PathBuf, LeftoverError> {
    match fs::canonicalize(run_dir) {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(run_dir.to_owned()),
        Err(source) => Err(LeftoverError::Look {
            run_dir: run_dir.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(pid: u32, start_ticks: u64, session: u32) -> Stat {
        Stat {
            process: Process { pid, start_ticks },
            state: b'S',
            parent: 1,
            session,
        }
    }

    #[test]
    fn a_session_number_used_again_is_not_ours() {
        let child = Process {
            pid: 50,
            start_ticks: 1000,
        };
        let member = stat(60, 2000, 50);
        let ours = [stat(50, 1000, 50), member];
        assert!(in_session(&member, child, 0, &ours));
        let reused = [stat(50, 1999, 50), member];
        assert!(!in_session(&member, child, 0, &reused));
        assert!(!in_session(&reused[0], child, 0, &reused));
        let older = stat(61, 10, 50);
        assert!(!in_session(&older, child, 0, &ours));
    }
}
