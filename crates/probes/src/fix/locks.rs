//! Locks that account programs left when they were killed.
//!
//! `useradd` and the rest of shadow make `/etc/passwd.lock` with their process number in it, and take a lock for left only
//! when no process has that number. After a loss of power the number often belongs to another process, and then every
//! change of an account fails until somebody removes the file by hand. So a fix removes it when its holder is gone, or
//! began after the lock was made.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::step::{OnDisk, Step};

const LOCKS: [&str; 6] = [
    "/etc/passwd.lock",
    "/etc/group.lock",
    "/etc/shadow.lock",
    "/etc/gshadow.lock",
    "/etc/subuid.lock",
    "/etc/subgid.lock",
];

/// The kernel counts the beginning of a process in these (USER_HZ, 100 a second on every platform of ours).
const TICK: Duration = Duration::from_millis(10);

/// What is known of when a process began and a file was made is exact to about a tick each.
const UNCERTAIN: Duration = Duration::from_millis(100);

/// The steps, after those that remove such locks; nothing to do stays nothing to do.
pub(super) fn cleared(mut steps: Vec<Step>) -> Vec<Step> {
    if !steps.iter().any(|step| matches!(step, Step::Run(_))) {
        return steps;
    }
    let left = LOCKS.iter().map(Path::new).filter(|lock| is_left(lock));
    let removals: Vec<_> = left.map(|lock| Step::disk(lock, OnDisk::Remove)).collect();
    steps.splice(0..0, removals);
    steps
}

fn is_left(lock: &Path) -> bool {
    let (Ok(text), Ok(metadata)) = (fs::read_to_string(lock), fs::metadata(lock)) else {
        return false;
    };
    let (Ok(holder), Ok(made)) = (
        text.trim_matches(['\0', '\n', ' ']).parse(),
        metadata.modified(),
    ) else {
        return false;
    };
    match age_of(holder) {
        None => true,
        Some(age) => SystemTime::now()
            .checked_sub(age)
            .and_then(|began| began.duration_since(made).ok())
            .is_some_and(|later| later > UNCERTAIN),
    }
}

/// How long a process has been there; `None`: it is not.
fn age_of(process: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The 22nd field; the second one is in parentheses and may contain anything.
    let began: u32 = stat.rsplit_once(')')?.1.split(' ').nth(20)?.parse().ok()?;
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split(' ').next()?.parse().ok()?;
    Some(Duration::from_secs_f64(uptime).saturating_sub(TICK * began))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_left_when_its_holder_is_gone_or_younger() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join("passwd.lock");
        let me = std::process::id();
        fs::write(&lock, me.to_string()).unwrap();
        assert!(!is_left(&lock), "we hold it");
        let before = SystemTime::now() - Duration::from_secs(3600);
        fs::File::open(&lock).unwrap().set_modified(before).unwrap();
        assert!(is_left(&lock), "we began after it was made");
        // Beyond the largest number that Linux gives.
        fs::write(&lock, "4194305\0").unwrap();
        assert!(is_left(&lock), "nobody holds it");
        fs::write(&lock, "garbage").unwrap();
        assert!(!is_left(&lock));
        assert!(!is_left(&dir.path().join("none")));
        assert!(age_of(me).unwrap() < Duration::from_secs(3600));
    }
}
