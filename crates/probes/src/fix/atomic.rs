//! Files, folders and links that appear under their name only when they are complete.
//!
//! Everything is made beside the name, under one fixed name for what is not finished, and then renamed. Who makes
//! something in a folder holds a lock on the folder meanwhile; so what is found under the unfinished name was left by
//! somebody who was killed, and goes.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, FlockOperation, Gid, Mode, OFlags, ResolveFlags, Uid, fchmod, fchown, flock, fsync,
    mkdirat, openat, openat2, renameat, symlinkat, unlinkat,
};

use crate::local::Cancelled;

/// How long somebody else may hold the folder.
const LOCK_WITHIN: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Written in pieces of this many bytes, between which it can be cancelled.
const PIECE: usize = 1 << 20;

/// Whether symlinks on the way to a folder are followed. In a user's home they must not be: the user could lead us
/// anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Symlinks {
    Followed,
    Refused,
}

/// Whom something belongs to; `None`: whoever makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Ids {
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

impl Ids {
    fn is_empty(self) -> bool {
        self.uid.is_none() && self.gid.is_none()
    }

    fn give<F: AsFd>(self, file: F) -> io::Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        Ok(fchown(
            file,
            self.uid.map(Uid::from_raw),
            self.gid.map(Gid::from_raw),
        )?)
    }
}

/// The folder that something is in, locked, and the names in it.
pub(crate) struct Place {
    folder: OwnedFd,
    name: PathBuf,
    unfinished: PathBuf,
}

impl Place {
    pub(crate) fn open(path: &Path, symlinks: Symlinks) -> io::Result<Self> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let folder = match symlinks {
            Symlinks::Followed => rustix::fs::open(parent, flags, Mode::empty())?,
            Symlinks::Refused => {
                let resolve = ResolveFlags::NO_SYMLINKS;
                openat2(rustix::fs::CWD, parent, flags, Mode::empty(), resolve)?
            }
        };
        let end = Instant::now() + LOCK_WITHIN;
        while let Err(errno) = flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            if errno != rustix::io::Errno::WOULDBLOCK || Instant::now() > end {
                return Err(errno.into());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        // Names have 255 bytes at most.
        let mut short = name.to_string_lossy().into_owned();
        while short.len() > 200 {
            short.pop();
        }
        let place = Self {
            folder,
            name: name.into(),
            unfinished: PathBuf::from(format!(".{short}.homeostat-unfinished")),
        };
        place.clear()?;
        Ok(place)
    }

    /// Removes what somebody who was killed did not finish. Folders are empty as long as they are unfinished.
    fn clear(&self) -> io::Result<()> {
        use rustix::io::Errno;
        match unlinkat(&self.folder, &self.unfinished, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => Ok(unlinkat(
                &self.folder,
                &self.unfinished,
                AtFlags::REMOVEDIR,
            )?),
            Err(errno) => Err(errno.into()),
        }
    }

    /// What `make` makes under the unfinished name gets its name, and both are on disk.
    fn complete(&self, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        let made = make(&self.unfinished).and_then(|()| {
            Ok(renameat(
                &self.folder,
                &self.unfinished,
                &self.folder,
                &self.name,
            )?)
        });
        if made.is_err() {
            // The first error is the one to report.
            let _ = self.clear();
        }
        made?;
        Ok(fsync(&self.folder)?)
    }

    pub(crate) fn write(
        &self,
        content: &[u8],
        mode: u32,
        ids: Ids,
        cancelled: &Cancelled,
    ) -> io::Result<()> {
        self.complete(|name| {
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = openat(&self.folder, name, flags, Mode::from_raw_mode(0o600))?;
            let mut file = File::from(file);
            for piece in content.chunks(PIECE) {
                if cancelled.is_set() {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                file.write_all(piece)?;
            }
            // In this order: a change of owner takes set-user-id away.
            ids.give(&file)?;
            fchmod(&file, Mode::from_raw_mode(mode))?;
            file.sync_all()?;
            if cancelled.is_set() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            Ok(())
        })
    }

    pub(crate) fn make_folder(&self, mode: u32, ids: Ids) -> io::Result<()> {
        self.complete(|name| {
            mkdirat(&self.folder, name, Mode::from_raw_mode(0o700))?;
            let folder = self.open_in(name, OFlags::DIRECTORY)?;
            ids.give(&folder)?;
            Ok(fchmod(&folder, Mode::from_raw_mode(mode))?)
        })
    }

    pub(crate) fn link(&self, target: &Path) -> io::Result<()> {
        self.complete(|name| Ok(symlinkat(target, &self.folder, name)?))
    }

    pub(crate) fn change_mode(&self, mode: u32) -> io::Result<()> {
        Ok(fchmod(
            self.open_in(&self.name, OFlags::empty())?,
            Mode::from_raw_mode(mode),
        )?)
    }

    /// Takes no set-user-id away that was there: the kernel does, and it is given back.
    pub(crate) fn change_owner(&self, ids: Ids) -> io::Result<()> {
        let file = self.open_in(&self.name, OFlags::empty())?;
        let mode = rustix::fs::fstat(&file)?.st_mode;
        ids.give(&file)?;
        Ok(fchmod(&file, Mode::from_raw_mode(mode))?)
    }

    pub(crate) fn remove(&self) -> io::Result<()> {
        unlinkat(&self.folder, &self.name, AtFlags::empty())?;
        Ok(fsync(&self.folder)?)
    }

    pub(crate) fn remove_folder(&self) -> io::Result<()> {
        unlinkat(&self.folder, &self.name, AtFlags::REMOVEDIR)?;
        Ok(fsync(&self.folder)?)
    }

    /// Not through a symlink; and without waiting, should it be a fifo by now.
    fn open_in(&self, name: &Path, more: OFlags) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | more;
        Ok(openat(&self.folder, name, flags, Mode::empty())?)
    }
}
