//! Processes that a command started and that left its process group, as daemons do.
//!
//! The group cannot reach them, and once their parents are dead no line leads to them. But all of them have inherited
//! the environment of the command, and in it a mark of this one run. Linux shows the environment that a process was
//! started with in `/proc/PID/environ`, to root and to the same user.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The variable that holds the mark.
pub(crate) const VARIABLE: &str = "HOMEOSTAT_PROBE";

/// Sweeps until one finds nothing: what is found may have forked since. Something that forks faster than it can be
/// killed must not keep a thread busy for ever.
const MOST_SWEEPS: u32 = 10;

/// Tells the processes of one run from all others on the machine.
#[derive(Debug, Clone)]
pub(crate) struct Mark(String);

impl Mark {
    pub(crate) fn new() -> Self {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        Self(format!(
            "{}-{}",
            std::process::id(),
            RUNS.fetch_add(1, Ordering::Relaxed)
        ))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Kills every process that carries the mark.
    pub(crate) fn kill_all(&self) {
        for _ in 0..MOST_SWEEPS {
            if self.sweep() == 0 {
                return;
            }
        }
    }

    fn sweep(&self) -> usize {
        let Ok(entries) = fs::read_dir("/proc") else {
            return 0;
        };
        let pids = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter_map(Pid::from_raw)
            .filter(|pid| self.kill_if_marked(*pid))
            .count()
    }

    fn kill_if_marked(&self, pid: Pid) -> bool {
        // The descriptor first: if the process ends and its number goes to another one after that, the descriptor
        // still means the first one, and the signal goes nowhere.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            return false;
        };
        let Ok(environment) = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())) else {
            return false;
        };
        let variable = format!("{VARIABLE}={}", self.0);
        let is_marked = environment
            .split(|byte| *byte == 0)
            .any(|entry| entry == variable.as_bytes());
        is_marked && pidfd_send_signal(process, Signal::KILL).is_ok()
    }
}
