//! The folders of a copy, and how one takes the place of the data folder so that a keeper killed at any moment leaves either
//! the old data folder or the new one, never a part of one.
//!
//! | name beside `sql` | what it is | found at a start of the keeper |
//! |---|---|---|
//! | `sql.incoming` | a copy being made | removed |
//! | `sql.ready` | a whole copy, synced to disk | takes the name `sql` where that is free, else removed |
//! | `sql.aside-EPOCH-TIME` | the former data folder of a member that differed from the primary | stays |
//! | `sql.discard` | a former data folder that nobody wants | removed |
//!
//! The way: `incoming` is synced and becomes `ready`; `sql` is moved aside; `ready` becomes `sql`. Killed before the second
//! step, the copy is begun anew; killed between the second and the third, the next start finishes.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use homeostat_model::{Bytes, Epoch, UnixMillis};
use homeostat_supervisor::launch::UserIds;
use rustix::fs::{statvfs, syncfs};

use super::{CopyError, io_error};

const SQL: &str = "sql";
const INCOMING: &str = "sql.incoming";
const READY: &str = "sql.ready";
const DISCARD: &str = "sql.discard";
const ASIDE: &str = "sql.aside-";
/// Folders kept aside at most; the oldest goes when there is one more.
const KEPT: usize = 3;

/// What becomes of the data folder that the copy replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Former {
    /// It may hold what nobody else has: a person may want to see it.
    KeptAside {
        epoch: Epoch,
        at: UnixMillis,
    },
    Discarded,
}

/// Cleans up behind an earlier keeper; says what it finished, if it did. Nothing may be running in these folders.
///
/// # Errors
/// When something cannot be removed or renamed.
pub fn recover(data: &Path) -> Result<Option<&'static str>, CopyError> {
    let (sql, ready) = (data.join(SQL), data.join(READY));
    let mut finished = None;
    if ready.exists() && !sql.exists() {
        rename(&ready, &sql)?;
        finished = Some("the copy of a peer took its place as the data folder");
    }
    clean(data)?;
    Ok(finished)
}

/// Removes what is left of copies that were not finished.
///
/// # Errors
/// When something cannot be removed.
pub fn clean(data: &Path) -> Result<(), CopyError> {
    for name in [INCOMING, READY, DISCARD] {
        let path = data.join(name);
        match fs::remove_dir_all(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("remove", &path)(error)),
        }
    }
    Ok(())
}

/// Makes the folder that a copy is unpacked into, for the server's user alone.
///
/// # Errors
/// When it cannot be made; it must not be there yet ([`clean`]).
pub(super) fn incoming(data: &Path, user: Option<UserIds>) -> Result<PathBuf, CopyError> {
    let path = data.join(INCOMING);
    private(&path, user)?;
    Ok(path)
}

/// Makes a folder for the server's user alone.
pub(super) fn private(path: &Path, user: Option<UserIds>) -> Result<(), CopyError> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(io_error("make folder", path))?;
    give(path, user)
}

/// Makes the server's user the owner of a folder or file of ours.
pub(super) fn give(path: &Path, user: Option<UserIds>) -> Result<(), CopyError> {
    match user {
        Some(user) if rustix::process::geteuid().is_root() => {
            std::os::unix::fs::lchown(path, Some(user.uid), Some(user.gid))
                .map_err(io_error("hand over", path))
        }
        Some(_) | None => Ok(()),
    }
}

/// Syncs the finished copy and puts it in the place of the data folder. Says where the former one is kept, if it is.
///
/// # Errors
/// When a step fails: [`recover`] puts it right.
pub(super) fn install(data: &Path, former: Former) -> Result<Option<PathBuf>, CopyError> {
    let (sql, incoming, ready) = (data.join(SQL), data.join(INCOMING), data.join(READY));
    let folder = File::open(&incoming).map_err(io_error("open", &incoming))?;
    // One call for some hundred files; the folder's own entry comes with it.
    syncfs(&folder).map_err(|error| io_error("sync", &incoming)(error.into()))?;
    rename(&incoming, &ready)?;
    let mut aside = None;
    if sql.exists() {
        match former {
            Former::Discarded => rename(&sql, &data.join(DISCARD))?,
            Former::KeptAside { epoch, at } => {
                let name = data.join(format!("{ASIDE}{epoch}-{}", at.0 / 1000));
                rename(&sql, &name)?;
                aside = Some(name);
            }
        }
    }
    rename(&ready, &sql)?;
    clean(data)?;
    let kept = kept_aside(data)?;
    for old in &kept[..kept.len().saturating_sub(KEPT)] {
        fs::remove_dir_all(old).map_err(io_error("remove", old))?;
    }
    Ok(aside)
}

/// Renames within one folder, synced. What is there under the new name already is not replaced: folders are never empty.
fn rename(from: &Path, to: &Path) -> Result<(), CopyError> {
    fs::rename(from, to).map_err(io_error("give its new name to", from))?;
    let parent = to.parent().unwrap_or(Path::new("/"));
    File::open(parent)
        .and_then(|folder| folder.sync_all())
        .map_err(io_error("sync", parent))
}

/// The folders kept aside, oldest first.
///
/// # Errors
/// When the folder cannot be listed.
pub fn kept_aside(data: &Path) -> Result<Vec<PathBuf>, CopyError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(data).map_err(io_error("list", data))? {
        let path = entry.map_err(io_error("list", data))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(rest) = name.and_then(|name| name.strip_prefix(ASIDE)) else {
            continue;
        };
        let mut numbers = rest.split('-').filter_map(|part| part.parse::<u64>().ok());
        let age = (numbers.next(), numbers.next());
        found.push((age, path));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// What a copy of this data folder will need, about: what lies in it without logs, which are not copied.
pub(super) fn size(sql: &Path) -> Result<Bytes, CopyError> {
    let mut sum = 0;
    for entry in fs::read_dir(sql).map_err(io_error("list", sql))? {
        let path = entry.map_err(io_error("list", sql))?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if !["binlog.", "relay.", "ib_logfile"]
            .iter()
            .any(|log| name.starts_with(log))
        {
            sum += below(&path)?;
        }
    }
    Ok(Bytes(sum))
}

fn below(path: &Path) -> Result<u64, CopyError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        // The server works on: a table may be gone by now.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(io_error("look at", path)(error)),
    };
    if !found.is_dir() {
        return Ok(found.blocks() * 512);
    }
    let mut sum = 0;
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(io_error("list", path)(error)),
    };
    for entry in entries {
        sum += below(&entry.map_err(io_error("list", path))?.path())?;
    }
    Ok(sum)
}

/// Refuses a copy for which there is no room, before anything is written.
///
/// # Errors
/// [`CopyError::NoRoom`].
pub(super) fn check_room(data: &Path, needs: Bytes) -> Result<(), CopyError> {
    let found = statvfs(data).map_err(|error| io_error("look at", data)(error.into()))?;
    let free = Bytes(found.f_bavail.saturating_mul(found.f_frsize));
    if free >= needs {
        return Ok(());
    }
    Err(CopyError::NoRoom {
        needs,
        free,
        path: data.to_owned(),
        aside: kept_aside(data)?,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn make(data: &Path, name: &str, content: &str) {
        fs::create_dir_all(data.join(name)).unwrap();
        fs::write(data.join(name).join("content"), content).unwrap();
    }

    /// `name=content` of all folders.
    fn state(data: &Path) -> String {
        let mut names: Vec<String> = fs::read_dir(data)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| {
                let content = fs::read_to_string(path.join("content")).unwrap();
                format!("{}={content}", path.file_name().unwrap().to_str().unwrap())
            })
            .collect();
        names.sort();
        names.join(" ")
    }

    fn aside(epoch: u64, seconds: u64) -> Former {
        Former::KeptAside {
            epoch: Epoch(epoch),
            at: UnixMillis(seconds * 1000),
        }
    }

    #[test]
    fn a_copy_takes_the_place_of_what_was_there() {
        let data = tempfile::tempdir().unwrap();
        let data = data.path();
        make(data, INCOMING, "first");
        assert_eq!(install(data, Former::Discarded).unwrap(), None);
        assert_eq!(state(data), "sql=first");
        make(data, INCOMING, "second");
        assert_eq!(install(data, Former::Discarded).unwrap(), None);
        assert_eq!(state(data), "sql=second");
        for n in 3..8 {
            make(data, INCOMING, &n.to_string());
            // The order is of numbers, not of letters.
            let kept = install(data, aside(n * 3, 100)).unwrap().unwrap();
            assert!(kept.ends_with(format!("sql.aside-{}-100", n * 3)));
        }
        assert_eq!(
            state(data),
            "sql.aside-15-100=4 sql.aside-18-100=5 sql.aside-21-100=6 sql=7"
        );
    }

    #[test]
    fn whatever_step_it_was_killed_at_a_whole_folder_is_there() {
        // What is on disk after each step, and what a start makes of it.
        let steps = [
            (vec![("sql", "old"), (INCOMING, "part")], "sql=old"),
            (vec![("sql", "old"), (READY, "new")], "sql=old"),
            (
                vec![("sql.aside-1-1", "old"), (READY, "new")],
                "sql.aside-1-1=old sql=new",
            ),
            (
                vec![("sql", "new"), ("sql.aside-1-1", "old")],
                "sql.aside-1-1=old sql=new",
            ),
            (vec![(DISCARD, "old"), (READY, "new")], "sql=new"),
            (vec![("sql", "new"), (DISCARD, "old")], "sql=new"),
            (vec![(INCOMING, "part")], ""),
            (vec![(READY, "new")], "sql=new"),
        ];
        for (found, expected) in steps {
            let data = tempfile::tempdir().unwrap();
            for (name, content) in &found {
                make(data.path(), name, content);
            }
            let finished = recover(data.path()).unwrap();
            assert_eq!(state(data.path()), expected, "{found:?}");
            let was_there = found.iter().any(|(name, _)| *name == SQL);
            assert_eq!(
                finished.is_some(),
                !was_there && expected.contains("sql="),
                "{found:?}"
            );
            // Once more changes nothing.
            assert_eq!(recover(data.path()).unwrap(), None);
            assert_eq!(state(data.path()), expected);
        }
    }

    #[test]
    fn a_copy_that_cannot_fit_is_refused_by_name() {
        let data = tempfile::tempdir().unwrap();
        make(data.path(), "sql.aside-3-100", "old");
        check_room(data.path(), Bytes(1)).unwrap();
        let error = check_room(data.path(), Bytes(u64::MAX))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("room for") && error.contains("sql.aside-3-100"),
            "{error}"
        );
        make(data.path(), "sql", &"x".repeat(100_000));
        let found = size(&data.path().join("sql")).unwrap().0;
        assert!((100_000..200_000).contains(&found), "{found}");
        fs::rename(
            data.path().join("sql/content"),
            data.path().join("sql/binlog.000001"),
        )
        .unwrap();
        assert_eq!(size(&data.path().join("sql")).unwrap(), Bytes(0));
    }
}
