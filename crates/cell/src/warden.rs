//! The cell's own process: parent of the controller and the agents, which it starts again when they end.
//!
//! It is the smallest process of the cell on purpose: it reads nothing, listens to nobody, and what it does not do
//! cannot fail. When it dies the others go on; `homeostat up` starts another one, which waits for each of them to end
//! before it starts it anew.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use homeostat_model::{CellIdentity, CellLayout};
use rustix::fs::FlockOperation;
use rustix::process::Pid;

use crate::home::{HomeError, claim};

/// The exit code of a process whose work is done: it is not started again, and the cell ends with it.
pub const DONE: i32 = 10;
/// The exit code of a process that found another one in its place.
pub const TAKEN: i32 = 75;

/// Pause before a process that ended within `SHORT_LIFE` is started again, doubled up to the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
const SHORT_LIFE: Duration = Duration::from_secs(2);
/// Logs of the cell's own processes are cut when they are larger than this at a start.
const LONGEST_LOG: u64 = 16 * 1024 * 1024;

/// How often the warden looks whether its children have ended, after how many looks it asks them to, and when it gives up.
const END_EVERY: Duration = Duration::from_millis(20);
const END_AFTER: u32 = 50;
const END_LOOKS: u32 = 250;

#[derive(Debug, thiserror::Error)]
pub enum WardenError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error("another process keeps this cell already (it holds {0})")]
    AlreadyRunning(PathBuf),
    #[error("block 127.77.{0} is used by another cell; wait until that is down")]
    BlockTaken(u8),
}

/// One process to keep alive.
struct Ward {
    name: String,
    arguments: Vec<String>,
}

/// Where the lock of the warden of a cell is.
pub fn lock_path(layout: &CellLayout) -> PathBuf {
    layout.state.join("lock")
}

/// Takes the cell's lock; `None` when a warden holds it.
///
/// # Errors
/// When the lock file cannot be opened.
pub fn lock(layout: &CellLayout) -> Result<Option<File>, HomeError> {
    let path = lock_path(layout);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(HomeError::io("cannot open", &path))?;
    Ok(rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok().then_some(file))
}

/// Keeps the cell's processes alive until the controller is done. Blocks.
///
/// # Errors
/// When another warden is there, or the cell's addresses are taken.
pub fn keep(identity: &CellIdentity, layout: &CellLayout, program: &Path, extra: &[String]) -> Result<(), WardenError> {
    let Some(_lock) = lock(layout)? else { return Err(WardenError::AlreadyRunning(lock_path(layout))) };
    let Some(_block) = claim(identity.block) else { return Err(WardenError::BlockTaken(identity.block)) };
    // Supervisors whose agent dies become children of this process and are reaped here, wherever init may be.
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        eprintln!("orphans go to init: {error}");
    }

    let state = layout.state.display().to_string();
    let mut wards = vec![Ward {
        name: "controller".into(),
        arguments: ["controller", &state].map(str::to_owned).into_iter().chain(extra.iter().cloned()).collect(),
    }];
    for machine in &identity.machines {
        let name = &machine.spec.name;
        wards.push(Ward { name: format!("agent-{name}"), arguments: vec!["agent".into(), state.clone(), name.to_string()] });
    }
    let (ends, ended) = mpsc::channel();
    let children = Children::default();
    for ward in wards {
        let (program, log, ends) = (program.to_owned(), layout.log(&ward.name), ends.clone());
        let children = Arc::clone(&children);
        let spawned = std::thread::Builder::new()
            .name(ward.name.clone())
            .stack_size(64 * 1024)
            .spawn(move || keep_one(&program, &ward, &log, &ends, &children));
        if let Err(error) = spawned {
            eprintln!("cannot start a thread: {error}");
        }
    }
    drop(ends);
    // The controller is done when the cell is down; by then its agents were told to end.
    if ended.recv().is_err() {
        eprintln!("no process of this cell is left");
    }
    end_all(&children);
    Ok(())
}

/// The living children by name.
type Children = Arc<Mutex<BTreeMap<String, Pid>>>;

/// Ends the agents that the controller could not reach.
fn end_all(children: &Children) {
    let living = || children.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for attempt in 0..END_LOOKS {
        let left = living();
        if left.is_empty() {
            return;
        }
        if attempt == END_AFTER {
            for pid in left.values() {
                // One that ended just now is no error.
                let _ = rustix::process::kill_process(*pid, rustix::process::Signal::TERM);
            }
        }
        std::thread::sleep(END_EVERY);
    }
}

/// Runs one process for ever. Each thread lives as long as the warden, so that a parent-death signal of its children
/// would not fire early; none is set, since they are to outlive this process.
fn keep_one(program: &Path, ward: &Ward, log: &Path, ends: &mpsc::Sender<()>, children: &Children) {
    let mut pause = PAUSE.0;
    loop {
        let began = Instant::now();
        let code = match start(program, ward, log) {
            Ok(mut child) => {
                let lock = || children.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                    lock().insert(ward.name.clone(), pid);
                }
                let status = child.wait();
                lock().remove(&ward.name);
                status.ok().and_then(|status| status.code())
            }
            Err(error) => {
                eprintln!("cannot start {}: {error}", ward.name);
                None
            }
        };
        if code == Some(DONE) {
            if ward.name == "controller" {
                // The warden may be gone already.
                ends.send(()).unwrap_or_default();
            }
            return;
        }
        if began.elapsed() > SHORT_LIFE && code != Some(TAKEN) {
            pause = PAUSE.0;
            continue;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE.1);
    }
}

fn start(program: &Path, ward: &Ward, log: &Path) -> std::io::Result<Child> {
    let too_long = std::fs::metadata(log).is_ok_and(|metadata| metadata.len() > LONGEST_LOG);
    let output = OpenOptions::new().create(true).append(!too_long).write(true).truncate(too_long).mode(0o600).open(log)?;
    Command::new(program)
        .args(&ward.arguments)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
}
