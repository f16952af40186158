//! A folder for everything of one cell: its file, its state, its sockets.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The user that owns nothing, on Debian and elsewhere.
pub const NOBODY: u32 = 65_534;

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Removed when dropped.
pub struct Home {
    folder: TempDir,
    user: Option<u32>,
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Home {
    pub fn new() -> Self {
        Self::of(None)
    }

    /// A home whose cell is run by another user. Only root can make one.
    pub fn of_user(user: u32) -> Self {
        Self::of(Some(user))
    }

    fn of(user: Option<u32>) -> Self {
        // Not TMPDIR: sockets have short paths, and other users must be let through.
        let folder = tempfile::Builder::new()
            .prefix("hs-e2e-")
            .tempdir_in("/tmp")
            .expect("a folder can be made in /tmp");
        let home = Self { folder, user };
        fs::create_dir(home.runtime()).expect("a new folder takes another");
        for path in [home.path().to_owned(), home.runtime()] {
            // Tasks run as a user of their own, who must be let through.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o711)).expect("the owner may set modes");
            if let Some(user) = user {
                std::os::unix::fs::chown(&path, Some(user), Some(user)).expect("root may give folders away");
            }
        }
        home
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// `XDG_RUNTIME_DIR` of the cell: its sockets are below it.
    pub fn runtime(&self) -> PathBuf {
        self.path().join("r")
    }

    pub fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    pub fn user(&self) -> Option<u32> {
        self.user
    }

    /// Writes a file that the cell's user can read.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("the owner may set modes");
        path
    }
}
