//! The floor: the same kind of cluster, failed over by hand, as fast as the servers allow.
//!
//! Three servers run with the option file of one of the cell's own servers (only places and names differ), as the same
//! user, on the same filesystem, replicating semi-synchronously. When the primary is killed, a client that held a
//! connection to it sees the end, and the statements of a failover are sent at once, over connections that are open
//! already: to both replicas at the same time wherever one need not wait for the other. The customers are told the new
//! address through a variable in this process, and connect to it directly.
//!
//! It is measured twice. *The floor* sends what the cell sends, the barrier, the account and the looks included, in the cell's
//! order and with no pauses. What it leaves out is what makes a failover safe without a person who knows that nothing else
//! is wrong: no record is written anywhere, nobody else decides or is asked, no process but the servers takes part. *Bare*
//! leaves out the account, the barrier and the looks as well, and lets clients in before the other replica follows. Neither is a way to run a database; they are the time below which no failover with
//! these statements can be.

mod promotion;
mod server;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use mysql_async::{Conn, Opts};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::load;
use crate::programs::Programs;
use crate::steps::Steps;
pub use promotion::Statements;
use promotion::{Replica, Stopwatch, promote};
use server::{Model, Server, batch, word};

const MEMBERS: usize = 3;
const DETECT_WITHIN: Duration = Duration::from_secs(30);
/// Until a rebuilt member replicates again.
const WHOLE_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub struct Floor {
    servers: Vec<Server>,
    primary: usize,
    door: watch::Sender<Option<Opts>>,
    replication_password: String,
    application: (String, String),
}

impl Floor {
    /// Starts the cluster in `folder`. `pid` is a server of the cell, after which these are modelled.
    pub async fn start(programs: &Programs, folder: &Path, pid: u32) -> anyhow::Result<Self> {
        let model = Model::of(pid)?;
        let (replication_password, application) =
            (random_word()?, ("app".to_owned(), random_word()?));
        // Unlogged, at every start: whoever is started may become primary.
        let init = format!(
            "SET SESSION sql_log_bin = 0;\nCREATE DATABASE IF NOT EXISTS shop;\n\
             CREATE USER IF NOT EXISTS 'replica'@'%' IDENTIFIED BY '{replication_password}';\n\
             GRANT REPLICATION SLAVE ON *.* TO 'replica'@'%';\n\
             CREATE USER IF NOT EXISTS '{0}'@'%' IDENTIFIED BY '{1}';\n\
             GRANT ALL PRIVILEGES ON shop.* TO '{0}'@'%';\n",
            application.0, application.1
        );
        let mut servers = Vec::new();
        for number in 0..MEMBERS {
            servers.push(Server::make(programs, &model, folder, number, &init).await?);
        }
        let mut floor = Self {
            servers,
            primary: 0,
            door: watch::Sender::new(None),
            replication_password,
            application,
        };
        for server in &mut floor.servers {
            server.start(&[]).await?;
        }
        let source = floor.source(0);
        for replica in floor.replicas() {
            replicate(floor.servers[replica].admin()?, &source).await?;
        }
        let own = floor.servers[0].own_id();
        let sql = format!(
            "SET GLOBAL server_id = {own}, rpl_semi_sync_master_enabled = ON, read_only = OFF"
        );
        batch(floor.servers[0].admin()?, &sql)
            .await
            .context("open the first primary")?;
        floor.until_whole().await?;
        let table = "SET SESSION sql_log_bin = 1; CREATE TABLE shop.barrier (id INT PRIMARY KEY, commits BIGINT NOT NULL) ENGINE=InnoDB; SET SESSION sql_log_bin = 0";
        batch(floor.servers[0].admin()?, table)
            .await
            .context("make the table of barriers")?;
        floor.tell()?;
        Ok(floor)
    }

    /// Where the customers find the primary.
    pub fn door(&self) -> load::Door {
        self.door.subscribe()
    }

    /// Kills the primary and makes one of the others primary. `steps` gets the time of each step since the kill.
    pub async fn fail_over(
        &mut self,
        statements: Statements,
        steps: &mut Steps,
    ) -> anyhow::Result<()> {
        let [a, b] = self.replicas();
        let source = [self.source(a), self.source(b)];
        let doors = [self.opts(a)?, self.opts(b)?];
        let ids = [self.servers[a].own_id(), self.servers[b].own_id()];
        let mut held = self.servers[self.primary].connect().await?;
        let held = tokio::spawn(async move { batch(&mut held, "DO SLEEP(86400)").await });
        // The statement has to be under way before the server dies under it.
        sleep(Duration::from_millis(50)).await;
        let door = self.door.clone();

        let killed = Instant::now();
        self.servers[self.primary].kill()?;
        match tokio::time::timeout(DETECT_WITHIN, held)
            .await
            .context("the killed primary answers")??
        {
            Err(_) => door.send_replace(None),
            Ok(_) => bail!("the primary lived on after its kill"),
        };
        let seen_ms = killed.elapsed().as_secs_f64() * 1e3;
        steps.add("the held connection ends", seen_ms, None);

        let servers = self.servers.get_disjoint_mut([a, b]);
        let [at_a, at_b] = servers.context("the primary is no member")?;
        let mut replicas = [
            Replica {
                admin: at_a.admin()?,
                own_id: ids[0],
                source: &source[0],
            },
            Replica {
                admin: at_b.admin()?,
                own_id: ids[1],
                source: &source[1],
            },
        ];
        // Nobody waits for the other replica: commits do, in the server.
        let open = |new: usize| drop(door.send_replace(Some(doors[new].clone())));
        let stopwatch = Stopwatch::new(killed, steps);
        let chosen = promote(statements, &mut replicas, &stopwatch, open).await?;
        let dead = std::mem::replace(&mut self.primary, [a, b][chosen]);
        self.rebuild(dead).await
    }

    /// Starts a killed primary again, without its tail, as a replica. Returns when all replicate.
    async fn rebuild(&mut self, dead: usize) -> anyhow::Result<()> {
        let source = self.source(self.primary);
        let server = &mut self.servers[dead];
        server.start(&["--init-rpl-role=SLAVE"]).await?;
        let admin = server.admin()?;
        batch(
            admin,
            "SET GLOBAL gtid_slave_pos = @@GLOBAL.gtid_binlog_pos",
        )
        .await
        .context("name the old primary's position")?;
        replicate(admin, &source).await?;
        self.until_whole().await
    }

    /// Waits until both replicas are connected, acknowledge, and have applied what the primary has now.
    async fn until_whole(&mut self) -> anyhow::Result<()> {
        const CLIENTS: &str = "SHOW GLOBAL STATUS LIKE 'Rpl_semi_sync_master_clients'; SELECT @@GLOBAL.gtid_binlog_pos AS at";
        let until = Instant::now() + WHOLE_WITHIN;
        let position = loop {
            let sets = batch(self.servers[self.primary].admin()?, CLIENTS)
                .await
                .context("look at the primary")?;
            if word(&sets, 0, "Value") == (MEMBERS - 1).to_string() {
                break word(&sets, 1, "at");
            }
            if Instant::now() >= until {
                let why = self.complaints().await?;
                bail!(
                    "the floor's cluster is not whole after {} s: {why}",
                    WHOLE_WITHIN.as_secs()
                );
            }
            sleep(LOOK_EVERY).await;
        };
        for replica in self.replicas() {
            let wait = format!(
                "SELECT MASTER_GTID_WAIT('{position}', {}) AS late",
                WHOLE_WITHIN.as_secs()
            );
            let sets = batch(self.servers[replica].admin()?, &wait)
                .await
                .context("wait for a replica")?;
            if word(&sets, 0, "late") != "0" {
                bail!("the floor's member {replica} does not replicate");
            }
        }
        Ok(())
    }

    /// What the replicas say of their replication.
    async fn complaints(&mut self) -> anyhow::Result<String> {
        let mut all = Vec::new();
        for replica in self.replicas() {
            let sets = batch(self.servers[replica].admin()?, "SHOW SLAVE STATUS")
                .await
                .context("look at a replica")?;
            let words = [
                "Slave_IO_Running",
                "Last_IO_Error",
                "Slave_SQL_Running",
                "Last_SQL_Error",
                "Gtid_IO_Pos",
            ];
            let words: Vec<String> = words
                .iter()
                .map(|column| format!("{column} '{}'", word(&sets, 0, column)))
                .collect();
            all.push(format!("member {replica}: {}", words.join(", ")));
        }
        Ok(all.join("; "))
    }

    fn replicas(&self) -> [usize; 2] {
        [(self.primary + 1) % MEMBERS, (self.primary + 2) % MEMBERS]
    }

    fn tell(&self) -> anyhow::Result<()> {
        self.door.send_replace(Some(self.opts(self.primary)?));
        Ok(())
    }

    fn opts(&self, member: usize) -> anyhow::Result<Opts> {
        let (user, password) = &self.application;
        let (host, port) = self.servers[member].address();
        load::application(&format!("mysql://{user}:{password}@{host}:{port}/shop"))
    }

    /// As `CHANGE MASTER` names it.
    fn source(&self, member: usize) -> String {
        let (host, port) = self.servers[member].address();
        format!(
            "MASTER_HOST = '{host}', MASTER_PORT = {port}, MASTER_USER = 'replica', MASTER_PASSWORD = '{}', \
             MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1, MASTER_HEARTBEAT_PERIOD = 1",
            self.replication_password
        )
    }
}

/// For one that was just started.
async fn replicate(admin: &mut Conn, source: &str) -> anyhow::Result<()> {
    let sql = format!(
        "SET GLOBAL rpl_semi_sync_slave_enabled = ON; CHANGE MASTER TO {source}; START SLAVE"
    );
    batch(admin, &sql)
        .await
        .map(drop)
        .context("start to replicate")
}

/// A password that nobody guesses while this runs.
fn random_word() -> anyhow::Result<String> {
    use std::io::Read;
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
