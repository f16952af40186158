//! What only the holder of an epoch is asked: taking over, the barrier, letting members in and out, opening, stepping
//! down.

use std::time::Duration;

use homeostat_decider::{Gtid, LogEnd, MemberId};
use homeostat_model::Epoch;
use tokio::time::{Instant, sleep};

use super::driver::{Driver, SqlError, USER, identifier, quote, text};
use super::facts::{Known, Reading, SourceThreads, read, run_and_read};
use super::gtid::{epoch_of, first_of, log_end, position};
use super::receiver::{ensure_drained, ensure_stopped};
use super::{Member, STATEMENT, accounts};
use crate::keeper::config::Secret;

/// How long a barrier waits for its acknowledgement.
const BARRIER: Duration = Duration::from_secs(5);

/// The account and database made for applications.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Application {
    pub user: String,
    pub password: Secret,
    pub database: String,
}

/// Ends replication and shuts every replica out, verified. `before` is the server as it was seen last, if nothing was
/// ordered since.
///
/// What this member received from is forgotten only after clients were let in ([`forget_source`]).
///
/// # Errors
/// When received events are not applied, or the result is not as it has to be.
pub async fn take_over(
    driver: &mut Driver,
    this: &Member<'_>,
    known: &Known,
    before: Option<Reading>,
) -> Result<Reading, SqlError> {
    let reading = ensure_stopped(driver, before, known.hearing).await?;
    if !(reading.admitted.is_empty() && reading.receiving.is_empty()) {
        let others: Vec<&MemberId> = this.config.members.keys().collect();
        accounts::shut_out(driver, this, &others).await?;
    }
    // From here on it writes under its own id. A client that connected before would go on with the other one: it is cut.
    let id = this.own()?.server_id;
    let mut sql = format!("SET GLOBAL server_id = {id}; SET SESSION server_id = {id}; ");
    if reading.source.is_some() {
        ensure_drained(driver, known, reading).await?;
        sql.push_str("STOP SLAVE; SET GLOBAL rpl_semi_sync_slave_enabled = OFF; ");
    }
    // A replica that connects makes its source read the binlog from its start up to where it asks from (4 ms a MB were
    // seen): all that is in it is in everybody's log already, so the next one is begun.
    sql.push_str("FLUSH BINARY LOGS");
    let reading = run_and_read(driver, "end replication", &sql, STATEMENT).await?;
    cut_clients(driver).await?;
    let receives = |source: &SourceThreads| source.receives || source.applies;
    if reading.source.as_ref().is_some_and(receives)
        || !reading.admitted.is_empty()
        || !reading.receiving.is_empty()
    {
        let what = format!("after the take-over it still has {reading:?}");
        return Err(SqlError::Condition(what));
    }
    Ok(reading)
}

/// Lets a member receive.
///
/// # Errors
/// When it is no member, or the statement fails.
pub async fn admit(
    driver: &mut Driver,
    this: &Member<'_>,
    member: &MemberId,
) -> Result<Reading, SqlError> {
    accounts::unlock(driver, this, member).await
}

/// Shuts a member out, verified.
///
/// # Errors
/// When it is no member, or its connections do not end.
pub async fn expel(
    driver: &mut Driver,
    this: &Member<'_>,
    member: &MemberId,
) -> Result<(), SqlError> {
    accounts::shut_out(driver, this, &[member]).await
}

/// Switches semi-synchronous replication on and commits the barrier row of the record's epoch, acknowledged.
///
/// # Errors
/// When it was not acknowledged in time: then its connection is gone, and it may be tried again.
pub async fn barrier(driver: &mut Driver, this: &Member<'_>) -> Result<Barrier, SqlError> {
    let reading = read(driver).await?;
    // One that is only named still is forgotten when clients are let in, not before: see `forget_source`.
    if let Some(source) = &reading.source
        && (source.receives || source.applies)
    {
        let what = format!("it still replicates from {}:{}", source.host, source.port);
        return Err(SqlError::Condition(what));
    }
    let at = log_end(reading.applied).barrier;
    let epoch = this.record.epoch;
    if at > epoch {
        return Err(SqlError::Condition(format!(
            "its log has a barrier of epoch {at}, later than {epoch}"
        )));
    }
    if !reading.waits_for_ackers {
        let sql = "SET GLOBAL rpl_semi_sync_master_enabled = ON";
        driver
            .run("switch semi-synchronous replication on", sql, STATEMENT)
            .await?;
    }
    let jump = if at < epoch {
        let first = first_of(epoch)
            .ok_or_else(|| SqlError::Condition(format!("epoch {epoch} cannot be numbered")))?;
        format!("SET SESSION gtid_seq_no = {first}; ")
    } else {
        String::new()
    };
    // Looked for now, while the ackers connect, so that `open` need not.
    let application = application(driver, &this.config.application).await?;
    Ok(Barrier {
        at: commit(driver, this, epoch, Row::Epoch, &jump, BARRIER).await?,
        application: application.made,
    })
}

/// An acknowledged barrier.
#[derive(Debug, Clone, Copy)]
pub struct Barrier {
    pub at: Gtid,
    pub application: Made,
}

/// Whether the application's account and database are as they have to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Made {
    #[default]
    NotSeen,
    Seen,
}

/// Which row a barrier commit changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Row {
    /// The epoch's own.
    Epoch,
    /// Of no epoch: one that waits for its acknowledgement holds a lock, which must not be in the way of a [`demote`].
    Alive,
}

/// A commit that shows that the ackers acknowledge for this member still: its serving lease counts from when it began.
///
/// # Errors
/// When it was not acknowledged in time: then its connection is gone, and the next may be tried.
pub async fn keep_alive(driver: &mut Driver, this: &Member<'_>) -> Result<(), SqlError> {
    commit(driver, this, this.record.epoch, Row::Alive, "", BARRIER)
        .await
        .map(drop)
}

/// The commit of a barrier and the proof of its acknowledgement, as one batch.
async fn commit(
    driver: &mut Driver,
    this: &Member<'_>,
    epoch: Epoch,
    row: Row,
    jump: &str,
    limit: Duration,
) -> Result<Gtid, SqlError> {
    const WHAT: &str = "commit the barrier";
    const ACKS: &str = "SHOW GLOBAL STATUS WHERE Variable_name IN \
        ('Rpl_semi_sync_master_status', 'Rpl_semi_sync_master_yes_tx', 'Rpl_semi_sync_master_no_tx')";
    let key = match row {
        Row::Epoch => epoch,
        Row::Alive => Epoch(0),
    };
    let record = this.record;
    let ackers: Vec<&str> = record.ackers.iter().map(MemberId::as_str).collect();
    // `commits` changes each time: a row that stays the same would be no event, and no event is acknowledged.
    let sql = format!(
        "{ACKS}; SET SESSION sql_log_bin = 1; {jump}\
         INSERT INTO homeostat.epoch (epoch, version, holder, ackers, commits) VALUES ({key}, {}, {}, {}, 1) \
         ON DUPLICATE KEY UPDATE version = VALUES(version), holder = VALUES(holder), ackers = VALUES(ackers), \
         commits = commits + 1; SELECT @@SESSION.last_gtid AS gtid; SET SESSION sql_log_bin = 0; {ACKS}",
        record.version,
        quote(this.member.as_str()),
        quote(&ackers.join(",")),
    );
    let sets = driver.run(WHAT, &sql, limit).await?;
    let mut seen = sets.iter().filter(|set| !set.is_empty());
    let (Some(before), Some(gtid), Some(after)) = (seen.next(), seen.next(), seen.next()) else {
        return Err(SqlError::Answer {
            what: WHAT,
            lacks: "its acknowledgement's figures",
        });
    };
    let (before, after) = (Acks::of(before), Acks::of(after));
    if !(before.on && after.on && after.yes > before.yes && after.no == before.no) {
        let what =
            format!("the barrier was committed and not acknowledged ({before:?}, then {after:?})");
        return Err(SqlError::Condition(what));
    }
    let gtid = gtid
        .first()
        .and_then(|row| text(row, "gtid"))
        .unwrap_or_default();
    let gtid = position(&gtid)?.ok_or(SqlError::Answer {
        what: WHAT,
        lacks: "its GTID",
    })?;
    if epoch_of(gtid) != epoch || gtid.server != this.own()?.server_id {
        return Err(SqlError::Condition(format!(
            "the barrier of epoch {epoch} became {gtid}"
        )));
    }
    Ok(gtid)
}

#[derive(Debug, PartialEq, Eq)]
struct Acks {
    on: bool,
    yes: u64,
    no: u64,
}

impl Acks {
    fn of(rows: &[mysql_async::Row]) -> Self {
        let value = |name: &str| {
            let row = rows
                .iter()
                .find(|row| text(row, "Variable_name").is_some_and(|found| found == name));
            row.and_then(|row| text(row, "Value")).unwrap_or_default()
        };
        Self {
            on: value("Rpl_semi_sync_master_status") == "ON",
            yes: value("Rpl_semi_sync_master_yes_tx")
                .parse()
                .unwrap_or_default(),
            no: value("Rpl_semi_sync_master_no_tx")
                .parse()
                .unwrap_or_default(),
        }
    }
}

/// Opens the server for writes. The application's account is made first where it is missing: through the log, so that
/// every member gets it, and acknowledged as any write.
///
/// # Errors
/// When the barrier of this epoch was not acknowledged by this server, or a statement fails.
pub async fn open(
    driver: &mut Driver,
    this: &Member<'_>,
    known: &Known,
) -> Result<Reading, SqlError> {
    let epoch = this.record.epoch;
    if known.barrier != Some(epoch) {
        return Err(SqlError::Condition(format!(
            "no barrier of epoch {epoch} was acknowledged to this server"
        )));
    }
    match known.application {
        Made::Seen => {}
        Made::NotSeen => provide_application(driver, &this.config.application).await?,
    }
    // That it receives from nobody was seen before the barrier, and no order since could have changed it.
    const OPEN: &str = "BEGIN NOT ATOMIC IF @@GLOBAL.rpl_semi_sync_master_enabled THEN \
        SET GLOBAL read_only = OFF; END IF; END";
    let reading = run_and_read(driver, "open for writes", OPEN, STATEMENT).await?;
    if reading.read_only {
        let what = "it does not wait for ackers: not fit to be opened";
        return Err(SqlError::Condition(what.into()));
    }
    Ok(reading)
}

/// Forgets what this server received from before it became holder. Some milliseconds of disk that nobody has to wait for.
///
/// # Errors
/// When the statement fails; nothing depends on it.
pub async fn forget_source(driver: &mut Driver) -> Result<Reading, SqlError> {
    run_and_read(driver, "forget replication", "RESET SLAVE ALL", STATEMENT).await
}

/// The application's account as it is looked for.
struct Found {
    made: Made,
    /// Of its password, as the server keeps it.
    hash: String,
}

/// In a grant `_` and `%` of a database's name would be wildcards.
fn pattern(app: &Application) -> String {
    app.database.replace('_', "\\_").replace('%', "\\%")
}

async fn application(driver: &mut Driver, app: &Application) -> Result<Found, SqlError> {
    const WHAT: &str = "look for the application's account";
    let (user, password) = (quote(&app.user), quote(app.password.reveal()));
    let look = format!(
        "SELECT PASSWORD({password}) AS hash, \
         (SELECT COUNT(*) FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = {}) AS made, \
         (SELECT JSON_VALUE(Priv, '$.authentication_string') FROM mysql.global_priv \
          WHERE User = {user} AND Host = '%') AS has, \
         (SELECT COUNT(*) FROM mysql.db WHERE User = {user} AND Host = '%' AND Db = {}) AS granted",
        quote(&app.database),
        quote(&pattern(app)),
    );
    let sets = driver.run(WHAT, &look, STATEMENT).await?;
    let row = sets.first().and_then(|set| set.first());
    let row = row.ok_or(SqlError::Answer {
        what: WHAT,
        lacks: "a row",
    })?;
    let hash = text(row, "hash").ok_or(SqlError::Answer {
        what: WHAT,
        lacks: "the hash",
    })?;
    let there = |column| text(row, column).is_some_and(|value| value != "0");
    let has = text(row, "has").is_some_and(|has| has == hash);
    let made = match there("made") && there("granted") && has {
        true => Made::Seen,
        false => Made::NotSeen,
    };
    Ok(Found { made, hash })
}

/// Makes what is missing of the application's account and database.
async fn provide_application(driver: &mut Driver, app: &Application) -> Result<(), SqlError> {
    let found = application(driver, app).await?;
    if found.made == Made::Seen {
        return Ok(());
    }
    let user = quote(&app.user);
    // The hash goes into the log, not the password.
    let sql = format!(
        "SET SESSION sql_log_bin = 1; CREATE DATABASE IF NOT EXISTS {}; \
         CREATE USER IF NOT EXISTS {user}@'%'; ALTER USER {user}@'%' IDENTIFIED BY PASSWORD {}; \
         GRANT ALL PRIVILEGES ON {}.* TO {user}@'%'; SET SESSION sql_log_bin = 0",
        identifier(&app.database),
        quote(&found.hash),
        identifier(&pattern(app)),
    );
    driver
        .run("make the application's account", &sql, BARRIER)
        .await
        .map(drop)
}

/// Steps down in order: nothing is written any more, nothing waits, and the position is final.
///
/// # Errors
/// When it cannot be done within `patience`; the server may be read_only then.
pub async fn demote(
    driver: &mut Driver,
    this: &Member<'_>,
    patience: Duration,
) -> Result<LogEnd, SqlError> {
    let end = Instant::now() + patience;
    let left = || {
        end.saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1))
    };
    let reading = read(driver).await?;
    if !reading.read_only {
        // One last barrier, still of the epoch that is being left: an acker that already holds all there is answers only
        // when something new comes, and read_only waits for commits that wait for it.
        let epoch = log_end(reading.applied).barrier;
        commit(driver, this, epoch, Row::Epoch, "", left()).await?;
        driver
            .run("close for writes", "SET GLOBAL read_only = ON", left())
            .await?;
    }
    while waiting_commits(driver).await? > 0 {
        if Instant::now() >= end {
            return Err(SqlError::Condition(
                "commits still wait for an acknowledgement".into(),
            ));
        }
        sleep(Duration::from_millis(1)).await;
    }
    cut_clients(driver).await?;
    let reading = read(driver).await?;
    if !reading.read_only {
        return Err(SqlError::Condition(
            "it is open for writes after it was closed".into(),
        ));
    }
    Ok(log_end(reading.applied))
}

/// What is left of having been holder, before a member receives again: nobody receives from it, and it waits for no
/// ackers (waiting, a replica's applier would stop for ever).
///
/// Switching semi-synchronous replication off answers every commit that still waits with an OK that nobody gave. So it is
/// done only after a `Demote`; a holder that was fenced in another way is killed and loses its tail.
///
/// # Errors
/// When it is not closed or a commit waits.
pub(super) async fn retire(
    driver: &mut Driver,
    this: &Member<'_>,
    reading: &Reading,
) -> Result<(), SqlError> {
    if reading.waits_for_ackers {
        if !reading.read_only || waiting_commits(driver).await? > 0 {
            let what = "it is a holder that was not demoted: it has to be killed, and started with its tail dropped";
            return Err(SqlError::Condition(what.into()));
        }
        let sql = "SET GLOBAL rpl_semi_sync_master_enabled = OFF";
        driver
            .run("switch semi-synchronous replication off", sql, STATEMENT)
            .await?;
    }
    if !(reading.admitted.is_empty() && reading.receiving.is_empty()) {
        let all: Vec<&MemberId> = this.config.members.keys().collect();
        accounts::shut_out(driver, this, &all).await?;
    }
    Ok(())
}

async fn waiting_commits(driver: &mut Driver) -> Result<u64, SqlError> {
    const WHAT: &str = "count waiting commits";
    const WAITING: &str = "SHOW GLOBAL STATUS LIKE 'Rpl_semi_sync_master_wait_sessions'";
    let sets = driver.run(WHAT, WAITING, STATEMENT).await?;
    let waiting = sets
        .iter()
        .flatten()
        .next()
        .and_then(|row| text(row, "Value"));
    waiting
        .and_then(|number| number.parse().ok())
        .ok_or(SqlError::Answer {
            what: WHAT,
            lacks: "a number",
        })
}

/// Kills the connections of every account that is neither ours nor a replica's.
async fn cut_clients(driver: &mut Driver) -> Result<(), SqlError> {
    const USERS: &str = "SELECT DISTINCT USER AS user FROM information_schema.PROCESSLIST \
        WHERE USER NOT IN ('system user', 'event_scheduler', 'unauthenticated user')";
    let sets = driver.run("list users", USERS, STATEMENT).await?;
    for user in sets.iter().flatten().filter_map(|row| text(row, "user")) {
        if user == USER || accounts::member_of(&user).is_some() {
            continue;
        }
        let sql = format!("KILL HARD CONNECTION USER {}", quote(&user));
        match driver.run("cut the clients", &sql, STATEMENT).await {
            Ok(_) => {}
            // They went by themselves.
            Err(error) if error.code() == Some(1095) || error.code() == Some(1094) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
