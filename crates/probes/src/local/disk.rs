//! Mounts, and room on file systems.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::StatVfs;

use super::{LocalError, LocalProbe, Presence, Subject, finish, trouble};
use crate::call::{Args, CallError};
use crate::matcher::Matcher;
use crate::wants::{Facts, Wants};

pub(super) fn from_args(args: &Args<'_>) -> Result<LocalProbe, CallError> {
    let path = args.path("path")?;
    if args.kind.name == "mount" {
        let facts = [
            "source",
            "filesystem",
            "options",
            "fs_options",
            "used_percent",
        ];
        let wants = Wants::read(args, &facts)?;
        return finish(args, "mounted", Subject::Mount(path), wants);
    }
    let mut wants = Wants::read(args, &["used_percent", "inodes_used_percent"])?;
    if let Some(bytes) = args.size("free")? {
        wants.push("free", Matcher::at_least(bytes.0));
    }
    if let Some(count) = args.whole_number::<u64>("inodes_free")? {
        wants.push("inodes_free", Matcher::at_least(count));
    }
    if wants.is_empty() {
        return args.whole(
            "it asks for nothing",
            "say free, used_percent, inodes_free or inodes_used_percent",
        );
    }
    Ok(LocalProbe::new(Subject::Disk(path), Presence::There, wants))
}

fn room(path: &Path) -> Result<StatVfs, LocalError> {
    rustix::fs::statvfs(path)
        .map_err(|errno| trouble(format!("ask for the room on {}", path.display()))(errno.into()))
}

/// As `df`: of what is used and what programs that are not root may use, rounded up.
fn percent(used: u64, available: u64) -> u64 {
    match used.saturating_add(available) {
        0 => 0,
        all => used.saturating_mul(100).div_ceil(all),
    }
}

pub(super) fn facts(path: &Path) -> Result<Option<Facts>, LocalError> {
    let room = room(path)?;
    let used = room.f_blocks.saturating_sub(room.f_bfree);
    let inodes_used = room.f_files.saturating_sub(room.f_ffree);
    let mut facts = Facts::from([
        ("free", room.f_bavail.saturating_mul(room.f_frsize).into()),
        ("used_percent", percent(used, room.f_bavail).into()),
        (
            "inodes_used_percent",
            percent(inodes_used, room.f_favail).into(),
        ),
    ]);
    // Some file systems (btrfs) make inodes as they need them and count none: there are always enough.
    let inodes_free = if room.f_files == 0 {
        u64::MAX
    } else {
        room.f_favail
    };
    facts.insert("inodes_free", inodes_free.into());
    Ok(Some(facts))
}

pub(super) fn mount_facts(path: &Path, wants: &Wants) -> Result<Option<Facts>, LocalError> {
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(trouble("read the mounts"))?;
    // The last one covers those before it.
    let Some(mount) = table
        .lines()
        .filter_map(Mount::parse)
        .rfind(|mount| mount.at == path)
    else {
        return Ok(None);
    };
    let list = |text: &str| -> Vec<String> { text.split(',').map(str::to_owned).collect() };
    let mut facts = Facts::from([
        ("source", mount.source.display().to_string().into()),
        ("filesystem", mount.filesystem.into()),
        ("options", list(mount.options).into()),
        ("fs_options", list(mount.fs_options).into()),
    ]);
    if wants.asks("used_percent") {
        let room = room(path)?;
        let used = room.f_blocks.saturating_sub(room.f_bfree);
        let percent = used.saturating_mul(100).checked_div(room.f_blocks);
        facts.insert("used_percent", percent.unwrap_or(0).into());
    }
    Ok(Some(facts))
}

/// A line of mountinfo (proc_pid_mountinfo(5)).
struct Mount<'a> {
    at: PathBuf,
    options: &'a str,
    filesystem: &'a str,
    source: PathBuf,
    fs_options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (first, second) = line.split_once(" - ")?;
        let mut first = first.split(' ').skip(4);
        let mut second = second.split(' ');
        Some(Self {
            at: unescaped(first.next()?),
            options: first.next()?,
            filesystem: second.next()?,
            source: unescaped(second.next()?),
            fs_options: second.next()?,
        })
    }
}

/// Space, tab, line break and backslash are written as `\040` and the like.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        let digits = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped {
            Some(escaped) if *byte == b'\\' => {
                bytes.push(escaped);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let line =
            r"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let mount = Mount::parse(line).unwrap();
        assert_eq!(mount.at, Path::new("/mnt 2"));
        assert_eq!((mount.options, mount.filesystem), ("rw,noatime", "ext3"));
        assert_eq!(mount.fs_options, "rw,errors=continue");
        assert!(Mount::parse("garbage").is_none());
    }

    #[test]
    fn percentages_are_those_of_df() {
        assert_eq!(percent(1, 99), 1);
        assert_eq!(percent(1, 100), 1);
        assert_eq!(percent(0, 0), 0);
        assert_eq!(percent(50, 50), 50);
    }
}
