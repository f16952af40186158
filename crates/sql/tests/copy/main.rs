//! Copies of real servers, made while they work, and everything that may go wrong on the way.

#![allow(clippy::unwrap_used)]

mod instance;

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use homeostat_decider::{CopyOffer, CopyToken};
use homeostat_model::{Bytes, Epoch};
use homeostat_sql::copy::folder::{self, Former};
use homeostat_sql::copy::{self, CopyError, Limits, Progress, Received, Sent, Stage};
use instance::{Instance, KEEPER, PATIENCE, REPLICA, home};
use tokio::sync::watch;
use tokio::task::{JoinHandle, LocalSet};

/// Set for the process that is to be one side of a copy: `source` or `target`.
const ROLE: &str = "HOMEOSTAT_TEST_COPY";
const HOME: &str = "HOMEOSTAT_TEST_COPY_HOME";

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, future)
}

fn slowly(bytes: Bytes) -> Option<NonZeroU64> {
    NonZeroU64::new(bytes.0)
}

/// One copy from one to the other, both sides in this process.
async fn copy_between(
    source: &Instance,
    target: &Instance,
    per_second: Option<NonZeroU64>,
) -> (Result<Sent, CopyError>, Result<Received, CopyError>) {
    let offered = copy::offer(&source.address).await.unwrap();
    let fetch = target.fetch(offered.offer());
    let mut lend = source.lend();
    lend.per_second = per_second;
    let (sending, receiving) = [(); 2].map(|()| watch::channel(Progress::BEGIN).0).into();
    tokio::join!(
        offered.send(&lend, &sending),
        copy::receive(&fetch, &receiving)
    )
}

/// Clients that write until they are told to stop; returns how many transactions they committed.
struct Load {
    stop: watch::Sender<bool>,
    clients: Vec<JoinHandle<u64>>,
}

impl Load {
    fn on(holder: &Instance, clients: u32) -> Self {
        let (stop, stopped) = watch::channel(false);
        let clients = (1..=clients)
            .map(|client| {
                let mut driver = holder.driver();
                let stopped = stopped.clone();
                tokio::task::spawn_local(async move {
                    let mut done = 0;
                    while !*stopped.borrow() {
                        let sql = format!(
                            "SET SESSION sql_log_bin = 1; BEGIN; \
                             INSERT INTO shop.item (n, v) VALUES ({done}, REPEAT('{client}', 500)); \
                             UPDATE shop.total SET n = n + 1 WHERE id = {client}; COMMIT"
                        );
                        driver.run("write", &sql, PATIENCE).await.unwrap();
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        Self { stop, clients }
    }

    async fn end(self) -> u64 {
        self.stop.send_replace(true);
        let mut sum = 0;
        for client in self.clients {
            sum += client.await.unwrap();
        }
        sum
    }
}

/// Fills the table with about this much.
async fn fill(holder: &Instance, size: Bytes) {
    let rows = size.0 / (100 << 10);
    for _ in 0..rows / 100 + 1 {
        let sql = "SET SESSION sql_log_bin = 1; \
            INSERT INTO shop.item (n, v) SELECT 0, REPEAT('filling', 14629) FROM shop.seq_1_to_100";
        holder.run(sql).await;
    }
}

#[test]
fn a_copy_made_under_load_replicates_with_no_row_lost_or_doubled() {
    let home = home();
    block_on(async {
        let [mut holder, mut replica, mut target] =
            [1, 2, 3].map(|index| Instance::new(home.path(), 1, index));
        for instance in [&mut holder, &mut replica, &mut target] {
            instance.start().await;
        }
        holder.open().await;
        holder.attach(&replica).await;
        fill(&holder, Bytes::mib(20)).await;
        holder
            .run("SET SESSION sql_log_bin = 1; CREATE TABLE shop.late (id INT PRIMARY KEY)")
            .await;
        holder.caught_up(&replica).await;
        let before = replica.value("SELECT @@GLOBAL.gtid_binlog_pos").await;
        let load = Load::on(&holder, 3);

        // From a replica, into the place of another server's folder, whose history is its own.
        target
            .run("SET SESSION sql_log_bin = 1; CREATE DATABASE elsewhere")
            .await;
        target.kill();
        let (sent, received) = copy_between(&replica, &target, None).await;
        let (sent, received) = (sent.unwrap(), received.unwrap());
        println!("{sent:?}\n{received:?}");
        assert_eq!(sent.bytes, received.bytes);
        let aside = received.aside.clone().unwrap();
        assert!(aside.ends_with("sql.aside-1-7") && aside.join("elsewhere").is_dir());

        target.start().await;
        let recorded = received.at.to_string();
        assert!(
            recorded > before,
            "nothing was written while the copy was made"
        );
        for variable in ["gtid_binlog_pos", "gtid_binlog_state"] {
            let found = target.value(&format!("SELECT @@GLOBAL.{variable}")).await;
            assert_eq!(found, recorded, "{variable}");
        }
        // A crash before the first event must not make the log look empty.
        target.kill();
        target.start().await;
        assert_eq!(
            target.value("SELECT @@GLOBAL.gtid_binlog_pos").await,
            recorded
        );
        holder.attach(&target).await;
        holder
            .run("SET SESSION sql_log_bin = 1; INSERT INTO shop.late VALUES (1)")
            .await;
        let committed = load.end().await;
        assert!(committed > 100, "only {committed} transactions");
        for other in [&replica, &target] {
            holder.caught_up(other).await;
            assert_eq!(other.checksums().await, holder.checksums().await);
        }
        let total = target
            .value("SELECT CAST(SUM(n) AS CHAR) FROM shop.total")
            .await;
        assert_eq!(total, committed.to_string());
        // No account of the copy is left at either.
        for instance in [&replica, &target] {
            let left = "SELECT CAST(COUNT(*) AS CHAR) FROM mysql.global_priv WHERE User = 'copier'";
            assert_eq!(instance.value(left).await, "0");
        }

        // And from a holder, for an empty member. The copied one serves the next as well as the first.
        replica.kill();
        std::fs::remove_dir_all(replica.sql()).unwrap();
        let load = Load::on(&holder, 3);
        let (sent, received) = copy_between(&holder, &replica, None).await;
        sent.unwrap();
        assert_eq!(received.unwrap().aside, None);
        replica.start().await;
        holder.attach(&replica).await;
        load.end().await;
        holder.caught_up(&replica).await;
        holder.caught_up(&target).await;
        assert_eq!(replica.checksums().await, holder.checksums().await);
        assert_eq!(replica.checksums().await, target.checksums().await);

        // As a holder, a member that was copied numbers its events on, and one behind it finds its place in its log.
        target
            .run(
                "STOP SLAVE; RESET SLAVE ALL; SET GLOBAL server_id = 3; SET SESSION server_id = 3; \
                 SET SESSION sql_log_bin = 1; SET SESSION gtid_seq_no = 2000000000000; \
                 INSERT INTO homeostat.epoch (epoch, version, holder, ackers, commits) VALUES (2, 1, 'y', '', 1)",
            )
            .await;
        replica.run("STOP SLAVE").await;
        target.attach(&replica).await;
        target.caught_up(&replica).await;
        let position = replica.value("SELECT @@GLOBAL.gtid_binlog_pos").await;
        assert_eq!(position, "0-3-2000000000000");
    });
}

/// Not a test: one side of a copy, in a process that can be killed.
#[test]
fn side_of_a_copy() {
    let (Some(role), Some(home)) = (std::env::var_os(ROLE), std::env::var_os(HOME)) else {
        return;
    };
    let home = Path::new(&home);
    block_on(async {
        let (progress, _) = watch::channel(Progress::BEGIN);
        if role == "source" {
            let mut source = Instance::new(home, 2, 1);
            source.start().await;
            let offered = copy::offer(&source.address).await.unwrap();
            write_offer(home, offered.offer());
            let mut lend = source.lend();
            lend.per_second = slowly(Bytes::mib(10));
            offered.send(&lend, &progress).await.unwrap();
        } else {
            let target = Instance::new(home, 3, 3);
            let offer = std::fs::read(home.join("offer")).unwrap();
            let fetch = target.fetch(&serde_json::from_slice(&offer).unwrap());
            copy::receive(&fetch, &progress).await.unwrap();
        }
    });
}

fn write_offer(home: &Path, offer: &CopyOffer) {
    std::fs::write(home.join("offer.new"), serde_json::to_vec(offer).unwrap()).unwrap();
    std::fs::rename(home.join("offer.new"), home.join("offer")).unwrap();
}

struct Side(Child);

impl Side {
    fn start(role: &str, home: &Path) -> Self {
        let arguments = [
            "--exact",
            "side_of_a_copy",
            "--nocapture",
            "--test-threads=1",
        ];
        let process = Command::new(std::env::current_exe().unwrap())
            .args(arguments)
            .env(ROLE, role)
            .env(HOME, home)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        Self(process.unwrap())
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn until(what: &str, mut wanted: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !wanted() {
        assert!(begun.elapsed() < PATIENCE, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A source with this much in it, whose server runs.
async fn source_with(home: &Path, network: u8, size: Bytes) -> Instance {
    let mut source = Instance::new(home, network, 1);
    source.start().await;
    source.open().await;
    fill(&source, size).await;
    source
}

/// A data folder that no failed copy may touch.
fn old_folder(target: &Instance) -> PathBuf {
    let old = target.sql().join("old");
    std::fs::create_dir_all(target.sql()).unwrap();
    std::fs::write(&old, "as it was").unwrap();
    old
}

/// What is beside the data folder.
fn beside(target: &Instance) -> Vec<String> {
    let names = std::fs::read_dir(&target.data).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("sql")).collect();
    names.sort();
    names
}

async fn no_copier_is_left(source: &Instance) {
    for table in ["mysql.global_priv", "information_schema.PROCESSLIST"] {
        let left = format!("SELECT CAST(COUNT(*) AS CHAR) FROM {table} WHERE User = 'copier'");
        assert_eq!(source.value(&left).await, "0", "{table}");
    }
    assert!(!source.run.join("m/copy.cnf").exists());
}

#[test]
fn a_source_that_is_killed_leaves_the_target_as_it_was() {
    let home = home();
    block_on(async {
        let mut first = source_with(home.path(), 2, Bytes::mib(40)).await;
        first.kill();
        let mut side = Side::start("source", home.path());
        until("the offer", || home.path().join("offer").exists()).await;
        let offer = std::fs::read(home.path().join("offer")).unwrap();
        let target = Instance::new(home.path(), 2, 3);
        let old = old_folder(&target);
        let fetch = target.fetch(&serde_json::from_slice(&offer).unwrap());
        let (progress, seen) = watch::channel(Progress::BEGIN);
        let copying =
            tokio::task::spawn_local(async move { copy::receive(&fetch, &progress).await });
        until("the first bytes", || seen.borrow().bytes > Bytes::mib(3)).await;
        assert_eq!(beside(&target), ["sql", "sql.incoming"]);
        assert!(
            first
                .processes()
                .iter()
                .any(|line| line.contains("mariadb-backup"))
        );
        side.kill();
        let error = copying.await.unwrap().unwrap_err();
        assert!(matches!(error, CopyError::SourceEnded { .. }), "{error}");
        println!("{error}");
        assert_eq!(std::fs::read_to_string(old).unwrap(), "as it was");
        assert_eq!(beside(&target), ["sql"]);
        until("the end of what it started", || {
            first.processes().is_empty()
        })
        .await;
    });
}

#[test]
fn a_target_that_is_killed_leaves_the_source_free_and_begins_anew() {
    let home = home();
    block_on(async {
        let source = source_with(home.path(), 3, Bytes::mib(40)).await;
        let target = Instance::new(home.path(), 3, 3);
        let old = old_folder(&target);
        let offered = copy::offer(&source.address).await.unwrap();
        write_offer(home.path(), offered.offer());
        let mut lend = source.lend();
        lend.per_second = slowly(Bytes::mib(10));
        let mut side = Side::start("target", home.path());
        let (progress, seen) = watch::channel(Progress::BEGIN);
        let copying = tokio::task::spawn_local(async move { offered.send(&lend, &progress).await });
        until("the first bytes", || seen.borrow().bytes > Bytes::mib(3)).await;
        assert!(
            target
                .processes()
                .iter()
                .any(|line| line.contains("mbstream"))
        );
        side.kill();
        let error = copying.await.unwrap().unwrap_err();
        assert!(matches!(error, CopyError::TargetEnded { .. }), "{error}");
        println!("{error}");
        no_copier_is_left(&source).await;
        source
            .run("CREATE DATABASE free; FLUSH TABLES WITH READ LOCK")
            .await;
        until("the end of what it started", || {
            target.processes().is_empty()
        })
        .await;

        assert_eq!(beside(&target), ["sql", "sql.incoming"]);
        assert_eq!(folder::recover(&target.data).unwrap(), None);
        assert_eq!(beside(&target), ["sql"]);
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "as it was");
        let (sent, received) = copy_between(&source, &target, None).await;
        sent.unwrap();
        assert!(received.unwrap().aside.unwrap().join("old").exists());
        assert!(!old.exists());
    });
}

#[test]
fn only_who_knows_the_token_gets_the_copy_and_at_the_pace_that_was_set() {
    let home = home();
    block_on(async {
        let source = source_with(home.path(), 4, Bytes::mib(20)).await;
        let target = Instance::new(home.path(), 4, 3);
        let offered = copy::offer(&source.address).await.unwrap();
        let fetch = target.fetch(offered.offer());
        let mut stranger = Instance::new(home.path(), 4, 2).fetch(offered.offer());
        stranger.offer.token = CopyToken::new("a guess".to_owned());
        let mut lend = source.lend();
        lend.per_second = slowly(Bytes::mib(15));
        let (progress, seen) = watch::channel(Progress::BEGIN);
        let (unseen, _) = watch::channel(Progress::BEGIN);
        let both = async {
            let error = copy::receive(&stranger, &unseen).await.unwrap_err();
            assert_eq!(
                error.to_string(),
                "the source ended the copy: the other side said something that does not belong here: the token is wrong"
            );
            copy::receive(&fetch, &progress).await
        };
        let (sent, received) = tokio::join!(offered.send(&lend, &unseen), both);
        let (sent, received) = (sent.unwrap(), received.unwrap());
        let least = Duration::from_secs_f64(sent.bytes.0 as f64 / Bytes::mib(15).0 as f64 * 0.9);
        assert!(sent.took > least, "{} in {:?}", sent.bytes, sent.took);
        let seen = *seen.borrow();
        assert_eq!((seen.stage, seen.bytes), (Stage::Preparing, received.bytes));
        let about = seen.of.unwrap().0;
        assert!(
            (about / 2..about * 2).contains(&received.bytes.0),
            "{seen:?}"
        );
        assert!(
            (1..Bytes::mib(17).0).contains(&seen.bytes_per_second),
            "{seen:?}"
        );

        // The password was in a file for a while and nowhere else.
        no_copier_is_left(&source).await;
        // It serves once.
        let (progress, _) = watch::channel(Progress::BEGIN);
        let error = copy::receive(&fetch, &progress).await.unwrap_err();
        assert!(error.to_string().contains("connect"), "{error}");
        // A copy from before the epoch is of no use, and replaces nothing.
        let old = old_folder(&target);
        let offered = copy::offer(&source.address).await.unwrap();
        let mut fetch = target.fetch(offered.offer());
        fetch.at_least = Epoch(2);
        fetch.former = Former::Discarded;
        let lend = source.lend();
        let (_, error) = tokio::join!(
            offered.send(&lend, &progress),
            copy::receive(&fetch, &progress)
        );
        let error = error.unwrap_err().to_string();
        assert!(error.contains("before the barrier of epoch 2"), "{error}");
        assert!(
            old.exists()
                && beside(&target)
                    .iter()
                    .all(|name| !name.ends_with("incoming"))
        );

        let beyond = copy::offer("192.0.2.1").await.unwrap_err();
        assert!(matches!(beyond, CopyError::NotLoopback { .. }));
        fetch.offer.host = "localhost.example".into();
        let beyond = copy::receive(&fetch, &progress).await.unwrap_err();
        assert!(matches!(beyond, CopyError::NotLoopback { .. }));
    });
    // Passwords of these servers are known to the test, so that nothing else has to be searched for.
    assert_ne!(KEEPER, REPLICA);
}

/// A file system of its own, for full disks; unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path, size: Bytes) -> Self {
        let options = format!("size={},mode=0711", size.0);
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "copy"])
            .arg(at)
            .status();
        assert!(status.unwrap().success(), "cannot mount {}", at.display());
        Self(at.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_at_the_target_is_told_to_both() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root can mount a small disk");
        return;
    }
    let home = home();
    block_on(async {
        let source = source_with(home.path(), 5, Bytes::mib(40)).await;
        let target = Instance::new(home.path(), 5, 3);
        let disk = Disk::mount(&target.data, Bytes::mib(160));
        let old = old_folder(&target);
        let offered = copy::offer(&source.address).await.unwrap();
        let fetch = target.fetch(offered.offer());
        let mut lend = source.lend();
        lend.per_second = slowly(Bytes::mib(15));
        let (progress, seen) = watch::channel(Progress::BEGIN);
        let (unseen, _) = watch::channel(Progress::BEGIN);
        let ballast = disk.0.join("ballast");
        let filling = async {
            until("the first bytes", || seen.borrow().bytes > Bytes::mib(3)).await;
            let full = std::fs::write(&ballast, vec![1; 160 << 20]);
            assert!(full.is_err());
        };
        let (sent, received, ()) = tokio::join!(
            offered.send(&lend, &unseen),
            copy::receive(&fetch, &progress),
            filling
        );
        let (sent, received) = (
            sent.unwrap_err().to_string(),
            received.unwrap_err().to_string(),
        );
        println!("{sent}\n{received}");
        assert!(
            received.contains("mbstream failed") && received.contains("No space"),
            "{received}"
        );
        assert!(
            sent.contains("the target ended the copy") && sent.contains("No space"),
            "{sent}"
        );
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "as it was");
        assert_eq!(beside(&target), ["sql"]);

        // Known beforehand, nothing is even begun.
        let (sent, received) = copy_between(&source, &target, None).await;
        let (sent, received) = (sent.unwrap_err(), received.unwrap_err());
        assert!(matches!(received, CopyError::NoRoom { .. }), "{received}");
        assert!(matches!(sent, CopyError::TargetEnded { .. }), "{sent}");
        assert!(received.to_string().contains("has room for"), "{received}");
    });
}

#[test]
fn a_holder_without_ackers_is_given_up_and_let_go() {
    let home = home();
    block_on(async {
        let source = source_with(home.path(), 6, Bytes::mib(1)).await;
        let target = Instance::new(home.path(), 6, 3);
        source
            .run("SET GLOBAL rpl_semi_sync_master_enabled = ON")
            .await;
        let mut client = source.driver();
        let waiting = tokio::task::spawn_local(async move {
            let sql = "SET SESSION sql_log_bin = 1; INSERT INTO shop.item (n) VALUES (1)";
            client
                .run("a commit that waits", sql, PATIENCE)
                .await
                .map(drop)
        });
        let waits = "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS \
            WHERE VARIABLE_NAME = 'Rpl_semi_sync_master_wait_sessions'";
        while source.value(waits).await != "1" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let offered = copy::offer(&source.address).await.unwrap();
        let fetch = target.fetch(offered.offer());
        let mut lend = source.lend();
        lend.limits = Limits {
            stall: Duration::from_secs(3),
            ..Limits::DEFAULT
        };
        let progress = watch::channel(Progress::BEGIN).0;
        let (sent, received) = tokio::join!(
            offered.send(&lend, &progress),
            copy::receive(&fetch, &progress)
        );
        let (sent, received) = (sent.unwrap_err(), received.unwrap_err());
        println!("{sent}\n{received}");
        assert!(matches!(sent, CopyError::Stalled { .. }), "{sent}");
        assert!(
            received.to_string().contains("wrote nothing for 3 s"),
            "{received}"
        );
        no_copier_is_left(&source).await;
        source
            .run("SET GLOBAL rpl_semi_sync_master_enabled = OFF")
            .await;
        waiting.await.unwrap().unwrap();
    });
}
