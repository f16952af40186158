//! The output of a task: `out.log`, and older pieces as `out.log.1`, `out.log.2`, never more than a fixed amount.
//!
//! A task must not die or hang because its log cannot be written: what does not go to the disk is dropped and counted,
//! and the first line that goes through again says how much is missing.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The file that is written to.
pub const CURRENT: &str = "out.log";

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A file that reaches this size is put aside.
    pub file_bytes: u64,
    /// How many files there are, the current one included.
    pub files: u32,
}

impl Limits {
    /// 12 MiB in all: days of a quiet service, minutes of a loud one, and a machine with a hundred tasks bears it.
    pub const DEFAULT: Limits = Limits {
        file_bytes: 4 * 1024 * 1024,
        files: 3,
    };
}

#[derive(Debug)]
pub struct Log {
    folder: PathBuf,
    limits: Limits,
    file: Option<File>,
    size: u64,
    lost_bytes: u64,
}

impl Log {
    /// Opens nothing yet: a folder that cannot be written is met, and counted, like a full disk.
    pub fn new(folder: &Path, limits: Limits) -> Self {
        Self {
            folder: folder.to_owned(),
            limits,
            file: None,
            size: 0,
            lost_bytes: 0,
        }
    }

    /// What could not be written since the last line about it.
    pub fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    /// Writes, or drops and counts.
    pub fn write(&mut self, bytes: &[u8]) {
        if self.lost_bytes > 0 {
            let note = format!(
                "[homeostat: {} bytes of output are missing here, they could not be written]\n",
                self.lost_bytes
            );
            match self.append(note.as_bytes()) {
                (_, Ok(())) => self.lost_bytes = 0,
                // Half a note says nothing; the next one carries the sum.
                (_, Err(_)) => {
                    self.lost_bytes += bytes.len() as u64;
                    return;
                }
            }
        }
        let (written, result) = self.append(bytes);
        if result.is_err() {
            self.lost_bytes += (bytes.len() - written) as u64;
        }
    }

    /// How much was written, and whether that was all.
    fn append(&mut self, bytes: &[u8]) -> (usize, io::Result<()>) {
        if self.file.is_some() && self.size + bytes.len() as u64 > self.limits.file_bytes {
            self.file = None;
            if let Err(error) = self.rotate() {
                return (0, Err(error));
            }
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => match open(&self.folder) {
                Ok((file, size)) => {
                    self.size = size;
                    self.file.insert(file)
                }
                Err(error) => return (0, Err(error)),
            },
        };
        let mut done = 0;
        while done < bytes.len() {
            match file.write(&bytes[done..]) {
                Ok(0) => return (done, Err(io::ErrorKind::WriteZero.into())),
                Ok(n) => {
                    done += n;
                    self.size += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (done, Err(error)),
            }
        }
        (done, Ok(()))
    }

    /// `out.log.1` becomes `out.log.2` and so on; the oldest is replaced.
    fn rotate(&self) -> io::Result<()> {
        let name = |age: u32| match age {
            0 => self.folder.join(CURRENT),
            _ => self.folder.join(format!("{CURRENT}.{age}")),
        };
        let oldest = self.limits.files.saturating_sub(1);
        if oldest == 0 {
            return fs::remove_file(name(0));
        }
        for age in (0..oldest).rev() {
            match fs::rename(name(age), name(age + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

/// Links are not followed: the folder may belong to the task's user, and this may run as root.
fn open(folder: &Path) -> io::Result<(File, u64)> {
    if !folder.is_dir() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
    }
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(folder.join(CURRENT))?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("out.log is not a plain file"));
    }
    Ok((file, meta.len()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SMALL: Limits = Limits {
        file_bytes: 100,
        files: 3,
    };

    #[test]
    fn old_pieces_are_kept_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::new(dir.path(), SMALL);
        for n in 0..10 {
            log.write(format!("{n:049}\n").as_bytes());
        }
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("out.log"), format!("{:049}\n{:049}\n", 8, 9));
        assert_eq!(read("out.log.1"), format!("{:049}\n{:049}\n", 6, 7));
        assert_eq!(read("out.log.2"), format!("{:049}\n{:049}\n", 4, 5));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_restart_goes_on_in_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        Log::new(dir.path(), SMALL).write(&[b'a'; 60]);
        let mut log = Log::new(dir.path(), SMALL);
        log.write(&[b'b'; 30]);
        log.write(&[b'c'; 30]);
        assert_eq!(fs::read(dir.path().join("out.log")).unwrap(), [b'c'; 30]);
        assert_eq!(
            fs::metadata(dir.path().join("out.log.1")).unwrap().len(),
            90
        );
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_said() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs");
        fs::write(&logs, "a file where the folder should be").unwrap();
        let mut log = Log::new(&logs, SMALL);
        log.write(b"lost\n");
        log.write(b"lost too\n");
        assert_eq!(log.lost_bytes(), 14);
        fs::remove_file(&logs).unwrap();
        log.write(b"kept\n");
        let text = fs::read_to_string(logs.join("out.log")).unwrap();
        assert!(text.starts_with("[homeostat: 14 bytes of output are missing here"));
        assert!(text.ends_with("\nkept\n"));
        assert_eq!(log.lost_bytes(), 0);
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("precious");
        fs::write(&target, "").unwrap();
        let logs = dir.path().join("logs");
        fs::create_dir(&logs).unwrap();
        std::os::unix::fs::symlink(&target, logs.join(CURRENT)).unwrap();
        let mut log = Log::new(&logs, SMALL);
        log.write(b"x");
        assert_eq!(log.lost_bytes(), 1);
        assert_eq!(fs::read(&target).unwrap(), b"");
    }
}
