//! A server without a keeper: what a copy needs of one, and nothing else.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use homeostat_decider::{CopyOffer, MemberId};
use homeostat_model::{Bytes, Durability, Epoch, Flavor, UnixMillis};
use homeostat_sql::copy::folder::Former;
use homeostat_sql::copy::{CopyPrograms, Fetch, Lend, Limits, Place};
use homeostat_sql::keeper::{KeeperConfig, Peer, Programs, Secret};
use homeostat_sql::mariadb::{Application, Driver, Login, STATEMENT, settings, template};
use homeostat_supervisor::cgroup::TaskGroup;
use homeostat_supervisor::launch::UserIds;
use homeostat_supervisor::protocol::Process;
use homeostat_supervisor::spawn::{self, MARKER, Plan};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

const UNPRIVILEGED: u32 = 77_002;
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const KEEPER: &str = "a password of a test";
pub const REPLICA: &str = "another password of a test";

pub fn member(index: u32) -> MemberId {
    MemberId::new(format!("db-{index}")).unwrap()
}

pub fn user() -> Option<UserIds> {
    rustix::process::geteuid().is_root().then_some(UserIds {
        uid: UNPRIVILEGED,
        gid: UNPRIVILEGED,
    })
}

/// A folder in which the server's user gets to what is his.
pub fn home() -> tempfile::TempDir {
    let folder = tempfile::Builder::new()
        .prefix("hc")
        .tempdir_in("/tmp")
        .unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    folder
}

/// One member's folders, and its server while it runs.
pub struct Instance {
    pub index: u32,
    pub data: PathBuf,
    pub run: PathBuf,
    pub address: String,
    pub port: u16,
    shared: PathBuf,
    server: Option<Process>,
}

impl Instance {
    /// Folders and an address; no data folder. `network` distinguishes tests that run at the same time.
    pub fn new(home: &Path, network: u8, index: u32) -> Self {
        let address = format!("127.84.{network}.{index}");
        let port = TcpListener::bind((address.as_str(), 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let (data, run) = (
            home.join(format!("d{index}")),
            home.join(format!("r{index}")),
        );
        for folder in [&data, &run, &run.join("m")] {
            std::fs::create_dir_all(folder).unwrap();
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711)).unwrap();
        }
        if let Some(user) = user() {
            let folder = run.join("m");
            std::os::unix::fs::chown(folder, Some(user.uid), Some(user.gid)).unwrap();
        }
        let shared = home.join("shared");
        Self {
            index,
            data,
            run,
            address,
            port,
            shared,
            server: None,
        }
    }

    pub fn sql(&self) -> PathBuf {
        self.data.join("sql")
    }

    pub fn login(&self) -> Login {
        let password = Secret::from(KEEPER.to_owned());
        Login {
            socket: self.run.join("m/s"),
            password,
        }
    }

    pub fn driver(&self) -> Driver {
        Driver::new(self.login())
    }

    pub fn place(&self) -> Place {
        Place {
            user: user(),
            run: self.run.clone(),
            group: Rc::new(TaskGroup::default()),
            temporary: self.data.join("copy"),
        }
    }

    pub fn lend(&self) -> Lend {
        Lend {
            programs: CopyPrograms::debian(),
            login: self.login(),
            sql: self.sql(),
            folder: self.run.join("m"),
            place: self.place(),
            per_second: None,
            limits: Limits {
                taken: Duration::from_secs(10),
                ..Limits::DEFAULT
            },
        }
    }

    pub fn fetch(&self, offer: &CopyOffer) -> Fetch {
        Fetch {
            programs: CopyPrograms::debian(),
            offer: offer.clone(),
            data: self.data.clone(),
            place: self.place(),
            memory: Bytes::mib(64),
            at_least: Epoch(1),
            former: Former::KeptAside {
                epoch: Epoch(1),
                at: UnixMillis(7000),
            },
            limits: Limits::DEFAULT,
        }
    }

    /// Starts the server closed, from a template where it has no data folder.
    pub async fn start(&mut self) {
        let programs = Programs::debian();
        if !self.sql().is_dir() {
            template::provide(&programs, &self.shared, user(), &self.sql()).unwrap();
        }
        let config = KeeperConfig {
            format: 1,
            flavor: Flavor::MariaDb,
            members: (1..=3)
                .map(|index| {
                    let replication_password = Secret::from(REPLICA.to_owned());
                    (
                        member(index),
                        Peer {
                            server_id: index,
                            replication_password,
                        },
                    )
                })
                .collect(),
            application: Application {
                user: "app".into(),
                password: Secret::from("x".to_owned()),
                database: "shop".into(),
            },
            durability: Durability::Power,
            buffer_pool: Some(Bytes::mib(64)),
            settings: BTreeMap::new(),
            programs: programs.clone(),
            pulse_ms: 100,
            lease_ms: 5000,
        };
        let folder = self.run.join("m");
        let temporary = self.data.join("tmp");
        std::fs::create_dir_all(&temporary).unwrap();
        let socket = folder.join("s");
        let own = member(self.index);
        let place = settings::Place {
            member: &own,
            host: &self.address,
            port: self.port,
            data: &self.sql(),
            temporary: &temporary,
            socket: &socket,
            pid_file: &folder.join("pid"),
            init_file: &folder.join("init.sql"),
            memory_limit: None,
        };
        let (options, init) = (folder.join("my.cnf"), folder.join("init.sql"));
        std::fs::write(&options, settings::option_file(&config, &place)).unwrap();
        let password = Secret::from(KEEPER.to_owned());
        std::fs::write(&init, settings::init_file(&config, &password)).unwrap();
        if let Some(user) = user() {
            for path in [&temporary, &options, &init] {
                std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)).unwrap();
            }
        }
        let _ = std::fs::remove_file(&socket);
        let argv = [
            programs.server.display().to_string(),
            format!("--defaults-file={}", options.display()),
        ];
        let plan = Plan {
            argv: &argv,
            env: &BTreeMap::new(),
            folder: &self.sql(),
            user: user(),
            run_dir: &self.run,
            doors: &[],
        };
        let started = spawn::start(&plan).unwrap();
        self.server = Some(started.process);
        let log = std::thread::spawn(move || {
            // Reading does not block, and the server must be able to write.
            let mut log = Vec::new();
            let mut output = std::fs::File::from(started.output);
            loop {
                match std::io::Read::read_to_end(&mut output, &mut log) {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    Ok(_) | Err(_) => return log,
                }
            }
        });
        let begun = Instant::now();
        let mut driver = self.driver();
        while driver.value("ask", "SELECT 1").await.is_err() {
            let pid = Pid::from_raw(i32::try_from(started.process.pid).unwrap()).unwrap();
            if let Ok(Some(_)) = waitpid(Some(pid), WaitOptions::NOHANG) {
                self.server = None;
                panic!(
                    "it ended: {}",
                    String::from_utf8_lossy(&log.join().unwrap())
                );
            }
            assert!(begun.elapsed() < PATIENCE, "the server is not ready");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            let pid = Pid::from_raw(i32::try_from(server.pid).unwrap()).unwrap();
            let _ = kill_process(pid, Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }

    /// Every process that was started for this instance and still runs.
    pub fn processes(&self) -> Vec<String> {
        let mark = format!("{MARKER}={}", self.run.display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            let marked = environment
                .split(|byte| *byte == 0)
                .any(|line| line == mark.as_bytes());
            if marked {
                let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                found.push(String::from_utf8_lossy(&line).replace('\0', " "));
            }
        }
        found
    }

    pub async fn run(&self, sql: &str) {
        self.driver()
            .run("a test's statements", sql, PATIENCE)
            .await
            .unwrap();
    }

    pub async fn value(&self, sql: &str) -> String {
        self.driver()
            .value("a test's question", sql)
            .await
            .unwrap()
            .unwrap_or_default()
    }

    /// Makes it a holder that is open for writes, with a barrier of epoch 1 and tables to write to.
    pub async fn open(&self) {
        self.run(&format!(
            "SET GLOBAL server_id = {0}; SET SESSION server_id = {0}; SET SESSION sql_log_bin = 1; \
             SET SESSION gtid_seq_no = 1000000000000; \
             INSERT INTO homeostat.epoch (epoch, version, holder, ackers, commits) VALUES (1, 1, 'x', '', 1); \
             CREATE DATABASE shop; \
             CREATE TABLE shop.item (id BIGINT AUTO_INCREMENT PRIMARY KEY, n BIGINT, v LONGTEXT); \
             CREATE TABLE shop.total (id INT PRIMARY KEY, n BIGINT); \
             INSERT INTO shop.total VALUES (1, 0), (2, 0), (3, 0); \
             SET SESSION sql_log_bin = 0; SET GLOBAL read_only = OFF",
            self.index
        ))
        .await;
    }

    /// Lets `replica` in and has it receive, from where its own log ends.
    pub async fn attach(&self, replica: &Instance) {
        let name = format!("replica-{}", member(replica.index));
        self.run(&format!("ALTER USER '{name}'@'%' ACCOUNT UNLOCK"))
            .await;
        let position = replica.value("SELECT @@GLOBAL.gtid_binlog_pos").await;
        replica
            .run(&format!(
                "SET GLOBAL gtid_slave_pos = '{position}'; CHANGE MASTER TO MASTER_HOST = '{}', \
                 MASTER_PORT = {}, MASTER_USER = '{name}', MASTER_PASSWORD = '{REPLICA}', \
                 MASTER_USE_GTID = slave_pos; START SLAVE",
                self.address, self.port
            ))
            .await;
    }

    /// Waits until `replica` has applied all that is here now.
    pub async fn caught_up(&self, replica: &Instance) {
        let position = self.value("SELECT @@GLOBAL.gtid_binlog_pos").await;
        let mut driver = replica.driver();
        let wait = format!("SELECT MASTER_GTID_WAIT('{position}', 20)");
        let waited = driver.run("wait for the applier", &wait, PATIENCE).await;
        let done = waited.unwrap()[0][0].get::<i32, _>(0).unwrap();
        let status = driver
            .run("look", "SHOW ALL SLAVES STATUS", STATEMENT)
            .await
            .unwrap();
        assert_eq!(done, 0, "it did not reach {position}: {status:?}");
    }

    /// Checksums of all tables of the application, and of the barriers.
    pub async fn checksums(&self) -> Vec<(String, Option<u64>)> {
        let sql = "CHECKSUM TABLE shop.item, shop.total, shop.late, homeostat.epoch EXTENDED";
        let sets = self.driver().run("checksums", sql, PATIENCE).await.unwrap();
        sets[0]
            .iter()
            .map(|row| (row.get(0).unwrap(), row.get(1).unwrap()))
            .collect()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.kill();
    }
}
