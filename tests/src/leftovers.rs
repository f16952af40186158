//! What a cell must not leave behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::process;

/// The cgroups that the supervisors of a cell wrote down, and those that its living tasks are in.
pub(crate) fn cgroups(run: Option<&Path>, places: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for record in run
        .iter()
        .flat_map(|run| files_named(run, "supervisor.json"))
    {
        let text = fs::read(&record).unwrap_or_default();
        let value: Value = serde_json::from_slice(&text).unwrap_or_default();
        let groups = value["cgroups"].as_array().cloned().unwrap_or_default();
        found.extend(
            groups
                .iter()
                .filter_map(|group| group["path"].as_str())
                .map(PathBuf::from),
        );
    }
    for process in process::mentioning(places) {
        let text = fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap_or_default();
        for line in text.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
                continue;
            };
            if !path.contains("/homeostat/") {
                continue;
            }
            let mount = if controllers.is_empty() {
                "unified"
            } else {
                controllers
            };
            for base in [
                Path::new("/sys/fs/cgroup").join(mount),
                PathBuf::from("/sys/fs/cgroup"),
            ] {
                let folder = base.join(path.trim_start_matches('/'));
                if folder.is_dir() {
                    found.insert(folder);
                }
            }
        }
    }
    found
}

/// Everything that is left of a cell that was purged; empty when all is well.
pub(crate) fn left(
    places: &[PathBuf],
    run: Option<&Path>,
    state: &Path,
    cgroups: &BTreeSet<PathBuf>,
) -> Vec<String> {
    let mut left = Vec::new();
    for process in process::mentioning(places) {
        left.push(format!("process {}", process.describe()));
    }
    left.extend(
        cgroups
            .iter()
            .filter(|path| path.exists())
            .map(|path| format!("cgroup {}", path.display())),
    );
    left.extend(
        run.filter(|run| run.exists())
            .map(|run| format!("run folder {}", run.display())),
    );
    // A refused `up` may have made it, and waited there for its turn.
    let mut held = fs::read_dir(state).into_iter().flatten().flatten();
    if held.any(|entry| entry.file_name() != "turn") {
        left.push(format!("state folder {}", state.display()));
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    // Disks of tests are theirs to unmount.
    let ours = |line: &&str| {
        !line.starts_with("e2e ")
            && places
                .iter()
                .any(|place| line.contains(&format!(" {}/", place.display())))
    };
    left.extend(
        mounts
            .lines()
            .filter(ours)
            .map(|line| format!("mount {line}")),
    );
    left
}

fn files_named(folder: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files_named(&path, name));
        } else if path.file_name().is_some_and(|found| found == name) {
            found.push(path);
        }
    }
    found
}
