//! Saves a former holder's binlogs before its unacknowledged tail is dropped (`Recovery::DropTail`).
//!
//! What is dropped was acknowledged to nobody, or its successor has it; still a person may want to see it. So the files
//! which can hold it are copied first; when the server has truncated its log, what is missing is printed from the copy into
//! `dropped/N/tail.sql`, as rows for people and as events that can be applied again, and the copy goes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use homeostat_decider::Gtid;

use super::config::Programs;
use crate::mariadb::gtid::beyond;
use crate::mariadb::relay;

/// Tails that are kept; the oldest goes first.
const KEPT: usize = 16;

/// The copy of what could be dropped.
#[derive(Debug)]
pub(crate) struct SavedTail {
    folder: PathBuf,
    files: Vec<PathBuf>,
    /// Where the log ended before.
    last: Option<Gtid>,
}

/// Copies the binlogs from the oldest that may hold transactions which the engine has not committed.
///
/// # Errors
/// When they cannot be read or copied: then nothing may be dropped.
pub(crate) fn save(data: &Path) -> io::Result<SavedTail> {
    let files = relay::files(&data.join("sql").join("binlog.index"))?;
    let newest = files.last().map(std::slice::from_ref).unwrap_or_default();
    let checkpoint = relay::scan(newest)?.checkpoint;
    let from = checkpoint
        .and_then(|name| files.iter().position(|file| file.ends_with(&name)))
        .unwrap_or(0);
    let folder = next_folder(&data.join("dropped"))?;
    let mut copy = Command::new("cp");
    copy.args(["-a", "--reflink=auto", "--"])
        .args(&files[from..])
        .arg(&folder)
        .stdin(Stdio::null());
    let status = copy.status()?;
    if !status.success() {
        return Err(io::Error::other(format!(
            "cp to {} failed: {status}",
            folder.display()
        )));
    }
    let last = relay::scan(&files[from..])?.last;
    let copies = files[from..]
        .iter()
        .filter_map(|file| file.file_name())
        .map(|name| folder.join(name));
    Ok(SavedTail {
        files: copies.collect(),
        folder,
        last,
    })
}

/// `dropped/1`, `dropped/2`, … The numbers only rise.
fn next_folder(parent: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(parent)?;
    let mut numbers = Vec::new();
    for entry in fs::read_dir(parent)? {
        numbers.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok()),
        );
    }
    numbers.sort_unstable();
    for old in &numbers[..numbers.len().saturating_sub(KEPT - 1)] {
        fs::remove_dir_all(parent.join(old.to_string()))?;
    }
    let folder = parent.join(
        numbers
            .last()
            .map_or(1, |last| last.saturating_add(1))
            .to_string(),
    );
    fs::create_dir(&folder)?;
    Ok(folder)
}

impl SavedTail {
    /// After the restart: prints what is in the copy beyond `now` and says where; `None` when nothing was dropped.
    ///
    /// # Errors
    /// When that cannot be done; the copied files stay.
    pub(crate) fn conclude(
        self,
        programs: &Programs,
        now: Option<Gtid>,
    ) -> io::Result<Option<PathBuf>> {
        if !beyond(self.last, now) {
            fs::remove_dir_all(&self.folder)?;
            return Ok(None);
        }
        let decoded = self.folder.join("tail.sql");
        let mut command = Command::new(&programs.binlog);
        command.args(["--no-defaults", "--verbose"]);
        if let Some(now) = now {
            command.arg(format!("--start-position={now}"));
        }
        let printed = fs::File::create(&decoded)?;
        // A torn last event makes it fail after everything else is written, so its exit code says nothing; that the last
        // whole transaction is there does.
        command
            .args(&self.files)
            .stdin(Stdio::null())
            .stdout(printed)
            .stderr(Stdio::null())
            .status()?;
        let last = self
            .last
            .map(|gtid| gtid.sequence.to_string())
            .unwrap_or_default();
        if fs::read(&decoded)?
            .windows(last.len())
            .any(|window| window == last.as_bytes())
        {
            for file in &self.files {
                fs::remove_file(file)?;
            }
        }
        Ok(Some(decoded))
    }
}
