//! The auditor: every acknowledged order is in the database, exactly once.
//!
//! "Once" is the primary key's doing; what is left to check is that no order is missing. The check
//! runs every few seconds, so it is incremental: a state file remembers how much of the log has been
//! verified. What a bad failover loses is the newest orders, which may have been verified before it
//! happened; so the last lines are looked up again each time, and the table as a whole must have at
//! least as many rows as the log has lines. As long as an order is missing, the state stays where it
//! is and the check goes on failing.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::console;
use crate::database::Database;
use crate::http;
use crate::order::Key;
use crate::order_log::{self, Reader};
use crate::target::{self, Target};
use crate::web;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: target::Args,
    /// The log that `shop load` writes
    #[arg(long, value_name = "FILE")]
    log: PathBuf,
    /// Where to remember how much of the log has been verified
    #[arg(long, value_name = "FILE")]
    state: PathBuf,
    /// Verify the whole log again
    #[arg(long)]
    full: bool,
}

pub enum Verdict {
    Kept,
    Lost,
}

/// A few hundred lines: more than can be acknowledged, but not yet on a replica's disk.
const RECHECK_BYTES: u64 = 8 << 10;

const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Counting reads the whole table. It is repeated no sooner than after this many times what it took
/// the last time, so that it never costs more than a hundredth of the database's time.
const COUNT_REST_FACTOR: u32 = 100;
const COUNT_REST_MAX: Duration = Duration::from_secs(3_600);

/// Not synced when it is written: an old or unreadable state only means more work.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    /// Bytes, lines and last line of the log's verified part.
    offset: u64,
    lines: u64,
    last: Option<Key>,
    count_again_unix_ms: u64,
}

pub async fn run(args: Args) -> anyhow::Result<Verdict> {
    let mut shop = Shop::open(args.target.target()?)?;
    let saved = if args.full {
        State::default()
    } else {
        State::load(&args.state)
    };
    if !args.log.exists() {
        if saved.lines > 0 {
            bail!("the order log {:?} was there before and is gone", args.log);
        }
        console::data("kept: no order has been acknowledged yet");
        return Ok(Verdict::Kept);
    }
    let (mut state, recheck) = saved.resume(&args.log);
    let lines_before = state.lines;

    let missing = verify_lines(&mut shop, &args.log, &mut state, recheck, &args.state).await?;
    if let Some(first) = missing.first() {
        let many = missing.len();
        console::data(format_args!(
            "LOST: {many} acknowledged orders are not in the database, the first is `{first}`"
        ));
        return Ok(Verdict::Lost);
    }
    let (lines, new) = (state.lines, state.lines - lines_before);
    let mut counted = String::new();
    if state.count_is_due() {
        let rows = state.count(&mut shop).await?;
        if rows < lines {
            console::data(format_args!(
                "LOST: {lines} orders were acknowledged, the database has {rows}"
            ));
            return Ok(Verdict::Lost);
        }
        counted = format!(", {rows} in the database");
    }
    state.save(&args.state)?;
    console::data(format_args!(
        "kept: {lines} orders acknowledged ({new} new){counted}"
    ));
    Ok(Verdict::Kept)
}

/// Moves the state over every batch that is complete, and saves it at once: a long log is verified
/// in the end even if each run is cut short. Returns what is missing from the first batch that is
/// not complete.
async fn verify_lines(
    shop: &mut Shop,
    log: &Path,
    state: &mut State,
    recheck: Vec<Key>,
    state_file: &Path,
) -> anyhow::Result<Vec<Key>> {
    for batch in recheck.chunks(web::VERIFY_MAX) {
        let missing = shop.missing(batch).await?;
        if !missing.is_empty() {
            return Ok(missing);
        }
    }
    let mut reader = Reader::open(log, state.offset)?;
    loop {
        let batch = reader.read(web::VERIFY_MAX)?;
        let Some(last) = batch.last() else {
            return Ok(Vec::new());
        };
        let last = *last;
        let missing = shop.missing(&batch).await?;
        if !missing.is_empty() {
            return Ok(missing);
        }
        state.offset = reader.offset();
        state.lines += batch.len() as u64;
        state.last = Some(last);
        state.save(state_file)?;
    }
}

impl State {
    fn load(path: &Path) -> Self {
        let Ok(text) = std::fs::read(path) else {
            return Self::default();
        };
        serde_json::from_slice(&text).unwrap_or_else(|error| {
            console::note(format_args!("{path:?}: {error}; verifying the whole log"));
            Self::default()
        })
    }

    /// By a rename, so that a reader sees the old state or the new one.
    fn save(&self, path: &Path) -> anyhow::Result<()> {
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let text = serde_json::to_vec(self).context("encode the state")?;
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, path))
            .with_context(|| format!("write the state file {path:?}"))
    }

    /// The state to go on from, and the verified lines to look up again. A state that does not
    /// describe this log (another log, or one that lost lines in a power cut) is worth nothing.
    fn resume(self, log: &Path) -> (Self, Vec<Key>) {
        match order_log::lines_before(log, self.offset, RECHECK_BYTES) {
            Ok(recheck) if recheck.last() == self.last.as_ref() => (self, recheck),
            Ok(_) | Err(_) => {
                console::note("the state is of another log: verifying the whole log");
                (Self::default(), Vec::new())
            }
        }
    }

    fn count_is_due(&self) -> bool {
        // The second half: a clock that was far ahead once must not end the counting.
        let now = unix_ms();
        now >= self.count_again_unix_ms
            || self.count_again_unix_ms - now > COUNT_REST_MAX.as_millis() as u64
    }

    async fn count(&mut self, shop: &mut Shop) -> anyhow::Result<u64> {
        let started = Instant::now();
        let rows = shop.count().await?;
        let rest = (started.elapsed() * COUNT_REST_FACTOR).min(COUNT_REST_MAX);
        self.count_again_unix_ms = unix_ms() + rest.as_millis() as u64;
        Ok(rows)
    }
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| since.as_millis() as u64)
}

enum Shop {
    Web(http::Client),
    Sql(Database),
}

impl Shop {
    fn open(target: Target) -> anyhow::Result<Self> {
        Ok(match target {
            Target::Web { address } => Self::Web(http::Client::new(address)),
            Target::Sql { url } => Self::Sql(Database::open(&url, 1)?),
        })
    }

    async fn missing(&mut self, keys: &[Key]) -> anyhow::Result<Vec<Key>> {
        match self {
            Self::Web(client) => {
                let orders = keys.to_vec();
                let answer: web::Missing = client
                    .post("/orders/verify", &web::Verify { orders })
                    .await?;
                Ok(answer.missing)
            }
            Self::Sql(database) => Ok(database.missing(keys, ANSWER_WITHIN).await?),
        }
    }

    async fn count(&mut self) -> anyhow::Result<u64> {
        match self {
            Self::Web(client) => Ok(client.get::<web::Count>("/orders/count").await?.orders),
            Self::Sql(database) => Ok(database.count(ANSWER_WITHIN).await?),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn verified(offset: u64, lines: u64, client: u64, seq: u64) -> State {
        State {
            offset,
            lines,
            last: Some(Key { client, seq }),
            count_again_unix_ms: 0,
        }
    }

    #[test]
    fn a_state_is_resumed_only_with_the_log_it_describes() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        std::fs::write(&log, "1 1\n1 2\n1 3\n").unwrap();
        let resume = |state: State| state.resume(&log);

        let (state, recheck) = resume(verified(8, 2, 1, 2));
        assert_eq!((state.offset, state.lines, recheck.len()), (8, 2, 2));

        assert_eq!(resume(State::default()).0, State::default());
        for (other, what) in [
            (verified(8, 2, 5, 2), "another line ends there"),
            (verified(7, 2, 1, 2), "no line ends there"),
            (verified(16, 4, 1, 4), "the log is shorter"),
        ] {
            assert_eq!(resume(other), (State::default(), Vec::new()), "{what}");
        }
    }

    #[test]
    fn the_state_survives_being_saved_and_an_unreadable_one_is_a_fresh_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        assert_eq!(State::load(&path), State::default());
        let state = verified(8, 2, 1, 2);
        state.save(&path).unwrap();
        assert_eq!(State::load(&path), state);
        std::fs::write(&path, "{").unwrap();
        assert_eq!(State::load(&path), State::default());
    }

    #[test]
    fn a_count_rests_but_not_for_ever() {
        let hour = COUNT_REST_MAX.as_millis() as u64;
        for (again, due) in [(0, true), (hour / 2, false), (3 * hour, true)] {
            let state = State {
                count_again_unix_ms: if again == 0 { 0 } else { unix_ms() + again },
                ..State::default()
            };
            assert_eq!(state.count_is_due(), due, "again in {again} ms");
        }
    }
}
