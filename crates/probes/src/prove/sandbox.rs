//! A copy of the machine that nothing leaves: the root file system under an overlay, processes and a network of its own.
//!
//! Two processes. The first one makes the namespaces and mounts the overlay; the second one, which is the first process
//! of the new pid namespace, goes into it and works. Ending the second ends everything that it started, and the
//! kernel takes mounts and namespaces away with it. Only the upper layer stays, in a folder of the one who asked.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use homeostat_model::library::Call;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde::{Deserialize, Serialize};

use crate::{AppliedOutcome, Fix, Prober};

/// What is to be done in a sandbox; on the standard input of both processes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Task {
    pub(super) call: Call,
    pub(super) deadline: Duration,
    pub(super) what: ToDo,
    /// Layers and mount point of the overlay are in it.
    pub(super) folder: PathBuf,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ToDo {
    /// Put out of order what the fix keeps in order.
    Disturb,
    Apply,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Stage {
    MakeNamespaces,
    Work,
}

/// What is said on the way, each on a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Message {
    /// The sandbox cannot be had.
    NoSandbox(String),
    /// There is something to repair now.
    Disturbed,
    /// Nobody knows how to disturb what this fix keeps in order, or it cannot be done.
    NotDisturbed(String),
    /// The fix begins.
    Begins,
    Applied {
        outcome: Outcome,
        evidence: String,
    },
    /// What the fix's own check says then.
    Checked {
        passed: bool,
        seen: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Outcome {
    Changed,
    Unchanged,
    Failed,
}

impl Task {
    pub(super) fn new(call: Call, what: ToDo, deadline: Duration, folder: &Path) -> Self {
        Self {
            call,
            what,
            deadline,
            folder: folder.to_owned(),
            stage: Stage::MakeNamespaces,
        }
    }
}

/// The body of either process. It must be called before anything else happens in it: what a process with threads
/// can do with namespaces is little.
///
/// # Errors
/// When nobody handed it a task, or nobody listens to what it says.
pub(super) fn body() -> io::Result<()> {
    // Whoever asked is gone: so is the reason for this.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text)?;
    let task: Task = serde_json::from_slice(&text)?;
    match task.stage {
        Stage::MakeNamespaces => match make(&task) {
            Ok(()) => Ok(()),
            Err(error) => say(&Message::NoSandbox(error.to_string())),
        },
        Stage::Work => match enter(&task) {
            Ok(()) => work(&task),
            Err(error) => say(&Message::NoSandbox(error.to_string())),
        },
    }
}

pub(super) fn say(message: &Message) -> io::Result<()> {
    // At the beginning of a line, whatever the program that holds us writes there itself.
    let text = format!("\n{MARK}{}\n", serde_json::to_string(message)?);
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Begins the lines that are messages.
pub(super) const MARK: &str = "homeostat-sandbox ";

fn named(doing: &str) -> impl FnOnce(rustix::io::Errno) -> io::Error {
    let doing = doing.to_owned();
    move |errno| io::Error::other(format!("cannot {doing}: {}", io::Error::from(errno)))
}

fn make(task: &Task) -> io::Result<()> {
    let flags = UnshareFlags::NEWNS
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS;
    // SAFETY: no file descriptors are unshared, and nothing here relies on the file system of other threads.
    unsafe { unshare_unsafe(flags) }.map_err(named("make namespaces"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(named("make the mounts private"))?;
    let layers = Layers::of(&task.folder)?;
    let root = task.folder.join("root");
    fs::create_dir_all(&root)?;
    // All folders first: what an overlay stands on must not be changed under it.
    for layer in &layers.0 {
        fs::create_dir_all(&layer.upper)?;
        fs::create_dir_all(&layer.work)?;
    }
    for layer in &layers.0 {
        let inside = layer.at.strip_prefix("/").unwrap_or(&layer.at);
        overlay(&layer.at, &layer.upper, &layer.work, &root.join(inside))?;
    }
    let again = Task {
        stage: Stage::Work,
        ..task.clone()
    };
    let mut command = Command::new("/proc/self/exe");
    command
        .args(std::env::args_os().skip(1))
        .stdin(Stdio::piped());
    // SAFETY: prctl is async-signal-safe.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&serde_json::to_vec(&again)?)?;
    }
    child.wait()?;
    Ok(())
}

fn overlay(lower: &Path, upper: &Path, work: &Path, at: &Path) -> io::Result<()> {
    let bad = |path: &Path| path.to_string_lossy().contains([',', ':', '\\']);
    if [lower, upper, work].into_iter().any(bad) {
        return Err(io::Error::other(
            "a folder has a name that overlayfs does not take",
        ));
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    let options = CString::new(options)?;
    mount(
        "overlay",
        at,
        "overlay",
        MountFlags::empty(),
        Some(&*options),
    )
    .map_err(named(&format!("lay an overlay over {}", lower.display())))
}

/// An overlay for each file system of the machine that holds files: what is mounted below the root is not in the overlay
/// of the root, and must not be written to either.
pub(super) struct Layers(pub(super) Vec<Layer>);

pub(super) struct Layer {
    /// Where in the machine, and in the sandbox.
    pub(super) at: PathBuf,
    pub(super) upper: PathBuf,
    work: PathBuf,
}

impl Layers {
    /// The same in every process that sees the same mounts.
    pub(super) fn of(folder: &Path) -> io::Result<Self> {
        let layers = disks()?.into_iter().zip(0..).map(|(at, number)| Layer {
            at,
            upper: folder.join(format!("upper{number}")),
            work: folder.join(format!("work{number}")),
        });
        Ok(Self(layers.collect()))
    }
}

/// The root, and the mount points of file systems that hold files, those above others first.
fn disks() -> io::Result<Vec<PathBuf>> {
    const KINDS: [&str; 6] = ["ext4", "ext3", "xfs", "btrfs", "f2fs", "ext2"];
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| {
            let (first, second) = line.split_once(" - ")?;
            let kind = second.split(' ').next()?;
            let at = PathBuf::from(first.split(' ').nth(4)?);
            (KINDS.contains(&kind) && at.is_dir()).then_some(at)
        })
        .collect();
    found.push(PathBuf::from("/"));
    found.sort();
    found.dedup();
    Ok(found)
}

fn enter(task: &Task) -> io::Result<()> {
    let root = task.folder.join("root");
    let inside = |path: &str| root.join(path.trim_start_matches('/'));
    mount_bind_recursive("/dev", inside("/dev")).map_err(named("show the devices"))?;
    mount("proc", inside("/proc"), "proc", MountFlags::empty(), None)
        .map_err(named("show the processes"))?;
    // Empty: what the sockets in there lead to is not in the sandbox.
    for path in ["/run", "/tmp"] {
        if inside(path).is_dir() {
            mount("tmpfs", inside(path), "tmpfs", MountFlags::empty(), None)
                .map_err(named("make an empty folder"))?;
        }
    }
    rustix::process::chroot(&root).map_err(named("enter the sandbox"))?;
    std::env::set_current_dir("/")
}

fn work(task: &Task) -> io::Result<()> {
    let fix = match Fix::from_call(&task.call) {
        Ok(fix) => fix,
        Err(error) => return say(&Message::NoSandbox(error.to_string())),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        if task.what == ToDo::Disturb {
            return say(&match fix.disturb(task.deadline).await {
                Ok(true) => Message::Disturbed,
                Ok(false) => Message::NotDisturbed("nobody knows how to disturb it".to_owned()),
                Err(error) => Message::NotDisturbed(crate::shown::error(&error)),
            });
        }
        say(&Message::Begins)?;
        let applied = fix.apply(task.deadline).await;
        let outcome = match applied.outcome {
            AppliedOutcome::Changed => Outcome::Changed,
            AppliedOutcome::Unchanged => Outcome::Unchanged,
            AppliedOutcome::Failed => Outcome::Failed,
        };
        let evidence = applied.evidence;
        say(&Message::Applied { outcome, evidence })?;
        if let Some(check) = fix.check() {
            let seen = Prober::new().run(check, task.deadline).await;
            let passed = seen.outcome == homeostat_prodtest::Outcome::Passed;
            let seen = seen.seen;
            say(&Message::Checked { passed, seen })?;
        }
        Ok(())
    })
}

/// Whether this process may make a sandbox at all.
pub(super) fn possible() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("only root can make one".to_owned());
    }
    match File::open("/proc/self/ns/mnt") {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("this kernel has no namespaces: {error}")),
    }
}
