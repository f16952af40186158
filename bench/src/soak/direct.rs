//! Customers that do not use the endpoint: one for each member, straight at its server, all the time. A server that is
//! closed refuses them; what any server acknowledges to them counts like every other order. So a second primary would
//! show as orders that are lost.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts, OptsBuilder};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::cell::{CLUSTER, Cell};
use crate::load;

const TABLE: &str = "CREATE TABLE IF NOT EXISTS bench_direct (client VARCHAR(64) NOT NULL, seq BIGINT UNSIGNED NOT NULL, \
    PRIMARY KEY (client, seq)) ENGINE=InnoDB";
const BETWEEN: Duration = Duration::from_millis(20);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// What each was acknowledged, by the number of the order.
type Books = Arc<Mutex<BTreeMap<String, Vec<u64>>>>;

pub struct Direct {
    books: Books,
    writers: JoinSet<()>,
    opts: Opts,
}

impl Direct {
    pub async fn start(cell: &Cell) -> anyhow::Result<Self> {
        let opts = load::application(&cell.dsn().await?)?;
        let mut conn = Conn::new(opts.clone()).await.context("connect")?;
        conn.query_drop(TABLE).await.context("make a table")?;
        let books = Books::default();
        let mut writers = JoinSet::new();
        for (member, host, port) in members(&cell.status().await?) {
            let opts: Opts = OptsBuilder::from_opts(opts.clone())
                .ip_or_hostname(host)
                .tcp_port(port)
                .into();
            writers.spawn(write(member, opts, Arc::clone(&books)));
        }
        Ok(Self {
            books,
            writers,
            opts,
        })
    }

    pub fn count(&self) -> u64 {
        let books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        books.values().map(|book| book.len() as u64).sum()
    }

    /// Ends them and counts what was acknowledged and is not there.
    pub async fn lost(mut self) -> anyhow::Result<u64> {
        self.writers.shutdown().await;
        let mut conn = Conn::new(self.opts.clone()).await.context("connect")?;
        let books = std::mem::take(&mut *self.books.lock().unwrap_or_else(PoisonError::into_inner));
        let mut lost = 0;
        for (client, acknowledged) in books {
            let query = format!("SELECT seq FROM bench_direct WHERE client = '{client}'");
            let kept: Vec<u64> = conn.query(query).await.context("read the orders")?;
            let kept: std::collections::BTreeSet<u64> = kept.into_iter().collect();
            lost += acknowledged
                .iter()
                .filter(|seq| !kept.contains(seq))
                .count() as u64;
        }
        Ok(lost)
    }
}

/// Name, host and port of each member's server.
fn members(status: &Value) -> Vec<(String, String, u16)> {
    let tasks = status["tasks"].as_array().into_iter().flatten();
    tasks
        .filter(|task| task["service"] == CLUSTER)
        .filter_map(|task| {
            let ports = task["ports"].as_object()?;
            let port = ports.values().next()?.as_u64()?;
            Some((
                task["name"].as_str()?.to_owned(),
                task["address"].as_str()?.to_owned(),
                u16::try_from(port).ok()?,
            ))
        })
        .collect()
}

async fn write(client: String, opts: Opts, books: Books) {
    let mut conn = None;
    for seq in 1u64.. {
        sleep(BETWEEN).await;
        let attempt = async {
            let open = match &mut conn {
                Some(open) => open,
                None => conn.insert(Conn::new(opts.clone()).await?),
            };
            let sql = format!("INSERT INTO bench_direct VALUES ('{client}', {seq})");
            open.query_drop(sql).await
        };
        match timeout(ANSWER_WITHIN, attempt).await {
            Ok(Ok(())) => {
                let mut books = books.lock().unwrap_or_else(PoisonError::into_inner);
                books.entry(client.clone()).or_default().push(seq);
            }
            // Refused, or unknown: then another number is next.
            Ok(Err(_)) | Err(_) => conn = None,
        }
    }
}
