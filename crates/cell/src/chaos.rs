//! Killing a machine of an embedded cell as a power cord would: its agent, supervisors, forwarder and tasks are gone in one
//! instant, and none of them says goodbye.
//!
//! All of them are stopped first, again and again until no new one is found, and only then killed: nothing of the machine
//! sees another part of it die. Its agent is not started again while the machine's dead mark is there.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use homeostat_model::{CellLayout, MachineLayout, MachineName};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

/// How long all of it may take. Stopping and killing are instant unless a process sits in an uninterruptible wait.
const WITHIN: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(2);
/// The names of homeostat's own processes whose second word is a folder of one machine.
const BY_FOLDER: [&str; 3] = ["supervise", "keeper", "forward"];
/// The variable in which every process of a task has its run folder, and which nothing else sets.
const MARKER: &[u8] = b"HOMEOSTAT_TASK_RUN=";

#[derive(Debug, thiserror::Error)]
pub enum ChaosError {
    #[error("cannot {what} {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("machine {0} is dead already")]
    DeadAlready(MachineName),
    #[error("machine {0} is not dead")]
    NotDead(MachineName),
    #[error("what is left of machine {machine} does not die: pids {pids:?}")]
    Immortal {
        machine: MachineName,
        pids: Vec<i32>,
    },
}

/// Kills everything of a machine and sees to it that it stays dead. Returns how many processes that were. Blocks.
///
/// # Errors
/// When the mark cannot be written, or something survives.
pub fn kill_machine(layout: &CellLayout, machine: &MachineName) -> Result<usize, ChaosError> {
    let place = layout.machine(machine);
    let mark = place.dead_mark();
    if mark.exists() {
        return Err(ChaosError::DeadAlready(machine.clone()));
    }
    // First: whatever ends from here on is not started again.
    fs::write(&mark, "").map_err(io("write", &mark))?;
    let until = Instant::now() + WITHIN;
    let mut stopped: BTreeSet<Member> = BTreeSet::new();
    loop {
        let found = members(layout, &place, machine);
        let new: Vec<Member> = found.difference(&stopped).copied().collect();
        new.iter().for_each(|member| send(*member, Signal::STOP));
        if new.is_empty() || Instant::now() > until {
            break;
        }
        stopped.extend(new);
    }
    let groups = groups(&place);
    groups.iter().for_each(|group| {
        // Only version 2 has this; elsewhere the list of processes has to do.
        drop(fs::write(group.join("cgroup.kill"), "1"));
    });
    let mut left = stopped.clone();
    while !left.is_empty() {
        left.iter().for_each(|member| send(*member, Signal::KILL));
        std::thread::sleep(AGAIN);
        left = members(layout, &place, machine);
        if Instant::now() > until && !left.is_empty() {
            let pids = left.into_iter().map(|member| member.pid).collect();
            let machine = machine.clone();
            return Err(ChaosError::Immortal { machine, pids });
        }
    }
    for group in groups {
        // A group that is busy for a moment longer is cleared by the agent when the machine returns.
        drop(fs::remove_dir(&group));
    }
    Ok(stopped.len())
}

/// Lets a machine come back: its agent is started again.
///
/// # Errors
/// When it is not dead, or the mark cannot be removed.
pub fn return_machine(layout: &CellLayout, machine: &MachineName) -> Result<(), ChaosError> {
    let mark = layout.machine(machine).dead_mark();
    match fs::remove_file(&mark) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(ChaosError::NotDead(machine.clone()))
        }
        Err(error) => Err(io("remove", &mark)(error)),
        Ok(()) => Ok(()),
    }
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ChaosError {
    let path = path.to_owned();
    move |source| ChaosError::Io { what, path, source }
}

/// A process, and no other one that has its number later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Member {
    pid: i32,
    start_ticks: u64,
}

/// Gone already is as good.
fn send(member: Member, signal: Signal) {
    let handle = Pid::from_raw(member.pid).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
    let Some(Ok(handle)) = handle else { return };
    // Read once the handle is there: it is this process that the signal goes to, whatever becomes of the number.
    let same = stat(member.pid).is_some_and(|stat| stat.start_ticks == member.start_ticks);
    if same {
        let _ = pidfd_send_signal(handle, signal);
    }
}

/// Sends a signal to the process that has this number, if it is still the same as at the first look.
///
/// # Errors
/// When there is none, or another one.
pub fn signal_process(pid: i32, start_ticks: u64, signal: Signal) -> std::io::Result<()> {
    let gone = || std::io::Error::from(rustix::io::Errno::SRCH);
    let handle = pidfd_open(Pid::from_raw(pid).ok_or_else(gone)?, PidfdFlags::empty())?;
    if start_of(pid) != Some(start_ticks) {
        return Err(gone());
    }
    Ok(pidfd_send_signal(handle, signal)?)
}

/// When the process that has this number now was started, in ticks since the machine was; `None`: there is none.
pub fn start_of(pid: i32) -> Option<u64> {
    stat(pid).map(|stat| stat.start_ticks)
}

/// A process as /proc shows it.
struct Shown {
    member: Member,
    parent: i32,
    words: Vec<Vec<u8>>,
    environment: Vec<u8>,
}

/// The living processes of a machine: homeostat's own by their words, tasks by the folder in their environment, and whatever
/// descends from them.
fn members(layout: &CellLayout, place: &MachineLayout, machine: &MachineName) -> BTreeSet<Member> {
    let all = processes();
    let me = i32::try_from(std::process::id()).unwrap_or(0);
    let mut run = place.run.as_os_str().as_bytes().to_vec();
    run.push(b'/');
    let tasks = place.tasks_run();
    let of_task = |process: &Shown| {
        task_run(process).is_some_and(|run| run.parent() == Some(tasks.as_path()))
    };
    let mut found: BTreeSet<Member> = all
        .iter()
        .filter(|process| process.member.pid != me)
        .filter(|process| is_own(process, layout, &run, machine) || of_task(process))
        .map(|process| process.member)
        .collect();
    loop {
        let pids: BTreeSet<i32> = found.iter().map(|member| member.pid).collect();
        let children: Vec<Member> = all
            .iter()
            .filter(|process| {
                let member = process.member;
                member.pid != me && pids.contains(&process.parent) && !found.contains(&member)
            })
            .map(|process| process.member)
            .collect();
        if children.is_empty() {
            return found;
        }
        found.extend(children);
    }
}

/// The run folder of the task that a process belongs to.
fn task_run(process: &Shown) -> Option<PathBuf> {
    let mut entries = process.environment.split(|byte| *byte == 0);
    let value = entries.find_map(|entry| entry.strip_prefix(MARKER))?;
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(value)))
}

/// Whether it is one of homeostat's own processes of the machine.
fn is_own(process: &Shown, layout: &CellLayout, run: &[u8], machine: &MachineName) -> bool {
    let word = |n: usize| process.words.get(n).map_or(&[][..], Vec::as_slice);
    let agent = word(1) == b"agent"
        && word(2) == layout.state.as_os_str().as_bytes()
        && word(3) == machine.as_str().as_bytes();
    let own = BY_FOLDER.iter().any(|name| word(1) == name.as_bytes()) && word(2).starts_with(run);
    agent || own
}

struct Stat {
    parent: i32,
    start_ticks: u64,
}

/// `None`: there is no such process, or it is dead.
fn stat(pid: i32) -> Option<Stat> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything, also parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    // The 22nd field of all.
    let start_ticks = fields.nth(17)?.parse().ok()?;
    Some(Stat {
        parent,
        start_ticks,
    })
}

/// Everything that runs now. What vanishes while it is looked at is left out.
fn processes() -> Vec<Shown> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| {
            let folder = PathBuf::from(format!("/proc/{pid}"));
            let Stat {
                parent,
                start_ticks,
            } = stat(pid)?;
            let words = fs::read(folder.join("cmdline")).ok()?;
            Some(Shown {
                member: Member { pid, start_ticks },
                parent,
                words: words.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect(),
                environment: fs::read(folder.join("environ")).unwrap_or_default(),
            })
        })
        .collect()
}

/// The cgroups that the machine's supervisors wrote down.
fn groups(place: &MachineLayout) -> Vec<PathBuf> {
    let tasks = fs::read_dir(place.tasks_run())
        .into_iter()
        .flatten()
        .flatten();
    let records = tasks.filter_map(|task| fs::read(task.path().join("supervisor.json")).ok());
    let mut found: Vec<PathBuf> = records
        .filter_map(|text| serde_json::from_slice::<Value>(&text).ok())
        .flat_map(|record| record["cgroups"].as_array().cloned().unwrap_or_default())
        .filter_map(|group| group["path"].as_str().map(PathBuf::from))
        .filter(|path| {
            path.parent()
                .and_then(Path::file_name)
                .is_some_and(|name| name == "homeostat")
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    fn sleeper(run: &Path) -> Child {
        Command::new("sh")
            .args(["-c", "sleep 1000 & wait"])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOMEOSTAT_TASK_RUN", run)
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    #[test]
    fn a_machine_dies_whole_and_its_neighbour_lives() {
        let folder = tempfile::tempdir().unwrap();
        let layout = CellLayout::new(folder.path().join("state"), folder.path().join("run"));
        let [m1, m2] = ["m1", "m2"].map(|name| MachineName::new(name).unwrap());
        for machine in [&m1, &m2] {
            fs::create_dir_all(layout.machine(machine).state).unwrap();
        }
        let mut dies = sleeper(&layout.machine(&m1).run.join("t/web-0"));
        let mut lives = sleeper(&layout.machine(&m2).run.join("t/web-1"));
        // Somebody who looks around in its folders.
        let mut guest = Command::new("sleep")
            .arg("1000")
            .env("PWD", layout.machine(&m1).run.join("t/web-0"))
            .spawn()
            .unwrap();
        // Its child is there too, once it is.
        for _ in 0..1000 {
            if members(&layout, &layout.machine(&m1), &m1).len() >= 2 {
                break;
            }
            std::thread::sleep(AGAIN);
        }
        let reaper = std::thread::spawn(move || dies.wait().unwrap());
        assert!(kill_machine(&layout, &m1).unwrap() >= 2);
        assert!(!reaper.join().unwrap().success());
        assert!(lives.try_wait().unwrap().is_none());
        assert!(guest.try_wait().unwrap().is_none(), "it is no part of it");
        guest.kill().unwrap();
        guest.wait().unwrap();
        assert!(matches!(
            kill_machine(&layout, &m1),
            Err(ChaosError::DeadAlready(_))
        ));
        return_machine(&layout, &m1).unwrap();
        assert!(matches!(
            return_machine(&layout, &m1),
            Err(ChaosError::NotDead(_))
        ));
        kill_machine(&layout, &m2).unwrap();
        lives.wait().unwrap();
    }
}
