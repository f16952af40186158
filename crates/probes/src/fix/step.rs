//! One step of a fix: what it does, in words and in deed.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mysql_async::prelude::Queryable;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::atomic::{Ids, Place, Symlinks};
use super::{FixError, trouble};
use crate::accounts;
use crate::deadline::Deadline;
use crate::execute::{Program, RunAs, execute};
use crate::http::{self, HttpRequest};
use crate::local::{Cancelled, blocking, mode_text, sysctl_file};
use crate::matcher::Matcher;
use crate::program::{Do, ProgramProbe, Verdict};
use crate::shown;
use crate::sql::{SqlError, SqlUrl, administer};

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Disk(DiskStep),
    /// Sets a kernel parameter.
    Param {
        name: String,
        value: String,
    },
    /// Ends all processes of a user.
    EndProcesses {
        uid: u32,
    },
    Run(RunStep),
    Sql {
        url: SqlUrl,
        statement: String,
        shown: String,
    },
    Http {
        request: HttpRequest,
        status: Matcher,
    },
    /// What the program said that it would do.
    Program {
        program: ProgramProbe,
        plan: Vec<String>,
    },
}

/// A step on the file system.
#[derive(Debug, Clone)]
pub(crate) struct DiskStep {
    pub(crate) path: PathBuf,
    pub(crate) symlinks: Symlinks,
    pub(crate) what: OnDisk,
}

#[derive(Debug, Clone)]
pub(crate) enum OnDisk {
    Write {
        content: Vec<u8>,
        mode: u32,
        owner: Owner,
    },
    MakeFolder {
        mode: u32,
        owner: Owner,
    },
    Link {
        target: PathBuf,
    },
    ChangeMode {
        from: u32,
        to: u32,
    },
    ChangeOwner(Owner),
    Remove,
    RemoveFolder,
    /// With all that is in it.
    RemoveTree,
}

/// By name or number, looked up when the step runs: a step before it may create the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Whoever makes it.
    Maker,
    Named {
        user: Option<String>,
        group: Option<String>,
    },
    /// A user, and the group that is its primary one.
    User(String),
}

#[derive(Debug, Clone)]
pub(crate) struct RunStep {
    pub(crate) argv: Vec<String>,
    pub(crate) run_as: Option<RunAs>,
    pub(crate) dir: PathBuf,
    pub(crate) env: BTreeMap<String, String>,
}

impl RunStep {
    pub(crate) fn new(argv: Vec<String>) -> Self {
        Self {
            argv,
            run_as: None,
            dir: PathBuf::from("/"),
            env: BTreeMap::new(),
        }
    }

    pub(crate) fn of(argv: &[&str]) -> Step {
        Step::Run(Self::new(argv.iter().map(ToString::to_string).collect()))
    }
}

impl Step {
    /// Something outside of homes.
    pub(crate) fn disk(path: &Path, what: OnDisk) -> Self {
        Self::Disk(DiskStep {
            path: path.to_owned(),
            symlinks: Symlinks::Followed,
            what,
        })
    }

    /// What was done, for people; `None`: nothing was, after all.
    pub(crate) async fn perform(self, within: Deadline) -> Result<Option<String>, FixError> {
        let words = self.to_string();
        match self {
            Step::Disk(step) => {
                blocking(within, move |cancelled| step.perform(cancelled)).await??;
            }
            Step::Param { name, value } => {
                let set = move |_: &Cancelled| fs::write(sysctl_file(&name), value);
                let set = blocking(within, set).await?;
                set.map_err(trouble(&words))?;
            }
            Step::EndProcesses { uid } => blocking(within, move |_| end_processes(uid)).await??,
            Step::Run(step) => {
                step.perform(within).await?;
            }
            Step::Sql { url, statement, .. } => {
                let working = async {
                    let mut connection = administer(&url, within).await?;
                    connection
                        .query_drop(statement)
                        .await
                        .map_err(SqlError::Query)
                };
                within.keep("waiting for the server", working).await??;
            }
            Step::Http { request, status } => {
                let answer = http::fetch(&request, within).await?;
                let seen = answer.status.as_u16();
                if status.test(&seen.into()).is_err() {
                    let body = shown::head(&answer.body);
                    return Err(FixError::Other(format!(
                        "status {seen}; the answer: {body}"
                    )));
                }
                return Ok(Some(format!("{words}: status {seen}")));
            }
            Step::Program { program, .. } => {
                let answer = program.ask(Do::Fix, within).await?;
                let said = answer.shown();
                return match answer.verdict {
                    Verdict::Changed => Ok(Some(if said.is_empty() { words } else { said })),
                    Verdict::Unchanged => Ok(None),
                    Verdict::Fail | Verdict::NotRun => Err(FixError::Other(said)),
                    Verdict::Pass => {
                        Err(crate::program::ProgramError::NoAnswer(Verdict::Pass).into())
                    }
                };
            }
        }
        Ok(Some(words))
    }
}

impl RunStep {
    async fn perform(&self, within: Deadline) -> Result<(), FixError> {
        let program = Program {
            run_as: self.run_as.as_ref(),
            dir: &self.dir,
            env: &self.env,
            ..Program::new(&self.argv)
        };
        let finished = execute(&program, within).await?;
        if finished.status.success() {
            return Ok(());
        }
        Err(FixError::Failed {
            program: self.argv.first().cloned().unwrap_or_default(),
            how: finished.how(),
            said: finished.said.shown(),
        })
    }
}

impl DiskStep {
    fn perform(&self, cancelled: &Cancelled) -> Result<(), FixError> {
        let trouble = || trouble(self.to_string());
        if let OnDisk::RemoveTree = self.what {
            return fs::remove_dir_all(&self.path).map_err(trouble());
        }
        let place = Place::open(&self.path, self.symlinks).map_err(trouble())?;
        let done = match &self.what {
            OnDisk::Write {
                content,
                mode,
                owner,
            } => place.write(content, *mode, owner.ids()?, cancelled),
            OnDisk::MakeFolder { mode, owner } => place.make_folder(*mode, owner.ids()?),
            OnDisk::Link { target } => place.link(target),
            OnDisk::ChangeMode { to, .. } => place.change_mode(*to),
            OnDisk::ChangeOwner(owner) => place.change_owner(owner.ids()?),
            OnDisk::Remove => place.remove(),
            OnDisk::RemoveFolder => place.remove_folder(),
            OnDisk::RemoveTree => Ok(()),
        };
        done.map_err(trouble())
    }
}

impl Owner {
    pub(crate) fn ids(&self) -> Result<Ids, FixError> {
        let look_up = || trouble("look up the owner");
        match self {
            Owner::Maker => Ok(Ids::default()),
            Owner::User(name) => match accounts::user(name).map_err(look_up())? {
                Some(user) => Ok(Ids {
                    uid: Some(user.uid),
                    gid: Some(user.gid),
                }),
                None => Err(FixError::Refused(format!("there is no user '{name}'"))),
            },
            Owner::Named { user, group } => {
                let mut ids = Ids::default();
                if let Some(name) = user {
                    let uid = accounts::uid_of(name).map_err(look_up())?;
                    let missing = || FixError::Refused(format!("there is no user '{name}'"));
                    ids.uid = Some(uid.ok_or_else(missing)?);
                }
                if let Some(name) = group {
                    let gid = accounts::gid_of(name).map_err(look_up())?;
                    let missing = || FixError::Refused(format!("there is no group '{name}'"));
                    ids.gid = Some(gid.ok_or_else(missing)?);
                }
                Ok(ids)
            }
        }
    }
}

/// Twice: a process may have forked while the list was read.
fn end_processes(uid: u32) -> Result<(), FixError> {
    let reading = || trouble("end the processes of the user");
    for _ in 0..2 {
        for pid in processes_of(uid).map_err(reading())? {
            // By descriptor, and looked at again: the number may belong to another one by now.
            let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
                continue;
            };
            let path = format!("/proc/{}", pid.as_raw_nonzero());
            if fs::metadata(path).is_ok_and(|metadata| metadata.uid() == uid) {
                match pidfd_send_signal(&process, Signal::KILL) {
                    Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                    Err(errno) => return Err(reading()(errno.into())),
                }
            }
        }
    }
    Ok(())
}

pub(crate) fn processes_of(uid: u32) -> io::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else {
            continue;
        };
        if entry.metadata().is_ok_and(|metadata| metadata.uid() == uid) {
            found.push(pid);
        }
    }
    Ok(found)
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Disk(step) => step.fmt(f),
            Step::Param { name, value } => write!(f, "set {name} to {value}"),
            Step::EndProcesses { uid } => write!(f, "kill all processes of user {uid}"),
            Step::Run(step) => {
                write!(f, "run `{}`", shown::head(step.argv.join(" ").as_bytes()))
            }
            Step::Sql { url, shown, .. } => write!(f, "{shown} at {}", url.shown()),
            Step::Http { request, .. } => f.write_str(&request.shown()),
            Step::Program { program, plan } if plan.is_empty() => {
                write!(f, "let `{}` repair", program.shown())
            }
            Step::Program { plan, .. } => f.write_str(&plan.join("; ")),
        }
    }
}

impl fmt::Display for DiskStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.what {
            OnDisk::Write { content, mode, .. } => {
                write!(
                    f,
                    "write {path} ({} bytes, mode {})",
                    content.len(),
                    mode_text(*mode)
                )
            }
            OnDisk::MakeFolder { mode, .. } => {
                write!(f, "make folder {path} (mode {})", mode_text(*mode))
            }
            OnDisk::Link { target } => write!(f, "link {path} to {}", target.display()),
            OnDisk::ChangeMode { from, to } => {
                write!(
                    f,
                    "change the mode of {path} from {} to {}",
                    mode_text(*from),
                    mode_text(*to)
                )
            }
            OnDisk::ChangeOwner(owner) => write!(f, "give {path} to {owner}"),
            OnDisk::Remove => write!(f, "remove {path}"),
            OnDisk::RemoveFolder => write!(f, "remove the empty folder {path}"),
            OnDisk::RemoveTree => write!(f, "remove {path} and all that is in it"),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Maker => f.write_str("us"),
            Owner::User(name) => f.write_str(name),
            Owner::Named { user, group } => {
                f.write_str(user.as_deref().unwrap_or_default())?;
                match group {
                    Some(group) => write!(f, ":{group}"),
                    None => Ok(()),
                }
            }
        }
    }
}
