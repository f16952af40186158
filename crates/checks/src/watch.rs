//! Tells when files that checks are about may have changed, so that nobody has to poll them.
//!
//! What is watched is the folder of a file, since files are replaced by renaming others over them; while that is not
//! there, the nearest folder above it that is. Whatever stirs there is worth a look; the engine sees to it that the looks
//! do not become too many.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use homeostat_prodtest::CheckId;
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

#[derive(Debug)]
pub(crate) struct Watcher(Option<Files>);

#[derive(Debug)]
struct Files {
    fd: AsyncFd<OwnedFd>,
    paths: BTreeMap<PathBuf, BTreeSet<CheckId>>,
    /// Which folder a watch is of, and which name in it matters to which path.
    watches: BTreeMap<i32, BTreeMap<OsString, BTreeSet<PathBuf>>>,
}

const WHAT: inotify::WatchFlags = inotify::WatchFlags::CREATE
    .union(inotify::WatchFlags::DELETE)
    .union(inotify::WatchFlags::MODIFY)
    .union(inotify::WatchFlags::ATTRIB)
    .union(inotify::WatchFlags::MOVED_FROM)
    .union(inotify::WatchFlags::MOVED_TO)
    .union(inotify::WatchFlags::DELETE_SELF)
    .union(inotify::WatchFlags::MOVE_SELF)
    .union(inotify::WatchFlags::ONLYDIR);

impl Watcher {
    pub(crate) fn nothing() -> Self {
        Self(None)
    }

    /// # Errors
    /// When the kernel gives no watch: there are as many as `fs.inotify.max_user_watches`.
    pub(crate) fn of<'a>(paths: impl Iterator<Item = (CheckId, &'a Path)>) -> io::Result<Self> {
        let mut by_path: BTreeMap<PathBuf, BTreeSet<CheckId>> = BTreeMap::new();
        for (check, path) in paths {
            by_path.entry(path.to_owned()).or_default().insert(check);
        }
        if by_path.is_empty() {
            return Ok(Self::nothing());
        }
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let fd = inotify::init(flags)?;
        let mut files = Files {
            // SAFETY: an OwnedFd is the same open descriptor for as long as it lives, and nobody can reach into the
            // AsyncFd to replace it.
            fd: unsafe { AsyncFd::register(fd) }?,
            paths: by_path,
            watches: BTreeMap::new(),
        };
        for path in files.paths.keys().cloned().collect::<Vec<_>>() {
            files.watch(&path)?;
        }
        Ok(Self(Some(files)))
    }

    /// Waits until something may have changed, and says which checks it concerns. Without files it waits for ever.
    pub(crate) async fn changed(&mut self) -> BTreeSet<CheckId> {
        match &mut self.0 {
            None => std::future::pending().await,
            Some(files) => files.changed().await,
        }
    }
}

impl Files {
    fn watch(&mut self, path: &Path) -> io::Result<()> {
        let mut name = path.file_name().map(OsString::from).unwrap_or_default();
        let mut folder = path.parent().unwrap_or(path);
        loop {
            match inotify::add_watch(self.fd.get_ref(), folder, WHAT) {
                Ok(watch) => {
                    let names = self.watches.entry(watch).or_default();
                    names.entry(name).or_default().insert(path.to_owned());
                    return Ok(());
                }
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {
                    let Some(above) = folder.parent() else {
                        return Ok(());
                    };
                    name = folder.file_name().map(OsString::from).unwrap_or_default();
                    folder = above;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn changed(&mut self) -> BTreeSet<CheckId> {
        loop {
            let Ok(mut ready) = self.fd.readable().await else {
                return std::future::pending().await;
            };
            let (paths, again) = read(self.fd.get_ref(), &self.watches);
            ready.clear_ready();
            drop(ready);
            for path in &again {
                // What cannot be watched any more is polled, as everything is beside being watched.
                let _ = self.watch(path);
            }
            let checks: BTreeSet<CheckId> = paths
                .iter()
                .filter_map(|path| self.paths.get(path))
                .flatten()
                .copied()
                .collect();
            if !checks.is_empty() {
                return checks;
            }
        }
    }
}

/// Paths that may have changed, and those whose folder came or went, so that they have to be watched elsewhere.
fn read(
    fd: &OwnedFd,
    watches: &BTreeMap<i32, BTreeMap<OsString, BTreeSet<PathBuf>>>,
) -> (BTreeSet<PathBuf>, BTreeSet<PathBuf>) {
    let (mut changed, mut again) = (BTreeSet::new(), BTreeSet::new());
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(fd, &mut buffer);
    // Ends with WOULDBLOCK once everything was read.
    while let Ok(event) = reader.next() {
        let events = event.events();
        if events.contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
            changed.extend(
                watches
                    .values()
                    .flat_map(BTreeMap::values)
                    .flatten()
                    .cloned(),
            );
            continue;
        }
        let Some(names) = watches.get(&event.wd()) else {
            continue;
        };
        match event.file_name() {
            Some(name) => {
                let name = std::ffi::OsStr::from_bytes(name.to_bytes());
                let paths = names.get(name).into_iter().flatten();
                let come = inotify::ReadFlags::CREATE | inotify::ReadFlags::MOVED_TO;
                if events.intersects(come) {
                    again.extend(paths.clone().filter(|path| !path.ends_with(name)).cloned());
                }
                changed.extend(paths.cloned());
            }
            // The folder itself went away or changed.
            None => {
                let paths: Vec<&PathBuf> = names.values().flatten().collect();
                again.extend(paths.iter().copied().cloned());
                changed.extend(paths.into_iter().cloned());
            }
        }
    }
    (changed, again)
}
