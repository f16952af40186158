//! One server of the floor: a child of this process, which it does not outlive.

use std::fs::{self, DirBuilder, File};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts, OptsBuilder, Row};
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::time::sleep;

use crate::processes;
use crate::programs::Programs;

const HOST: &str = "127.0.0.1";
const START_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Settings that say where a server's things are and what it is called: each has its own.
const OWN: [&str; 9] = [
    "datadir",
    "tmpdir",
    "socket",
    "pid_file",
    "init_file",
    "bind_address",
    "port",
    "server_id",
    "log_error",
];
/// A member that receives has another id than when it writes: otherwise it would skip its own writes when it gets them
/// back after its tail was dropped.
const RECEIVING: usize = 100;

/// What the servers are modelled after: a server of the cell.
pub(super) struct Model {
    options: String,
    uid: u32,
    gid: u32,
}

impl Model {
    /// Its option file, and whom it runs as.
    pub(super) fn of(pid: u32) -> anyhow::Result<Self> {
        let file = processes::option_of(pid, "defaults-file")
            .with_context(|| format!("process {pid} names no option file"))?;
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let is_own = |line: &&str| OWN.contains(&line.split('=').next().unwrap_or_default().trim());
        let options: Vec<&str> = text.lines().filter(|line| !is_own(line)).collect();
        let process = fs::metadata(format!("/proc/{pid}"))
            .with_context(|| format!("look at process {pid}"))?;
        Ok(Self {
            options: options.join("\n"),
            uid: process.uid(),
            gid: process.gid(),
        })
    }

    /// Drops to the server's user, and ties the child to this process: in that order, because the tie is cut by a
    /// change of user. It is tied to the *thread* that starts it, which is the main one.
    fn apply(&self, command: &mut Command) {
        if rustix::process::geteuid().is_root() {
            command.uid(self.uid).gid(self.gid);
        }
        let tie = || Ok(set_parent_process_death_signal(Some(Signal::KILL))?);
        // SAFETY: between fork and exec only prctl is called; the standard library changes the user before.
        unsafe { command.pre_exec(tie) };
    }

    fn give(&self, path: &Path) -> anyhow::Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
            .with_context(|| format!("hand over {}", path.display()))
    }
}

pub(super) struct Server {
    number: usize,
    program: PathBuf,
    folder: PathBuf,
    model: Model,
    port: u16,
    child: Option<Child>,
    /// Open before it is needed.
    admin: Option<Conn>,
}

impl Server {
    /// Makes its folder, its data and its option file.
    pub(super) async fn make(
        programs: &Programs,
        model: &Model,
        parent: &Path,
        number: usize,
        init: &str,
    ) -> anyhow::Result<Self> {
        let model = Model {
            options: model.options.clone(),
            ..*model
        };
        let folder = parent.join(format!("floor-{number}"));
        let at = |name: &str| folder.join(name);
        for path in [folder.clone(), at("data"), at("tmp")] {
            DirBuilder::new()
                .mode(0o700)
                .create(&path)
                .with_context(|| format!("make {}", path.display()))?;
            model.give(&path)?;
        }
        let mut install = Command::new(&programs.install);
        install.args([
            "--no-defaults",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--skip-log-bin",
        ]);
        install
            .arg(format!("--datadir={}", at("data").display()))
            .arg(format!("--tmpdir={}", at("tmp").display()));
        install.current_dir("/");
        model.apply(&mut install);
        let out = install.output().context("run mariadb-install-db")?;
        if !out.status.success() {
            bail!(
                "mariadb-install-db failed: {}",
                String::from_utf8_lossy(&out.stderr)
            );
        }
        let port = TcpListener::bind((HOST, 0))
            .and_then(|free| free.local_addr())
            .context("find a free port")?
            .port();
        let place = |name: &str| at(name).display().to_string();
        let own = format!(
            "datadir = {}\ntmpdir = {}\nsocket = {}\npid_file = {}\ninit_file = {}\nlog_error = {}\n\
             bind_address = {HOST}\nport = {port}\nserver_id = {}\n",
            place("data"),
            place("tmp"),
            place("s"),
            place("pid"),
            place("init.sql"),
            place("log"),
            number + 1 + RECEIVING,
        );
        for (name, text) in [
            ("my.cnf", format!("{}\n{own}", model.options)),
            ("init.sql", init.to_owned()),
        ] {
            fs::write(at(name), text).with_context(|| format!("write {}", at(name).display()))?;
            model.give(&at(name))?;
        }
        let program = programs.mariadbd.clone();
        Ok(Self {
            number,
            program,
            folder,
            model,
            port,
            child: None,
            admin: None,
        })
    }

    /// Starts it and waits until it answers.
    pub(super) async fn start(&mut self, extra: &[&str]) -> anyhow::Result<()> {
        self.end();
        let output = self.folder.join("output");
        let log = File::create(&output).with_context(|| format!("create {}", output.display()))?;
        let mut command = Command::new(&self.program);
        command
            .arg(format!(
                "--defaults-file={}",
                self.folder.join("my.cnf").display()
            ))
            .args(extra);
        command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log);
        self.model.apply(&mut command);
        self.child = Some(command.spawn().context("start mariadbd")?);
        let until = Instant::now() + START_WITHIN;
        loop {
            let failed = match self.connect().await {
                Ok(conn) => {
                    self.admin = Some(conn);
                    return Ok(());
                }
                Err(error) => error,
            };
            let ended = self
                .child
                .as_mut()
                .is_some_and(|child| !matches!(child.try_wait(), Ok(None)));
            if ended || Instant::now() >= until {
                let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(8).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                bail!(
                    "the floor's server {} does not start: {failed:#}\n{}",
                    self.number,
                    tail.join("\n")
                );
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// As root over the socket, which only its user can reach.
    pub(super) async fn connect(&self) -> anyhow::Result<Conn> {
        let opts: Opts = OptsBuilder::default()
            .socket(Some(self.folder.join("s").display().to_string()))
            .user(Some("root"))
            .max_allowed_packet(Some(16 << 20))
            .wait_timeout(Some(31_536_000))
            .init(vec!["SET SESSION wait_timeout = 31536000, sql_log_bin = 0"])
            .into();
        Conn::new(opts)
            .await
            .with_context(|| format!("connect to the floor's server {}", self.number))
    }

    pub(super) fn admin(&mut self) -> anyhow::Result<&mut Conn> {
        self.admin
            .as_mut()
            .context("the floor's server was not started")
    }

    pub(super) fn address(&self) -> (&'static str, u16) {
        (HOST, self.port)
    }

    /// The id that it writes under.
    pub(super) fn own_id(&self) -> usize {
        self.number + 1
    }

    /// SIGKILL. It is waited for when it is started again.
    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        self.child
            .as_mut()
            .context("the floor's server does not run")?
            .kill()
            .context("kill the floor's server")
    }

    fn end(&mut self) {
        self.admin = None;
        if let Some(mut child) = self.child.take() {
            // It may have ended already; then there is only its exit to take.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs statements as one packet; the rows of each.
pub(super) async fn batch(conn: &mut Conn, sql: &str) -> Result<Vec<Vec<Row>>, mysql_async::Error> {
    let mut result = conn.query_iter(sql).await?;
    let mut sets = Vec::new();
    loop {
        sets.push(result.collect::<Row>().await?);
        if result.is_empty() {
            return Ok(sets);
        }
    }
}

/// A value of the first row of one of the sets; empty where there is none.
pub(super) fn word(sets: &[Vec<Row>], set: usize, column: &str) -> String {
    let row = sets.get(set).and_then(|rows| rows.first());
    let value = row
        .and_then(|row| row.get_opt::<Option<String>, _>(column))
        .and_then(Result::ok)
        .flatten();
    value.unwrap_or_default()
}
