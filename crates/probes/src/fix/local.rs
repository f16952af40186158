//! Fixes of this machine alone: files, accounts, cron, kernel parameters.

use std::path::PathBuf;

use super::FixError;
use super::account::{self, Home, UserWanted};
use super::files::{self, Removal, Wanted};
use super::locks;
use super::step::{OnDisk, Owner, RunStep, Step};
use crate::call::{Args, CallError};
use crate::local::{
    CRON_MODE, account_name, cron_file, param_name, squeezed, sysctl_file, sysctl_persistent,
    sysctl_persistent_file, sysctl_value,
};

/// A mode that nobody wants.
const ODD_MODE: u32 = 0o001;
/// The owner and group of nobody (Debian, Fedora and others).
const NOBODY: &str = "65534";

/// What is planned by looking at this machine alone.
#[derive(Debug, Clone)]
pub(super) enum Local {
    File(Wanted),
    Folder(Wanted),
    Link {
        path: PathBuf,
        target: PathBuf,
    },
    Absent {
        path: PathBuf,
        removal: Removal,
    },
    Cron(Wanted),
    User(UserWanted),
    NoUser {
        name: String,
        home: Home,
    },
    Group {
        name: String,
        gid: Option<u32>,
    },
    NoGroup(String),
    Param {
        name: String,
        value: String,
        persist: bool,
    },
}

impl Local {
    pub(super) fn from_args(args: &Args<'_>) -> Result<Option<Self>, CallError> {
        let name = || account_name(args, "name");
        Ok(Some(match args.kind.name {
            "file" => Local::File(Wanted::from_args(args)?),
            "directory" => Local::Folder(Wanted::from_args(args)?),
            "symlink" => Local::Link {
                path: args.path("path")?,
                target: args.need("target")?.into(),
            },
            "absent" => {
                let path = args.path("path")?;
                let removal = match args.bool("recursive") {
                    Some(true) => Removal::WithAllInIt,
                    Some(false) | None => Removal::OnlyEmptyFolders,
                };
                // `/`, `/etc`, `/home`: nobody means that.
                if removal == Removal::WithAllInIt && path.components().count() < 3 {
                    return args.refuse("recursive", "not for the root and what is right below it");
                }
                Local::Absent { path, removal }
            }
            "cron" => {
                let (path, content) = cron_file(args)?;
                Local::Cron(Wanted {
                    path,
                    content: Some(content.into_bytes()),
                    mode: Some(CRON_MODE),
                    user: Some("0".to_owned()),
                    group: None,
                })
            }
            "user" => Local::User(UserWanted::from_args(args)?),
            "user_absent" => Local::NoUser {
                name: match name()? {
                    root if root == "root" => return args.refuse("name", "root stays"),
                    name => name,
                },
                home: match args.bool("remove_home") {
                    Some(true) => Home::Removed,
                    Some(false) | None => Home::Kept,
                },
            },
            "group" => Local::Group {
                name: name()?,
                gid: args.plain_number("gid")?,
            },
            "group_absent" => Local::NoGroup(name()?),
            "kernel_param" => match sysctl_value(args) {
                None => return args.refuse("value", "a fix needs a plain value, no matcher"),
                Some(value) => Local::Param {
                    name: param_name(args)?,
                    value,
                    persist: args.bool("persist") == Some(true),
                },
            },
            _ => return Ok(None),
        }))
    }

    pub(super) fn resource(&self) -> String {
        match self {
            // The files of accounts are locked as a whole.
            Local::User(_) | Local::NoUser { .. } | Local::Group { .. } | Local::NoGroup(_) => {
                "accounts".to_owned()
            }
            Local::Param { name, .. } => format!("kernel parameter {name}"),
            Local::File(_)
            | Local::Folder(_)
            | Local::Link { .. }
            | Local::Absent { .. }
            | Local::Cron(_) => format!("path {}", self.subject()),
        }
    }

    pub(super) fn subject(&self) -> String {
        match self {
            Local::File(wanted) | Local::Folder(wanted) | Local::Cron(wanted) => {
                wanted.path.display().to_string()
            }
            Local::Link { path, .. } | Local::Absent { path, .. } => path.display().to_string(),
            Local::User(wanted) => wanted.name.clone(),
            Local::NoUser { name, .. }
            | Local::Group { name, .. }
            | Local::NoGroup(name)
            | Local::Param { name, .. } => name.clone(),
        }
    }

    /// What a proof does first, where all is in order.
    pub(super) fn disturbance(&self) -> Vec<Step> {
        match self {
            Local::File(wanted) | Local::Cron(wanted) if wanted.content.is_some() => {
                vec![Step::disk(&wanted.path, OnDisk::Remove)]
            }
            Local::File(wanted) | Local::Folder(wanted) | Local::Cron(wanted) => {
                let from = 0;
                let mode = OnDisk::ChangeMode { from, to: ODD_MODE };
                let nobody = || Some(NOBODY.to_owned());
                let (user, group) = (nobody(), nobody());
                let owner = OnDisk::ChangeOwner(Owner::Named { user, group });
                [mode, owner]
                    .map(|what| Step::disk(&wanted.path, what))
                    .into()
            }
            Local::Link { path, .. } => vec![Step::disk(path, OnDisk::Remove)],
            Local::Absent { path, .. } => {
                let content = b"in the way\n".to_vec();
                let (mode, owner) = (0o600, Owner::Maker);
                vec![Step::disk(
                    path,
                    OnDisk::Write {
                        content,
                        mode,
                        owner,
                    },
                )]
            }
            Local::User(wanted) => vec![RunStep::of(&["userdel", "--", &wanted.name])],
            Local::NoUser { name, .. } => {
                vec![RunStep::of(&["useradd", "--create-home", "--", name])]
            }
            Local::Group { name, .. } => vec![RunStep::of(&["groupdel", "--", name])],
            Local::NoGroup(name) => vec![RunStep::of(&["groupadd", "--", name])],
            // It would reach the machine itself.
            Local::Param { .. } => Vec::new(),
        }
    }

    pub(super) fn plan(&self) -> Result<Vec<Step>, FixError> {
        match self {
            Local::File(wanted) | Local::Cron(wanted) => files::file(wanted),
            Local::Folder(wanted) => files::folder(wanted),
            Local::Link { path, target } => files::link(path, target),
            Local::Absent { path, removal } => files::absent(path, *removal),
            Local::User(wanted) => account::user(wanted).map(locks::cleared),
            Local::NoUser { name, home } => account::no_user(name, *home).map(locks::cleared),
            Local::Group { name, gid } => account::group(name, *gid).map(locks::cleared),
            Local::NoGroup(name) => account::no_group(name).map(locks::cleared),
            Local::Param {
                name,
                value,
                persist,
            } => param(name, value, *persist),
        }
    }
}

fn param(name: &str, value: &str, persist: bool) -> Result<Vec<Step>, FixError> {
    let file = sysctl_file(name);
    let is = std::fs::read(&file).map_err(super::trouble(format!("read {}", file.display())))?;
    let mut steps = Vec::new();
    if squeezed(&String::from_utf8_lossy(&is)) != value {
        let (name, value) = (name.to_owned(), value.to_owned());
        steps.push(Step::Param { name, value });
    }
    if persist {
        let path = sysctl_persistent_file(name);
        let content = sysctl_persistent(name, value).into_bytes();
        if std::fs::read(&path).ok().as_ref() != Some(&content) {
            let owner = Owner::Maker;
            steps.push(Step::disk(
                &path,
                OnDisk::Write {
                    content,
                    mode: 0o644,
                    owner,
                },
            ));
        }
    }
    Ok(steps)
}
