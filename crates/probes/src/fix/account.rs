//! Users with their groups and ssh keys, groups, and the removal of both. Edited by the programs of the system
//! (useradd and the rest of shadow), which know its files, its locks and its policies.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::atomic::Symlinks;
use super::begun::{Note, OwnGroup};
use super::files::look;
use super::step::{DiskStep, OnDisk, Owner, RunStep, Step};
use super::{FixError, trouble};
use crate::accounts;
use crate::call::{Args, CallError};
use crate::local::{Leftover, account_name, authorized, leftovers};
use crate::managed::find;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UserWanted {
    pub(super) name: String,
    uid: Option<u32>,
    group: Option<String>,
    groups: Option<Groups>,
    home: Option<PathBuf>,
    shell: Option<String>,
    comment: Option<String>,
    keys: Option<Vec<String>>,
    sort: Sort,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Groups {
    AtLeast(BTreeSet<String>),
    Only(BTreeSet<String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    System,
    Person,
}

impl UserWanted {
    pub(super) fn from_args(args: &Args<'_>) -> Result<Self, CallError> {
        let groups = |arg: &str| -> Option<BTreeSet<String>> {
            Some(args.texts(arg)?.into_iter().collect())
        };
        let wanted = match (groups("groups"), groups("only_groups")) {
            (Some(groups), _) => Some(Groups::AtLeast(groups)),
            (None, Some(groups)) => Some(Groups::Only(groups)),
            (None, None) => None,
        };
        if let Some(Groups::AtLeast(names) | Groups::Only(names)) = &wanted
            && let Some(bad) = names
                .iter()
                .find(|name| name.is_empty() || name.contains([',', ':', ' ']))
        {
            return args.refuse("groups", format!("'{bad}' is no name of a group"));
        }
        Ok(Self {
            name: account_name(args, "name")?,
            uid: args.plain_number("uid")?,
            group: args.text("group").map(str::to_owned),
            groups: wanted,
            home: match args.plain("home")? {
                Some(_) => Some(args.path("home")?),
                None => None,
            },
            shell: args.plain("shell")?,
            comment: args.plain("comment")?,
            keys: args.texts("keys"),
            sort: match args.bool("system") {
                Some(true) => Sort::System,
                Some(false) | None => Sort::Person,
            },
        })
    }
}

/// The programs come with nearly every system; small containers have others.
fn need(program: &str) -> Result<(), FixError> {
    if find(program) {
        Ok(())
    } else {
        Err(FixError::Refused(format!("this machine has no {program}")))
    }
}

fn run(argv: Vec<String>) -> Step {
    Step::Run(RunStep::new(argv))
}

fn joined(names: &BTreeSet<String>) -> String {
    names
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(",")
}

pub(super) fn user(wanted: &UserWanted) -> Result<Vec<Step>, FixError> {
    let found = accounts::user(&wanted.name).map_err(trouble("look up the user"))?;
    let note = Note::read(&wanted.name)?;
    let (mut steps, home) = match (found, note) {
        (Some(user), None) => {
            let steps = usermod(wanted, &user)?;
            let home = wanted.home.clone().unwrap_or(user.home);
            (steps, home)
        }
        (_, note) => {
            let home = wanted.home.clone();
            let home = home.unwrap_or_else(|| Path::new("/home").join(&wanted.name));
            need("useradd")?;
            let name = &wanted.name;
            let (note, mut steps) = match note {
                Some(note) => {
                    let steps = note.take_away(name)?;
                    (note, steps)
                }
                None => {
                    let note = Note::adding(name, &home)?;
                    let steps = vec![note.make(name)];
                    (note, steps)
                }
            };
            steps.push(run(useradd(wanted, &home, note.group)));
            steps.push(Note::remove(&wanted.name));
            (steps, home)
        }
    };
    if let Some(keys) = &wanted.keys {
        steps.extend(keys_steps(&wanted.name, &home, keys)?);
    }
    Ok(steps)
}

/// Without another primary group it gets one of its own name: a new one, or the one that is there.
fn useradd(wanted: &UserWanted, home: &Path, own: OwnGroup) -> Vec<String> {
    let mut argv = vec!["useradd".to_owned(), "--create-home".to_owned()];
    let mut option = |name: &str, value: String| argv.extend([name.to_owned(), value]);
    option("--home-dir", home.display().to_string());
    if let Some(uid) = wanted.uid {
        option("--uid", uid.to_string());
    }
    let name = &wanted.name;
    let primary = match (&wanted.group, own) {
        (Some(group), _) => Some(group),
        (None, OwnGroup::No) => Some(name),
        (None, OwnGroup::Yes) => None,
    };
    if let Some(group) = primary {
        option("--gid", group.clone());
    }
    if let Some(Groups::AtLeast(groups) | Groups::Only(groups)) = &wanted.groups {
        let mut groups = groups.clone();
        // Its own group is its primary one, and with `--groups` would have to be there already.
        if wanted.group.is_none() {
            groups.remove(name);
        }
        if !groups.is_empty() {
            option("--groups", joined(&groups));
        }
    }
    if let Some(shell) = &wanted.shell {
        option("--shell", shell.clone());
    }
    if let Some(comment) = &wanted.comment {
        option("--comment", comment.clone());
    }
    match wanted.sort {
        Sort::System => argv.push("--system".to_owned()),
        Sort::Person => {}
    }
    argv.extend(["--".to_owned(), wanted.name.clone()]);
    argv
}

/// Nothing when the account is as wanted.
fn usermod(wanted: &UserWanted, user: &accounts::User) -> Result<Vec<Step>, FixError> {
    let name = &wanted.name;
    if let Some(uid) = wanted.uid
        && uid != user.uid
    {
        let why = format!(
            "user {name} has the number {}, not {uid}; changing it would leave its files behind",
            user.uid
        );
        return Err(FixError::Refused(why));
    }
    let look_up = || trouble("look up the groups");
    let primary = accounts::group_of(user.gid).map_err(look_up())?;
    let primary = primary.map(|group| group.name);
    let mut options = Vec::new();
    let mut option = |name: &str, value: &str| options.extend([name.to_owned(), value.to_owned()]);
    if let Some(group) = &wanted.group
        && Some(group) != primary.as_ref()
    {
        option("--gid", group);
    }
    if let Some(home) = &wanted.home
        && *home != user.home
    {
        option("--home", &home.display().to_string());
    }
    if let Some(shell) = &wanted.shell
        && *shell != user.shell
    {
        option("--shell", shell);
    }
    if let Some(comment) = &wanted.comment
        && *comment != user.comment
    {
        option("--comment", comment);
    }
    if let Some(groups) = &wanted.groups {
        let is: BTreeSet<_> = accounts::groups_of(user)
            .map_err(look_up())?
            .into_iter()
            .collect();
        match groups {
            Groups::AtLeast(groups) => {
                let missing: BTreeSet<_> = groups.difference(&is).cloned().collect();
                if !missing.is_empty() {
                    option("--groups", &joined(&missing));
                    options.push("--append".to_owned());
                }
            }
            Groups::Only(groups) => {
                let others = is.into_iter().filter(|name| Some(name) != primary.as_ref());
                if others.collect::<BTreeSet<_>>() != *groups {
                    option("--groups", &joined(groups));
                }
            }
        }
    }
    if options.is_empty() {
        return Ok(Vec::new());
    }
    need("usermod")?;
    let mut argv = vec!["usermod".to_owned()];
    argv.append(&mut options);
    argv.extend(["--".to_owned(), name.clone()]);
    Ok(vec![run(argv)])
}

/// Not through symlinks: the folder belongs to the user.
fn in_home(path: PathBuf, what: OnDisk) -> Step {
    Step::Disk(DiskStep {
        path,
        symlinks: Symlinks::Refused,
        what,
    })
}

fn keys_steps(name: &str, home: &Path, keys: &[String]) -> Result<Vec<Step>, FixError> {
    let reading = trouble(format!("read the ssh keys of {name}"));
    let is: BTreeSet<_> = authorized(home).map_err(reading)?.into_iter().collect();
    if is == keys.iter().cloned().collect() {
        return Ok(Vec::new());
    }
    let folder = home.join(".ssh");
    let file = folder.join("authorized_keys");
    if keys.is_empty() {
        return Ok(vec![in_home(file, OnDisk::Remove)]);
    }
    let owner = || Owner::User(name.to_owned());
    let mut steps = Vec::new();
    if look(&folder)?.is_none() {
        let make = OnDisk::MakeFolder {
            mode: 0o700,
            owner: owner(),
        };
        steps.push(in_home(folder, make));
    }
    let content = format!("{}\n", keys.join("\n")).into_bytes();
    let write = OnDisk::Write {
        content,
        mode: 0o600,
        owner: owner(),
    };
    steps.push(in_home(file, write));
    Ok(steps)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Home {
    Kept,
    Removed,
}

/// In this order, so that nobody comes in by key while the rest is done, and nothing of the user runs when its number
/// becomes free.
pub(super) fn no_user(name: &str, home: Home) -> Result<Vec<Step>, FixError> {
    let found = accounts::user(name).map_err(trouble("look up the user"))?;
    if found
        .as_ref()
        .is_some_and(|user| user.uid == 0 || user.uid == rustix::process::geteuid().as_raw())
    {
        return Err(FixError::Refused(format!(
            "user {name} is root, or runs this program"
        )));
    }
    let place = match &found {
        Some(user) => user.home.clone(),
        None => Path::new("/home").join(name),
    };
    let mut steps = Vec::new();
    let mut groups = Vec::new();
    let note = Note::read(name)?;
    for leftover in leftovers(name, &place).map_err(trouble("look for traces"))? {
        match leftover {
            Leftover::Keys(path) => steps.push(in_home(path, OnDisk::Remove)),
            Leftover::Crontab(path) => steps.push(Step::disk(&path, OnDisk::Remove)),
            Leftover::Member(group) => groups.push(group),
            Leftover::Shadow if found.is_some() || note.is_some() => {}
            Leftover::Shadow => {
                let why = format!("'{name}' is in /etc/shadow and not in /etc/passwd; run pwck");
                return Err(FixError::Refused(why));
            }
        }
    }
    if found.is_none() {
        // userdel does it for a user who is there.
        let delete = |group: &String| RunStep::of(&["gpasswd", "--delete", name, group]);
        steps.extend(groups.iter().map(delete));
    }
    match (note, &found) {
        (Some(note), _) => {
            steps.extend(note.take_away(name)?);
            steps.push(Note::remove(name));
        }
        (None, Some(user)) => {
            need("userdel")?;
            let gone = match home {
                Home::Kept => None,
                Home::Removed => Some(user.home.as_path()),
            };
            let note = Note::removing(user, gone)?;
            steps.push(note.make(name));
            steps.extend(note.take_away(name)?);
            steps.push(Note::remove(name));
        }
        (None, None) => {}
    }
    Ok(steps)
}

pub(super) fn group(name: &str, gid: Option<u32>) -> Result<Vec<Step>, FixError> {
    match (
        accounts::group(name).map_err(trouble("look up the group"))?,
        gid,
    ) {
        (Some(group), Some(gid)) if group.gid != gid => {
            let why = format!(
                "group {name} has the number {}, not {gid}; changing it would leave files behind",
                group.gid
            );
            Err(FixError::Refused(why))
        }
        (Some(_), _) => Ok(Vec::new()),
        (None, gid) => {
            need("groupadd")?;
            let mut argv = vec!["groupadd".to_owned()];
            if let Some(gid) = gid {
                argv.extend(["--gid".to_owned(), gid.to_string()]);
            }
            argv.extend(["--".to_owned(), name.to_owned()]);
            Ok(vec![run(argv)])
        }
    }
}

pub(super) fn no_group(name: &str) -> Result<Vec<Step>, FixError> {
    match accounts::group(name).map_err(trouble("look up the group"))? {
        None => Ok(Vec::new()),
        Some(group) if group.gid == 0 => {
            Err(FixError::Refused("the group of root stays".to_owned()))
        }
        Some(_) => {
            need("groupdel")?;
            Ok(vec![RunStep::of(&["groupdel", "--", name])])
        }
    }
}
