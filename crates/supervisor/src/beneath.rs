//! Writes a file somewhere below a folder that belongs to another user.
//!
//! A cell that root runs puts files into the folders of tasks that are nobody's friends: whoever runs in such a folder may
//! put a link there that leads to a file of root's. So no link is followed below the folder, every file is a new one,
//! and each step is taken from the folder that was opened before it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fchown, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::launch::UserIds;

const FOLDER: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const NEW_FILE: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// Reading and writing for the owner alone.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Replaces the file at `path` below `folder` by one with this content, whole or not at all, which only `owner` (`None`:
/// the user of this process) can read. Folders on the way are made, and are the owner's too.
///
/// # Errors
/// When `path` would leave `folder`, or leads through a link; and those of the disk.
pub fn write(folder: &Path, path: &Path, content: &[u8], owner: Option<UserIds>) -> io::Result<()> {
    let mut names = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => names.push(name),
            Component::Prefix(_)
            | Component::RootDir
            | Component::CurDir
            | Component::ParentDir => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "it is not inside the folder",
                ));
            }
        }
    }
    let Some(name) = names.pop() else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it has no name",
        ));
    };
    let mut at = openat(CWD, folder, FOLDER, Mode::empty())?;
    for name in names {
        at = enter(&at, Path::new(name), owner)?;
    }
    let mut temporary = name.to_owned();
    temporary.push(".new");
    match unlinkat(&at, &temporary, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let mut file = File::from(openat(&at, &temporary, NEW_FILE, FILE_MODE)?);
    give(&file, owner)?;
    file.write_all(content)?;
    drop(file);
    Ok(renameat(&at, &temporary, &at, name)?)
}

/// Opens a folder in `at`, which is made if it is not there.
fn enter(at: &OwnedFd, name: &Path, owner: Option<UserIds>) -> io::Result<OwnedFd> {
    match mkdirat(at, name, Mode::RWXU) {
        Ok(()) => {
            let made = openat(at, name, FOLDER, Mode::empty())?;
            give(&made, owner)?;
            Ok(made)
        }
        Err(Errno::EXIST) => Ok(openat(at, name, FOLDER, Mode::empty())?),
        Err(error) => Err(error.into()),
    }
}

fn give(what: impl AsFd, owner: Option<UserIds>) -> io::Result<()> {
    let Some(owner) = owner else { return Ok(()) };
    let (user, group) = (
        rustix::fs::Uid::from_raw(owner.uid),
        rustix::fs::Gid::from_raw(owner.gid),
    );
    Ok(fchown(what, Some(user), Some(group))?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_is_written_with_its_folders_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        for content in ["one", "two"] {
            write(
                folder.path(),
                Path::new("conf/deep/app.toml"),
                content.as_bytes(),
                None,
            )
            .unwrap();
            assert_eq!(
                fs::read_to_string(folder.path().join("conf/deep/app.toml")).unwrap(),
                content
            );
        }
        let mode = fs::metadata(folder.path().join("conf/deep/app.toml"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(folder.path().join("conf/deep"))
                .unwrap()
                .count(),
            1,
            "nothing is left over"
        );
    }

    #[test]
    fn no_link_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let precious = elsewhere.path().join("app.toml");
        fs::write(&precious, "precious").unwrap();
        symlink(elsewhere.path(), folder.path().join("conf")).unwrap();
        write(folder.path(), Path::new("conf/app.toml"), b"mine", None).unwrap_err();
        for name in ["app.toml", "app.toml.new"] {
            symlink(&precious, folder.path().join(name)).unwrap();
        }
        write(folder.path(), Path::new("app.toml"), b"mine", None).unwrap();
        assert_eq!(
            fs::read_to_string(folder.path().join("app.toml")).unwrap(),
            "mine"
        );
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    }

    #[test]
    fn the_folder_is_not_left() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["../x", "/etc/x", "a/../../x", ""] {
            write(folder.path(), Path::new(path), b"", None).unwrap_err();
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
