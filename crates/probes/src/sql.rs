//! A SQL server answers a query, if wanted with the right single value.
//!
//! Connections are kept for a short time, so that a check of every few seconds costs a query and not a login; but only
//! for [`KEPT_FOR`], so that logging in is tested regularly as well. That a kept connection broke is no failure: it may
//! have been cut for good reasons (a switchover does). Then a new one decides.
//!
//! A probe must not harm what it tests. The server itself is told to end the query soon after the deadline and to send two
//! rows at most; otherwise a query that waits for a lock would pile up sessions, one more with each probe.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts, OptsBuilder, Row, Value};

use crate::deadline::{Deadline, OutOfTime};
use crate::shown;

/// How long a connection is used again, from when it was made.
const KEPT_FOR: Duration = Duration::from_secs(30);

/// More are closed after use: they would be a burden of their own.
const MOST_KEPT: usize = 64;

/// How long after our own deadline the server ends a query.
const SERVER_ENDS_AFTER: Duration = Duration::from_secs(1);

/// The largest packet accepted from a server. A check compares single values; more is a mistake in its query.
const LARGEST_PACKET: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlProbe {
    pub url: SqlUrl,
    pub query: String,
    /// The single value that must come back, as text; `NULL` for null. `None`: any answer is right.
    pub want: Option<String>,
}

/// `mysql://user:password@host:port/database`; it is never printed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SqlUrl(String);

impl SqlUrl {
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }
}

impl fmt::Debug for SqlUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SqlUrl(…)")
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SqlError {
    #[error("the connection string cannot be used")]
    BadUrl(#[source] mysql_async::UrlError),
    #[error("cannot log in")]
    Login(#[source] mysql_async::Error),
    #[error("the query failed")]
    Query(#[source] mysql_async::Error),
    #[error("the answer is {seen}")]
    Wrong { seen: String },
    #[error("the answer is not a single value: {what}")]
    NotSingle { what: &'static str },
    #[error(transparent)]
    OutOfTime(#[from] OutOfTime),
}

impl SqlProbe {
    pub(crate) fn expected(&self) -> String {
        let query = shown::head(self.query.as_bytes());
        match &self.want {
            None => format!("`{query}` is answered"),
            Some(want) => format!("`{query}` gives {}", shown::head(want.as_bytes())),
        }
    }
}

/// The connections kept. The time limit is part of the key, because it is set in the session.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    kept: Mutex<BTreeMap<(SqlUrl, Duration), Kept>>,
}

#[derive(Debug)]
struct Kept {
    connection: Conn,
    since: Instant,
}

impl Connections {
    pub(crate) async fn look(
        &self,
        probe: &SqlProbe,
        within: Deadline,
    ) -> Result<String, SqlError> {
        let key = (probe.url.clone(), within.all);
        if let Some(mut kept) = self.take(&key) {
            // Silence counts as a failure even here: there is no time left to ask on a new one, and the probe that is
            // to confirm it will make one.
            match within
                .keep("waiting for the answer", ask(&mut kept.connection, probe))
                .await?
            {
                Err(SqlError::Query(error)) if !is_an_answer(&error) => {}
                looked => {
                    self.keep(key, kept);
                    return looked;
                }
            }
        }
        let connection = within
            .keep("logging in", log_in(&probe.url, within.all))
            .await??;
        let mut kept = Kept {
            connection,
            since: Instant::now(),
        };
        let looked = within
            .keep("waiting for the answer", ask(&mut kept.connection, probe))
            .await?;
        self.keep(key, kept);
        looked
    }

    fn take(&self, key: &(SqlUrl, Duration)) -> Option<Kept> {
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, kept| kept.since.elapsed() < KEPT_FOR);
        all.remove(key)
    }

    fn keep(&self, key: (SqlUrl, Duration), kept: Kept) {
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < MOST_KEPT {
            all.insert(key, kept);
        }
    }
}

/// The server said something, if only no; anything else is trouble with the connection.
fn is_an_answer(error: &mysql_async::Error) -> bool {
    matches!(error, mysql_async::Error::Server(_))
}

async fn log_in(url: &SqlUrl, limit: Duration) -> Result<Conn, SqlError> {
    let opts = Opts::from_url(&url.0).map_err(SqlError::BadUrl)?;
    let opts = OptsBuilder::from_opts(opts)
        // Otherwise the driver changes to the server's unix socket when it can, and what is tested is not what
        // clients use.
        .prefer_socket(false)
        // Given here, the driver does not ask the server for them at each login.
        .max_allowed_packet(Some(LARGEST_PACKET))
        .wait_timeout(Some(KEPT_FOR.as_secs() as usize))
        .stmt_cache_size(0)
        .setup(vec![session(limit)]);
    Conn::new(opts).await.map_err(SqlError::Login)
}

/// Settings of the session, in one statement that MariaDB and MySQL both understand: each executes the kind of
/// comment that is meant for it (MariaDB leaves `/*!5.7` and later to MySQL).
///
/// The server's limit comes after ours: a function that it interrupts (`SLEEP`, `BENCHMARK`) may return as if nothing
/// had happened, and the check would pass.
fn session(limit: Duration) -> String {
    let limit = limit + SERVER_ENDS_AFTER;
    let seconds = limit.as_secs_f64();
    let millis = limit.as_millis();
    format!(
        "SET SESSION sql_select_limit = 2 \
         /*M!100101 , max_statement_time = {seconds:.3} */ /*!50708 , max_execution_time = {millis} */"
    )
}

async fn ask(connection: &mut Conn, probe: &SqlProbe) -> Result<String, SqlError> {
    let rows: Vec<Row> = connection
        .query(&probe.query)
        .await
        .map_err(SqlError::Query)?;
    let Some(want) = &probe.want else {
        return Ok("answered".to_owned());
    };
    let [row] = rows.as_slice() else {
        return Err(SqlError::NotSingle {
            what: if rows.is_empty() {
                "no row"
            } else {
                "several rows"
            },
        });
    };
    if row.len() != 1 {
        return Err(SqlError::NotSingle {
            what: "several columns",
        });
    }
    let value = match row.as_ref(0) {
        Some(Value::Bytes(bytes)) => bytes.clone(),
        Some(Value::NULL) | None => b"NULL".to_vec(),
        // Only the binary protocol has these, and it is not used here.
        Some(other) => other.as_sql(true).into_bytes(),
    };
    let seen = shown::head(&value);
    if value == want.as_bytes() {
        Ok(seen)
    } else {
        Err(SqlError::Wrong { seen })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_not_printed() {
        let url = SqlUrl::new("mysql://app:secret@127.0.0.1/shop");
        let probe = SqlProbe {
            url,
            query: "SELECT 1".into(),
            want: None,
        };
        assert!(!format!("{probe:?}").contains("secret"));
        assert!(!probe.expected().contains("secret"));
    }
}
