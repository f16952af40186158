//! Files, folders, links, and nothing at all.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::FixError;
use super::step::{OnDisk, Owner, Step};
use super::trouble;
use crate::call::{Args, CallError};
use crate::local::{is_missing, mode};

const FILE_MODE: u32 = 0o644;
const FOLDER_MODE: u32 = 0o755;

/// How a file or a folder must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) path: PathBuf,
    /// Exactly this, for files.
    pub(super) content: Option<Vec<u8>>,
    pub(super) mode: Option<u32>,
    pub(super) user: Option<String>,
    pub(super) group: Option<String>,
}

impl Wanted {
    pub(super) fn from_args(args: &Args<'_>) -> Result<Self, CallError> {
        let name = |arg: &str| args.has(arg).then(|| args.need(arg)).transpose();
        let path = args.path("path")?;
        if path.parent().is_none() {
            return args.refuse("path", "it is the root");
        }
        Ok(Self {
            path,
            content: (args.kind.name == "file")
                .then(|| args.text("content"))
                .flatten()
                .map(|text| text.as_bytes().to_vec()),
            mode: mode(args)?,
            user: name("owner")?,
            group: name("group")?,
        })
    }

    fn owner(&self) -> Owner {
        match (&self.user, &self.group) {
            (None, None) => Owner::Maker,
            (user, group) => Owner::Named {
                user: user.clone(),
                group: group.clone(),
            },
        }
    }
}

/// What is there; `None`: nothing.
pub(super) fn look(path: &Path) -> Result<Option<Metadata>, FixError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(trouble(format!("look at {}", path.display()))(error)),
    }
}

pub(super) fn file(wanted: &Wanted) -> Result<Vec<Step>, FixError> {
    let path = &wanted.path;
    let write = |content: &[u8], mode, owner| {
        let content = content.to_vec();
        Step::disk(
            path,
            OnDisk::Write {
                content,
                mode,
                owner,
            },
        )
    };
    let Some(metadata) = look(path)? else {
        let parent = path.parent().unwrap_or(Path::new("/"));
        if look(parent)?.is_none() {
            let why = format!("the folder {} is not there", parent.display());
            return Err(FixError::Refused(why));
        }
        let content = wanted.content.as_deref().unwrap_or_default();
        let mode = wanted.mode.unwrap_or(FILE_MODE);
        return Ok(vec![write(content, mode, wanted.owner())]);
    };
    if !metadata.is_file() {
        return Err(in_the_way(path, &metadata, "a file"));
    }
    if let Some(content) = &wanted.content
        && !has_content(path, content, metadata.len())?
    {
        // What nobody said anything about stays as it is.
        let owner = Owner::Named {
            user: wanted
                .user
                .clone()
                .or_else(|| Some(metadata.uid().to_string())),
            group: wanted
                .group
                .clone()
                .or_else(|| Some(metadata.gid().to_string())),
        };
        let mode = wanted.mode.unwrap_or(metadata.mode() & 0o7777);
        return Ok(vec![write(content, mode, owner)]);
    }
    attributes(wanted, &metadata)
}

fn has_content(path: &Path, content: &[u8], length: u64) -> Result<bool, FixError> {
    if length != content.len() as u64 {
        return Ok(false);
    }
    match fs::read(path) {
        Ok(is) => Ok(is == content),
        // It vanished between two calls: it is to be written.
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(trouble(format!("read {}", path.display()))(error)),
    }
}

pub(super) fn folder(wanted: &Wanted) -> Result<Vec<Step>, FixError> {
    let path = &wanted.path;
    if let Some(metadata) = look(path)? {
        if !metadata.is_dir() {
            return Err(in_the_way(path, &metadata, "a folder"));
        }
        return attributes(wanted, &metadata);
    }
    let mut missing = Vec::new();
    for above in path.ancestors().skip(1) {
        match fs::metadata(above) {
            Ok(metadata) if metadata.is_dir() => break,
            Ok(_) => {
                let why = format!("{} is not a folder", above.display());
                return Err(FixError::Refused(why));
            }
            Err(error) if is_missing(&error) => missing.push(above),
            Err(error) => return Err(trouble(format!("look at {}", above.display()))(error)),
        }
    }
    let plain = |above: &&Path| {
        let owner = Owner::Maker;
        Step::disk(
            above,
            OnDisk::MakeFolder {
                mode: FOLDER_MODE,
                owner,
            },
        )
    };
    let mut steps: Vec<_> = missing.iter().rev().map(plain).collect();
    let mode = wanted.mode.unwrap_or(FOLDER_MODE);
    let owner = wanted.owner();
    steps.push(Step::disk(path, OnDisk::MakeFolder { mode, owner }));
    Ok(steps)
}

/// Mode and owner of what is there.
fn attributes(wanted: &Wanted, metadata: &Metadata) -> Result<Vec<Step>, FixError> {
    let mut steps = Vec::new();
    let owner = wanted.owner();
    let ids = owner.ids()?;
    let differs = |want: Option<u32>, is: u32| want.is_some_and(|want| want != is);
    if differs(ids.uid, metadata.uid()) || differs(ids.gid, metadata.gid()) {
        steps.push(Step::disk(&wanted.path, OnDisk::ChangeOwner(owner)));
    }
    let from = metadata.mode() & 0o7777;
    if let Some(to) = wanted.mode
        && to != from
    {
        steps.push(Step::disk(&wanted.path, OnDisk::ChangeMode { from, to }));
    }
    Ok(steps)
}

pub(super) fn link(path: &Path, target: &Path) -> Result<Vec<Step>, FixError> {
    let make = Step::disk(
        path,
        OnDisk::Link {
            target: target.to_owned(),
        },
    );
    match look(path)? {
        None => Ok(vec![make]),
        Some(metadata) if !metadata.is_symlink() => Err(in_the_way(path, &metadata, "a symlink")),
        Some(_) => match fs::read_link(path) {
            Ok(is) if is == target => Ok(Vec::new()),
            Ok(_) => Ok(vec![make]),
            Err(error) => Err(trouble(format!("read {}", path.display()))(error)),
        },
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removal {
    OnlyEmptyFolders,
    WithAllInIt,
}

pub(super) fn absent(path: &Path, removal: Removal) -> Result<Vec<Step>, FixError> {
    let Some(metadata) = look(path)? else {
        return Ok(Vec::new());
    };
    if !metadata.is_dir() {
        return Ok(vec![Step::disk(path, OnDisk::Remove)]);
    }
    match removal {
        Removal::WithAllInIt => Ok(vec![Step::disk(path, OnDisk::RemoveTree)]),
        Removal::OnlyEmptyFolders => {
            let reading = trouble(format!("read {}", path.display()));
            if fs::read_dir(path).map_err(reading)?.next().is_some() {
                let why = format!(
                    "the folder {} is not empty; say recursive = True",
                    path.display()
                );
                return Err(FixError::Refused(why));
            }
            Ok(vec![Step::disk(path, OnDisk::RemoveFolder)])
        }
    }
}

/// Something else is there. Nobody said that it may go.
fn in_the_way(path: &Path, metadata: &Metadata, wanted: &str) -> FixError {
    let is = if metadata.is_dir() {
        "a folder"
    } else if metadata.is_symlink() {
        "a symlink"
    } else if metadata.is_file() {
        "a file"
    } else {
        "something else"
    };
    FixError::Refused(format!(
        "{} is {is}, not {wanted}; remove it first",
        path.display()
    ))
}
