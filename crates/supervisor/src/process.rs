//! What /proc says about processes.
//!
//! A pid alone proves nothing: it is used again. Everything here that asks about a process somebody wrote down
//! takes a [`Process`], its pid *and* its start time; the two together are unique since the machine booted
//! ([`boot_id`] tells boots apart). A zombie counts as dead: nothing of it runs any more.

use std::fs;
use std::io;

use crate::protocol::Process;

/// The fields of `/proc/PID/stat` that are used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub process: Process,
    /// `R`, `S`, `D`, `Z`, …
    pub state: u8,
    pub parent: u32,
    pub session: u32,
}

impl Stat {
    /// Whether it still runs: neither a zombie nor about to vanish.
    pub fn runs(&self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x')
    }
}

/// The process that calls this.
///
/// # Errors
/// When /proc is not mounted or cannot be read.
pub fn current() -> io::Result<Process> {
    let pid = std::process::id();
    let start_ticks = start_ticks(pid)?.ok_or_else(|| {
        io::Error::other("/proc does not show this process: is it mounted for this pid namespace?")
    })?;
    Ok(Process { pid, start_ticks })
}

/// When the process with this pid started, in clock ticks since boot; `None` when there is none.
///
/// # Errors
/// When /proc cannot be read.
pub fn start_ticks(pid: u32) -> io::Result<Option<u64>> {
    Ok(stat(pid)?.map(|stat| stat.process.start_ticks))
}

/// Whether exactly this process (not a later one with its pid) still runs.
pub fn alive(process: Process) -> bool {
    matches!(stat(process.pid), Ok(Some(stat)) if stat.process == process && stat.runs())
}

/// Identifies this boot of the machine: a pid and start time of another boot mean nothing.
///
/// # Errors
/// When /proc cannot be read.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// One process, or `None` when there is none with this pid.
///
/// # Errors
/// When /proc cannot be read or has another format than documented.
pub fn stat(pid: u32) -> io::Result<Option<Stat>> {
    let text = match fs::read(format!("/proc/{pid}/stat")) {
        Ok(text) => text,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    parse_stat(pid, &text).map(Some).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("/proc/{pid}/stat has an unknown format"),
        )
    })
}

/// Every process that is there at this moment; those that vanish while the list is read are left out.
///
/// # Errors
/// When /proc cannot be listed.
pub fn all() -> io::Result<Vec<Stat>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Ok(Some(stat)) = stat(pid) {
            found.push(stat);
        }
    }
    Ok(found)
}

/// All descendants of `ancestor` among `all`, whatever their state.
pub fn descendants(all: &[Stat], ancestor: u32) -> Vec<Stat> {
    let mut family = vec![ancestor];
    let mut found: Vec<Stat> = Vec::new();
    loop {
        let before = found.len();
        for stat in all {
            let known = family.contains(&stat.process.pid);
            if !known && family.contains(&stat.parent) {
                family.push(stat.process.pid);
                found.push(*stat);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// SIGKILL to exactly this process: through a pidfd, whose start time is looked at after it was opened, so that a pid
/// used again in between is not hit. One that is gone already is fine.
///
/// # Errors
/// When the process is there and may not be killed.
pub fn kill(process: Process) -> io::Result<()> {
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    let fd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if !alive(process) {
        return Ok(());
    }
    match pidfd_send_signal(&fd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The name of a process may contain spaces and parentheses: the fields begin after the *last* parenthesis.
fn parse_stat(pid: u32, text: &[u8]) -> Option<Stat> {
    let after = text.iter().rposition(|byte| *byte == b')')? + 1;
    let fields = std::str::from_utf8(&text[after..]).ok()?;
    let mut fields = fields.split_ascii_whitespace();
    // Numbers of proc(5): state is 3, ppid 4, pgrp 5, session 6, starttime 22.
    let state = *fields.next()?.as_bytes().first()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let start_ticks = fields.nth(15)?.parse().ok()?;
    Some(Stat {
        process: Process { pid, start_ticks },
        state,
        parent,
        session,
    })
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_full_of_traps_is_parsed() {
        let text = b"7 (a) S 1 (x) Z 3 4 5 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 998877 9 9";
        let stat = parse_stat(7, text).unwrap();
        assert_eq!(stat.process.start_ticks, 998_877);
        assert_eq!((stat.state, stat.parent, stat.session), (b'Z', 3, 5));
        assert!(!stat.runs());
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let me = current().unwrap();
        assert!(alive(me));
        assert!(!alive(Process {
            start_ticks: me.start_ticks + 1,
            ..me
        }));
        assert_eq!(stat(u32::MAX).unwrap(), None);
    }

    #[test]
    fn descendants_are_found_in_any_order() {
        let stat = |pid, parent| Stat {
            process: Process {
                pid,
                start_ticks: 1,
            },
            state: b'S',
            parent,
            session: 1,
        };
        let all = [stat(5, 4), stat(4, 3), stat(3, 2), stat(2, 1), stat(9, 1)];
        let pids: Vec<u32> = descendants(&all, 3).iter().map(|s| s.process.pid).collect();
        assert_eq!(pids, [4, 5]);
    }
}
