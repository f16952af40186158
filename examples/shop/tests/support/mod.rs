//! Real processes for the tests: a MariaDB server in a folder of its own, and the shop's roles.
//! They die with the test, however it ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use mysql_async::prelude::Queryable;
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use tempfile::TempDir;

/// For anything that is awaited; reached only when something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// A child process and the lines it prints, on stdout or stderr.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let death_signal = || Ok(set_parent_process_death_signal(Some(Signal::KILL))?);
        // SAFETY: between fork and exec only prctl is called.
        unsafe { command.pre_exec(death_signal) };
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let (sender, lines) = channel();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let pipes: [Box<dyn Read + Send>; 2] = [Box::new(out), Box::new(err)];
        for pipe in pipes {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    // Read on when nobody listens: a full pipe would stop the child.
                    let _ = sender.send(line);
                }
            });
        }
        Self { child, lines }
    }

    /// The first line from here on for which `pick` has an answer.
    pub fn wait_for<T>(&self, what: &str, pick: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => match pick(&line) {
                    Some(picked) => return picked,
                    None => seen.push(line),
                },
                Err(error) => panic!("{what}: {error}; lines so far:\n{}", seen.join("\n")),
            }
        }
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn terminate(self) -> (ExitStatus, Vec<String>) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).unwrap();
        self.finish()
    }

    /// The exit status, and the lines not yet waited for.
    pub fn finish(mut self) -> (ExitStatus, Vec<String>) {
        let mut lines = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        // Both pipes are closed when the process has ended.
        while let Ok(line) = self
            .lines
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            lines.push(line);
        }
        if Instant::now() >= deadline {
            let _ = self.child.kill();
        }
        (self.child.wait().unwrap(), lines)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct Server {
    pub folder: TempDir,
    port: u16,
    process: Option<Process>,
}

impl Server {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let install = mariadb("mariadb-install-db", folder.path())
            .arg("--auth-root-authentication-method=normal")
            .arg("--skip-test-db")
            .arg(format!(
                "--datadir={}",
                folder.path().join("data").display()
            ))
            .args(as_root())
            .output()
            .expect("run mariadb-install-db");
        assert!(install.status.success(), "mariadb-install-db: {install:?}");
        let init = "CREATE DATABASE IF NOT EXISTS shop;\n\
            CREATE USER IF NOT EXISTS app@'127.0.0.1' IDENTIFIED BY 'secret';\n\
            GRANT ALL ON shop.* TO app@'127.0.0.1';\n";
        std::fs::write(folder.path().join("init.sql"), init).unwrap();
        let mut server = Self {
            folder,
            port: free_port(),
            process: None,
        };
        server.restart();
        std::fs::write(server.path("url"), server.url() + "\n").unwrap();
        server
    }

    /// After the first time: the same data on the same port.
    pub fn restart(&mut self) {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let process = Process::start(
            mariadb("mariadbd", self.folder.path())
                .args(as_root())
                .arg(format!("--datadir={}", at("data")))
                .arg(format!("--socket={}", at("sock")))
                .arg(format!("--pid-file={}", at("pid")))
                .arg(format!("--init-file={}", at("init.sql")))
                .arg(format!("--port={}", self.port))
                .arg("--bind-address=127.0.0.1")
                .arg("--innodb-buffer-pool-size=16M"),
        );
        process.wait_for("mariadbd starts", |line| {
            line.contains("ready for connections").then_some(())
        });
        self.process = Some(process);
    }

    pub fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    pub fn url(&self) -> String {
        format!("mysql://app:secret@127.0.0.1:{}/shop", self.port)
    }

    pub fn execute(&self, statement: &str) {
        let opts = mysql_async::Opts::from_url(&self.url()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut conn = mysql_async::Conn::new(opts).await.unwrap();
            conn.query_drop(statement).await.unwrap();
            conn.disconnect().await.unwrap();
        });
    }
}

/// The shop in one of its roles.
pub fn shop(args: &[&str]) -> Process {
    Process::start(Command::new(env!("CARGO_BIN_EXE_shop")).args(args))
}

/// `shop` with `--listen` on a port of the system's choice, and the address it got.
pub fn listening_shop(args: &[&str]) -> (Process, String) {
    let process = shop(&[args, &["--listen", "127.0.0.1:0"]].concat());
    let address = process.wait_for("the shop listens", |line| {
        line.strip_prefix("listening on ").map(str::to_owned)
    });
    (process, address)
}

/// Status and body.
pub fn http(address: &str, request: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    write!(
        stream,
        "{request} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap();
    (status.parse().unwrap(), body.to_owned())
}

/// Each server needs a folder for temporary tables of its own: when it starts it removes those it
/// finds there, and a server that was still using them crashes.
fn mariadb(program: &str, folder: &Path) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    // An ordinary user's PATH often has no sbin.
    let found = format!("{path}:/usr/sbin:/usr/local/sbin")
        .split(':')
        .map(|folder| Path::new(folder).join(program))
        .find(|file| file.exists())
        .unwrap_or_else(|| panic!("{program} is not installed"));
    let mut command = Command::new(found);
    command.arg("--no-defaults").env("TMPDIR", folder);
    command
}

fn as_root() -> Option<&'static str> {
    rustix::process::geteuid()
        .is_root()
        .then_some("--user=root")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
