//! Reads what a server is, in one round trip.

use std::collections::BTreeSet;
use std::time::Duration;

use homeostat_decider::{Gtid, MemberId, Receiver, ServerFacts, Source};
use homeostat_model::Epoch;
use mysql_async::Row;

use super::STATEMENT;
use super::accounts;
use super::driver::{Driver, SqlError, text};
use super::gtid::{after_barrier, beyond, log_end, position};
use super::holder::Made;
use super::receiver::Hearing;
use crate::keeper::config::KeeperConfig;

/// One look at the server.
#[derive(Debug, Clone)]
pub struct Reading {
    pub read_only: bool,
    pub waits_for_ackers: bool,
    pub acker: bool,
    /// Whether a source is configured and its threads.
    pub source: Option<SourceThreads>,
    /// `gtid_binlog_pos`: all that was applied or written.
    pub applied: Option<Gtid>,
    /// `gtid_slave_pos`, from which a source would be asked.
    pub asks_from: Option<Gtid>,
    pub admitted: BTreeSet<MemberId>,
    /// The ids under which others receive.
    pub receiving: BTreeSet<u32>,
}

#[derive(Debug, Clone)]
pub struct SourceThreads {
    pub host: String,
    pub port: u16,
    pub server_id: Option<u32>,
    pub receives: bool,
    pub connected: bool,
    pub applies: bool,
    /// `Gtid_IO_Pos`; `None` when empty, which after a restart means *unknown*.
    pub received: Option<Gtid>,
    pub receive_error: Option<String>,
    pub apply_error: Option<String>,
    /// The numbers of these errors; 0: none.
    pub receive_code: u32,
    pub apply_code: u32,
}

/// The source cannot send what comes next.
const CANNOT_SEND: u32 = 1236;
/// Rows, tables, databases or accounts are not as they were where the event was written, or its number was used before.
const DIFFERS: [u32; 12] = [
    1007, 1008, 1032, 1049, 1050, 1051, 1054, 1062, 1091, 1146, 1396, 1950,
];

const WHAT: &str = "read the server's state";
const READ: &str = "SELECT @@GLOBAL.read_only AS read_only, @@GLOBAL.rpl_semi_sync_master_enabled AS waits, \
    @@GLOBAL.rpl_semi_sync_slave_enabled AS acker, @@GLOBAL.gtid_binlog_pos AS applied, \
    @@GLOBAL.gtid_slave_pos AS asks_from; \
    SHOW ALL SLAVES STATUS; \
    SELECT User AS user, JSON_VALUE(Priv, '$.account_locked') AS locked FROM mysql.global_priv; \
    SHOW SLAVE HOSTS";

/// Looks at the server. Cheap for it: nothing here needs a temporary table, as the process list would, on disk.
///
/// # Errors
/// When it does not answer, or not as a MariaDB of this project does.
pub async fn read(driver: &mut Driver) -> Result<Reading, SqlError> {
    reading(&driver.run(WHAT, READ, STATEMENT).await?)
}

/// Runs statements that return nothing of interest, and looks at the server after them: one round trip for both.
///
/// # Errors
/// As [`Driver::run`] and [`read`].
pub async fn run_and_read(
    driver: &mut Driver,
    what: &'static str,
    sql: &str,
    limit: Duration,
) -> Result<Reading, SqlError> {
    reading(&driver.run(what, &format!("{sql}; {READ}"), limit).await?)
}

/// From what [`READ`] returned, last of a batch.
fn reading(sets: &[Vec<Row>]) -> Result<Reading, SqlError> {
    let [.., state, sources, users, dumps] = sets else {
        return Err(SqlError::Answer {
            what: WHAT,
            lacks: "one of its four parts",
        });
    };
    let state = state.first().ok_or(SqlError::Answer {
        what: WHAT,
        lacks: "the settings",
    })?;
    let flag = |name| text(state, name).is_some_and(|value| value == "1");
    let locked = |row: &&Row| {
        text(row, "locked").is_some_and(|value| matches!(value.as_str(), "1" | "true"))
    };
    let member = |row: &Row| text(row, "user").and_then(|user| accounts::member_of(&user));
    Ok(Reading {
        read_only: flag("read_only"),
        waits_for_ackers: flag("waits"),
        acker: flag("acker"),
        source: sources.first().map(threads).transpose()?,
        applied: position(&text(state, "applied").unwrap_or_default())?,
        asks_from: position(&text(state, "asks_from").unwrap_or_default())?,
        admitted: users
            .iter()
            .filter(|row| !locked(row))
            .filter_map(member)
            .collect(),
        receiving: dumps
            .iter()
            .filter_map(|row| text(row, "Server_id")?.parse().ok())
            .collect(),
    })
}

fn threads(row: &Row) -> Result<SourceThreads, SqlError> {
    let word = |column| text(row, column).unwrap_or_default();
    let error = |column| text(row, column).filter(|error| !error.is_empty());
    let code = |column| word(column).parse().unwrap_or(0);
    let port = word("Master_Port").parse();
    Ok(SourceThreads {
        host: word("Master_Host"),
        port: port.map_err(|_| SqlError::Answer {
            what: WHAT,
            lacks: "the source's port",
        })?,
        server_id: word("Master_Server_Id").parse().ok().filter(|id| *id != 0),
        // "Connecting" and "Preparing" receive too, as soon as they can.
        receives: word("Slave_IO_Running") != "No",
        connected: word("Slave_IO_Running") == "Yes",
        applies: word("Slave_SQL_Running") != "No",
        received: position(&word("Gtid_IO_Pos"))?,
        receive_error: error("Last_IO_Error"),
        apply_error: error("Last_SQL_Error"),
        receive_code: code("Last_IO_Errno"),
        apply_code: code("Last_SQL_Errno"),
    })
}

impl SourceThreads {
    /// Why replication ended for good, if it did: no other try helps, only another data folder.
    fn broken(&self) -> Option<String> {
        // The same number is used for lost files and large packets; those that mean another history name GTIDs.
        let lacks = |error: &String| {
            !self.receives && self.receive_code == CANNOT_SEND && error.contains("GTID")
        };
        let differs = |_: &String| !self.applies && DIFFERS.contains(&self.apply_code);
        let receive = self.receive_error.clone().filter(lacks);
        receive.or_else(|| self.apply_error.clone().filter(differs))
    }
}

impl Reading {
    /// Whether received events wait to be applied and no running applier will do it: `relay` is the end of the relay
    /// log's files as found when the server started (nothing has been received since while `Gtid_IO_Pos` is empty).
    pub fn needs_salvage(&self, relay: Option<Gtid>) -> bool {
        let Some(source) = &self.source else {
            return false;
        };
        let received = source.received.or(relay);
        !source.applies && beyond(received, self.applied)
    }

    /// The end of the received log; `None` when it is not known.
    pub fn received(&self, relay: Option<Gtid>) -> Option<Option<Gtid>> {
        match &self.source {
            // What it has is what it wrote or applied.
            None => Some(self.applied),
            Some(source) if source.received.is_some() => {
                Some(if beyond(self.applied, source.received) {
                    self.applied
                } else {
                    source.received
                })
            }
            // Restarted: its files may hold more, which counts once it is salvaged.
            Some(_) if beyond(relay, self.applied) => None,
            Some(_) => Some(self.applied),
        }
    }

    /// As a report says it.
    pub fn facts(&self, config: &KeeperConfig, known: &Known) -> ServerFacts {
        let received = self.received(known.relay).map(log_end);
        ServerFacts {
            read_only: self.read_only,
            waits_for_ackers: self.waits_for_ackers,
            acker: self.acker,
            receiver: self.receiver(config, known.source.as_ref()),
            received: if known.incomplete { None } else { received },
            applied: log_end(self.applied),
            needs_salvage: self.needs_salvage(known.relay),
            admitted: self
                .admitted
                .iter()
                .filter(|member| config.members.contains_key(*member))
                .cloned()
                .collect(),
            receiving: config
                .members
                .iter()
                .filter(|(_, peer)| self.receiving.contains(&peer.receiving_id()))
                .map(|(member, _)| member.clone())
                .collect(),
            barrier: known.barrier,
            broken: self.source.as_ref().and_then(SourceThreads::broken),
            after_barrier: self.applied.map(after_barrier),
        }
    }

    /// The server knows an address and, once connected, a server id; which member that is the keeper knows, which named it.
    fn receiver(&self, config: &KeeperConfig, named: Option<&Source>) -> Receiver {
        let Some(threads) = &self.source else {
            return Receiver::None;
        };
        let by_address =
            named.filter(|source| source.host == threads.host && source.port == threads.port);
        let by_id = || {
            config
                .members
                .iter()
                .find(|(_, peer)| Some(peer.server_id) == threads.server_id)
        };
        let Some(member) = by_address
            .map(|source| &source.member)
            .or_else(|| by_id().map(|(member, _)| member))
        else {
            return Receiver::None;
        };
        let source = Source {
            member: member.clone(),
            host: threads.host.clone(),
            port: threads.port,
        };
        if threads.receives {
            let error = threads
                .receive_error
                .clone()
                .or_else(|| threads.apply_error.clone());
            Receiver::Running {
                source,
                connected: threads.connected,
                applying: threads.applies,
                error,
            }
        } else {
            Receiver::Stopped {
                source,
                applying: threads.applies,
            }
        }
    }
}

/// What the keeper remembers of its server and cannot read from it.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The end of the relay log's files when the server started; `None` also when there were none.
    pub relay: Option<Gtid>,
    /// The source named last.
    pub source: Option<Source>,
    /// The newest barrier that was acknowledged since the server started.
    pub barrier: Option<Epoch>,
    /// As it was when that barrier was committed.
    pub application: Made,
    /// Received events may have been lost with the machine's memory (`sync_relay_log=0` and a reboot).
    pub incomplete: bool,
    /// Whether its source was heard lately, as of the order that asks.
    pub hearing: Hearing,
}
