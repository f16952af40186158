//! User accounts and groups, and what a user who is gone may have left.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{LocalError, LocalProbe, Presence, Subject, equals, is_missing, trouble};
use crate::accounts;
use crate::call::{Args, CallError};
use crate::matcher::Matcher;
use crate::wants::{Facts, Unmet, Wants};

/// Where crontabs of users are, on Debian and elsewhere.
const CRONTABS: [&str; 2] = ["/var/spool/cron/crontabs", "/var/spool/cron"];

pub(super) fn from_args(args: &Args<'_>) -> Result<LocalProbe, CallError> {
    let name = account_name(args, "name")?;
    let mut wants = Wants::default();
    let there = Presence::There;
    Ok(match args.kind.name {
        "user_absent" => LocalProbe::new(Subject::Traces(name), Presence::NotThere, wants),
        "group_absent" => LocalProbe::new(Subject::Group(name), Presence::NotThere, wants),
        "group" => {
            if let Some(gid) = args.matcher("gid")? {
                wants.push("gid", gid);
            }
            LocalProbe::new(Subject::Group(name), there, wants)
        }
        _ => LocalProbe::new(Subject::User(name), there, user_wants(args)?),
    })
}

/// What useradd accepts, and nothing that could be an option, a path or a second field.
pub(crate) fn account_name(args: &Args<'_>, arg: &str) -> Result<String, CallError> {
    let name = args.need(arg)?;
    let first = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let rest = |c: char| first(c) || c == '-' || c == '.' || c == '$';
    if name.len() > 32 || !name.starts_with(first) || !name.chars().all(rest) {
        return args.refuse(arg, format!("'{name}' is no name of an account"));
    }
    Ok(name)
}

fn user_wants(args: &Args<'_>) -> Result<Wants, CallError> {
    let mut wants = Wants::default();
    for fact in ["uid", "gid"] {
        if let Some(matcher) = args.matcher(fact)? {
            wants.push(fact, matcher);
        }
    }
    if let Some(matcher) = args.matcher("all_groups")? {
        wants.push("groups", matcher);
    }
    if args.has("group") {
        wants.push("group", equals(&account_name(args, "group")?));
    }
    let list = |operator: &str, texts: Vec<String>| {
        // Texts are matchers of themselves.
        Matcher::parse(&serde_json::json!({ operator: texts }))
            .or_else(|error| args.refuse(operator, error.to_string()))
    };
    if let Some(groups) = args.texts("groups") {
        wants.push("groups", list("has", groups)?);
    }
    if let Some(groups) = args.texts("only_groups") {
        if args.has("groups") {
            return args.refuse("only_groups", "it excludes 'groups'");
        }
        wants.push("supplementary", list("only", groups)?);
    }
    for fact in ["home", "shell", "comment"] {
        if args
            .text(fact)
            .is_some_and(|text| text.contains([':', '\n']))
        {
            return args.refuse(fact, "it may not contain ':' or a line break");
        }
        if let Some(matcher) = args.matcher(fact)? {
            wants.push(fact, matcher);
        }
    }
    if let Some(keys) = args.texts("keys") {
        if keys
            .iter()
            .any(|key| key.trim() != key || key.is_empty() || key.contains('\n'))
        {
            return args.refuse("keys", "each is one line without white space around it");
        }
        wants.push("keys", list("only", keys)?);
    }
    Ok(wants)
}

pub(super) fn user_facts(name: &str, wants: &Wants) -> Result<Option<Facts>, LocalError> {
    let Some(user) = accounts::user(name).map_err(trouble("look up the user"))? else {
        return Ok(None);
    };
    if unfinished_note(name).exists() {
        let why = "it is there by half: whoever made or removed it was killed";
        return Err(Unmet(why.to_owned()).into());
    }
    let mut facts = Facts::from([
        ("uid", user.uid.into()),
        ("gid", user.gid.into()),
        ("home", user.home.display().to_string().into()),
        ("shell", user.shell.clone().into()),
        ("comment", user.comment.clone().into()),
    ]);
    if wants.asks("group") || wants.asks("supplementary") || wants.asks("groups") {
        let all = accounts::groups_of(&user).map_err(trouble("look up the groups"))?;
        let primary = accounts::group_of(user.gid).map_err(trouble("look up the group"))?;
        let primary = primary.map_or_else(|| user.gid.to_string(), |group| group.name);
        let others: Vec<_> = all
            .iter()
            .filter(|name| **name != primary)
            .cloned()
            .collect();
        facts.insert("groups", all.into());
        facts.insert("group", primary.into());
        facts.insert("supplementary", others.into());
    }
    if wants.asks("keys") {
        let keys = authorized(&user.home).map_err(trouble("read the ssh keys"))?;
        facts.insert("keys", keys.into());
    }
    Ok(Some(facts))
}

/// Where a fix notes that it has begun to make or to remove an account.
pub(crate) fn unfinished_note(name: &str) -> PathBuf {
    PathBuf::from(format!("/etc/.homeostat-account-{name}"))
}

/// The lines of `authorized_keys` that let somebody in.
pub(crate) fn authorized(home: &Path) -> io::Result<Vec<String>> {
    let text = match fs::read(home.join(".ssh/authorized_keys")) {
        Ok(text) => text,
        Err(error) if is_missing(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().map(str::trim);
    let lets_in = |line: &&str| !line.is_empty() && !line.starts_with('#');
    Ok(lines.filter(lets_in).map(str::to_owned).collect())
}

pub(super) fn group_facts(name: &str) -> Result<Option<Facts>, LocalError> {
    let group = accounts::group(name).map_err(trouble("look up the group"))?;
    Ok(group
        .map(|group| Facts::from([("gid", group.gid.into()), ("members", group.members.into())])))
}

/// Something that a user who is gone left, or that goes with the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Leftover {
    /// In `/etc/shadow`, with no account.
    Shadow,
    /// A member of this group.
    Member(String),
    Crontab(PathBuf),
    /// Keys that would let somebody in again when the name is given once more.
    Keys(PathBuf),
}

/// All that is known of a name beside its entry in passwd. `home` is where the keys would be.
pub(crate) fn leftovers(name: &str, home: &Path) -> io::Result<Vec<Leftover>> {
    let mut found = Vec::new();
    for group in lines("/etc/group")? {
        let mut fields = group.split(':');
        let (of, members) = (fields.next().unwrap_or_default(), fields.nth(2));
        if members.is_some_and(|members| members.split(',').any(|member| member == name)) {
            found.push(Leftover::Member(of.to_owned()));
        }
    }
    if lines("/etc/shadow")?
        .iter()
        .any(|line| line.split(':').next() == Some(name))
    {
        found.push(Leftover::Shadow);
    }
    for folder in CRONTABS {
        let path = Path::new(folder).join(name);
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            found.push(Leftover::Crontab(path));
        }
    }
    let keys = home.join(".ssh/authorized_keys");
    if fs::symlink_metadata(&keys).is_ok() {
        found.push(Leftover::Keys(keys));
    }
    Ok(found)
}

fn lines(path: &str) -> io::Result<Vec<String>> {
    match fs::read(path) {
        Ok(text) => Ok(String::from_utf8_lossy(&text)
            .lines()
            .map(str::to_owned)
            .collect()),
        // Who is not root cannot see `/etc/shadow`; the account itself is in passwd.
        Err(error) if is_missing(&error) || error.kind() == io::ErrorKind::PermissionDenied => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

pub(super) fn traces(name: &str) -> Result<Option<Facts>, LocalError> {
    let mut facts = Facts::new();
    let user = accounts::user(name).map_err(trouble("look up the user"))?;
    let home = match &user {
        Some(user) => user.home.clone(),
        None => Path::new("/home").join(name),
    };
    if let Some(user) = user {
        facts.insert("uid", user.uid.into());
    }
    let mut groups = Vec::new();
    for leftover in leftovers(name, &home).map_err(trouble("look for traces"))? {
        match leftover {
            // Together with an account it is no news.
            Leftover::Shadow if facts.contains_key("uid") => {}
            Leftover::Shadow => drop(facts.insert("shadow", "an entry".into())),
            Leftover::Member(group) => groups.push(group),
            Leftover::Crontab(path) => {
                drop(facts.insert("crontab", path.display().to_string().into()));
            }
            Leftover::Keys(path) => drop(facts.insert("keys", path.display().to_string().into())),
        }
    }
    if !groups.is_empty() {
        facts.insert("groups", groups.into());
    }
    if unfinished_note(name).exists() {
        facts.insert("unfinished", true.into());
    }
    Ok((!facts.is_empty()).then_some(facts))
}
