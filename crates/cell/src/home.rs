//! Makes and finds a cell's home: the state folder, the run folder, its block of addresses, its users.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use homeostat_model::{
    CellIdentity, CellLayout, CellName, LocalMachine, MachineSpec, STATE_FORMAT,
};
use sha2::{Digest, Sha256};

/// Tasks of a cell that root runs get the user and group with this number plus the cell's block: above all ranges that
/// Debian's policy or systemd hand out, so that nobody else's files or processes are theirs.
const FIRST_TASK_USER: u32 = 77_000;
/// Whoever listens here owns the block. The last address of a block is no machine's.
const CLAIM_PORT: u16 = 7777;
/// Everything that a cell has in its state folder. Nothing else is ever removed from there.
const OWN: [&str; 12] = [
    "cell.json",
    "cell.json.new",
    "store.redb",
    "store.redb.lock",
    "lock",
    "down",
    TURN,
    "log",
    "packages",
    "shared",
    "machines",
    "checks",
];
/// Held by whoever makes, starts or removes the cell: they take turns.
const TURN: &str = "turn";

#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error("{what} {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("there is no cell in {0}; start one with: homeostat up CELL_FOLDER")]
    NoCell(PathBuf),
    #[error(
        "{path} was written by a newer homeostat (format {found}; this one knows {known}); nothing was changed: use that version, or another --state"
    )]
    Newer {
        path: PathBuf,
        found: u32,
        known: u32,
    },
    #[error(
        "{path} cannot be read; nothing was changed: restore it from a copy, or use another --state"
    )]
    Garbled {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{state} belongs to cell '{found}', not '{asked}'; use another --state for it")]
    OtherCell {
        state: PathBuf,
        found: CellName,
        asked: CellName,
    },
    #[error(
        "{0} holds other things ({1}) and no cell; choose an empty folder, or one that does not exist yet"
    )]
    NotEmpty(PathBuf, String),
    #[error(
        "tasks run as a user of their own, who may not enter {0}; choose a --state below a folder that everybody may enter, such as /var/lib/homeostat"
    )]
    Unreachable(PathBuf),
    #[error("all 254 blocks of addresses 127.77.N.0 are in use")]
    NoBlock,
    #[error("a cell has at most 250 local machines, this one declares {0}")]
    TooManyMachines(usize),
    #[error("{path} belongs to user {owner}; nobody else may prepare it: remove it")]
    ForeignRun { path: PathBuf, owner: u32 },
}

impl HomeError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

/// Where cells live unless `--state` says otherwise. Root's cells live in /var/lib: their tasks run as another user, who
/// may not enter root's home.
pub fn default_state(name: &CellName) -> PathBuf {
    if let Some(state) =
        std::env::var_os("XDG_STATE_HOME").filter(|path| Path::new(path).is_absolute())
    {
        return Path::new(&state).join("homeostat").join(name.as_str());
    }
    if rustix::process::geteuid().is_root() {
        return Path::new("/var/lib/homeostat").join(name.as_str());
    }
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
    home.join(".local/state/homeostat").join(name.as_str())
}

/// Reads the identity of the cell in `state`.
///
/// # Errors
/// When there is none, or it cannot be used by this version.
pub fn find(state: &Path) -> Result<(CellIdentity, CellLayout), HomeError> {
    let path = CellLayout::identity(state);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(HomeError::NoCell(state.to_owned()));
        }
        Err(error) => return Err(HomeError::io("cannot read", &path)(error)),
    };
    let garbled = |source| HomeError::Garbled {
        path: path.clone(),
        source,
    };
    let head: serde_json::Value = serde_json::from_slice(&text).map_err(garbled)?;
    // Looked at before anything else: a newer file may have any shape.
    let found = head["format"]
        .as_u64()
        .and_then(|format| u32::try_from(format).ok())
        .unwrap_or(u32::MAX);
    if found > STATE_FORMAT {
        return Err(HomeError::Newer {
            path,
            found,
            known: STATE_FORMAT,
        });
    }
    let identity: CellIdentity = serde_json::from_value(head).map_err(garbled)?;
    let layout = CellLayout::new(state, &identity.run);
    Ok((identity, layout))
}

/// Makes the home of a cell, or brings the machines of an existing one up to date. Idempotent.
///
/// # Errors
/// When folders cannot be made, or the state folder belongs to another cell or a newer version.
pub fn make(
    state: &Path,
    name: &CellName,
    machines: &[MachineSpec],
) -> Result<(CellIdentity, CellLayout), HomeError> {
    if machines.len() > 250 {
        return Err(HomeError::TooManyMachines(machines.len()));
    }
    let existing = match find(state) {
        Ok((identity, _)) if identity.name != *name => {
            return Err(HomeError::OtherCell {
                state: state.to_owned(),
                found: identity.name,
                asked: name.clone(),
            });
        }
        Ok((identity, _)) => Some(identity),
        Err(HomeError::NoCell(_)) => None,
        Err(error) => return Err(error),
    };
    make_state(state)?;
    let root = rustix::process::geteuid().is_root();
    let state = &fs::canonicalize(state).map_err(HomeError::io("cannot find", state))?;
    let block = match &existing {
        Some(identity) => identity.block,
        None => free_block(state)?,
    };
    let task_user = root.then_some(FIRST_TASK_USER + u32::from(block));
    if root {
        enterable(state)?;
    }
    // It stays where it is: processes of the cell may live, and the environment of this one may be another.
    let run = match &existing {
        Some(identity) if is_ours(&identity.run) => identity.run.clone(),
        Some(_) | None => run_folder(state)?,
    };
    for folder in ["log", "packages", "shared", "machines", "checks"] {
        make_folder(&state.join(folder), 0o711)?;
    }
    if let Some(uid) = task_user {
        // Supervisors of different machines share it as root; keepers prepare templates there as the tasks' user.
        let shared = state.join("shared");
        std::os::unix::fs::chown(&shared, Some(uid), Some(uid))
            .map_err(HomeError::io("cannot hand over", &shared))?;
    }
    let identity = CellIdentity {
        format: STATE_FORMAT,
        name: name.clone(),
        block,
        run: run.clone(),
        task_user,
        machines: addressed(machines, block, existing.as_ref()),
    };
    let path = CellLayout::identity(state);
    let text = serde_json::to_vec_pretty(&identity).map_err(|source| HomeError::Garbled {
        path: path.clone(),
        source,
    })?;
    let temporary = path.with_extension("json.new");
    fs::write(&temporary, text).map_err(HomeError::io("cannot write", &temporary))?;
    fs::rename(&temporary, &path).map_err(HomeError::io("cannot write", &path))?;
    Ok((identity, CellLayout::new(state, run)))
}

/// Machines keep their addresses for life.
fn addressed(
    machines: &[MachineSpec],
    block: u8,
    existing: Option<&CellIdentity>,
) -> Vec<LocalMachine> {
    let before = |spec: &MachineSpec| {
        existing
            .and_then(|identity| identity.machine(&spec.name))
            .map(|m| m.address.clone())
    };
    let mut taken: Vec<String> = machines.iter().filter_map(before).collect();
    machines
        .iter()
        .map(|spec| {
            let address = before(spec).unwrap_or_else(|| {
                let free = (1..=250u8)
                    .map(|m| format!("127.77.{block}.{m}"))
                    .find(|address| !taken.contains(address))
                    .unwrap_or_else(|| format!("127.77.{block}.250"));
                taken.push(free.clone());
                free
            });
            LocalMachine {
                spec: spec.clone(),
                address,
            }
        })
        .collect()
}

/// Waits for the turn to make, start or remove the cell in `state`, whose folder is made if need be. The turn ends when the
/// file is dropped.
///
/// # Errors
/// When the folder is somebody else's, or cannot be used.
pub fn take_turn(state: &Path) -> Result<fs::File, HomeError> {
    loop {
        make_state(state)?;
        let path = state.join(TURN);
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(HomeError::io("cannot open", &path))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|error| HomeError::io("cannot lock", &path)(error.into()))?;
        let held = file
            .metadata()
            .map_err(HomeError::io("cannot look at", &path))?;
        // Whoever had the turn before may have removed the cell, and the file with it.
        if fs::metadata(&path)
            .is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino()))
        {
            return Ok(file);
        }
    }
}

/// Makes the state folder. One that holds other things is refused: a cell is removed some day.
fn make_state(state: &Path) -> Result<(), HomeError> {
    if !CellLayout::identity(state).exists() {
        let foreign = foreign(state)?;
        if !foreign.is_empty() {
            let few: Vec<String> = foreign.into_iter().take(3).collect();
            return Err(HomeError::NotEmpty(state.to_owned(), few.join(", ")));
        }
    }
    if !rustix::process::geteuid().is_root() {
        return make_folder(state, 0o700);
    }
    let absolute = std::path::absolute(state).map_err(HomeError::io("cannot find", state))?;
    enterable(&absolute)?;
    make_folder(state, 0o711)
}

/// What is in a folder and not of a cell.
fn foreign(state: &Path) -> Result<Vec<String>, HomeError> {
    let entries = match fs::read_dir(state) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(HomeError::io("cannot look into", state)(error)),
    };
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.retain(|name| !OWN.contains(&name.as_str()));
    names.sort();
    Ok(names)
}

fn make_folder(path: &Path, mode: u32) -> Result<(), HomeError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(HomeError::io("cannot make folder", path))
}

/// Every folder above the state must let the tasks' user through, and the state itself once it is there.
fn enterable(state: &Path) -> Result<(), HomeError> {
    for folder in state.ancestors() {
        let metadata = match fs::metadata(folder) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(HomeError::io("cannot look at", folder)(error)),
        };
        if metadata.permissions().mode() & 0o001 == 0 {
            return Err(HomeError::Unreachable(folder.to_owned()));
        }
    }
    Ok(())
}

/// Short, the same for the same state folder, and nobody else's.
fn run_folder(state: &Path) -> Result<PathBuf, HomeError> {
    let base = run_base();
    make_folder(&base, 0o711)?;
    let metadata = fs::symlink_metadata(&base).map_err(HomeError::io("cannot look at", &base))?;
    // Anybody may make a folder in /tmp; one that is not ours (or is a link) would let them answer for our sockets.
    if !is_ours(&base) {
        return Err(HomeError::ForeignRun {
            path: base,
            owner: metadata.uid(),
        });
    }
    let digest = Sha256::digest(state.as_os_str().as_encoded_bytes());
    let short: String = digest
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let run = base.join(short);
    make_folder(&run, 0o711)?;
    Ok(run)
}

/// Lets the processes of a cell that was taken down start again.
///
/// # Errors
/// When the mark cannot be removed.
pub fn mark_up(layout: &CellLayout) -> Result<(), HomeError> {
    let mark = layout.down_mark();
    match fs::remove_file(&mark) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(HomeError::io("cannot remove", &mark)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn run_base() -> PathBuf {
    let user = rustix::process::geteuid();
    let given = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|path| {
            // Long ones leave no room for the sockets' own names; in somebody else's folder ours could be replaced.
            path.is_absolute() && path.as_os_str().len() < 30 && is_ours(path)
        });
    match given {
        // Root's login sessions come and go, and this folder with them; so it is not for what root keeps running.
        Some(path) if !(user.is_root() && path.starts_with("/run/user")) => path.join("homeostat"),
        // Not in /tmp, where the system removes what is old: a cell lives for longer than that.
        Some(_) | None if user.is_root() && Path::new("/run").is_dir() => {
            PathBuf::from("/run/homeostat")
        }
        Some(_) | None => PathBuf::from(format!("/tmp/homeostat-{}", user.as_raw())),
    }
}

/// A folder, not a link to one, that belongs to the user of this process.
fn is_ours(path: &Path) -> bool {
    let uid = rustix::process::geteuid().as_raw();
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == uid)
}

/// Holds a block of addresses for as long as it lives.
#[derive(Debug)]
pub struct BlockClaim(#[allow(dead_code)] TcpListener);

/// Claims the block; `None` when another cell has it.
pub fn claim(block: u8) -> Option<BlockClaim> {
    TcpListener::bind((format!("127.77.{block}.254").as_str(), CLAIM_PORT))
        .ok()
        .map(BlockClaim)
}

/// A block that no running cell holds, the same one for the same folder where possible.
fn free_block(state: &Path) -> Result<u8, HomeError> {
    let digest = Sha256::digest(state.as_os_str().as_encoded_bytes());
    let start = u16::from(digest[0]);
    // A cell whose warden died claims nothing and serves on.
    let serving: Vec<u8> = fs::read_to_string("/proc/net/tcp")
        .unwrap_or_default()
        .lines()
        .filter_map(listening_block)
        .collect();
    (0..254u16)
        .filter_map(|offset| u8::try_from((start + offset) % 254 + 1).ok())
        .find(|block| !serving.contains(block) && claim(*block).is_some())
        .ok_or(HomeError::NoBlock)
}

/// The block of a listening socket, from its line in /proc/net/tcp: `0: 01014D7F:1B59 00000000:0000 0A …`, which is the
/// address as a number of this machine, the port, the other side, and the state.
fn listening_block(line: &str) -> Option<u8> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (address, _) = fields.next()?.split_once(':')?;
    let is_listening = fields.nth(1)? == "0A";
    let [first, second, block, _] = u32::from_str_radix(address, 16).ok()?.to_ne_bytes();
    (is_listening && (first, second) == (127, 77)).then_some(block)
}

/// Removes everything of a cell, and nothing else. Its processes must have ended. What else is in the state folder stays,
/// and the folder with it.
///
/// # Errors
/// When something cannot be removed.
pub fn purge(layout: &CellLayout) -> Result<(), HomeError> {
    remove(&layout.run)?;
    // Its identity goes last but for the turn: what is left of an interrupted removal is still known for a cell.
    for name in OWN
        .iter()
        .filter(|name| !["cell.json", TURN].contains(name))
    {
        remove(&layout.state.join(name))?;
    }
    remove(&CellLayout::identity(&layout.state))?;
    remove(&layout.state.join(TURN))?;
    match fs::remove_dir(&layout.state) {
        Ok(()) => Ok(()),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(HomeError::io("cannot remove", &layout.state)(error)),
    }
}

/// Removes a file, a folder with all that is in it, or a link but not what it leads to.
fn remove(path: &Path) -> Result<(), HomeError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(HomeError::io("cannot remove", path)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn name(text: &str) -> CellName {
        CellName::new(text).unwrap()
    }

    #[test]
    fn a_folder_with_other_things_never_becomes_a_cell() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("thesis.tex"), "all of it").unwrap();
        let refused = make(home.path(), &name("shop"), &[]).unwrap_err();
        assert!(
            matches!(refused, HomeError::NotEmpty(_, _))
                && refused.to_string().contains("thesis.tex"),
            "{refused}"
        );
        assert!(take_turn(home.path()).is_err());
        assert_eq!(foreign(home.path()).unwrap(), ["thesis.tex"]);
        assert_eq!(
            fs::read_dir(home.path()).unwrap().count(),
            1,
            "nothing was put there"
        );
    }

    #[test]
    fn a_purge_removes_what_is_the_cells_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let layout = CellLayout::new(folder.path().join("state"), folder.path().join("run"));
        let turn = take_turn(&layout.state).unwrap();
        for name in ["machines", "log"] {
            fs::create_dir_all(layout.state.join(name).join("deep")).unwrap();
        }
        let elsewhere = folder.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("precious"), "").unwrap();
        std::os::unix::fs::symlink(&elsewhere, layout.packages()).unwrap();
        fs::write(layout.state.join("notes"), "").unwrap();
        purge(&layout).unwrap();
        drop(turn);
        assert_eq!(foreign(&layout.state).unwrap(), ["notes"]);
        assert_eq!(fs::read_dir(&layout.state).unwrap().count(), 1);
        assert!(elsewhere.join("precious").exists());
        fs::remove_file(layout.state.join("notes")).unwrap();
        purge(&layout).unwrap();
        assert!(!layout.state.exists());
    }

    #[test]
    fn turns_are_taken_one_after_the_other_also_over_a_purge() {
        let folder = tempfile::tempdir().unwrap();
        let layout = CellLayout::new(folder.path().join("state"), folder.path().join("run"));
        let first = take_turn(&layout.state).unwrap();
        let state = layout.state.clone();
        let second = std::thread::spawn(move || take_turn(&state).unwrap());
        purge(&layout).unwrap();
        drop(first);
        let second = second.join().unwrap();
        let there = fs::metadata(layout.state.join(TURN)).unwrap();
        assert_eq!(
            there.ino(),
            second.metadata().unwrap().ino(),
            "it holds the file that is there"
        );
    }

    #[test]
    fn machines_keep_their_addresses() {
        let machines: Vec<MachineSpec> = ["m1", "m2", "m3"]
            .map(|name| {
                let json = serde_json::json!({"name": name, "rack": "r", "capacity": {"cpu": 1, "memory": 1}});
                serde_json::from_value(json).unwrap()
            })
            .to_vec();
        let addresses = |machines: &[LocalMachine]| {
            machines
                .iter()
                .map(|m| m.address.clone())
                .collect::<Vec<_>>()
        };
        let before = CellIdentity {
            format: STATE_FORMAT,
            name: name("c"),
            block: 9,
            run: PathBuf::new(),
            task_user: None,
            machines: addressed(&machines[1..], 9, None),
        };
        assert_eq!(addresses(&before.machines), ["127.77.9.1", "127.77.9.2"]);
        let after = addressed(&machines, 9, Some(&before));
        assert_eq!(
            addresses(&after),
            ["127.77.9.3", "127.77.9.1", "127.77.9.2"]
        );
    }

    #[test]
    fn a_block_in_which_somebody_listens_is_seen() {
        let listener = TcpListener::bind("127.77.253.7:0").unwrap();
        let found = |text: String| {
            text.lines()
                .filter_map(listening_block)
                .any(|block| block == 253)
        };
        assert!(found(fs::read_to_string("/proc/net/tcp").unwrap()));
        drop(listener);
        let connected = "  0: 07FD4D7F:1B59 0100007F:8E2C 01 00000000:00000000";
        assert!(!found(connected.to_owned()), "only listeners count");
        assert!(
            !found(connected.replace(" 01 ", " 0A ").replace("4D7F", "007F")),
            "another network"
        );
    }
}
