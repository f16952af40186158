//! The keeper's connection to its own server: unix socket, the keeper's account, one statement batch at a time.
//!
//! **A statement that timed out is not over** (failover.md section 1): it may still be waiting in the server and take
//! effect later, behind the back of the next order. So on a timeout the connection is killed through another one, and
//! nothing else runs until the server's process list no longer shows it.
//!
//! Sessions start with `sql_log_bin=0`: what a keeper changes is its own member's business. The few statements that
//! belong into the replicated log (the barrier, the application's account) switch it on for themselves.

use std::path::PathBuf;
use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts, OptsBuilder, Row};
use tokio::time::{Instant, sleep, timeout};

use crate::keeper::config::Secret;

/// The keeper's account.
pub const USER: &str = "keeper";
/// How long a killed connection may take to vanish from the process list.
const ENDING: Duration = Duration::from_secs(2);
/// Server errors that mean "that connection is gone already".
const NO_SUCH_THREAD: u16 = 1094;

#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    #[error("the server cannot be reached over its socket")]
    Unreachable(#[source] Box<mysql_async::Error>),
    #[error("'{what}' failed")]
    Statement {
        what: &'static str,
        #[source]
        source: Box<mysql_async::Error>,
    },
    #[error("'{what}' took longer than {limit_ms} ms; its connection was killed and is gone")]
    TimedOut { what: &'static str, limit_ms: u128 },
    #[error(
        "connection {id} of an earlier statement was killed and has not ended; nothing else may run before it has"
    )]
    NotEnded { id: u32 },
    #[error("the answer to '{what}' lacks {lacks}")]
    Answer {
        what: &'static str,
        lacks: &'static str,
    },
    #[error(transparent)]
    Position(#[from] super::gtid::BadPosition),
    /// The statements worked and the server is still not as it has to be.
    #[error("{0}")]
    Condition(String),
    #[error(transparent)]
    Salvage(#[from] super::salvage::SalvageError),
}

impl SqlError {
    /// Whether the connection broke, as it does when the server dies.
    pub fn lost(&self) -> bool {
        match self {
            SqlError::Unreachable(_) => true,
            // 1927: "connection was killed", which a dying server says to some.
            SqlError::Statement { source, .. } => source.is_fatal() || self.code() == Some(1927),
            SqlError::TimedOut { .. }
            | SqlError::NotEnded { .. }
            | SqlError::Answer { .. }
            | SqlError::Position(_)
            | SqlError::Condition(_)
            | SqlError::Salvage(_) => false,
        }
    }

    /// A server error's number.
    pub fn code(&self) -> Option<u16> {
        match self {
            SqlError::Statement { source, .. } => match source.as_ref() {
                mysql_async::Error::Server(error) => Some(error.code),
                mysql_async::Error::Driver(_)
                | mysql_async::Error::Io(_)
                | mysql_async::Error::Other(_)
                | mysql_async::Error::Url(_) => None,
            },
            SqlError::Unreachable(_)
            | SqlError::TimedOut { .. }
            | SqlError::NotEnded { .. }
            | SqlError::Answer { .. }
            | SqlError::Position(_)
            | SqlError::Condition(_)
            | SqlError::Salvage(_) => None,
        }
    }
}

/// How the keeper reaches its server. The password is drawn anew for every start of the server.
#[derive(Debug, Clone)]
pub struct Login {
    pub socket: PathBuf,
    pub password: Secret,
}

impl Login {
    fn opts(&self) -> Opts {
        // Stated sizes spare the driver the question after each connect; a connection of a keeper may idle for days.
        let init = "SET SESSION sql_log_bin=0, binlog_annotate_row_events=0, wait_timeout=31536000, autocommit=1";
        OptsBuilder::default()
            .socket(Some(self.socket.display().to_string()))
            .user(Some(USER))
            .pass(Some(self.password.reveal()))
            .max_allowed_packet(Some(16 * 1024 * 1024))
            .wait_timeout(Some(31_536_000))
            .stmt_cache_size(0)
            .init(vec![init])
            .into()
    }

    /// # Errors
    /// [`SqlError::Unreachable`].
    pub async fn connect(&self) -> Result<Conn, SqlError> {
        match timeout(super::STATEMENT, Conn::new(self.opts())).await {
            Ok(Ok(conn)) => Ok(conn),
            Ok(Err(error)) => Err(SqlError::Unreachable(Box::new(error))),
            Err(_) => {
                let error = std::io::Error::from(std::io::ErrorKind::TimedOut);
                Err(SqlError::Unreachable(Box::new(error.into())))
            }
        }
    }
}

/// Runs batches of statements over one connection, which is made anew after any error.
pub struct Driver {
    login: Login,
    session: Option<Conn>,
    /// A killed connection that has not been seen to end.
    unfinished: Option<u32>,
}

/// The rows of each statement of a batch; a statement without rows has none.
pub type Sets = Vec<Vec<Row>>;

impl Driver {
    pub fn new(login: Login) -> Self {
        Self {
            login,
            session: None,
            unfinished: None,
        }
    }

    pub fn login(&self) -> &Login {
        &self.login
    }

    /// Runs `sql` (one or more statements) in at most `limit`. `what` names it in errors: never the statement itself,
    /// which may carry a password.
    ///
    /// # Errors
    /// The first statement that fails; those before it have taken effect.
    pub async fn run(
        &mut self,
        what: &'static str,
        sql: &str,
        limit: Duration,
    ) -> Result<Sets, SqlError> {
        self.settle().await?;
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.login.connect().await?,
        };
        let id = session.id();
        match timeout(limit, batch(&mut session, sql)).await {
            Ok(Ok(sets)) => {
                self.session = Some(session);
                Ok(sets)
            }
            // The session is dropped: settings that a failed batch made in it must not outlive it.
            Ok(Err(source)) => Err(SqlError::Statement {
                what,
                source: Box::new(source),
            }),
            Err(_) => {
                drop(session);
                self.unfinished = Some(id);
                self.settle().await?;
                Err(SqlError::TimedOut {
                    what,
                    limit_ms: limit.as_millis(),
                })
            }
        }
    }

    /// The single value of a query with one row and one column; `None` for NULL and for no row.
    ///
    /// # Errors
    /// As [`Driver::run`].
    pub async fn value(
        &mut self,
        what: &'static str,
        sql: &str,
    ) -> Result<Option<String>, SqlError> {
        let sets = self.run(what, sql, super::STATEMENT).await?;
        Ok(sets
            .into_iter()
            .flatten()
            .next()
            .and_then(|row| row.get_opt(0).and_then(Result::ok)))
    }

    /// Makes sure that no statement of a killed connection is still at work.
    async fn settle(&mut self) -> Result<(), SqlError> {
        let Some(id) = self.unfinished else {
            return Ok(());
        };
        let mut other = self.login.connect().await?;
        let gone = timeout(ENDING, kill_and_see(&mut other, id)).await;
        match gone {
            Ok(Ok(())) => {
                self.unfinished = None;
                self.session = Some(other);
                Ok(())
            }
            Ok(Err(_)) | Err(_) => Err(SqlError::NotEnded { id }),
        }
    }
}

async fn batch(session: &mut Conn, sql: &str) -> Result<Sets, mysql_async::Error> {
    let mut result = session.query_iter(sql).await?;
    let mut sets = Vec::new();
    loop {
        sets.push(result.collect::<Row>().await?);
        if result.is_empty() {
            return Ok(sets);
        }
    }
}

/// Kills a connection and waits until the server's list no longer has it.
async fn kill_and_see(session: &mut Conn, id: u32) -> Result<(), mysql_async::Error> {
    match session
        .query_drop(format!("KILL HARD CONNECTION {id}"))
        .await
    {
        Ok(()) => {}
        Err(mysql_async::Error::Server(error)) if error.code == NO_SUCH_THREAD => return Ok(()),
        Err(error) => return Err(error),
    }
    let mut pause = Duration::from_millis(1);
    let started = Instant::now();
    loop {
        let query = format!("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE ID = {id}");
        if session.query_first::<u64, _>(query).await? == Some(0) {
            return Ok(());
        }
        sleep(pause).await;
        pause = (pause * 2).min(started.elapsed().max(Duration::from_millis(1)));
    }
}

/// A text value of a row by column name; `None` for NULL or a missing column.
pub fn text(row: &Row, column: &str) -> Option<String> {
    row.get_opt::<Option<String>, _>(column)
        .and_then(Result::ok)
        .flatten()
}

/// A text as an SQL literal. The server's `sql_mode` leaves backslash escapes on, so both are escaped.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('\'');
    for c in text.chars() {
        if matches!(c, '\'' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('\'');
    out
}

/// A name as an SQL identifier.
pub fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_cannot_be_left() {
        assert_eq!(quote(r"a'b\c"), r"'a\'b\\c'");
        assert_eq!(identifier("a`b"), "`a``b`");
    }
}
