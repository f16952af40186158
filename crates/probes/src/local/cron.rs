//! Files in `/etc/cron.d`.

use std::path::{Path, PathBuf};

use super::account::account_name;
use super::{LocalProbe, Presence, Subject, equals};
use crate::call::{Args, CallError};
use crate::wants::Wants;

const FOLDER: &str = "/etc/cron.d";

/// What cron reads without a word of complaint: it ignores files of other modes and owners.
pub(crate) const MODE: u32 = 0o644;

pub(super) fn from_args(args: &Args<'_>) -> Result<LocalProbe, CallError> {
    let (path, content) = file(args)?;
    let wants = Wants::default()
        .and("type", equals("file"))
        .and("mode", equals(&super::mode_text(MODE)))
        .and("uid", equals("0"))
        .and("contents", equals(&content));
    Ok(LocalProbe::new(Subject::Path(path), Presence::There, wants))
}

/// The file and all that is in it.
pub(crate) fn file(args: &Args<'_>) -> Result<(PathBuf, String), CallError> {
    let name = args.need("name")?;
    // cron leaves out files with any other character in their names, dots above all.
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !name.chars().all(good) {
        return args
            .refuse("name", format!("'{name}' would be ignored by cron"))
            .map_err(|error| error.with_hint("only letters, digits, '_' and '-'"));
    }
    let schedule = args.need("schedule")?;
    if !is_schedule(&schedule) {
        return args
            .refuse("schedule", format!("'{schedule}' is no schedule"))
            .map_err(|error| error.with_hint("five fields as in '*/5 * * * *', or '@daily'"));
    }
    let command = args.need("command")?;
    if command.contains('\n') {
        return args.refuse("command", "it is more than one line");
    }
    let user = if args.has("user") {
        account_name(args, "user")?
    } else {
        "root".to_owned()
    };
    let content = format!("# Written by homeostat.\n{schedule} {user} {command}\n");
    Ok((Path::new(FOLDER).join(name), content))
}

fn is_schedule(text: &str) -> bool {
    const WORDS: [&str; 8] = [
        "@reboot",
        "@yearly",
        "@annually",
        "@monthly",
        "@weekly",
        "@daily",
        "@midnight",
        "@hourly",
    ];
    let field = |field: &str| {
        let good = |c: char| c.is_ascii_alphanumeric() || "*/,-".contains(c);
        field.chars().all(good) && field.contains(|c: char| c == '*' || c.is_ascii_alphanumeric())
    };
    let fields: Vec<_> = text.split(' ').collect();
    WORDS.contains(&text) || (fields.len() == 5 && fields.iter().all(|one| field(one)))
}
