//! Processes as /proc shows them: whose they are, what they weigh, how much they computed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// In which /proc counts CPU time: part of Linux's interface, whatever the kernel's own tick is.
const TICKS_PER_SECOND: f64 = 100.0;

/// A process at one moment.
#[derive(Debug, Clone)]
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    pub argv: Vec<String>,
    /// In its own threads.
    pub cpu: Duration,
    /// In children that it waited for, and theirs.
    pub reaped_cpu: Duration,
}

/// Memory of one process, from `smaps_rollup`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Memory {
    /// Its share of all pages it maps, in KiB; sums over processes are true.
    pub pss_kib: f64,
    /// What only it maps: `Private_Clean` and `Private_Dirty`.
    pub private_kib: f64,
}

impl Process {
    /// The program's name.
    pub fn program(&self) -> &str {
        let program = self.argv.first().map_or("", String::as_str);
        program.rsplit('/').next().unwrap_or(program)
    }

    /// `None` once it has ended, or when it is not ours to look at.
    pub fn memory(&self) -> Option<Memory> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid)).ok()?;
        let kib = |field: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(field));
            line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
                .unwrap_or(0.0)
        };
        Some(Memory {
            pss_kib: kib("Pss:"),
            private_kib: kib("Private_Clean:") + kib("Private_Dirty:"),
        })
    }
}

/// Everything whose command line names one of `marks`, and all its descendants, by pid.
pub fn of(marks: &[&Path]) -> BTreeMap<u32, Process> {
    let all = all();
    let named = |process: &&Process| {
        let mut words = process.argv.iter();
        words.any(|word| {
            marks
                .iter()
                .any(|mark| word.contains(&*mark.to_string_lossy()))
        })
    };
    let own = std::process::id();
    let mut ours: BTreeSet<u32> = all
        .values()
        .filter(named)
        .map(|process| process.pid)
        .collect();
    ours.remove(&own);
    loop {
        let children: Vec<u32> = all
            .values()
            .filter(|process| ours.contains(&process.parent) && !ours.contains(&process.pid))
            .map(|process| process.pid)
            .collect();
        if children.is_empty() {
            break;
        }
        ours.extend(children);
    }
    all.into_iter()
        .filter(|(pid, _)| ours.contains(pid))
        .collect()
}

fn all() -> BTreeMap<u32, Process> {
    let folder = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = folder.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, read(pid)?))).collect()
}

/// `None` when it has ended.
fn read(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in brackets, which may hold anything; the third comes after the last bracket.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |field: usize| -> Option<u64> { fields.get(field - 3)?.parse().ok() };
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        argv: argv(pid)?,
        cpu: time(ticks(14)? + ticks(15)?),
        reaped_cpu: time(ticks(16)? + ticks(17)?),
    })
}

/// The words of its command line.
pub fn argv(pid: u32) -> Option<Vec<String>> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = line
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned());
    Some(words.filter(|word| !word.is_empty()).collect())
}

/// The value of `--NAME=VALUE` on a process's command line.
pub fn option_of(pid: u32, name: &str) -> Option<PathBuf> {
    let prefix = format!("--{name}=");
    argv(pid)?
        .iter()
        .find_map(|word| word.strip_prefix(&prefix).map(PathBuf::from))
}

fn time(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_process_and_its_children_are_found_and_weighed() {
        let mark = format!("/nowhere/bench-mark-{}", std::process::id());
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sleep 60; true", &mark])
            .spawn()
            .unwrap();
        let until = std::time::Instant::now() + Duration::from_secs(10);
        let found = loop {
            let found = of(&[Path::new(&mark)]);
            if found.len() == 2 || std::time::Instant::now() > until {
                break found;
            }
            std::thread::yield_now();
        };
        for pid in found.keys() {
            let pid = rustix::process::Pid::from_raw(i32::try_from(*pid).unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        let programs: Vec<&str> = found.values().map(Process::program).collect();
        child.wait().unwrap();
        assert_eq!(programs, ["sh", "sleep"]);
        let me = read(std::process::id()).unwrap();
        let memory = me.memory().unwrap();
        assert!(
            memory.pss_kib > 100.0 && memory.private_kib > 100.0,
            "{memory:?}"
        );
    }
}
