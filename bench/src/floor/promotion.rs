//! The statements of a failover, sent by hand, each with the time it took: all that the cell sends ([`Statements::Same`]), or
//! only those without which nobody could write ([`Statements::Bare`]).

use std::cell::RefCell;
use std::time::Instant;

use anyhow::{Context, bail};
use mysql_async::{Conn, Row};

use super::server::{batch, word};
use crate::steps::Steps;

pub(super) struct Replica<'a> {
    /// Open already.
    pub admin: &'a mut Conn,
    /// The id that it writes under.
    pub own_id: usize,
    /// How others replicate from it.
    pub source: &'a str,
}

/// Which statements are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statements {
    /// What the cell sends, in its order, the looks included with which it verifies each step: the replica's account is
    /// unlocked only when it was pointed anew, and clients are let in only when a barrier commit was acknowledged.
    Same,
    /// No account, no barrier; clients are let in while the other replica is still being pointed anew.
    Bare,
}

/// Writes down when each statement was over, and how long it took.
pub(super) struct Stopwatch<'a> {
    killed: Instant,
    steps: RefCell<&'a mut Steps>,
}

impl<'a> Stopwatch<'a> {
    pub(super) fn new(killed: Instant, steps: &'a mut Steps) -> Self {
        Self {
            killed,
            steps: RefCell::new(steps),
        }
    }

    /// Runs a statement of this replica.
    async fn run(
        &self,
        who: &str,
        what: &str,
        admin: &mut Conn,
        sql: &str,
    ) -> anyhow::Result<Vec<Vec<Row>>> {
        let began = Instant::now();
        let sets = batch(admin, sql)
            .await
            .with_context(|| format!("{who}: {what}"))?;
        let ms = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
        self.steps
            .borrow_mut()
            .add(&format!("{who}: {what}"), ms(self.killed), Some(ms(began)));
        Ok(sets)
    }
}

/// Makes one of two replicas of a dead primary the new one, the other its replica, and calls `open` with the number of
/// the new one as soon as that accepts writes. Returns that number.
pub(super) async fn promote(
    statements: Statements,
    replicas: &mut [Replica<'_>; 2],
    watch: &Stopwatch<'_>,
    open: impl FnOnce(usize),
) -> anyhow::Result<usize> {
    let [a, b] = replicas;
    // Both have to stop before either may be chosen: an acknowledged order is in at least one of them.
    let (received_a, received_b) = tokio::try_join!(
        stop_receiving(statements, a, watch),
        stop_receiving(statements, b, watch)
    )?;
    let (chosen, new, other) = if received_a.sequence()? >= received_b.sequence()? {
        (0, (a, received_a), (b, received_b))
    } else {
        (1, (b, received_b), (a, received_a))
    };
    let source = new.0.source;
    match statements {
        Statements::Bare => {
            let opening = async {
                take_over(new.0, &new.1, watch).await?;
                open(chosen);
                Ok(())
            };
            tokio::try_join!(opening, follow(other.0, &other.1, source, watch))?;
        }
        Statements::Same => {
            let change = looking(&format!("CHANGE MASTER TO {source}"));
            tokio::try_join!(
                end_replication(new.0, &new.1, watch),
                point(other.0, &other.1, &change, watch)
            )?;
            watch
                .run(
                    NEW,
                    "unlock the replica's account",
                    new.0.admin,
                    &looking(UNLOCK),
                )
                .await?;
            let start = looking(START);
            tokio::try_join!(
                watch.run(OTHER, "START SLAVE", other.0.admin, &start),
                watch.run(NEW, "wait for ackers, barrier", new.0.admin, BARRIER),
            )?;
            watch
                .run(
                    NEW,
                    "read_only = OFF",
                    new.0.admin,
                    &looking("SET GLOBAL read_only = OFF"),
                )
                .await?;
            open(chosen);
            watch
                .run(NEW, "RESET SLAVE ALL", new.0.admin, "RESET SLAVE ALL")
                .await?;
        }
    }
    Ok(chosen)
}

const NEW: &str = "NEW";
const OTHER: &str = "OTHER";
/// Unlogged, as everything in these sessions but the barrier.
const UNLOCK: &str = "ALTER USER 'replica'@'%' ACCOUNT UNLOCK";
/// As `crates/sql/src/mariadb/facts.rs` looks.
const LOOK: &str = "SELECT @@GLOBAL.read_only AS read_only, @@GLOBAL.rpl_semi_sync_master_enabled AS waits, \
    @@GLOBAL.rpl_semi_sync_slave_enabled AS acker, @@GLOBAL.gtid_binlog_pos AS applied, \
    @@GLOBAL.gtid_slave_pos AS asks_from; SHOW ALL SLAVES STATUS; \
    SELECT User AS user, JSON_VALUE(Priv, '$.account_locked') AS locked FROM mysql.global_priv; SHOW SLAVE HOSTS";
const START: &str = "START SLAVE IO_THREAD; START SLAVE SQL_THREAD";
const BARRIER: &str = "SET GLOBAL rpl_semi_sync_master_enabled = ON; \
    SET SESSION sql_log_bin = 1; INSERT INTO shop.barrier (id, commits) VALUES (1, 1) ON DUPLICATE KEY UPDATE commits = commits + 1; \
    SET SESSION sql_log_bin = 0";

/// The end of a received log.
struct Received(String);

impl Received {
    /// There is one domain and one history here, so the sequence number alone orders positions.
    fn sequence(&self) -> anyhow::Result<u64> {
        let number = self
            .0
            .rsplit('-')
            .next()
            .and_then(|number| number.parse().ok());
        number.with_context(|| format!("'{}' is no position", self.0))
    }
}

async fn stop_receiving(
    statements: Statements,
    replica: &mut Replica<'_>,
    watch: &Stopwatch<'_>,
) -> anyhow::Result<Received> {
    const THREAD: &str =
        "SELECT ID AS id FROM information_schema.PROCESSLIST WHERE COMMAND = 'Slave_IO'";
    const WHO: &str = "EACH";
    let admin = &mut *replica.admin;
    const STOP: &str = "STOP SLAVE IO_THREAD";
    match statements {
        // The cell kills the thread only where it does not stop at once.
        Statements::Same => {
            let sets = watch.run(WHO, STOP, admin, &looking(STOP)).await?;
            // After the statement and the settings.
            Ok(Received(word(&sets, 2, "Gtid_IO_Pos")))
        }
        Statements::Bare => {
            let sets = watch.run(WHO, "find the IO thread", admin, THREAD).await?;
            let kill = format!("KILL {}", word(&sets, 0, "id"));
            // It may have ended by itself: then there is nobody to kill.
            let _ = watch.run(WHO, "KILL the IO thread", admin, &kill).await;
            watch.run(WHO, STOP, admin, STOP).await?;
            let sets = watch
                .run(WHO, "SHOW SLAVE STATUS", admin, "SHOW SLAVE STATUS")
                .await?;
            Ok(Received(word(&sets, 0, "Gtid_IO_Pos")))
        }
    }
}

/// A statement and the look with which the cell verifies it, in one round trip.
fn looking(statement: &str) -> String {
    format!("{statement}; {LOOK}")
}

async fn take_over(
    new: &mut Replica<'_>,
    received: &Received,
    watch: &Stopwatch<'_>,
) -> anyhow::Result<()> {
    wait_for_applier(NEW, new.admin, received, watch).await?;
    let own = format!(
        "SET GLOBAL rpl_semi_sync_slave_enabled = OFF, server_id = {}",
        new.own_id
    );
    for (what, sql) in [
        ("STOP SLAVE", "STOP SLAVE"),
        ("RESET SLAVE ALL", "RESET SLAVE ALL"),
        ("no acker any more, own id", own.as_str()),
        (
            "wait for ackers",
            "SET GLOBAL rpl_semi_sync_master_enabled = ON",
        ),
        ("read_only = OFF", "SET GLOBAL read_only = OFF"),
    ] {
        watch.run(NEW, what, new.admin, sql).await?;
    }
    Ok(())
}

/// As [`take_over`], up to where the other one is needed.
async fn end_replication(
    new: &mut Replica<'_>,
    received: &Received,
    watch: &Stopwatch<'_>,
) -> anyhow::Result<()> {
    wait_for_applier(NEW, new.admin, received, watch).await?;
    let id = new.own_id;
    let sql = format!(
        "SET GLOBAL server_id = {id}; SET SESSION server_id = {id}; STOP SLAVE; \
         SET GLOBAL rpl_semi_sync_slave_enabled = OFF; FLUSH BINARY LOGS; {LOOK}"
    );
    watch
        .run(NEW, "end replication", new.admin, &sql)
        .await
        .map(drop)
}

async fn follow(
    other: &mut Replica<'_>,
    received: &Received,
    source: &str,
    watch: &Stopwatch<'_>,
) -> anyhow::Result<()> {
    let change = format!("CHANGE MASTER TO {source}");
    point(other, received, &change, watch).await?;
    watch
        .run(OTHER, "START SLAVE", other.admin, "START SLAVE")
        .await
        .map(drop)
}

async fn point(
    other: &mut Replica<'_>,
    received: &Received,
    change: &str,
    watch: &Stopwatch<'_>,
) -> anyhow::Result<()> {
    // What it received has to be applied first: naming another source would throw it away.
    wait_for_applier(OTHER, other.admin, received, watch).await?;
    for (what, sql) in [("STOP SLAVE", "STOP SLAVE"), ("CHANGE MASTER", change)] {
        watch.run(OTHER, what, other.admin, sql).await?;
    }
    Ok(())
}

async fn wait_for_applier(
    who: &str,
    admin: &mut Conn,
    received: &Received,
    watch: &Stopwatch<'_>,
) -> anyhow::Result<()> {
    let wait = format!("SELECT MASTER_GTID_WAIT('{}', 10) AS late", received.0);
    let sets = watch.run(who, "wait for the applier", admin, &wait).await?;
    if word(&sets, 0, "late") != "0" {
        bail!("{} is not applied", received.0);
    }
    Ok(())
}
