//! One cgroup for each task, where the kernel and our rights allow it.
//!
//! It serves two purposes which may come from different mounts: **tracking** (a process cannot leave its cgroup by
//! forking twice, so killing the group kills the whole task) and **limits** (memory). Version 2 is preferred for
//! tracking because `cgroup.kill` is atomic; version 1's freezer comes next (stop all, kill all, thaw); any other
//! version 1 hierarchy at least lists the members. The memory limit is set wherever a memory controller is, of
//! either version: on a mixed machine the tracking group is version 2 and the limit version 1.
//!
//! Groups are made directly below the mount when it can be written (root), otherwise below our own cgroup (a
//! delegated one), always as `homeostat/TASK-HASH`, and are removed with the task. Without any of this a task is
//! found by parentage instead: its supervisor is a child subreaper.

mod group;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

pub use group::{GroupPath, TaskGroup, Version, group_name};
use rustix::fs::{Access, access};

/// The folder below which all groups of all tasks are.
const PARENT: &str = "homeostat";

/// What this machine offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupSupport {
    pub tracking: Tracking,
    /// Where memory limits can be set.
    pub memory: Option<GroupPath>,
}

/// How the processes of a task are kept together. The paths are folders in which each task gets one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tracking {
    V2(PathBuf),
    V1 { controller: String, parent: PathBuf },
    None { why: String },
}

impl fmt::Display for CgroupSupport {
    /// One line for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tracking {
            Tracking::V2(parent) => {
                write!(f, "tasks are kept in cgroups (v2, {})", parent.display())?
            }
            Tracking::V1 { controller, parent } => write!(
                f,
                "tasks are kept in cgroups (v1 {controller}, {})",
                parent.display()
            )?,
            Tracking::None { why } => write!(
                f,
                "no cgroup here: {why}; tasks are found by session and parentage instead"
            )?,
        }
        match &self.memory {
            Some(_) => Ok(()),
            None => f.write_str("; memory limits are not enforced"),
        }
    }
}

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    at: PathBuf,
    version: Version,
    /// Version 1 only.
    controllers: Vec<String>,
    /// Our own cgroup in it, relative to the mount.
    own: PathBuf,
}

/// Looks at the mounts and at our rights; changes nothing.
pub fn detect() -> CgroupSupport {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let mounts = mounts(&read("/proc/self/mounts"), &read("/proc/self/cgroup"));
    choose(&mounts, &can_be_used, &has_memory)
}

/// The version 1 controllers whose groups can keep a task together, best first.
const TRACKERS: [&str; 5] = ["freezer", "pids", "memory", "cpuacct", "cpu"];

fn choose(
    mounts: &[Mount],
    usable: &dyn Fn(&Path) -> bool,
    has_memory: &dyn Fn(&Path) -> bool,
) -> CgroupSupport {
    let parent = |mount: &Mount| {
        [mount.at.clone(), mount.at.join(&mount.own)]
            .into_iter()
            .find(|folder| usable(folder))
    };
    let two = mounts.iter().find(|mount| mount.version == Version::V2);
    let two = two.and_then(parent);
    let one = |wanted: &str| {
        let mount = mounts
            .iter()
            .find(|mount| mount.controllers.iter().any(|name| name == wanted))?;
        parent(mount).map(|folder| folder.join(PARENT))
    };
    let memory = match &two {
        Some(folder) if has_memory(folder) => Some(GroupPath {
            version: Version::V2,
            path: folder.join(PARENT),
        }),
        Some(_) | None => one("memory").map(|path| GroupPath {
            version: Version::V1,
            path,
        }),
    };
    let tracking = match two {
        Some(folder) => Tracking::V2(folder.join(PARENT)),
        None => TRACKERS
            .iter()
            .find_map(|name| {
                one(name).map(|parent| Tracking::V1 {
                    controller: (*name).to_owned(),
                    parent,
                })
            })
            .unwrap_or_else(|| Tracking::None {
                why: if mounts.is_empty() {
                    "none is mounted".to_owned()
                } else {
                    "this user may not make any".to_owned()
                },
            }),
    };
    CgroupSupport { tracking, memory }
}

/// Moving a process needs the right to write `cgroup.procs` of the common ancestor, so this is asked too.
fn can_be_used(folder: &Path) -> bool {
    access(folder, Access::WRITE_OK | Access::EXEC_OK).is_ok()
        && access(folder.join("cgroup.procs"), Access::WRITE_OK).is_ok()
}

fn has_memory(folder: &Path) -> bool {
    fs::read_to_string(folder.join("cgroup.controllers"))
        .is_ok_and(|text| text.split_ascii_whitespace().any(|name| name == "memory"))
}

fn mounts(mounts: &str, own: &str) -> Vec<Mount> {
    let mut found = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(at), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let version = match kind {
            "cgroup2" => Version::V2,
            "cgroup" => Version::V1,
            _ => continue,
        };
        let controllers: Vec<String> = match version {
            Version::V1 => options.split(',').map(str::to_owned).collect(),
            Version::V2 => Vec::new(),
        };
        found.push(Mount {
            at: PathBuf::from(at.replace("\\040", " ")),
            version,
            own: own_group(own, &controllers),
            controllers,
        });
    }
    found
}

/// Lines are `ID:CONTROLLERS:PATH`; version 2 has no controllers there.
fn own_group(own: &str, controllers: &[String]) -> PathBuf {
    own.lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .find(|(names, _)| match names.is_empty() {
            true => controllers.is_empty(),
            false => names
                .split(',')
                .any(|name| controllers.iter().any(|have| have == name)),
        })
        .map(|(_, path)| PathBuf::from(path.trim_start_matches('/')))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXED: &str = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
        cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
        cgroup /sys/fs/cgroup/freezer cgroup rw,relatime,freezer 0 0\n\
        cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
    const OWN: &str = "6:freezer:/\n4:memory:/a/b\n0::/user.slice/me\n";

    fn on(mounts_text: &str, usable: &dyn Fn(&Path) -> bool, memory: bool) -> String {
        let support = choose(&mounts(mounts_text, OWN), usable, &|_| memory);
        let memory = support.memory.as_ref().map(|group| group.path.clone());
        format!("{support} | {}", memory.unwrap_or_default().display())
    }

    #[test]
    fn a_mixed_machine_tracks_by_v2_and_limits_by_v1() {
        assert_eq!(
            on(MIXED, &|_| true, false),
            "tasks are kept in cgroups (v2, /sys/fs/cgroup/unified/homeostat) | /sys/fs/cgroup/memory/homeostat"
        );
    }

    #[test]
    fn v2_alone_does_both() {
        assert_eq!(
            on("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", &|_| true, true),
            "tasks are kept in cgroups (v2, /sys/fs/cgroup/homeostat) | /sys/fs/cgroup/homeostat"
        );
    }

    #[test]
    fn a_delegated_group_is_used_where_the_top_is_closed() {
        let mine = |path: &Path| path.ends_with("user.slice/me");
        assert_eq!(
            on(MIXED, &mine, false),
            "tasks are kept in cgroups (v2, /sys/fs/cgroup/unified/user.slice/me/homeostat); memory limits are not enforced | "
        );
    }

    #[test]
    fn v1_alone_prefers_the_freezer() {
        let text: String = MIXED
            .lines()
            .filter(|line| !line.contains("cgroup2"))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(
            on(&text, &|_| true, false),
            "tasks are kept in cgroups (v1 freezer, /sys/fs/cgroup/freezer/homeostat) | /sys/fs/cgroup/memory/homeostat"
        );
    }

    #[test]
    fn none_says_why() {
        assert_eq!(
            on(MIXED, &|_| false, false),
            "no cgroup here: this user may not make any; tasks are found by session and parentage instead; memory limits are not enforced | "
        );
        assert!(on("", &|_| true, false).contains("none is mounted"));
    }
}
