//! The sql probe against a real MariaDB server, and against what is none.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "sql/states.rs"]
mod states;

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use homeostat_probes::{Probe, Prober, SqlProbe, SqlUrl};
use homeostat_prodtest::{Observation, Outcome};
use mysql_async::prelude::Queryable;

const PATIENT: Duration = Duration::from_secs(30);

/// A server in a temporary folder; it dies with this value, and with the test.
struct Server {
    process: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Server {
    fn start() -> Self {
        // Below /tmp whatever TMPDIR says: paths of unix sockets are short.
        let dir = tempfile::Builder::new()
            .prefix("probe-sql")
            .tempdir_in("/tmp")
            .unwrap();
        let data = dir.path().join("data");
        let installed = Command::new("mariadb-install-db")
            .args([
                "--no-defaults",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ])
            .arg(format!("--datadir={}", data.display()))
            .args(user())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(installed.success());
        // Somebody else may take the port in between; then the server ends and the test says so.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        Self {
            process: launch(dir.path(), port),
            dir,
            port,
        }
    }

    fn url(&self, password: &str) -> SqlUrl {
        SqlUrl::new(format!(
            "mysql://app:{password}@127.0.0.1:{}/mysql",
            self.port
        ))
    }

    fn restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = launch(self.dir.path(), self.port);
    }

    async fn admin(&mut self) -> mysql_async::Conn {
        let socket = self.dir.path().join("sock");
        let opts = mysql_async::OptsBuilder::default()
            .user(Some("root"))
            .socket(Some(socket.display().to_string()));
        let end = Instant::now() + PATIENT;
        loop {
            match mysql_async::Conn::new(opts.clone()).await {
                Ok(connection) => return connection,
                Err(error) => assert!(Instant::now() < end, "the server does not start: {error}"),
            }
            assert!(
                self.process.try_wait().unwrap().is_none(),
                "the server has ended"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Servers refuse to run as root unless told to.
fn user() -> Option<&'static str> {
    rustix::process::geteuid()
        .is_root()
        .then_some("--user=root")
}

fn launch(dir: &Path, port: u16) -> Child {
    let mut command = Command::new("mariadbd");
    command
        .arg("--no-defaults")
        .args(user())
        .arg(format!("--datadir={}", dir.join("data").display()))
        .arg(format!("--socket={}", dir.join("sock").display()))
        .arg(format!("--pid-file={}", dir.join("pid").display()))
        .arg(format!("--port={port}"))
        .arg(format!("--server-id={port}"))
        .args([
            "--log-bin",
            "--bind-address=127.0.0.1",
            "--innodb-buffer-pool-size=16M",
            "--performance-schema=OFF",
        ])
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(dir.join("log")).unwrap());
    // SAFETY: prctl is async-signal-safe and touches nothing of this process.
    unsafe {
        command.pre_exec(|| {
            Ok(rustix::process::set_parent_process_death_signal(Some(
                rustix::process::Signal::KILL,
            ))?)
        });
    }
    command.spawn().unwrap()
}

async fn ask(
    prober: &Prober,
    url: SqlUrl,
    query: &str,
    want: Option<&str>,
    deadline: Duration,
) -> Observation {
    let probe = Probe::Sql(SqlProbe::single(url, query, want.map(Into::into)));
    prober.run(&probe, deadline).await
}

#[track_caller]
fn check(observation: Observation, outcome: Outcome, seen: &str) {
    assert!(
        observation.outcome == outcome && observation.seen.contains(seen),
        "{observation:?}"
    );
    assert!(
        !format!("{observation:?}").contains("secret"),
        "{observation:?}"
    );
}

async fn logins(connection: &mut mysql_async::Conn) -> u64 {
    let row: Option<(String, u64)> = connection
        .query_first("SHOW GLOBAL STATUS LIKE 'Connections'")
        .await
        .unwrap();
    row.unwrap().1
}

// One thread, as the server must not outlive the thread that started it.
#[tokio::test]
async fn against_a_real_server() {
    let mut server = Server::start();
    let mut admin = server.admin().await;
    admin
        .query_drop("CREATE USER app@'127.0.0.1' IDENTIFIED BY 'secret'")
        .await
        .unwrap();
    admin
        .query_drop("GRANT ALL ON *.* TO app@'127.0.0.1'")
        .await
        .unwrap();
    let prober = Prober::new();
    let url = || server.url("secret");

    // Values, in the text form that a person sees.
    check(
        ask(&prober, url(), "SELECT 6 * 7", Some("42"), PATIENT).await,
        Outcome::Passed,
        "42",
    );
    check(
        ask(&prober, url(), "SELECT 6 * 7", Some("43"), PATIENT).await,
        Outcome::Failed,
        "the answer is 42",
    );
    check(
        ask(&prober, url(), "SELECT NULL", Some("NULL"), PATIENT).await,
        Outcome::Passed,
        "NULL",
    );
    check(
        ask(&prober, url(), "SELECT 1.50", Some("1.50"), PATIENT).await,
        Outcome::Passed,
        "1.50",
    );
    check(
        ask(&prober, url(), "SELECT 1, 2", Some("1"), PATIENT).await,
        Outcome::Failed,
        "several columns",
    );
    check(
        ask(&prober, url(), "SELECT 1 WHERE 0", Some("1"), PATIENT).await,
        Outcome::Failed,
        "no row",
    );
    let many = "SELECT seq FROM seq_1_to_100000000";
    check(
        ask(&prober, url(), many, Some("1"), PATIENT).await,
        Outcome::Failed,
        "several rows",
    );
    check(
        ask(&prober, url(), many, None, PATIENT).await,
        Outcome::Passed,
        "answered",
    );
    check(
        ask(&prober, url(), "SELECT nonsense", None, PATIENT).await,
        Outcome::Failed,
        "nonsense",
    );
    let large = "SELECT REPEAT('x', 5000000)";
    check(
        ask(&prober, url(), large, Some("x"), PATIENT).await,
        Outcome::Failed,
        "query failed",
    );
    check(
        ask(&prober, server.url("secretly"), "SELECT 1", None, PATIENT).await,
        Outcome::Failed,
        "denied",
    );

    // The connection is used again, so a probe costs no login.
    check(
        ask(&prober, url(), "SELECT 1", Some("1"), PATIENT).await,
        Outcome::Passed,
        "1",
    );
    let before = logins(&mut admin).await;
    for _ in 0..10 {
        check(
            ask(&prober, url(), "SELECT 1", Some("1"), PATIENT).await,
            Outcome::Passed,
            "1",
        );
    }
    assert_eq!(logins(&mut admin).await, before);

    // A query that waits ends at the deadline, here and on the server.
    let limit = Duration::from_millis(500);
    check(
        ask(
            &prober,
            url(),
            "SELECT BENCHMARK(1000000000000, SHA1('x'))",
            None,
            limit,
        )
        .await,
        Outcome::Failed,
        "still waiting for the answer",
    );
    let end = Instant::now() + PATIENT;
    let stuck =
        "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'SELECT BENCHMARK%'";
    while admin.query_first::<u32, _>(stuck).await.unwrap() != Some(0) {
        assert!(Instant::now() < end, "the query goes on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let text_url = format!("mysql://app:secret@127.0.0.1:{}/mysql", server.port);
    admin
        .query_drop("GRANT ALL ON *.* TO app@'127.0.0.1' WITH GRANT OPTION")
        .await
        .unwrap();
    states::queries(&text_url).await;
    states::repair(&text_url).await;
    admin.query_drop("RESET MASTER").await.unwrap();
    states::replication(&server, &text_url).await;

    // A kept connection that broke is no failure; a server that is gone is.
    check(
        ask(&prober, url(), "SELECT 1", Some("1"), PATIENT).await,
        Outcome::Passed,
        "1",
    );
    server.restart();
    server.admin().await;
    let url = server.url("secret");
    check(
        ask(&prober, url.clone(), "SELECT 1", Some("1"), PATIENT).await,
        Outcome::Passed,
        "1",
    );
    // Stopped, it accepts and says nothing.
    let pid = rustix::process::Pid::from_child(&server.process);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    check(
        ask(&prober, url.clone(), "SELECT 1", Some("1"), limit).await,
        Outcome::Failed,
        "still logging in",
    );
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    drop(server);
    check(
        ask(&prober, url, "SELECT 1", Some("1"), PATIENT).await,
        Outcome::Failed,
        "refused",
    );
}

#[tokio::test]
async fn against_what_is_no_server() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = SqlUrl::new(format!(
        "mysql://app:secret@{}/shop",
        listener.local_addr().unwrap()
    ));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(
                &mut stream,
                b"HTTP/1.1 400 Bad Request\r\n\r\n",
            )
            .await;
        }
    });
    let prober = Prober::new();
    check(
        ask(&prober, url, "SELECT 1", None, Duration::from_secs(2)).await,
        Outcome::Failed,
        "",
    );
    let bad = SqlUrl::new("not a url with secret");
    check(
        ask(&prober, bad, "SELECT 1", None, PATIENT).await,
        Outcome::Failed,
        "connection string cannot be used",
    );
}
