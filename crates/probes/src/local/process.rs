//! Processes, by the name of their program.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;

use super::{Cancelled, LocalError, LocalProbe, Presence, Subject, trouble};
use crate::accounts;
use crate::call::{Args, CallError};
use crate::matcher::Matcher;
use crate::wants::{Facts, Wants};

/// The kernel keeps so many bytes of a name (TASK_COMM_LEN − 1).
const LONGEST_NAME: usize = 15;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Selection {
    name: String,
    user: Option<String>,
    command: Option<Matcher>,
}

pub(super) fn from_args(args: &Args<'_>) -> Result<LocalProbe, CallError> {
    let selection = Selection {
        name: args.need("name")?,
        user: args.text("user").map(str::to_owned),
        command: args.matcher("command")?,
    };
    let count = args.matcher("count")?;
    let wants = Wants::default().and("count", count.unwrap_or_else(|| Matcher::at_least(1)));
    let subject = Subject::Process(selection);
    Ok(LocalProbe::new(subject, Presence::There, wants))
}

pub(super) fn facts(
    selection: &Selection,
    cancelled: &Cancelled,
) -> Result<Option<Facts>, LocalError> {
    let uid = match &selection.user {
        None => None,
        Some(user) => match accounts::uid_of(user).map_err(trouble("look up the user"))? {
            Some(uid) => Some(uid),
            // Nobody has processes of a user that is not there.
            None => return Ok(Some(Facts::from([("count", 0.into())]))),
        },
    };
    let mut count = 0_u64;
    for entry in fs::read_dir("/proc").map_err(trouble("read /proc"))? {
        if cancelled.is_set() {
            return Ok(None);
        }
        let Ok(entry) = entry else { continue };
        let is_process = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        // Any of these may be gone by the time it is read; then it does not run.
        if is_process && selection.has(&entry.path(), uid) {
            count += 1;
        }
    }
    Ok(Some(Facts::from([("count", count.into())])))
}

impl Selection {
    fn has(&self, process: &std::path::Path, uid: Option<u32>) -> bool {
        let Ok(stat) = fs::read(process.join("stat")) else {
            return false;
        };
        let stat = String::from_utf8_lossy(&stat);
        // `PID (NAME) STATE …`, and the name may contain anything.
        let Some((name, rest)) = stat
            .split_once('(')
            .and_then(|(_, rest)| rest.rsplit_once(')'))
        else {
            return false;
        };
        if rest.starts_with(" Z") || rest.starts_with(" X") || !self.is_named(name) {
            return false;
        }
        if let Some(uid) = uid
            && !fs::metadata(process).is_ok_and(|metadata| metadata.uid() == uid)
        {
            return false;
        }
        let Some(command) = &self.command else {
            return true;
        };
        let Ok(line) = fs::read(process.join("cmdline")) else {
            return false;
        };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        command.test(&line.trim_end().into()).is_ok()
    }

    fn is_named(&self, name: &str) -> bool {
        let mut end = self.name.len().min(LONGEST_NAME);
        while !self.name.is_char_boundary(end) {
            end -= 1;
        }
        name == self.name || (self.name.len() > LONGEST_NAME && name == &self.name[..end])
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(user) = &self.user {
            write!(f, " of {user}")?;
        }
        if let Some(command) = &self.command {
            write!(f, " (command line {command})")?;
        }
        Ok(())
    }
}
