//! Accounts that were begun and not finished.
//!
//! useradd and userdel write several files one after the other. When the machine loses power between two of them, the
//! account is there by half: with no home, without a group, or gone from passwd and still in shadow. No later look can
//! tell that from what somebody made so on purpose. So a note is made first, in `/etc`, and removed last; where there is
//! one, the account is taken away entirely before anything else happens, and with it only what the note says came with
//! it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files::look;
use super::step::{OnDisk, Owner, RunStep, Step, processes_of};
use super::{FixError, trouble};
use crate::accounts::{self, User};
use crate::local::{is_missing, unfinished_note};

const FORMAT: u32 = 1;

/// Files with a line for each user that no program takes out once the user is gone from passwd.
const BY_LINE: [&str; 3] = ["/etc/shadow", "/etc/subuid", "/etc/subgid"];

/// What comes and goes with an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    format: u32,
    /// Its home, if it was not there before, or is to go.
    home: Option<PathBuf>,
    pub(super) group: OwnGroup,
}

/// Whether the group of the same name is the account's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum OwnGroup {
    Yes,
    No,
}

impl Note {
    /// For an account that is to be made.
    pub(super) fn adding(name: &str, home: &Path) -> Result<Self, FixError> {
        let group = accounts::group(name).map_err(trouble("look up the group"))?;
        let home = look(home)?.is_none().then(|| home.to_owned());
        Ok(Self {
            format: FORMAT,
            home,
            group: if group.is_none() {
                OwnGroup::Yes
            } else {
                OwnGroup::No
            },
        })
    }

    /// For one that is to go; `home` if that is to go too.
    pub(super) fn removing(user: &User, home: Option<&Path>) -> Result<Self, FixError> {
        let group = accounts::group(&user.name).map_err(trouble("look up the group"))?;
        let own = group.is_some_and(|group| group.gid == user.gid);
        // As userdel: a home that belongs to somebody else stays.
        let theirs = |home: &&Path| {
            fs::symlink_metadata(home).is_ok_and(|metadata| metadata.uid() == user.uid)
        };
        Ok(Self {
            format: FORMAT,
            home: home.filter(theirs).map(Path::to_owned),
            group: if own { OwnGroup::Yes } else { OwnGroup::No },
        })
    }

    /// The note of something that was not finished.
    pub(super) fn read(name: &str) -> Result<Option<Self>, FixError> {
        let path = unfinished_note(name);
        let reading = || trouble(format!("read {}", path.display()));
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(reading()(error)),
        };
        let note: Self = serde_json::from_slice(&text).map_err(|error| reading()(error.into()))?;
        if note.format != FORMAT {
            let why = format!(
                "{} has format {}, not {FORMAT}",
                path.display(),
                note.format
            );
            return Err(FixError::Refused(why));
        }
        Ok(Some(note))
    }

    /// The step that makes it.
    pub(super) fn make(&self, name: &str) -> Step {
        // A few words are always JSON.
        let mut content = serde_json::to_vec(self).unwrap_or_default();
        content.push(b'\n');
        let (mode, owner) = (0o600, Owner::Maker);
        Step::disk(
            &unfinished_note(name),
            OnDisk::Write {
                content,
                mode,
                owner,
            },
        )
    }

    pub(super) fn remove(name: &str) -> Step {
        Step::disk(&unfinished_note(name), OnDisk::Remove)
    }

    /// Takes away whatever is there of the account.
    pub(super) fn take_away(&self, name: &str) -> Result<Vec<Step>, FixError> {
        let mut steps = Vec::new();
        match accounts::user(name).map_err(trouble("look up the user"))? {
            Some(user) => {
                let running = processes_of(user.uid).map_err(trouble("look for processes"))?;
                if !running.is_empty() {
                    steps.push(Step::EndProcesses { uid: user.uid });
                }
                steps.push(RunStep::of(&["userdel", "--", name]));
            }
            None => {
                for file in BY_LINE {
                    steps.extend(without_lines_of(name, Path::new(file))?);
                }
                let group = accounts::group(name).map_err(trouble("look up the group"))?;
                if self.group == OwnGroup::Yes && group.is_some() {
                    steps.push(RunStep::of(&["groupdel", "--", name]));
                }
            }
        }
        if let Some(home) = &self.home
            && look(home)?.is_some()
        {
            steps.push(Step::disk(home, OnDisk::RemoveTree));
        }
        Ok(steps)
    }
}

fn without_lines_of(name: &str, path: &Path) -> Result<Option<Step>, FixError> {
    let reading = || trouble(format!("read {}", path.display()));
    let Some(metadata) = look(path)? else {
        return Ok(None);
    };
    let text = fs::read(path).map_err(reading())?;
    let of_name = |line: &[u8]| line.split(|byte| *byte == b':').next() == Some(name.as_bytes());
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    let content = lines
        .filter(|line| !of_name(line))
        .collect::<Vec<_>>()
        .concat();
    if content == text {
        return Ok(None);
    }
    let mode = metadata.mode() & 0o7777;
    let owner = Owner::Named {
        user: Some(metadata.uid().to_string()),
        group: Some(metadata.gid().to_string()),
    };
    Ok(Some(Step::disk(
        path,
        OnDisk::Write {
            content,
            mode,
            owner,
        },
    )))
}
