//! The cgroup (or two: see the parent module) of one task: made, joined by the child itself before it runs the
//! task's program, killed, proved empty, removed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use homeostat_model::{Bytes, TaskName};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::{CgroupSupport, PARENT, Tracking};

/// How often a step that races with other supervisors or with the kernel's own cleaning up is repeated.
const ATTEMPTS: u32 = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Version {
    V1,
    V2,
}

/// A folder in a cgroup hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupPath {
    pub version: Version,
    pub path: PathBuf,
}

/// The cgroups of one task. Empty where there is no support.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskGroup {
    paths: Vec<GroupPath>,
}

impl TaskGroup {
    /// Makes the groups of a task, or as many of them as the machine lets us, and says what did not work: a task
    /// without its limit is worth more than no task.
    pub fn create(
        support: &CgroupSupport,
        name: &str,
        memory: Option<Bytes>,
    ) -> (Self, Vec<String>) {
        let mut paths = Vec::new();
        let mut notes = Vec::new();
        let mut make = |group: GroupPath, limit: Option<Bytes>| match make_group(&group, limit) {
            Ok(()) => {
                if !paths.contains(&group) {
                    paths.push(group);
                }
            }
            Err(error) => notes.push(format!("cgroup {}: {error}", group.path.display())),
        };
        if let Some(tracking) = tracking_group(support, name) {
            make(tracking, None);
        }
        if let (Some(limit), Some(parent)) = (memory, &support.memory) {
            make(below(parent, name), Some(limit));
        }
        (Self { paths }, notes)
    }

    /// The groups a supervisor wrote down. Paths that no supervisor would make are left out: this is used to kill.
    pub fn recorded(paths: &[GroupPath]) -> Self {
        let ours = |group: &&GroupPath| {
            let parent = group.path.parent().and_then(Path::file_name);
            parent.is_some_and(|name| name == PARENT) && group.path.join("cgroup.procs").exists()
        };
        Self {
            paths: paths.iter().filter(ours).cloned().collect(),
        }
    }

    /// The groups a task would have, for when no record of them is left.
    pub fn expected(support: &CgroupSupport, name: &str) -> Self {
        let memory = support.memory.as_ref().map(|parent| below(parent, name));
        let paths: Vec<GroupPath> = tracking_group(support, name)
            .into_iter()
            .chain(memory)
            .collect();
        Self::recorded(&paths)
    }

    pub fn paths(&self) -> &[GroupPath] {
        &self.paths
    }

    /// What the child writes `0` into to join.
    ///
    /// # Errors
    /// When a group cannot be opened.
    pub fn doors(&self) -> io::Result<Vec<File>> {
        let open = |group: &GroupPath| {
            OpenOptions::new()
                .write(true)
                .open(group.path.join("cgroup.procs"))
        };
        self.paths.iter().map(open).collect()
    }

    /// SIGKILL to every member. Atomic where version 2 or the freezer is there; otherwise call it again until
    /// [`Self::is_empty`].
    pub fn kill(&self) {
        for group in &self.paths {
            // Each step may fail because the group is gone or the file is not there: emptiness is asked separately.
            match group.version {
                Version::V2 if fs::write(group.path.join("cgroup.kill"), "1").is_ok() => {}
                Version::V2 => while_stopped(&group.path.join("cgroup.freeze"), "1", "0", || {
                    kill_members(&group.path);
                }),
                Version::V1 => {
                    let switch = group.path.join("freezer.state");
                    while_stopped(&switch, "FROZEN", "THAWED", || kill_members(&group.path));
                }
            }
        }
    }

    /// Whether nothing that can still run is in any of them.
    ///
    /// # Errors
    /// When a group exists and cannot be read.
    pub fn is_empty(&self) -> io::Result<bool> {
        for group in &self.paths {
            let empty = match group.version {
                Version::V2 => !populated(&group.path)?,
                Version::V1 => members(&group.path)?.is_empty(),
            };
            if !empty {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// How many processes of them the kernel killed because they reached their memory limit; 0 where it does not say.
    pub fn out_of_memory_kills(&self) -> u64 {
        let count = |group: &GroupPath| {
            let file = match group.version {
                Version::V1 => "memory.oom_control",
                Version::V2 => "memory.events",
            };
            let text = fs::read_to_string(group.path.join(file)).unwrap_or_default();
            text.lines()
                .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
                .unwrap_or(0)
        };
        self.paths.iter().map(count).sum()
    }

    /// Removes the groups, with whatever groups the task made in them, and the common parent when it was the last.
    ///
    /// # Errors
    /// The first group that did not go.
    pub fn remove(&self) -> io::Result<()> {
        for group in &self.paths {
            for attempt in 1.. {
                match remove_tree(&group.path) {
                    // A group is busy for a moment after its last process is gone.
                    Err(error) if busy(&error) && attempt < ATTEMPTS => {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    Err(error) => return Err(error),
                    Ok(()) => break,
                }
            }
            if let Some(parent) = group.path.parent() {
                // Busy unless this was the last task: then the others keep it.
                let _ = fs::remove_dir(parent);
            }
        }
        Ok(())
    }
}

/// A name that no other task on this machine has: two cells may run the same task name, never in the same folder.
pub fn group_name(task: &TaskName, run_dir: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    // FNV-1a: stable over versions of this program, unlike the standard library's hasher.
    let hash = run_dir
        .as_os_str()
        .as_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("{task}-{hash:016x}")
}

fn tracking_group(support: &CgroupSupport, name: &str) -> Option<GroupPath> {
    let (version, parent) = match &support.tracking {
        Tracking::V2(parent) => (Version::V2, parent),
        Tracking::V1 { parent, .. } => (Version::V1, parent),
        Tracking::None { .. } => return None,
    };
    let path = parent.join(name);
    Some(GroupPath { version, path })
}

fn below(parent: &GroupPath, name: &str) -> GroupPath {
    GroupPath {
        version: parent.version,
        path: parent.path.join(name),
    }
}

fn make_group(group: &GroupPath, limit: Option<Bytes>) -> io::Result<()> {
    let parent = group.path.parent().unwrap_or(Path::new("/"));
    for attempt in 1.. {
        // Another supervisor that ends may remove the common parent between the two.
        let made = match create_dir(parent) {
            Ok(()) => create_dir(&group.path),
            Err(error) => Err(error),
        };
        match made {
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => {}
            Err(error) => return Err(error),
            Ok(()) => break,
        }
    }
    let Some(limit) = limit else { return Ok(()) };
    let file = match group.version {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => {
            // Controllers are handed down one level at a time; where they are already this changes nothing.
            for folder in parent.parent().into_iter().chain([parent]) {
                let _ = fs::write(folder.join("cgroup.subtree_control"), "+memory");
            }
            "memory.max"
        }
    };
    fs::write(group.path.join(file), limit.0.to_string())
}

fn create_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Runs `work` while the group is frozen, where it can be.
fn while_stopped(switch: &Path, stop: &str, go: &str, work: impl FnOnce()) {
    let stopped = fs::write(switch, stop).is_ok();
    work();
    if stopped {
        let _ = fs::write(switch, go);
    }
}

fn kill_members(folder: &Path) {
    for pid in members(folder).unwrap_or_default() {
        // Gone in between is what we want.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Every process in the group and the groups in it.
fn members(folder: &Path) -> io::Result<Vec<Pid>> {
    let text = match fs::read_to_string(folder.join("cgroup.procs")) {
        Ok(text) => text,
        Err(error) if vanished(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found: Vec<Pid> = text
        .lines()
        .filter_map(|line| line.parse().ok().and_then(Pid::from_raw))
        .collect();
    for child in groups_in(folder)? {
        found.extend(members(&child)?);
    }
    Ok(found)
}

/// Version 2 counts the whole tree, and leaves zombies out.
fn populated(folder: &Path) -> io::Result<bool> {
    match fs::read_to_string(folder.join("cgroup.events")) {
        Ok(text) => Ok(!text.lines().any(|line| line == "populated 0")),
        Err(error) if vanished(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    for child in groups_in(folder)? {
        remove_tree(&child)?;
    }
    match fs::remove_dir(folder) {
        Err(error) if vanished(&error) => Ok(()),
        other => other,
    }
}

fn groups_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if vanished(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// A removed group answers ENOENT to open and ENODEV to a read of what was open.
fn vanished(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn busy(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ResourceBusy || error.kind() == io::ErrorKind::DirectoryNotEmpty
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_folders_apart_and_stay() {
        let task = TaskName::new("shop-web-0").unwrap();
        let one = group_name(&task, Path::new("/run/a"));
        // Old supervisors' groups must be found by newer programs.
        assert_eq!(one, "shop-web-0-276270f9aac3f90b");
        assert_ne!(one, group_name(&task, Path::new("/run/b")));
    }

    #[test]
    fn only_our_own_groups_are_believed() {
        let forged = GroupPath {
            version: Version::V2,
            path: PathBuf::from("/sys/fs/cgroup/unified/system.slice"),
        };
        assert_eq!(TaskGroup::recorded(&[forged]), TaskGroup::default());
    }
}
