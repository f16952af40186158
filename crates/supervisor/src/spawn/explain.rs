//! Why a program did not start, in words that name the path: "permission denied" alone sends people through every
//! folder on the way to it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Plan, Step};
use crate::launch::UserIds;

pub(super) fn explain(step: Step, plan: &Plan<'_>, error: &io::Error) -> String {
    let ids = plan.user.unwrap_or(UserIds {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    });
    match step {
        Step::Fork | Step::Join | Step::Refused => format!("cannot make a process: {error}"),
        Step::Session => format!("cannot begin a session: {error}"),
        Step::User => format!(
            "cannot become user {} group {}: {error} (only root may start tasks as another user)",
            ids.uid, ids.gid
        ),
        Step::DeathSignal => format!("cannot ask for a signal at the supervisor's death: {error}"),
        Step::Folder => {
            let folder = plan.folder;
            let reason = first_obstacle(folder, ids, Wanted::Enter);
            let reason = reason.unwrap_or_else(|| error.to_string());
            format!("cannot enter its folder {}: {reason}", folder.display())
        }
        Step::Exec => explain_exec(plan, ids, error),
    }
}

fn explain_exec(plan: &Plan<'_>, ids: UserIds, error: &io::Error) -> String {
    let program = plan.argv.first().map(String::as_str).unwrap_or_default();
    let path = if program.contains('/') {
        plan.folder.join(program)
    } else {
        match in_search_path(plan, program) {
            Ok(path) => path,
            Err(searched) => {
                return format!(
                    "cannot run {program}: it is in none of the folders of PATH ({searched})"
                );
            }
        }
    };
    let shown = path.display();
    if let Some(reason) = first_obstacle(&path, ids, Wanted::Run) {
        return format!("cannot run {shown}: {reason}");
    }
    match error.raw_os_error() {
        Some(libc::ENOENT) => {
            format!("cannot run {shown}: the interpreter or loader that it names does not exist")
        }
        Some(libc::ENOEXEC) => {
            format!(
                "cannot run {shown}: it is neither a program of this machine nor a script that begins with #!"
            )
        }
        Some(libc::E2BIG) => {
            format!("cannot run {shown}: its arguments and environment are too long")
        }
        Some(_) | None => format!("cannot run {shown}: {error}"),
    }
}

/// Where a name without a slash is found by the child, which searches the PATH of its own environment.
fn in_search_path(plan: &Plan<'_>, program: &str) -> Result<PathBuf, String> {
    let searched = plan
        .env
        .get("PATH")
        .cloned()
        .unwrap_or_else(|| "/bin:/usr/bin".to_owned());
    let found = searched
        .split(':')
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.exists());
    found.ok_or(searched)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Enter,
    Run,
}

/// The first thing on the way to `path` that the user cannot pass, by the mode bits. `None` when all seem open:
/// then it is something else (an ACL, a mount option, a file system that is not what it seems).
fn first_obstacle(path: &Path, ids: UserIds, wanted: Wanted) -> Option<String> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
    above.reverse();
    for folder in above {
        if folder.as_os_str().is_empty() {
            continue;
        }
        if let Some(reason) = obstacle(folder, ids, Wanted::Enter) {
            return Some(format!("{} {reason}", folder.display()));
        }
    }
    obstacle(path, ids, wanted).map(|reason| match wanted {
        Wanted::Enter => format!("it {reason}"),
        Wanted::Run => format!("the file {reason}"),
    })
}

fn obstacle(path: &Path, ids: UserIds, wanted: Wanted) -> Option<String> {
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Some("does not exist".to_owned());
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Some("does not exist".to_owned());
        }
        Err(error) => return Some(format!("cannot be looked at: {error}")),
    };
    match wanted {
        Wanted::Enter if !meta.is_dir() => return Some("is not a folder".to_owned()),
        Wanted::Run if meta.is_dir() => return Some("is a folder".to_owned()),
        Wanted::Enter | Wanted::Run => {}
    }
    let mode = meta.mode() & 0o7777;
    let bit = match (ids.uid, ids.uid == meta.uid(), ids.gid == meta.gid()) {
        (0, _, _) if wanted == Wanted::Enter => return None,
        (0, _, _) => 0o111,
        (_, true, _) => 0o100,
        (_, false, true) => 0o010,
        (_, false, false) => 0o001,
    };
    let verb = match wanted {
        Wanted::Enter => "entered",
        Wanted::Run => "executed",
    };
    (mode & bit == 0).then(|| {
        format!(
            "may not be {verb} by user {} group {} (mode {mode:04o}, owner {}:{})",
            ids.uid,
            ids.gid,
            meta.uid(),
            meta.gid()
        )
    })
}
