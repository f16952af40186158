//! Reads at the server all the time, on a connection of its own, to know whether it answers and whether it hears its
//! source. It never waits behind an order or a look, and nothing waits for it.
//!
//! Only reads: a commit may wait for ackers for as long as there are none, and that is no hang.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use homeostat_decider::Pulse;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::mariadb::{Login, SqlError, text};

const READ: &str = "SELECT 1";

/// Time that this process was there to see. A keeper that was itself stopped, or not scheduled, has not watched a silence
/// for that long: what was said meanwhile may wait to be read.
#[derive(Debug)]
pub(crate) struct Watched {
    last: Cell<Instant>,
    total: Cell<Duration>,
    /// Of a gap without a look at this clock no more than this is counted.
    longest: Duration,
}

impl Watched {
    pub(crate) fn new(longest: Duration) -> Self {
        Self {
            last: Cell::new(Instant::now()),
            total: Cell::default(),
            longest,
        }
    }

    /// To be called more often than every `longest`, or time is lost.
    pub(crate) fn now(&self) -> Duration {
        self.at(Instant::now())
    }

    fn at(&self, now: Instant) -> Duration {
        let gap = now.saturating_duration_since(self.last.replace(now));
        let total = self.total.get() + gap.min(self.longest);
        self.total.set(total);
        total
    }
}

/// In `Watched` time.
#[derive(Debug, Default)]
struct Seen {
    /// When the read that waits was sent.
    sent: Option<Duration>,
    /// Whether a source is named, as far as the guard knows.
    named: Named,
    /// `Slave_received_heartbeats`.
    heartbeats: Option<u64>,
    source: Option<Heard>,
}

/// Whether the server has a source to hear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Named {
    #[default]
    Source,
    None,
}

/// The receiver, while its IO thread runs.
#[derive(Debug)]
struct Heard {
    /// Counters and positions that change with whatever comes from the source.
    mark: String,
    changed: Duration,
    looked: Duration,
}

/// Ends when it is dropped.
pub(crate) struct Reader {
    seen: Rc<RefCell<Seen>>,
    task: AbortHandle,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Reader {
    /// Reads once in a pulse, and twice where the server has no source.
    pub(crate) fn begin(login: Login, pulse: Duration, clock: Rc<Watched>) -> Self {
        let seen = Rc::new(RefCell::default());
        let reading = read_on(login, pulse, clock, Rc::clone(&seen));
        let task = tokio::task::spawn_local(reading).abort_handle();
        Self { seen, task }
    }

    pub(crate) fn source(&self, named: Named) {
        self.seen.borrow_mut().named = named;
    }

    pub(crate) fn pulse(&self, clock: &Watched) -> Pulse {
        let seen = self.seen.borrow();
        Pulse {
            unanswered_ms: seen.sent.map(|sent| ms(clock.now().saturating_sub(sent))),
            // As of the last look: while looks are not answered nothing is known.
            source_ms: (seen.source.as_ref())
                .map(|heard| ms(heard.looked.saturating_sub(heard.changed))),
        }
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

async fn read_on(login: Login, pulse: Duration, clock: Rc<Watched>, seen: Rc<RefCell<Seen>>) {
    let mut session = None;
    loop {
        let began = Instant::now();
        let named = seen.borrow().named;
        seen.borrow_mut().sent.get_or_insert(clock.now());
        let conn = match session.take() {
            Some(conn) => Ok(conn),
            None => login.connect().await,
        };
        match conn {
            Ok(mut conn) => {
                let read = match named {
                    Named::None => conn.query_drop(READ).await,
                    Named::Source => listen(&mut conn, &clock, &seen).await,
                };
                // A refusal is an answer, and a broken connection is followed by the exit that broke it.
                seen.borrow_mut().sent = None;
                session = read.is_ok().then_some(conn);
            }
            // It hung before it took the connection: the age goes on.
            Err(error) if timed_out(&error) => {}
            Err(_) => seen.borrow_mut().sent = None,
        }
        let pause = match named {
            // It may hold the primary role: that it hangs must be known soon.
            Named::None => {
                seen.borrow_mut().source = None;
                pulse / 2
            }
            Named::Source => pulse,
        };
        sleep_until(began + pause).await;
    }
}

/// Reads, and asks whether something came. For more than a number only where no heartbeat came: an event may have instead.
async fn listen(
    conn: &mut Conn,
    clock: &Watched,
    seen: &RefCell<Seen>,
) -> Result<(), mysql_async::Error> {
    // One round trip. The first answer comes by itself: what follows may wait for a change of replication.
    const BOTH: &str = "SELECT 1; SHOW GLOBAL STATUS LIKE 'Slave\\_received\\_heartbeats'";
    let mut result = conn.query_iter(BOTH).await?;
    result.collect::<Row>().await?;
    seen.borrow_mut().sent = None;
    let count = result.collect::<(String, u64)>().await?.pop();
    drop(result);
    let beat = (seen.borrow_mut()).beat(count.map(|(_, count)| count), clock.now());
    if !beat {
        let row = conn.query_first::<Row, _>("SHOW ALL SLAVES STATUS").await?;
        seen.borrow_mut().looked(row.as_ref(), clock.now());
    }
    Ok(())
}

fn timed_out(error: &SqlError) -> bool {
    use mysql_async::{Error, IoError};
    let SqlError::Unreachable(source) = error else {
        return false;
    };
    matches!(source.as_ref(), Error::Io(IoError::Io(io)) if io.kind() == std::io::ErrorKind::TimedOut)
}

impl Seen {
    /// Takes the number of heartbeats in; `true`: there was one since the last time.
    fn beat(&mut self, count: Option<u64>, now: Duration) -> bool {
        let known = std::mem::replace(&mut self.heartbeats, count);
        match (&mut self.source, count > known && known.is_some()) {
            (Some(heard), true) => {
                (heard.changed, heard.looked) = (now, now);
                true
            }
            (Some(_) | None, _) => false,
        }
    }

    fn looked(&mut self, row: Option<&Row>, now: Duration) {
        let word = |row: &Row, column| text(row, column).unwrap_or_default();
        let running = row.filter(|row| word(row, "Slave_IO_Running") != "No");
        let mark = running.map(|row| {
            // "Connecting" again and again is no sign of the source, so whether it is connected is not part of it.
            [
                "Master_Host",
                "Master_Port",
                "Slave_received_heartbeats",
                "Gtid_IO_Pos",
                "Read_Master_Log_Pos",
            ]
            .map(|column| word(row, column))
            .join(" ")
        });
        self.heard(mark, now);
    }

    /// `None`: the IO thread does not run.
    fn heard(&mut self, mark: Option<String>, now: Duration) {
        self.source = mark.map(|mark| {
            let same = self.source.as_ref().filter(|heard| heard.mark == mark);
            let changed = same.map_or(now, |heard| heard.changed);
            Heard {
                mark,
                changed,
                looked: now,
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_the_keeper_was_stopped_is_not_counted() {
        let clock = Watched::new(Duration::from_millis(100));
        let begin = clock.last.get();
        let mut now = begin;
        for _ in 0..10 {
            now += Duration::from_millis(50);
            clock.at(now);
        }
        assert_eq!(clock.at(now), Duration::from_millis(500));
        assert_eq!(
            clock.at(now + Duration::from_secs(10)),
            Duration::from_millis(600),
            "ten seconds asleep"
        );
    }

    #[test]
    fn silence_of_the_source_counts_from_what_came_last_and_from_the_start() {
        let at = Duration::from_millis;
        let age = |seen: &Seen| {
            seen.source
                .as_ref()
                .map(|heard| (heard.looked - heard.changed).as_millis())
        };
        let mut seen = Seen::default();
        let mark = |text: &str| Some(text.to_owned());
        seen.heard(mark("a"), at(1000));
        assert_eq!(age(&seen), Some(0), "it was just started");
        seen.heard(mark("a"), at(1700));
        assert_eq!(age(&seen), Some(700));
        seen.heard(mark("b"), at(1800));
        assert_eq!(age(&seen), Some(0));
        seen.heard(mark("b"), at(1900));
        assert!(!seen.beat(Some(7), at(1950)), "nothing to compare it with");
        assert!(seen.beat(Some(8), at(1960)));
        assert_eq!(age(&seen), Some(0), "a heartbeat is enough");
        assert!(!seen.beat(Some(8), at(1990)));
        seen.heard(None, at(2000));
        assert!(!seen.beat(Some(9), at(2010)), "it was started unseen");
        assert_eq!(age(&seen), None, "it does not receive");
        seen.heard(mark("b"), at(9000));
        assert_eq!(age(&seen), Some(0), "started again");
    }
}
