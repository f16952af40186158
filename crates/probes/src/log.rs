//! Lines in a log since the last look.
//!
//! How far it was read is kept in a file: device, inode and offset. When the log was rotated, the rest of the old one,
//! found by its inode beside the new one, is read first; when it was cut (copytruncate), reading starts over: it is
//! shorter then, or what stands before the offset is not what stood there. A line that is not yet complete is left for
//! the next look.
//!
//! Every line is reported once. A check on a log therefore fails once per finding, and should have `confirm = 1`.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::call::{Args, CallError};
use crate::deadline::Deadline;
use crate::local::{Cancelled, LocalError, blocking, hex, is_missing, trouble};
use crate::matcher::{self, Matcher};
use crate::shown;
use crate::wants::{Facts, Unmet, Wants};

/// The most read in one look, in bytes; the rest is for the next one.
const MOST: u64 = 256 << 20;

/// A longer line is several.
const LONGEST_LINE: u64 = 1 << 20;

const FORMAT: u32 = 1;

/// How long another look at the same log may take, and how often it is asked for.
const LOCK_WITHIN: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How many bytes before the offset are remembered. Lines of logs begin with their time.
const REMEMBERED: u64 = 64;

#[derive(Debug, Clone, PartialEq)]
pub struct LogProbe {
    path: PathBuf,
    pattern: String,
    state: PathBuf,
    count: Matcher,
    first_look: FirstLook,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FirstLook {
    FromStart,
    FromEnd,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    format: u32,
    device: u64,
    inode: u64,
    offset: u64,
    /// The last bytes before the offset, in hex.
    before: String,
}

impl LogProbe {
    pub(crate) fn from_args(args: &Args<'_>) -> Result<Self, CallError> {
        let pattern = args.need("pattern")?;
        if let Err(error) = regex::bytes::Regex::new(&pattern) {
            let why = matcher::why_no_expression(&error);
            return args.refuse("pattern", format!("'{pattern}' {why}"));
        }
        let (path, state) = (args.path("path")?, args.path("state")?);
        if path == state {
            return args.refuse("state", "it is the log itself");
        }
        Ok(Self {
            path,
            pattern,
            state,
            count: args.matcher("count")?.unwrap_or_else(|| Matcher::equals(0)),
            first_look: match args.bool("from_start") {
                Some(true) => FirstLook::FromStart,
                Some(false) | None => FirstLook::FromEnd,
            },
        })
    }

    pub(crate) fn expected(&self) -> String {
        let Self {
            path,
            pattern,
            count,
            ..
        } = self;
        format!("lines with /{pattern}/ new in {}: {count}", path.display())
    }
}

pub(crate) async fn look(probe: &LogProbe, within: Deadline) -> Result<String, LocalError> {
    let log = probe.clone();
    let found = blocking(within, move |cancelled| log.read(cancelled)).await??;
    let wants = Wants::default().and("count", probe.count.clone());
    let facts = Facts::from([("count", found.count.into())]);
    let example = match &found.last {
        None => String::new(),
        Some(line) => format!("; the last: {}", shown::head(line)),
    };
    match wants.judge(&facts) {
        Ok(right) => Ok(format!("{right}{example}")),
        Err(Unmet(wrong)) => Err(Unmet(format!("{wrong}{example}")).into()),
    }
}

#[derive(Debug, Default)]
struct Found {
    count: u64,
    last: Option<Vec<u8>>,
}

impl LogProbe {
    fn read(&self, cancelled: &Cancelled) -> Result<Found, LocalError> {
        let _lock = self.lock()?;
        let known = self.position()?;
        let pattern = regex::bytes::Regex::new(&self.pattern)
            .map_err(|error| trouble("use the pattern")(io::Error::other(error)))?;
        let reading = || trouble(format!("read {}", self.path.display()));
        let log = File::open(&self.path).map_err(reading())?;
        let metadata = log.metadata().map_err(reading())?;
        let mut found = Found::default();
        let start = match known {
            None => match self.first_look {
                FirstLook::FromStart => 0,
                FirstLook::FromEnd => metadata.len(),
            },
            Some(known) if (known.device, known.inode) == (metadata.dev(), metadata.ino()) => {
                let same = known.offset <= metadata.len()
                    && before(&log, known.offset).map_err(reading())? == known.before;
                if same { known.offset } else { 0 }
            }
            Some(known) => {
                // Its successor begins where it ends, so an unfinished last line is one.
                if let Some(old) = self.rotated(&known) {
                    scan(
                        &old,
                        known.offset,
                        Tail::IsALine,
                        &pattern,
                        cancelled,
                        &mut found,
                    )
                    .map_err(reading())?;
                }
                0
            }
        };
        let end = scan(
            &log,
            start,
            Tail::IsNotFinished,
            &pattern,
            cancelled,
            &mut found,
        )
        .map_err(reading())?;
        if !cancelled.is_set() {
            self.remember(&Position {
                format: FORMAT,
                device: metadata.dev(),
                inode: metadata.ino(),
                offset: end,
                before: before(&log, end).map_err(reading())?,
            })?;
        }
        Ok(found)
    }

    /// Two looks at once would both report the same lines.
    fn lock(&self) -> Result<File, LocalError> {
        let path = self.beside(".lock");
        let doing = || trouble(format!("lock {}", path.display()));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(doing())?;
        // A process that this one starts meanwhile has the lock as well, from fork until exec: not for long.
        let end = Instant::now() + LOCK_WITHIN;
        while let Err(errno) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if errno != rustix::io::Errno::WOULDBLOCK || Instant::now() > end {
                return Err(doing()(errno.into()));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(file)
    }

    fn beside(&self, end: &str) -> PathBuf {
        let mut name = self.state.clone().into_os_string();
        name.push(end);
        PathBuf::from(name)
    }

    fn position(&self) -> Result<Option<Position>, LocalError> {
        let doing = || trouble(format!("read {}", self.state.display()));
        let text = match fs::read(&self.state) {
            Ok(text) => text,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(doing()(error)),
        };
        let position: Position =
            serde_json::from_slice(&text).map_err(|error| doing()(error.into()))?;
        if position.format != FORMAT {
            let why = format!("its format is {}, not {FORMAT}", position.format);
            return Err(doing()(io::Error::other(why)));
        }
        Ok(Some(position))
    }

    /// Written beside and renamed. Not synced: after a loss of power the worst is that lines are reported again.
    fn remember(&self, position: &Position) -> Result<(), LocalError> {
        let doing = || trouble(format!("write {}", self.state.display()));
        let text = serde_json::to_vec(position).map_err(|error| doing()(error.into()))?;
        let new = self.beside(".new");
        let write = || {
            File::create(&new)?.write_all(&text)?;
            fs::rename(&new, &self.state)
        };
        write().map_err(doing())
    }

    /// The file that the log was before.
    fn rotated(&self, known: &Position) -> Option<File> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let entries = fs::read_dir(folder).ok()?;
        entries.flatten().find_map(|entry| {
            let metadata = entry.metadata().ok()?;
            let same = (metadata.dev(), metadata.ino()) == (known.device, known.inode)
                && metadata.is_file()
                && metadata.len() >= known.offset;
            same.then(|| File::open(entry.path()).ok()).flatten()
        })
    }
}

/// The bytes that stand before an offset.
fn before(file: &File, offset: u64) -> io::Result<String> {
    let start = offset.saturating_sub(REMEMBERED);
    let mut bytes = vec![0; usize::try_from(offset - start).unwrap_or_default()];
    file.read_exact_at(&mut bytes, start)?;
    Ok(hex(&bytes))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    IsALine,
    IsNotFinished,
}

/// Counts matching lines from `start` on; returns where to go on.
fn scan(
    mut file: &File,
    start: u64,
    tail: Tail,
    pattern: &regex::bytes::Regex,
    cancelled: &Cancelled,
    found: &mut Found,
) -> io::Result<u64> {
    file.seek(SeekFrom::Start(start))?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut at = start;
    let mut line = Vec::new();
    while at - start < MOST && !cancelled.is_set() {
        line.clear();
        let count = (&mut reader)
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut line)? as u64;
        let finished = line.ends_with(b"\n") || count == LONGEST_LINE || tail == Tail::IsALine;
        if count == 0 || !finished {
            break;
        }
        at += count;
        if pattern.is_match(line.trim_ascii_end()) {
            found.count += 1;
            found.last = Some(line.trim_ascii_end().to_vec());
        }
    }
    Ok(at)
}
