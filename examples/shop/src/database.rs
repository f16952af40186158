//! The orders in the database, behind connections that may break at any time.
//!
//! Every statement here may be repeated: the reads by nature, the insert because of the order's
//! key. That is why one retry loop serves them all, and why no error needs a closer look: a broken
//! connection, a server that has become read-only, a table that is not there yet are all answered
//! by a new connection, until the caller's deadline.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use mysql_async::prelude::{FromRow, Queryable};
use mysql_async::{Conn, Opts, OptsBuilder, Params, Row};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::console;
use crate::order::{Key, Order};
use crate::retry::Backoff;

/// Longest item that fits the table.
pub const ITEM_CHARS_MAX: usize = 200;

const CREATE_TABLE: &str = "\
    CREATE TABLE IF NOT EXISTS orders (
        client BIGINT UNSIGNED NOT NULL,
        seq BIGINT UNSIGNED NOT NULL,
        item VARCHAR(200) NOT NULL,
        placed_at TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
        PRIMARY KEY (client, seq)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4";

/// A repeated order finds itself and changes nothing. It cannot overtake its own first attempt: that
/// one holds the row's lock until its commit has been acknowledged.
const PLACE: &str =
    "INSERT INTO orders (client, seq, item) VALUES (?, ?, ?) ON DUPLICATE KEY UPDATE seq = seq";

/// Fails while the table is missing, too: without it the shop is not healthy.
const PING: &str = "SELECT 1 FROM orders LIMIT 1";

const RETRY_PAUSE_MAX: Duration = Duration::from_millis(50);

/// How long one round of `create_table` tries before it says why it has not succeeded.
const CREATE_ROUND: Duration = Duration::from_secs(10);

/// At most a fixed number of connections, opened when they are needed.
pub struct Database {
    opts: Opts,
    idle: Mutex<Vec<Conn>>,
    permits: Semaphore,
}

#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error("the database did not answer in time")]
    Silent,
    /// The driver's text already contains that of its sources, so none is named here.
    #[error("the database kept failing until the deadline: {0}")]
    Failing(mysql_async::Error),
}

impl Database {
    pub fn open(url: &str, connections: usize) -> anyhow::Result<Self> {
        let opts = Opts::from_url(url.trim()).context("parse the database URL")?;
        let opts = OptsBuilder::from_opts(opts)
            // The driver would ask the server for its unix socket and move there, past the
            // forwarder that knows which server is the primary.
            .prefer_socket(false)
            // Stated, they need not be asked for: one round trip less after a reconnect.
            .max_allowed_packet(Some(16 << 20))
            .wait_timeout(Some(28_800));
        Ok(Self {
            opts: opts.into(),
            idle: Mutex::new(Vec::new()),
            permits: Semaphore::new(connections),
        })
    }

    /// Returns when the table is there, however long that takes.
    pub async fn create_table(&self) {
        let statement = Statement::text(CREATE_TABLE);
        while let Err(error) = self.ask::<Row>(&statement, CREATE_ROUND).await {
            let error = anyhow::Error::from(error);
            console::note(format_args!(
                "create the table of orders: {error:#}; trying on"
            ));
        }
    }

    /// Ok means that the commit was acknowledged, now or by an earlier attempt.
    pub async fn place(&self, order: &Order, within: Duration) -> Result<(), Unavailable> {
        self.ask::<Row>(&Statement::place(order), within).await?;
        Ok(())
    }

    /// One attempt, for callers that count their errors.
    pub async fn place_once(&self, order: &Order) -> mysql_async::Result<()> {
        self.attempt::<Row>(&Statement::place(order)).await?;
        Ok(())
    }

    pub async fn ping(&self, within: Duration) -> Result<(), Unavailable> {
        self.ask::<u8>(&Statement::text(PING), within).await?;
        Ok(())
    }

    pub async fn count(&self, within: Duration) -> Result<u64, Unavailable> {
        let statement = Statement::text("SELECT COUNT(*) FROM orders");
        Ok(self.ask::<u64>(&statement, within).await?.iter().sum())
    }

    /// Those of the keys that are not in the table.
    pub async fn missing(&self, keys: &[Key], within: Duration) -> Result<Vec<Key>, Unavailable> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut present: Vec<Key> = self
            .ask::<(u64, u64)>(&Statement::text(select_present(keys)), within)
            .await?
            .into_iter()
            .map(|(client, seq)| Key { client, seq })
            .collect();
        present.sort_unstable();
        Ok(keys
            .iter()
            .filter(|key| present.binary_search(key).is_err())
            .copied()
            .collect())
    }

    async fn ask<T: FromRow + Send + 'static>(
        &self,
        statement: &Statement,
        within: Duration,
    ) -> Result<Vec<T>, Unavailable> {
        let deadline = Instant::now() + within;
        let mut last_error = None;
        let attempts = async {
            let mut backoff = Backoff::up_to(RETRY_PAUSE_MAX);
            loop {
                match self.attempt(statement).await {
                    Ok(rows) => return rows,
                    Err(error) => last_error = Some(error),
                }
                backoff.pause().await;
            }
        };
        match timeout_at(deadline, attempts).await {
            Ok(rows) => Ok(rows),
            Err(_) => Err(last_error.map_or(Unavailable::Silent, Unavailable::Failing)),
        }
    }

    /// A connection goes back to the idle ones only after success; one that failed, or whose caller
    /// went away in the middle, is dropped.
    async fn attempt<T: FromRow + Send + 'static>(
        &self,
        statement: &Statement,
    ) -> mysql_async::Result<Vec<T>> {
        let _permit = self
            .permits
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let idle = self.with_idle(Vec::pop);
        let mut conn = match idle {
            Some(conn) => conn,
            None => Conn::new(self.opts.clone()).await?,
        };
        let result = statement.run(&mut conn).await;
        self.with_idle(|idle| match result {
            Ok(_) => idle.push(conn),
            // The others lead to the same server and are most likely just as dead.
            Err(_) => idle.clear(),
        });
        result
    }

    fn with_idle<R>(&self, f: impl FnOnce(&mut Vec<Conn>) -> R) -> R {
        f(&mut self.idle.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Text goes to the server as it is; a statement with parameters is prepared, once per connection.
struct Statement {
    text: String,
    params: Params,
}

impl Statement {
    fn text(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            params: Params::Empty,
        }
    }

    fn place(order: &Order) -> Self {
        Self {
            text: PLACE.to_owned(),
            params: (order.key.client, order.key.seq, &order.item).into(),
        }
    }

    async fn run<T: FromRow + Send + 'static>(
        &self,
        conn: &mut Conn,
    ) -> mysql_async::Result<Vec<T>> {
        match &self.params {
            Params::Empty => conn.query(self.text.as_str()).await,
            params => conn.exec(self.text.as_str(), params.clone()).await,
        }
    }
}

/// One range of the primary key per client: unlike a list of (client, seq) pairs, every optimizer
/// reads this from the index.
fn select_present(keys: &[Key]) -> String {
    let mut by_client: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for key in keys {
        by_client.entry(key.client).or_default().push(key.seq);
    }
    let mut text = String::from("SELECT client, seq FROM orders WHERE ");
    for (n, (client, seqs)) in by_client.iter().enumerate() {
        let or = if n == 0 { "" } else { " OR " };
        let _ = write!(text, "{or}(client = {client} AND seq IN (");
        for (n, seq) in seqs.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            let _ = write!(text, "{comma}{seq}");
        }
        text.push_str("))");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_looked_up_by_client() {
        let keys = [(7, 2), (3, 1), (7, 1)].map(|(client, seq)| Key { client, seq });
        assert_eq!(
            select_present(&keys),
            "SELECT client, seq FROM orders WHERE \
             (client = 3 AND seq IN (1)) OR (client = 7 AND seq IN (2,1))"
        );
    }
}
