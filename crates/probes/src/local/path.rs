//! Whatever is at a path.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use sha2::{Digest, Sha256, Sha512};

use super::{Cancelled, LocalError, LocalProbe, Presence, Subject, equals, finish, trouble};
use crate::accounts;
use crate::call::{Args, CallError};
use crate::wants::{Facts, Wants};

/// The largest file whose text is looked at, in bytes. Checksums have no limit but time.
const LARGEST: u64 = 64 << 20;

const TYPES: [(&str, &str); 7] = [
    ("file", "file"),
    ("directory", "directory"),
    ("symlink", "symlink"),
    ("socket", "socket"),
    ("fifo", "fifo"),
    ("block", "block"),
    ("char", "char"),
];

pub(super) fn from_args(args: &Args<'_>) -> Result<LocalProbe, CallError> {
    let subject = Subject::Path(args.path("path")?);
    let kind = args.kind.name;
    match kind {
        "absent" => Ok(LocalProbe::new(
            subject,
            Presence::NotThere,
            Wants::default(),
        )),
        "path" => {
            let mut wants = Wants::default();
            if let Some(word) = args.word("type", &TYPES)? {
                wants.push("type", equals(word));
            }
            for fact in [
                "mode", "owner", "uid", "group", "gid", "size", "target", "contents", "md5",
                "sha256", "sha512",
            ] {
                if let Some(matcher) = args.matcher(fact)? {
                    wants.push(fact, matcher);
                }
            }
            finish(args, "exists", subject, wants)
        }
        _ => {
            let wants = Wants::default().and("type", equals(kind));
            Ok(LocalProbe::new(
                subject,
                Presence::There,
                state(args, wants)?,
            ))
        }
    }
}

/// The facts of file, directory and symlink.
fn state(args: &Args<'_>, mut wants: Wants) -> Result<Wants, CallError> {
    let kind = args.kind.name;
    if kind == "symlink" {
        return Ok(wants.and("target", equals(&args.need("target")?)));
    }
    if let Some(mode) = mode(args)? {
        wants.push("mode", equals(&mode_text(mode)));
    }
    for (arg, name, number) in [("owner", "owner", "uid"), ("group", "group", "gid")] {
        if let Some(who) = args.text(arg) {
            let fact = if who.parse::<u32>().is_ok() {
                number
            } else {
                name
            };
            wants.push(fact, equals(who));
        }
    }
    if kind == "file" {
        if let Some(content) = args.text("content") {
            wants.push("contents", equals(content));
        }
        for fact in ["contents", "size", "sha256"] {
            if let Some(matcher) = args.matcher(fact)? {
                wants.push(fact, matcher);
            }
        }
    }
    Ok(wants)
}

/// The argument `mode` as bits.
pub(crate) fn mode(args: &Args<'_>) -> Result<Option<u32>, CallError> {
    let Some(text) = args.text("mode") else {
        return Ok(None);
    };
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 && (3..=4).contains(&text.len()) => Ok(Some(mode)),
        _ => args
            .refuse("mode", format!("'{text}' is not a mode"))
            .map_err(|error| error.with_hint("write three or four octal digits: \"0644\"")),
    }
}

/// As modes are written here: four octal digits.
pub(crate) fn mode_text(mode: u32) -> String {
    format!("{:04o}", mode & 0o7777)
}

pub(super) fn facts(
    path: &Path,
    wants: &Wants,
    cancelled: &Cancelled,
) -> Result<Option<Facts>, LocalError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => return Err(trouble(format!("look at {}", path.display()))(error)),
    };
    let mut facts = Facts::from([
        ("type", type_of(&metadata).into()),
        ("mode", mode_text(metadata.mode()).into()),
        ("uid", metadata.uid().into()),
        ("gid", metadata.gid().into()),
        ("size", metadata.len().into()),
    ]);
    if wants.asks("owner") {
        let user = accounts::user_of(metadata.uid()).map_err(trouble("look up the owner"))?;
        let number = || metadata.uid().to_string();
        facts.insert("owner", user.map_or_else(number, |user| user.name).into());
    }
    if wants.asks("group") {
        let group = accounts::group_of(metadata.gid()).map_err(trouble("look up the group"))?;
        let number = || metadata.gid().to_string();
        facts.insert(
            "group",
            group.map_or_else(number, |group| group.name).into(),
        );
    }
    if wants.asks("target") && metadata.is_symlink() {
        let target = fs::read_link(path).map_err(trouble("read the link"))?;
        facts.insert("target", target.to_string_lossy().into_owned().into());
    }
    read(path, wants, cancelled, &mut facts)?;
    Ok(Some(facts))
}

pub(crate) fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn type_of(metadata: &Metadata) -> &'static str {
    let is = metadata.file_type();
    if is.is_file() {
        "file"
    } else if is.is_dir() {
        "directory"
    } else if is.is_symlink() {
        "symlink"
    } else if is.is_socket() {
        "socket"
    } else if is.is_fifo() {
        "fifo"
    } else if is.is_block_device() {
        "block"
    } else {
        "char"
    }
}

/// What is in the file, if that is asked for. Follows a symlink, as programs that read the file do.
fn read(
    path: &Path,
    wants: &Wants,
    cancelled: &Cancelled,
    facts: &mut Facts,
) -> Result<(), LocalError> {
    let sums = ["md5", "sha256", "sha512"];
    let asks_sum = sums.iter().any(|sum| wants.asks(sum));
    let asks_text = wants.asks("contents");
    if !asks_sum && !asks_text {
        return Ok(());
    }
    let is_file = match fs::metadata(path) {
        Ok(metadata) => metadata.is_file(),
        // It vanished between two calls, or the link leads nowhere: the facts are not there.
        Err(_) => false,
    };
    // Opening a fifo or a device would wait, or worse.
    if !is_file {
        return Ok(());
    }
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if is_missing(&error) => return Ok(()),
        Err(error) => return Err(trouble(format!("open {}", path.display()))(error)),
    };
    let (mut md5, mut sha256, mut sha512) = (md5::Md5::new(), Sha256::new(), Sha512::new());
    let mut text = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        if cancelled.is_set() {
            return Ok(());
        }
        let count = file
            .read(&mut buffer)
            .map_err(trouble(format!("read {}", path.display())))?;
        if count == 0 {
            break;
        }
        let chunk = &buffer[..count];
        if wants.asks("md5") {
            md5.update(chunk);
        }
        if wants.asks("sha256") {
            sha256.update(chunk);
        }
        if wants.asks("sha512") {
            sha512.update(chunk);
        }
        if asks_text {
            text.extend_from_slice(chunk);
            if text.len() as u64 > LARGEST {
                let error = io::Error::other(format!("it has more than {LARGEST} bytes"));
                return Err(trouble(format!("read all of {}", path.display()))(error));
            }
        }
    }
    for (sum, bytes) in [
        ("md5", md5.finalize().to_vec()),
        ("sha256", sha256.finalize().to_vec()),
        ("sha512", sha512.finalize().to_vec()),
    ] {
        if wants.asks(sum) {
            facts.insert(sum, hex(&bytes).into());
        }
    }
    if asks_text {
        facts.insert(
            "contents",
            String::from_utf8_lossy(&text).into_owned().into(),
        );
    }
    Ok(())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
