//! Processes as /proc tells them.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::wait_until;

/// One process: pids are used again, a pid with its start time is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process {
    pub pid: i32,
    pub started: u64,
}

impl Process {
    /// The living process of this pid. A zombie does not live: it only waits to be counted.
    pub fn find(pid: i32) -> Option<Self> {
        let (state, started) = stat(pid)?;
        (!matches!(state, 'Z' | 'X')).then_some(Self { pid, started })
    }

    pub fn lives(self) -> bool {
        Self::find(self.pid) == Some(self)
    }

    /// Its words, without the separators.
    pub fn words(self) -> Vec<String> {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        bytes
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect()
    }

    /// The value of a variable of its environment, as it was started.
    pub fn variable(self, name: &str) -> Option<String> {
        let bytes = fs::read(format!("/proc/{}/environ", self.pid)).unwrap_or_default();
        bytes
            .split(|byte| *byte == 0)
            .map(String::from_utf8_lossy)
            .find_map(|entry| {
                entry
                    .strip_prefix(name)?
                    .strip_prefix('=')
                    .map(str::to_owned)
            })
    }

    /// Its user, as the kernel counts it.
    pub fn user(self) -> Option<u32> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        line.split_ascii_whitespace().nth(1)?.parse().ok()
    }

    pub fn program(self) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/exe", self.pid)).ok()
    }

    /// SIGKILL, and waits until it no longer lives.
    pub fn kill(self) {
        self.signal(Signal::KILL);
        wait_until(
            &format!("process {} is dead", self.pid),
            Duration::from_secs(10),
            || !self.lives(),
        );
    }

    /// Sends a signal if it still lives.
    pub fn signal(self, signal: Signal) {
        if !self.lives() {
            return;
        }
        if let Some(pid) = Pid::from_raw(self.pid) {
            // It may end by itself in this very moment, which is what was wanted.
            let _ = kill_process(pid, signal);
        }
    }

    fn mentions(self, places: &[PathBuf]) -> bool {
        let contains = |bytes: &[u8]| {
            let mut wanted = places.iter().map(|path| path.as_os_str().as_bytes());
            wanted.any(|wanted| bytes.windows(wanted.len()).any(|window| window == wanted))
        };
        let link = |name: &str| {
            fs::read_link(format!("/proc/{}/{name}", self.pid))
                .is_ok_and(|target| contains(target.as_os_str().as_bytes()))
        };
        let text = |name: &str| {
            fs::read(format!("/proc/{}/{name}", self.pid)).is_ok_and(|bytes| contains(&bytes))
        };
        text("cmdline") || link("cwd") || text("environ") || link("root")
    }

    /// For people.
    pub fn describe(self) -> String {
        format!("{} {}", self.pid, self.words().join(" "))
    }
}

/// Every living process but this one that has one of the paths in its words, its environment or its working folder.
pub fn mentioning(places: &[PathBuf]) -> Vec<Process> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let mut found: Vec<Process> = all()
        .into_iter()
        .filter(|p| p.pid != own && p.mentions(places))
        .collect();
    found.sort();
    found
}

/// Every living process.
pub fn all() -> Vec<Process> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(Process::find)
        .collect()
}

/// State and start time (fields 3 and 22 of proc_pid_stat(5)).
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may contain anything, so the last parenthesis counts.
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}
