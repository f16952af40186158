//! What a sandbox changed: the upper layer of its overlay, compared entry by entry.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::sandbox::Layers;
use crate::shown;

/// Lock files, backups and notes of the programs that fixes run: not part of a state. Of groups, gshadow holds passwords,
/// which no fix sets, and a copy of what is in group, which grpck mends.
const NOT_STATE: [&str; 13] = [
    "/etc/gshadow",
    "/etc/.pwd.lock",
    "/etc/passwd-",
    "/etc/group-",
    "/etc/shadow-",
    "/etc/gshadow-",
    "/etc/subuid-",
    "/etc/subgid-",
    "/var/log",
    "/var/cache",
    "/run",
    "/tmp",
    "/var/tmp",
];

/// Names of what useradd and its like leave when they are killed: `passwd.lock`, `passwd.4711`, `passwd+`.
const ACCOUNT_FILES: [&str; 6] = ["passwd", "group", "shadow", "gshadow", "subuid", "subgid"];

/// The part of a text that is shown of a difference.
const CONTEXT: usize = 120;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Snapshot(BTreeMap<PathBuf, Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    what: What,
    mode: u32,
    uid: u32,
    gid: u32,
    links: u64,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    File(Vec<u8>),
    Folder,
    Link(PathBuf),
    /// It was there below, and is not any more.
    Gone,
    /// A fifo, a socket or a device, by type and number.
    Other(u32, u64),
}

/// The first difference between two states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub path: PathBuf,
    /// What, in one line; of texts the first line that differs.
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

impl Snapshot {
    /// What stands in the upper layers and differs from what is below them.
    pub(super) fn take(layers: &Layers) -> io::Result<Self> {
        let mut entries = BTreeMap::new();
        // Before the first run there are none.
        for layer in layers.0.iter().filter(|layer| layer.upper.is_dir()) {
            collect(&layer.upper, &layer.at, &mut entries)?;
        }
        Ok(Self(entries))
    }

    pub(super) fn difference(&self, other: &Self) -> Option<Difference> {
        let paths = self.0.keys().chain(other.0.keys());
        let mut paths: Vec<_> = paths.collect();
        paths.sort();
        paths.dedup();
        paths.into_iter().find_map(|path| {
            let what = differs(self.0.get(path), other.0.get(path))?;
            Some(Difference {
                path: path.clone(),
                what,
            })
        })
    }
}

fn collect(upper: &Path, at: &Path, entries: &mut BTreeMap<PathBuf, Entry>) -> io::Result<()> {
    for entry in fs::read_dir(upper)? {
        let entry = entry?;
        let at = at.join(entry.file_name());
        if is_not_state(&at) {
            continue;
        }
        let path = entry.path();
        let found = Entry::read(&path)?;
        if Entry::read(&at).ok().as_ref() != Some(&found) {
            entries.insert(at.clone(), found);
        }
        if entry.file_type()?.is_dir() {
            collect(&path, &at, entries)?;
        }
    }
    Ok(())
}

fn is_not_state(path: &Path) -> bool {
    if NOT_STATE.iter().any(|known| path.starts_with(known)) {
        return true;
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.parent() == Some(Path::new("/etc"))
        && ACCOUNT_FILES.iter().any(|file| {
            let rest = name.strip_prefix(file);
            rest.is_some_and(|rest| rest == "+" || rest.starts_with('.'))
        })
}

impl Entry {
    fn read(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        let kind = metadata.file_type();
        let what = if kind.is_file() {
            What::File(fs::read(path)?)
        } else if kind.is_dir() {
            What::Folder
        } else if kind.is_symlink() {
            What::Link(fs::read_link(path)?)
        } else if kind.is_char_device() && metadata.rdev() == 0 {
            // How overlayfs writes it down (filesystems/overlayfs.rst, whiteouts).
            return Ok(Self::gone());
        } else {
            What::Other(metadata.mode() & 0o170_000, metadata.rdev())
        };
        Ok(Self {
            links: links(&what, &metadata),
            what,
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            attributes: attributes(path)?,
        })
    }

    fn gone() -> Self {
        Self {
            what: What::Gone,
            mode: 0,
            uid: 0,
            gid: 0,
            links: 0,
            attributes: BTreeMap::new(),
        }
    }
}

/// Of a folder they count what is in it, which differs between the layers.
fn links(what: &What, metadata: &Metadata) -> u64 {
    match what {
        What::Folder => 0,
        What::File(_) | What::Link(_) | What::Gone | What::Other(..) => metadata.nlink(),
    }
}

/// Without those in which overlayfs keeps its own notes.
fn attributes(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; 1 << 16];
    let count = match rustix::fs::llistxattr(path, &mut names) {
        Ok(count) => count,
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let mut all = BTreeMap::new();
    for name in names[..count].split(|byte| *byte == 0) {
        if name.is_empty() || name.starts_with(b"trusted.overlay.") {
            continue;
        }
        let mut value = vec![0; 1 << 16];
        let count = rustix::fs::lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value)?;
        value.truncate(count);
        all.insert(name.to_vec(), value);
    }
    Ok(all)
}

fn differs(first: Option<&Entry>, second: Option<&Entry>) -> Option<String> {
    let (first, second) = match (first, second) {
        (Some(first), Some(second)) if first == second => return None,
        (None, None) => return None,
        (Some(first), Some(second)) => (first, second),
        (Some(only), None) => return Some(format!("{} the first time only", only.what.words())),
        (None, Some(only)) => return Some(format!("{} the second time only", only.what.words())),
    };
    Some(match (&first.what, &second.what) {
        (What::File(one), What::File(two)) if one != two => lines(one, two),
        (one, two) if one != two => format!("{} and then {}", one.words(), two.words()),
        _ if first.mode != second.mode => {
            format!("mode {:04o} and then {:04o}", first.mode, second.mode)
        }
        _ if (first.uid, first.gid) != (second.uid, second.gid) => format!(
            "owner {}:{} and then {}:{}",
            first.uid, first.gid, second.uid, second.gid
        ),
        _ if first.links != second.links => {
            format!("{} hard links and then {}", first.links, second.links)
        }
        _ => "extended attributes differ".to_owned(),
    })
}

/// The first line that differs, as a diff.
fn lines(one: &[u8], two: &[u8]) -> String {
    let split = |bytes: &[u8]| -> Vec<String> {
        let text = String::from_utf8_lossy(bytes);
        text.split('\n').map(str::to_owned).collect()
    };
    let (one, two) = (split(one), split(two));
    let at = one
        .iter()
        .zip(&two)
        .take_while(|(one, two)| one == two)
        .count();
    let line = |sign: char, lines: &[String]| match lines.get(at) {
        None => String::new(),
        Some(line) => {
            let end = line.chars().take(CONTEXT).collect::<String>();
            format!("\n{sign} {}", shown::head(end.as_bytes()))
        }
    };
    format!("line {}:{}{}", at + 1, line('-', &one), line('+', &two))
}

impl What {
    fn words(&self) -> &'static str {
        match self {
            What::File(_) => "a file",
            What::Folder => "a folder",
            What::Link(_) => "a link",
            What::Gone => "removed",
            What::Other(..) => "a special file",
        }
    }
}
