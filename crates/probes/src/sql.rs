//! A SQL server answers a query, if wanted with the right single value.
//!
//! Connections are kept for a short time, so that a check of every few seconds costs a query and not a login; but only
//! for [`KEPT_FOR`], so that logging in is tested regularly as well. That a kept connection broke is no failure: it may
//! have been cut for good reasons (a switchover does). Then a new one decides.
//!
//! A probe must not harm what it tests. The server itself is told to end the query soon after the deadline and to send no
//! more rows than are needed; otherwise a query that waits for a lock would pile up sessions, one more with each probe.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts, OptsBuilder, Row, Value};

use crate::call::{Args, CallError};
use crate::deadline::{Deadline, OutOfTime};
use crate::matcher::Matcher;
use crate::shown;

mod state;

pub use state::SqlStateProbe;
pub(crate) use state::{
    SqlState, UserAmiss, administer, database, has_user, identifier, join, look_at_state, missing,
    quoted, user_amiss,
};

/// How long a connection is used again, from when it was made.
const KEPT_FOR: Duration = Duration::from_secs(30);

/// More are closed after use: they would be a burden of their own.
const MOST_KEPT: usize = 64;

/// How long after our own deadline the server ends a query.
const SERVER_ENDS_AFTER: Duration = Duration::from_secs(1);

/// The largest packet accepted from a server. A check compares single values; more is a mistake in its query.
const LARGEST_PACKET: usize = 1 << 20;

/// The most rows that a check may look at.
const MOST_ROWS: usize = 1000;

#[derive(Debug, Clone, PartialEq)]
pub struct SqlProbe {
    url: SqlUrl,
    query: String,
    want: SqlWant,
}

#[derive(Debug, Clone, PartialEq)]
enum SqlWant {
    /// Any answer is right.
    Answer,
    /// A single value comes back, as text; `NULL` for null.
    Single(Matcher),
    /// Of the list of rows, each a list of texts.
    Rows(Matcher),
}

impl SqlProbe {
    /// The query is answered; with `want`, by this single value.
    pub fn single(url: SqlUrl, query: impl Into<String>, want: Option<String>) -> Self {
        Self {
            url,
            query: query.into(),
            want: want.map_or(SqlWant::Answer, |want| {
                SqlWant::Single(Matcher::equals(want))
            }),
        }
    }

    pub(crate) fn from_args(args: &Args<'_>) -> Result<Self, CallError> {
        let want = match (args.matcher("want")?, args.matcher("rows")?) {
            (None, None) => SqlWant::Answer,
            (Some(want), None) => SqlWant::Single(want),
            (None, Some(rows)) => SqlWant::Rows(rows),
            (Some(_), Some(_)) => return args.refuse("rows", "it excludes 'want'"),
        };
        Ok(Self {
            url: SqlUrl::from_args(args)?,
            query: args.text("query").unwrap_or("SELECT 1").to_owned(),
            want,
        })
    }

    /// How many rows are enough to judge.
    fn rows(&self) -> usize {
        match &self.want {
            SqlWant::Answer | SqlWant::Single(_) => 2,
            SqlWant::Rows(_) => MOST_ROWS + 1,
        }
    }
}

/// `mysql://user:password@host:port/database`, or `file:/path` of a file that holds it; it is never printed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SqlUrl(String);

impl SqlUrl {
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    pub(crate) fn from_args(args: &Args<'_>) -> Result<Self, CallError> {
        let url = args.need("url")?;
        match url.strip_prefix("file:") {
            Some(path) if path.starts_with('/') => {}
            Some(_) => return args.refuse("url", "the path after 'file:' is not absolute"),
            None => {
                if let Err(error) = Opts::from_url(&url) {
                    return args.refuse("url", format!("'{}': {error}", shown::url(&url)));
                }
            }
        }
        Ok(Self(url))
    }

    pub(crate) fn opts(&self) -> Result<Opts, SqlError> {
        let text = match self.0.strip_prefix("file:") {
            None => self.0.clone(),
            Some(path) => std::fs::read_to_string(path)
                .map_err(|source| SqlError::UrlFile {
                    path: path.to_owned(),
                    source,
                })?
                .trim()
                .to_owned(),
        };
        Opts::from_url(&text).map_err(SqlError::BadUrl)
    }

    /// Host and port, for people and locks.
    pub(crate) fn shown(&self) -> String {
        match self.0.strip_prefix("file:") {
            Some(path) => format!("the server of {path}"),
            None => match Opts::from_url(&self.0) {
                Ok(opts) => format!("{}:{}", opts.ip_or_hostname(), opts.tcp_port()),
                Err(_) => shown::url(&self.0),
            },
        }
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
    #[error("cannot read {path}")]
    UrlFile {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot log in")]
    Login(#[source] mysql_async::Error),
    #[error("the query failed")]
    Query(#[source] mysql_async::Error),
    #[error("the answer is {seen}")]
    Wrong { seen: String },
    #[error("{0}")]
    State(String),
    #[error("the answer has more than {MOST_ROWS} rows")]
    TooManyRows,
    #[error("the answer is not a single value: {what}")]
    NotSingle { what: &'static str },
    #[error(transparent)]
    OutOfTime(#[from] OutOfTime),
}

impl SqlProbe {
    pub(crate) fn expected(&self) -> String {
        let query = shown::head(self.query.as_bytes());
        match &self.want {
            SqlWant::Answer => format!("`{query}` is answered"),
            SqlWant::Single(want) => format!("`{query}` gives {want}"),
            SqlWant::Rows(want) => format!("`{query}` gives rows: {want}"),
        }
    }
}

/// The connections kept. The limits on time and rows are part of the key, because they are set in the session.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    kept: Mutex<BTreeMap<Key, Kept>>,
}

type Key = (SqlUrl, Duration, usize);

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
        let key = (probe.url.clone(), within.all, probe.rows());
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
            .keep("logging in", log_in(&probe.url, within.all, probe.rows()))
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

    fn take(&self, key: &Key) -> Option<Kept> {
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, kept| kept.since.elapsed() < KEPT_FOR);
        all.remove(key)
    }

    fn keep(&self, key: Key, kept: Kept) {
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

async fn log_in(url: &SqlUrl, limit: Duration, rows: usize) -> Result<Conn, SqlError> {
    connect(url.opts()?, limit, rows).await
}

async fn connect(opts: Opts, limit: Duration, rows: usize) -> Result<Conn, SqlError> {
    let opts = OptsBuilder::from_opts(opts)
        // Otherwise the driver changes to the server's unix socket when it can, and what is tested is not what
        // clients use.
        .prefer_socket(false)
        // Given here, the driver does not ask the server for them at each login.
        .max_allowed_packet(Some(LARGEST_PACKET))
        .wait_timeout(Some(KEPT_FOR.as_secs() as usize))
        .stmt_cache_size(0)
        .setup(vec![session(limit, rows)]);
    Conn::new(opts).await.map_err(SqlError::Login)
}

/// Settings of the session, in one statement that MariaDB and MySQL both understand: each executes the kind of
/// comment that is meant for it (MariaDB leaves `/*!5.7` and later to MySQL).
///
/// The server's limit comes after ours: a function that it interrupts (`SLEEP`, `BENCHMARK`) may return as if nothing
/// had happened, and the check would pass.
fn session(limit: Duration, rows: usize) -> String {
    let limit = limit + SERVER_ENDS_AFTER;
    let seconds = limit.as_secs_f64();
    let millis = limit.as_millis();
    format!(
        "SET SESSION sql_select_limit = {rows} \
         /*M!100101 , max_statement_time = {seconds:.3} */ /*!50708 , max_execution_time = {millis} */"
    )
}

async fn ask(connection: &mut Conn, probe: &SqlProbe) -> Result<String, SqlError> {
    let rows: Vec<Row> = connection
        .query(&probe.query)
        .await
        .map_err(SqlError::Query)?;
    let want = match &probe.want {
        SqlWant::Answer => return Ok("answered".to_owned()),
        SqlWant::Rows(want) => return judge_rows(want, &rows),
        SqlWant::Single(want) => want,
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
    let value = text_at(row, 0);
    let seen = shown::head(value.as_bytes());
    match want.test(&value.into()) {
        Ok(()) => Ok(seen),
        Err(_) => Err(SqlError::Wrong { seen }),
    }
}

fn judge_rows(want: &Matcher, rows: &[Row]) -> Result<String, SqlError> {
    if rows.len() > MOST_ROWS {
        return Err(SqlError::TooManyRows);
    }
    let texts = rows
        .iter()
        .map(|row| (0..row.len()).map(|at| text_at(row, at)).collect());
    let texts: Vec<Vec<String>> = texts.collect();
    match want.test(&serde_json::json!(texts)) {
        Ok(()) => Ok(format!("{} rows", rows.len())),
        Err(seen) => Err(SqlError::Wrong { seen }),
    }
}

/// A value as text; `NULL` for null, and for what is not there.
pub(crate) fn text_at(row: &Row, column: usize) -> String {
    match row.as_ref(column) {
        Some(Value::Bytes(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        Some(Value::NULL) | None => "NULL".to_owned(),
        // Only the binary protocol has these, and it is not used here.
        Some(other) => other.as_sql(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_not_printed() {
        let url = SqlUrl::new("mysql://app:secret@127.0.0.1/shop");
        assert_eq!(url.shown(), "127.0.0.1:3306");
        let probe = SqlProbe::single(url, "SELECT 1", None);
        assert!(!format!("{probe:?}").contains("secret"));
        assert!(!probe.expected().contains("secret"));
    }
}
