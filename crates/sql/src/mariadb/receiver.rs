//! The receiving side of replication: stopping it, applying what came, naming another source.
//!
//! One rule decides everything here (failover.md section 2): received events are not thrown away. The server throws them
//! away whenever a source is named anew and whenever a thread is started while both are stopped. So both are done only
//! after everything that was received is applied.

use std::time::Duration;

use homeostat_decider::{Acker, Gtid, LogEnd, Source};
use tokio::time::{Instant, sleep};

use super::accounts;
use super::driver::{Driver, Login, SqlError, quote};
use super::facts::{Known, Reading, read, run_and_read};
use super::gtid::{beyond, log_end};
use super::{Member, STATEMENT, holder, salvage};

/// How long `Repoint` and `TakeOver` wait for an applier that is nearly done. `Drain` is the order for longer waits.
const NEARLY: Duration = Duration::from_secs(2);
/// An IO thread whose source answers, or is gone, ends in a few milliseconds.
const PROMPT: Duration = Duration::from_millis(20);
/// A killed one is where a stop can wake it after less than this.
const KILLED: Duration = Duration::from_millis(25);

/// Whether a source was heard lately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Hearing {
    #[default]
    Heard,
    Silent,
}

/// Stops receiving, verified; the applier goes on.
///
/// # Errors
/// When the IO thread does not stop, or the server does not answer.
pub async fn stop_receiving(driver: &mut Driver, source: Hearing) -> Result<Reading, SqlError> {
    const STOP: &str = "STOP SLAVE IO_THREAD";
    let login = driver.login().clone();
    match source {
        Hearing::Heard => {}
        // An IO thread that ends connects to its source once more, to have its other end there killed. A stop wakes the
        // thread where it waits, then only every 2 s (measured). So it is killed first, which leads it to that last wait, and
        // the stop wakes it from there.
        Hearing::Silent => {
            kill_receiver(login.clone()).await?;
            sleep(KILLED).await;
        }
    }
    let stopping = run_and_read(driver, "stop receiving", STOP, STATEMENT);
    tokio::pin!(stopping);
    let reading = tokio::select! {
        reading = &mut stopping => reading?,
        // STOP alone waits up to 2 s for a source that hangs; the thread's own connection can be killed at once.
        () = sleep(PROMPT) => {
            let killed = kill_receiver(login).await;
            // Awaited whatever became of that: a statement that is given up goes on in the server.
            let reading = stopping.await?;
            killed?;
            reading
        }
    };
    match &reading.source {
        Some(source) if source.receives => Err(SqlError::Condition(
            "the IO thread runs on after it was stopped".into(),
        )),
        Some(_) | None => Ok(reading),
    }
}

/// Ends the IO thread from another connection.
async fn kill_receiver(login: Login) -> Result<(), SqlError> {
    // 1094: it went by itself.
    const KILL: &str = "BEGIN NOT ATOMIC DECLARE CONTINUE HANDLER FOR 1094 BEGIN END; \
        FOR io IN (SELECT ID FROM information_schema.PROCESSLIST WHERE USER = 'system user' \
        AND COMMAND IN ('Slave_IO', 'Connect')) DO KILL io.ID; END FOR; END";
    let mut other = Driver::new(login);
    other
        .run("kill the IO thread", KILL, STATEMENT)
        .await
        .map(drop)
}

/// As [`stop_receiving`], without a statement where `before` says that nothing is received: by itself no server starts.
pub async fn ensure_stopped(
    driver: &mut Driver,
    before: Option<Reading>,
    source: Hearing,
) -> Result<Reading, SqlError> {
    let stopped = |reading: &Reading| {
        let source = reading.source.as_ref();
        source.is_none_or(|source| !source.receives)
    };
    match before.filter(stopped) {
        Some(reading) => Ok(reading),
        None => stop_receiving(driver, source).await,
    }
}

/// What `before` says of a server whose threads are both stopped, or a look: running ones may have ended since.
async fn ensure_known(driver: &mut Driver, before: Option<Reading>) -> Result<Reading, SqlError> {
    let still = |reading: &Reading| {
        let source = reading.source.as_ref();
        source.is_some_and(|source| !source.receives && !source.applies)
    };
    match before.filter(still) {
        Some(reading) => Ok(reading),
        None => read(driver).await,
    }
}

/// Applies all that was received; the IO thread is stopped. A live applier is waited for; where none runs, the relay
/// log's files are applied directly.
///
/// # Errors
/// When it receives still, when the applier fails, and when `limit` passes: then the order may be given again.
pub async fn drain(
    driver: &mut Driver,
    this: &Member<'_>,
    known: &Known,
    limit: Duration,
) -> Result<LogEnd, SqlError> {
    let reading = read(driver).await?;
    refuse_receiving(&reading)?;
    if reading.needs_salvage(known.relay) {
        salvage::salvage(driver, this, reading.applied, limit).await?;
        let reading = read(driver).await?;
        return match reading.needs_salvage(known.relay) {
            false => Ok(log_end(reading.applied)),
            true => Err(SqlError::Condition(
                "the relay log was applied and the server's position is still behind it".into(),
            )),
        };
    }
    let reading = wait_for_applier(driver, reading, limit).await?;
    Ok(log_end(reading.applied))
}

/// Makes sure that nothing received waits to be applied, waiting a moment for an applier that is nearly done.
///
/// # Errors
/// When there is more than that: `Drain` first.
pub async fn ensure_drained(
    driver: &mut Driver,
    known: &Known,
    reading: Reading,
) -> Result<Reading, SqlError> {
    refuse_receiving(&reading)?;
    if reading.needs_salvage(known.relay) {
        return Err(SqlError::Condition(
            "received events wait in the relay log and no applier runs: drain first".into(),
        ));
    }
    wait_for_applier(driver, reading, NEARLY).await
}

fn refuse_receiving(reading: &Reading) -> Result<(), SqlError> {
    match &reading.source {
        Some(source) if source.receives => Err(SqlError::Condition(format!(
            "it still receives from {}:{}: stop that first",
            source.host, source.port
        ))),
        Some(_) | None => Ok(()),
    }
}

async fn wait_for_applier(
    driver: &mut Driver,
    mut reading: Reading,
    limit: Duration,
) -> Result<Reading, SqlError> {
    let end = Instant::now() + limit;
    loop {
        let Some((target, source)) = unapplied(&reading) else {
            return Ok(reading);
        };
        if !source.applies {
            let why = source
                .apply_error
                .clone()
                .unwrap_or_else(|| "it was stopped".into());
            return Err(SqlError::Condition(format!(
                "the applier ended before {target}: {why}"
            )));
        }
        if Instant::now() >= end {
            let at = reading
                .applied
                .map_or("nothing".into(), |gtid| gtid.to_string());
            return Err(SqlError::Condition(format!(
                "the applier is at {at} and not yet at {target}; give the order again"
            )));
        }
        // Answered by the server at the moment it is reached; the half second is for an applier that fails meanwhile.
        let wait = format!("SELECT MASTER_GTID_WAIT('{target}', 0.5)");
        driver.run("wait for the applier", &wait, STATEMENT).await?;
        reading = read(driver).await?;
    }
}

fn unapplied(reading: &Reading) -> Option<(Gtid, &super::facts::SourceThreads)> {
    let source = reading.source.as_ref()?;
    let received = source.received?;
    beyond(Some(received), reading.applied).then_some((received, source))
}

/// Names a source and sets or clears the acker flag; starts nothing. IO is stopped and the relay log drained first.
/// `before` is the server as it was seen last, if nothing was ordered since.
///
/// # Errors
/// When it is not drained, or a statement fails.
pub async fn repoint(
    driver: &mut Driver,
    this: &Member<'_>,
    known: &Known,
    before: Option<Reading>,
    source: &Source,
    acker: Acker,
) -> Result<Reading, SqlError> {
    let reading = ensure_stopped(driver, before, known.hearing).await?;
    let reading = ensure_drained(driver, known, reading).await?;
    holder::retire(driver, this, &reading).await?;
    let own = this.own()?;
    let flag = match acker {
        Acker::Counts => "ON",
        Acker::Asynchronous => "OFF",
    };
    let mut sql = String::new();
    if reading.source.is_some() {
        sql.push_str("STOP SLAVE; ");
    }
    let id = own.receiving_id();
    sql.push_str(&format!(
        "SET GLOBAL server_id = {id}; SET SESSION server_id = {id}; "
    ));
    sql.push_str(&format!(
        "SET GLOBAL rpl_semi_sync_slave_enabled = {flag}; "
    ));
    if reading.asks_from != reading.applied {
        let applied = reading
            .applied
            .map(|gtid| gtid.to_string())
            .unwrap_or_default();
        sql.push_str(&format!("SET GLOBAL gtid_slave_pos = '{applied}'; "));
    }
    // By it this member knows that its source lives, also when nothing is written.
    let heartbeat = this.config.pulse().as_secs_f64();
    sql.push_str(&format!(
        "CHANGE MASTER TO MASTER_HOST = {}, MASTER_PORT = {}, MASTER_USER = {}, MASTER_PASSWORD = {}, \
         MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1, MASTER_HEARTBEAT_PERIOD = {heartbeat:.3}",
        quote(&source.host),
        source.port,
        quote(&accounts::name(this.member)),
        quote(own.replication_password.reveal()),
    ));
    run_and_read(driver, "name the source", &sql, STATEMENT).await
}

/// Starts receiving and applying from the source named last. `before` is as for [`repoint`].
///
/// # Errors
/// When no source is named, or starting would purge received events.
pub async fn receive(
    driver: &mut Driver,
    known: &Known,
    before: Option<Reading>,
) -> Result<Reading, SqlError> {
    let reading = ensure_known(driver, before).await?;
    let Some(source) = &reading.source else {
        return Err(SqlError::Condition("no source is named".into()));
    };
    if source.receives && source.applies {
        return Ok(reading);
    }
    if reading.waits_for_ackers {
        let what = "it waits for ackers as a holder does: it has to be pointed at its source anew";
        return Err(SqlError::Condition(what.into()));
    }
    let unapplied = beyond(source.received.or(known.relay), reading.applied);
    if !source.receives && !source.applies && unapplied {
        return Err(SqlError::Condition(
            "starting now would purge received events: drain first".into(),
        ));
    }
    // Receiving first: it is what commits at the source wait for.
    const START: &str = "START SLAVE IO_THREAD; START SLAVE SQL_THREAD";
    let reading = run_and_read(driver, "start replication", START, STATEMENT).await?;
    match &reading.source {
        Some(source) if source.receives && source.applies => Ok(reading),
        Some(source) => {
            let why = source
                .receive_error
                .clone()
                .or_else(|| source.apply_error.clone());
            let why = why.unwrap_or_else(|| "a thread ended at once".into());
            Err(SqlError::Condition(format!(
                "replication did not start: {why}"
            )))
        }
        None => Err(SqlError::Condition("the source vanished".into())),
    }
}
