//! Things of this machine that are there or not, and have facts: files, accounts, ports, mounts.
//!
//! One shape for all: look whether the thing is there, gather the facts that are asked for, compare. Looking means
//! calls that block, so it happens on a thread beside the runtime; one that hangs in the kernel (a dead network file
//! system) is left there, and the probe reports that it ran out of time.

mod account;
mod cron;
mod diag;
mod disk;
mod interface;
mod path;
mod port;
mod process;
mod sysctl;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::call::{Args, CallError};
use crate::deadline::{Deadline, OutOfTime};
use crate::matcher::Matcher;
use crate::wants::{Facts, Unmet, Wants};

pub(crate) use account::{Leftover, account_name, authorized, leftovers, unfinished_note};
pub(crate) use cron::{MODE as CRON_MODE, file as cron_file};
pub(crate) use path::{hex, is_missing, mode, mode_text};
pub(crate) use sysctl::{
    file_of as sysctl_file, param_name, persistent as sysctl_persistent,
    persistent_file as sysctl_persistent_file, plain_value as sysctl_value, squeezed,
};

#[derive(Debug, Clone, PartialEq)]
pub struct LocalProbe {
    pub(crate) subject: Subject,
    pub(crate) presence: Presence,
    pub(crate) wants: Wants,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    There,
    NotThere,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Subject {
    Path(PathBuf),
    Process(process::Selection),
    Port(port::Port),
    User(String),
    /// As `User`, and what a user who is gone may have left.
    Traces(String),
    Group(String),
    Mount(PathBuf),
    Disk(PathBuf),
    KernelParam(String),
    Interface(String),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LocalError {
    #[error("cannot {doing}")]
    Io {
        doing: String,
        #[source]
        source: io::Error,
    },
    #[error("{0}")]
    Unmet(#[from] Unmet),
    #[error("it is not there")]
    Missing,
    #[error("it is there{0}")]
    Present(String),
    #[error(transparent)]
    OutOfTime(#[from] OutOfTime),
    #[error("the probe panicked")]
    Panicked,
}

pub(crate) fn trouble(doing: impl Into<String>) -> impl FnOnce(io::Error) -> LocalError {
    let doing = doing.into();
    |source| LocalError::Io { doing, source }
}

/// Set when nobody waits for the result any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancelled(Arc<AtomicBool>);

impl Cancelled {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

struct CancelOnDrop(Cancelled);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Runs work that blocks, until the deadline.
pub(crate) async fn blocking<T: Send + 'static>(
    within: Deadline,
    work: impl FnOnce(&Cancelled) -> T + Send + 'static,
) -> Result<T, LocalError> {
    let cancelled = Cancelled::default();
    let _guard = CancelOnDrop(cancelled.clone());
    let running = tokio::task::spawn_blocking(move || work(&cancelled));
    let done = within.keep("looking", running).await?;
    done.map_err(|_| LocalError::Panicked)
}

impl LocalProbe {
    pub(crate) fn new(subject: Subject, presence: Presence, wants: Wants) -> Self {
        Self {
            subject,
            presence,
            wants,
        }
    }

    pub(crate) fn from_args(args: &Args<'_>) -> Result<Option<Self>, CallError> {
        Ok(Some(match args.kind.name {
            "path" | "file" | "directory" | "symlink" | "absent" => path::from_args(args)?,
            "process" => process::from_args(args)?,
            "port" => port::from_args(args)?,
            "user" | "user_absent" | "group" | "group_absent" => account::from_args(args)?,
            "mount" | "disk" => disk::from_args(args)?,
            "kernel_param" => sysctl::from_args(args)?,
            "interface" => interface::from_args(args)?,
            "cron" => cron::from_args(args)?,
            _ => return Ok(None),
        }))
    }

    pub(crate) fn expected(&self) -> String {
        let subject = &self.subject;
        match self.presence {
            Presence::NotThere => format!("no {subject}"),
            Presence::There if self.wants.is_empty() => format!("{subject} is there"),
            Presence::There => format!("{subject}: {}", self.wants),
        }
    }
}

pub(crate) async fn look(probe: &LocalProbe, within: Deadline) -> Result<String, LocalError> {
    let (subject, wants) = (probe.subject.clone(), probe.wants.clone());
    let facts = blocking(within, move |cancelled| subject.facts(&wants, cancelled)).await??;
    match (facts, probe.presence) {
        (None, Presence::NotThere) => Ok("it is not there".to_owned()),
        (None, Presence::There) => Err(LocalError::Missing),
        (Some(facts), Presence::NotThere) => Err(LocalError::Present(shown(&facts))),
        (Some(facts), Presence::There) => Ok(match probe.wants.judge(&facts)?.as_str() {
            "" => "it is there".to_owned(),
            right => right.to_owned(),
        }),
    }
}

fn shown(facts: &Facts) -> String {
    let all: Vec<_> = facts
        .iter()
        .map(|(name, value)| format!("{name} {}", crate::matcher::describe(value)))
        .collect();
    if all.is_empty() {
        String::new()
    } else {
        format!(": {}", crate::shown::head(all.join(", ").as_bytes()))
    }
}

impl Subject {
    /// The facts that are asked for; `None`: it is not there.
    fn facts(&self, wants: &Wants, cancelled: &Cancelled) -> Result<Option<Facts>, LocalError> {
        match self {
            Subject::Path(path) => path::facts(path, wants, cancelled),
            Subject::Process(selection) => process::facts(selection, cancelled),
            Subject::Port(port) => port::facts(port),
            Subject::User(name) => account::user_facts(name, wants),
            Subject::Traces(name) => account::traces(name),
            Subject::Group(name) => account::group_facts(name),
            Subject::Mount(path) => disk::mount_facts(path, wants),
            Subject::Disk(path) => disk::facts(path),
            Subject::KernelParam(name) => sysctl::facts(name, wants),
            Subject::Interface(name) => interface::facts(name, wants),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Path(path) => write!(f, "{}", path.display()),
            Subject::Process(selection) => write!(f, "process {selection}"),
            Subject::Port(port) => write!(f, "listener on {port}"),
            Subject::User(name) | Subject::Traces(name) => write!(f, "user {name}"),
            Subject::Group(name) => write!(f, "group {name}"),
            Subject::Mount(path) => write!(f, "mount at {}", path.display()),
            Subject::Disk(path) => write!(f, "file system of {}", path.display()),
            Subject::KernelParam(name) => write!(f, "kernel parameter {name}"),
            Subject::Interface(name) => write!(f, "interface {name}"),
        }
    }
}

/// Whether it must be there, from an argument that says so.
fn presence(args: &Args<'_>, arg: &str) -> Presence {
    match args.bool(arg) {
        Some(false) => Presence::NotThere,
        Some(true) | None => Presence::There,
    }
}

/// A probe for a thing that is not to be there has nothing else to say of it.
fn finish(
    args: &Args<'_>,
    arg: &'static str,
    subject: Subject,
    wants: Wants,
) -> Result<LocalProbe, CallError> {
    let presence = presence(args, arg);
    if presence == Presence::NotThere && !wants.is_empty() {
        return args.refuse(arg, "False, and yet more is said of it");
    }
    Ok(LocalProbe::new(subject, presence, wants))
}

fn equals(text: &str) -> Matcher {
    Matcher::equals(text)
}
