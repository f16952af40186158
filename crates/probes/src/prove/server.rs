//! Proofs on a SQL server made for them.
//!
//! The fix is the same but for its address. What stands on the server is compared: databases, users with their
//! passwords' hashes, privileges. An attempt is killed by dropping it, which is what a client that dies looks like to
//! a server; what was begun there goes on or not, and the next run must cope.

use std::fs;
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use homeostat_model::library::Call;
use homeostat_prodtest::Outcome;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::{Difference, Finding, KILLS, Refutation};
use crate::deadline::Deadline;
use crate::local::hex;
use crate::managed::find;
use crate::sql::{SqlState, SqlStateProbe, SqlUrl, administer, identifier, text_at};
use crate::{AppliedOutcome, Fix, Probe, Prober};

/// A server that needs longer to start is not going to.
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// Everything that a fix of the library can change.
const STATE: [(&str, &str); 5] = [
    (
        "databases",
        "SELECT schema_name, default_character_set_name, default_collation_name \
         FROM information_schema.schemata ORDER BY 1",
    ),
    (
        "users",
        "SELECT user, host, plugin, authentication_string FROM mysql.user ORDER BY 1, 2",
    ),
    (
        "global privileges",
        "SELECT grantee, privilege_type, is_grantable FROM information_schema.user_privileges \
         ORDER BY 1, 2",
    ),
    (
        "privileges on databases",
        "SELECT grantee, table_schema, privilege_type, is_grantable \
         FROM information_schema.schema_privileges ORDER BY 1, 2, 3",
    ),
    (
        "privileges on tables",
        "SELECT grantee, table_schema, table_name, privilege_type, is_grantable \
         FROM information_schema.table_privileges ORDER BY 1, 2, 3, 4",
    ),
];

/// Tries to prove a fix of something on a SQL server. Blocks.
pub(super) fn prove(call: &Call, scratch: &Path, deadline: Duration) -> io::Result<Finding> {
    for program in ["mariadbd", "mariadb-install-db"] {
        if !find(program) {
            return Ok(Finding::Nothing(format!(
                "there is no {program} here to make a server with"
            )));
        }
    }
    let server = Server::start(scratch)?;
    let mut call = call.clone();
    call.args
        .insert("url".to_owned(), server.url.clone().into());
    let fix = Fix::from_call(&call).map_err(io::Error::other)?;
    let Ok(Probe::SqlState(wanted)) = Probe::from_call(&call) else {
        return Ok(Finding::Nothing(
            "it is about no state of a server".to_owned(),
        ));
    };
    let trial = Trial {
        fix,
        wanted,
        deadline,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(trial.run(&server))
}

struct Trial {
    fix: Fix,
    wanted: SqlStateProbe,
    deadline: Duration,
}

type State = Vec<(&'static str, Vec<String>)>;

impl Trial {
    async fn run(&self, server: &Server) -> io::Result<Finding> {
        let mut admin = server.admin().await?;
        self.prepare(&mut admin).await?;
        let started = Instant::now();
        if let Err(refuted) = self.repair().await {
            return Ok(Finding::Refuted(refuted));
        }
        let took = started.elapsed();
        let reached = state(&mut admin).await?;
        let second = self.fix.apply(self.deadline).await;
        if let Some(difference) = difference(&reached, &state(&mut admin).await?) {
            return Ok(Finding::Refuted(Refutation::Changes(difference)));
        }
        match second.outcome {
            AppliedOutcome::Unchanged => {}
            AppliedOutcome::Changed => {
                return Ok(Finding::Refuted(Refutation::SaysChanged(second.evidence)));
            }
            AppliedOutcome::Failed => {
                return Ok(Finding::Refuted(Refutation::Fails(second.evidence)));
            }
        }
        for kill in 1..=KILLS {
            let after = took * kill / (KILLS + 1);
            self.prepare(&mut admin).await?;
            // Dropped at its end, wherever it is.
            let _ = tokio::time::timeout(after, self.fix.apply(self.deadline)).await;
            if let Err(refuted) = self.repair().await {
                let why = refuted.to_string();
                return Ok(Finding::Refuted(Refutation::KilledFails { after, why }));
            }
            if let Some(difference) = difference(&reached, &state(&mut admin).await?) {
                let refuted = Refutation::KilledEndsElsewhere { after, difference };
                return Ok(Finding::Refuted(refuted));
            }
        }
        Ok(Finding::Proved { kills: KILLS })
    }

    /// Applies it, and looks.
    async fn repair(&self) -> Result<(), Refutation> {
        let applied = self.fix.apply(self.deadline).await;
        if applied.outcome == AppliedOutcome::Failed {
            return Err(Refutation::Fails(applied.evidence));
        }
        let probe = Probe::SqlState(self.wanted.clone());
        let seen = Prober::new().run(&probe, self.deadline).await;
        match seen.outcome {
            Outcome::Passed => Ok(()),
            Outcome::Failed | Outcome::NotRun => Err(Refutation::CheckFails(seen.seen)),
        }
    }

    /// There is something to repair, and what it needs is there.
    async fn prepare(&self, admin: &mut Conn) -> io::Result<()> {
        let statements = match &self.wanted.state {
            SqlState::Database { name, .. } => {
                vec![format!("DROP DATABASE IF EXISTS {}", identifier(name))]
            }
            SqlState::User { who, .. } => vec![format!("DROP USER IF EXISTS {who}")],
            SqlState::NoUser(who) => vec![format!("CREATE OR REPLACE USER {who}")],
            SqlState::Grant { who, on, .. } => {
                let user = format!("CREATE OR REPLACE USER {who}");
                on.example().into_iter().chain([user]).collect()
            }
            SqlState::Replication { .. } => Vec::new(),
        };
        for statement in statements {
            admin
                .query_drop(statement)
                .await
                .map_err(io::Error::other)?;
        }
        Ok(())
    }
}

async fn state(admin: &mut Conn) -> io::Result<State> {
    let mut all = Vec::new();
    for (name, query) in STATE {
        let rows: Vec<Row> = admin.query(query).await.map_err(io::Error::other)?;
        let rows = rows.iter().map(|row| {
            let columns: Vec<_> = (0..row.len()).map(|at| text_at(row, at)).collect();
            columns.join(" ")
        });
        all.push((name, rows.collect()));
    }
    Ok(all)
}

fn difference(first: &State, second: &State) -> Option<Difference> {
    let both = first.iter().zip(second);
    let (name, one, two) = both
        .map(|((name, one), (_, two))| (name, one, two))
        .find(|(_, one, two)| one != two)?;
    let only = |these: &[String], others: &[String], sign: char| {
        let line = these.iter().find(|line| !others.contains(line));
        line.map_or(String::new(), |line| format!("\n{sign} {line}"))
    };
    Some(Difference {
        path: PathBuf::from(name),
        what: format!("rows differ{}{}", only(one, two, '-'), only(two, one, '+')),
    })
}

/// A server in a folder of its own; both go with this value.
struct Server {
    process: Child,
    folder: PathBuf,
    url: String,
}

impl Server {
    fn start(scratch: &Path) -> io::Result<Self> {
        let mut chance = [0; 16];
        getrandom::fill(&mut chance).map_err(io::Error::other)?;
        let password = hex(&chance);
        let folder = scratch.join(format!("prove-sql-{}", &password[..8]));
        fs::DirBuilder::new().mode(0o700).create(&folder)?;
        let folder = Removed(folder);
        let data = folder.0.join("data");
        let installed = Command::new("mariadb-install-db")
            .args([
                "--no-defaults",
                "--skip-test-db",
                "--auth-root-authentication-method=normal",
            ])
            .arg(format!("--datadir={}", data.display()))
            .args(user())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        if !installed.success() {
            return Err(io::Error::other("mariadb-install-db failed"));
        }
        // Not on the command line, where everybody can read it.
        let init = folder.0.join("init.sql");
        let mut file = fs::File::options();
        let mut file = file.create_new(true).write(true).mode(0o600).open(&init)?;
        write!(
            file,
            "CREATE USER prover@'127.0.0.1' IDENTIFIED BY '{password}';\n\
             GRANT ALL ON *.* TO prover@'127.0.0.1' WITH GRANT OPTION;\n\
             DROP USER root@localhost;\n"
        )?;
        // Somebody else may take the port in between; then the server ends, and there is no proof.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new("mariadbd");
        command
            .arg("--no-defaults")
            .args(user())
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--socket={}", folder.0.join("sock").display()))
            .arg(format!("--pid-file={}", folder.0.join("pid").display()))
            .arg(format!("--init-file={}", init.display()))
            .arg(format!("--port={port}"))
            .args([
                "--bind-address=127.0.0.1",
                "--innodb-buffer-pool-size=16M",
                "--performance-schema=OFF",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.0.join("log"))?);
        // SAFETY: prctl is async-signal-safe and touches nothing of this process.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        Ok(Self {
            process: command.spawn()?,
            folder: folder.keep(),
            url: format!("mysql://prover:{password}@127.0.0.1:{port}/"),
        })
    }

    async fn admin(&self) -> io::Result<Conn> {
        let end = Instant::now() + STARTS_WITHIN;
        let url = SqlUrl::new(&self.url);
        loop {
            let within = Deadline::starting_now(STARTS_WITHIN);
            match administer(&url, within).await {
                Ok(connection) => return Ok(connection),
                Err(error) if Instant::now() > end => return Err(io::Error::other(error)),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // There is nobody to tell, and nothing in it to lose.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A folder that goes, unless it is kept.
struct Removed(PathBuf);

impl Removed {
    fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Removed {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Servers refuse to run as root unless told to.
fn user() -> Option<&'static str> {
    rustix::process::geteuid()
        .is_root()
        .then_some("--user=root")
}
