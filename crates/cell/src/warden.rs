//! The cell's own process: parent of the controller and the agents, which it starts again when they end.
//!
//! It is the smallest process of the cell on purpose: it reads nothing, listens to nobody, and what it does not do
//! cannot fail. When it dies the others go on; `homeostat up` starts another one, which waits for each of them to end
//! before it starts it anew.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use homeostat_model::{CellIdentity, CellLayout};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal, WaitOptions};

use crate::home::{HomeError, claim};

/// The exit code of a process whose work is done: it is not started again, and the cell ends with it.
pub const DONE: i32 = 10;
/// Pause before a process that ended within `SHORT_LIFE` is started again, doubled up to the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
const SHORT_LIFE: Duration = Duration::from_secs(2);
/// Logs of the cell's own processes are cut when they are larger than this at a start.
const LONGEST_LOG: u64 = 16 * 1024 * 1024;

/// How often the warden looks whether the agents of a cell that is down have ended, and for how long. Half of it passes
/// before it asks them to.
const END_EVERY: Duration = Duration::from_millis(20);
const END_WITHIN: Duration = Duration::from_secs(5);
/// The first ward.
const CONTROLLER: usize = 0;

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
    /// While this file is there the process is dead on purpose, and stays so.
    dead_mark: Option<PathBuf>,
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
    Ok(
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .is_ok()
            .then_some(file),
    )
}

/// Keeps the cell's processes alive until the controller is done. Blocks.
///
/// # Errors
/// When another warden is there, or the cell's addresses are taken.
pub fn keep(
    identity: &CellIdentity,
    layout: &CellLayout,
    program: &Path,
    extra: &[String],
) -> Result<(), WardenError> {
    let Some(_lock) = lock(layout)? else {
        return Err(WardenError::AlreadyRunning(lock_path(layout)));
    };
    let Some(_block) = claim(identity.block) else {
        return Err(WardenError::BlockTaken(identity.block));
    };
    // Supervisors whose agent dies become children of this process and are reaped here, wherever init may be.
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        eprintln!("orphans go to init: {error}");
    }

    let state = layout.state.display().to_string();
    let mut wards = vec![Ward {
        name: "controller".into(),
        arguments: ["controller", &state]
            .map(str::to_owned)
            .into_iter()
            .chain(extra.iter().cloned())
            .collect(),
        dead_mark: None,
    }];
    for machine in &identity.machines {
        let name = &machine.spec.name;
        wards.push(Ward {
            name: format!("agent-{name}"),
            arguments: vec!["agent".into(), state.clone(), name.to_string()],
            dead_mark: Some(layout.machine(name).dead_mark()),
        });
    }
    let wards: Arc<Vec<Ward>> = Arc::new(wards);
    let living: Living = Arc::default();
    for ward in 0..wards.len() {
        start(program, layout, &wards, ward, &living);
    }
    reap(program, layout, &wards, &living);
    Ok(())
}

type Living = Arc<Mutex<Children>>;

#[derive(Default)]
struct Children {
    /// By pid: which ward, and since when.
    alive: BTreeMap<i32, (usize, Instant)>,
    wanted: Wanted,
}

/// Whether wards are still to be started. One may be in its pause when the cell ends, and must not begin after that.
#[derive(Default, PartialEq, Eq)]
enum Wanted {
    #[default]
    Yes,
    No,
}

fn lock_living(living: &Living) -> std::sync::MutexGuard<'_, Children> {
    living.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for any child to end, for ever: wards are started again, orphans that were handed to this process are let go.
/// Returns when the controller is done.
fn reap(program: &Path, layout: &CellLayout, wards: &Arc<Vec<Ward>>, living: &Living) {
    let mut pauses = vec![PAUSE.0; wards.len()];
    loop {
        let (pid, status) = match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some(ended)) => ended,
            // No child at all at this moment: each is about to be started again.
            Ok(None) | Err(_) => {
                std::thread::sleep(PAUSE.0);
                continue;
            }
        };
        // The lock is held while a child is started and noted, so that its end cannot be seen before its beginning.
        let ended = lock_living(living)
            .alive
            .remove(&pid.as_raw_nonzero().get());
        let Some((ward, began)) = ended else { continue };
        let done = status.exit_status() == Some(DONE);
        if done && ward == CONTROLLER {
            end_all(living);
            return;
        }
        if done {
            // An agent ends like this when the cell does; should the controller not get that far, it is needed again.
            start_later(program, layout, wards, ward, living, PAUSE.1);
        } else if began.elapsed() > SHORT_LIFE {
            pauses[ward] = PAUSE.0;
            start(program, layout, wards, ward, living);
        } else {
            let pause = pauses[ward];
            pauses[ward] = (pause * 2).min(PAUSE.1);
            start_later(program, layout, wards, ward, living, pause);
        }
    }
}

/// Ends the agents that the controller could not reach.
fn end_all(living: &Living) {
    lock_living(living).wanted = Wanted::No;
    let until = Instant::now() + END_WITHIN;
    let mut asked = false;
    while Instant::now() < until {
        while let Ok(Some((pid, _))) = rustix::process::wait(WaitOptions::NOHANG) {
            lock_living(living)
                .alive
                .remove(&pid.as_raw_nonzero().get());
        }
        let left: Vec<i32> = lock_living(living).alive.keys().copied().collect();
        if left.is_empty() {
            return;
        }
        if !asked && Instant::now() + END_WITHIN / 2 > until {
            asked = true;
            for pid in left.into_iter().filter_map(Pid::from_raw) {
                if let Err(error) = rustix::process::kill_process(pid, Signal::TERM) {
                    eprintln!("cannot end process {}: {error}", pid.as_raw_nonzero());
                }
            }
        }
        std::thread::sleep(END_EVERY);
    }
}

/// Starts a ward, and tries again when that fails. None gets a parent-death signal: they are to outlive this process.
fn start(
    program: &Path,
    layout: &CellLayout,
    wards: &Arc<Vec<Ward>>,
    ward: usize,
    living: &Living,
) {
    let mut children = lock_living(living);
    if children.wanted == Wanted::No {
        return;
    }
    let dead = wards[ward].dead_mark.as_ref();
    if dead.is_some_and(|mark| mark.exists()) {
        start_later(program, layout, wards, ward, living, PAUSE.0);
        return;
    }
    match spawn(program, &wards[ward], &layout.log(&wards[ward].name)) {
        Ok(pid) => {
            children.alive.insert(pid, (ward, Instant::now()));
        }
        Err(error) => {
            eprintln!("cannot start {}: {error}", wards[ward].name);
            start_later(program, layout, wards, ward, living, PAUSE.1);
        }
    }
}

fn start_later(
    program: &Path,
    layout: &CellLayout,
    wards: &Arc<Vec<Ward>>,
    ward: usize,
    living: &Living,
    pause: Duration,
) {
    let (program, layout, wards, living) = (
        program.to_owned(),
        layout.clone(),
        Arc::clone(wards),
        Arc::clone(living),
    );
    std::thread::spawn(move || {
        std::thread::sleep(pause);
        start(&program, &layout, &wards, ward, &living);
    });
}

fn spawn(program: &Path, ward: &Ward, log: &Path) -> std::io::Result<i32> {
    let too_long = std::fs::metadata(log).is_ok_and(|metadata| metadata.len() > LONGEST_LOG);
    let output = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(log)?;
    if too_long {
        output.set_len(0)?;
    }
    let child = Command::new(program)
        .args(&ward.arguments)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()?;
    i32::try_from(child.id()).map_err(std::io::Error::other)
}
