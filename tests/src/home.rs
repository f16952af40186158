//! A folder for everything of one cell: its file, its state, its sockets.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// The user that owns nothing, on Debian and elsewhere.
pub const NOBODY: u32 = 65_534;

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Removed when dropped.
pub struct Home {
    /// Before the folder: it is dropped first.
    disk: Option<Disk>,
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
        let home = Self {
            disk: None,
            folder,
            user,
        };
        fs::create_dir(home.runtime()).expect("a new folder takes another");
        for path in [home.path().to_owned(), home.runtime()] {
            // Tasks run as a user of their own, who must be let through.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o711))
                .expect("the owner may set modes");
            if let Some(user) = user {
                std::os::unix::fs::chown(&path, Some(user), Some(user))
                    .expect("root may give folders away");
            }
        }
        home
    }

    /// Mounts a small file system at `disk` in this folder. Only root can.
    #[must_use]
    pub fn with_disk(mut self, kib: u32) -> Self {
        self.disk = Some(Disk::mount(&self.path().join("disk"), kib));
        self
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Takes all the room that is left on the disk.
    pub fn fill_disk(&self) {
        let mut file = fs::File::create(self.filler()).expect("the disk is mounted");
        let block = [1u8; 4096];
        while file.write_all(&block).is_ok() {}
    }

    /// Gives it back.
    pub fn free_disk(&self) {
        fs::remove_file(self.filler()).expect("the disk was filled");
    }

    fn filler(&self) -> PathBuf {
        self.path().join("disk/filler")
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
        fs::write(&path, text)
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
            .expect("the owner may set modes");
        path
    }
}

/// A file system in memory; unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path, kib: u32) -> Self {
        fs::create_dir(at).expect("a new folder takes another");
        let options = format!("size={kib}k,mode=0755");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "e2e"])
            .arg(at)
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "cannot mount {}",
            at.display()
        );
        Self(at.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a test that failed may have left something that uses it, and is swept up elsewhere.
        let status = Command::new("umount").arg("--lazy").arg(&self.0).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.0.display());
        }
    }
}
