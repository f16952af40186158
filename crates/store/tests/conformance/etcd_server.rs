//! A real etcd of one member on free loopback ports, in a folder of its own; gone, folder and all, when dropped.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

pub struct EtcdServer {
    pub client: SocketAddr,
    peer: SocketAddr,
    folder: tempfile::TempDir,
    child: Child,
}

/// An address nobody listens on at the moment.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

impl EtcdServer {
    /// Starts it and waits until it serves. A port can be taken between looking and starting: tried a few times.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut log = String::new();
        for _ in 0..5 {
            let (client, peer) = (free_address(), free_address());
            match launch(client, peer, &folder) {
                Ok(child) => {
                    return Self {
                        client,
                        peer,
                        folder,
                        child,
                    };
                }
                Err(said) => log = said,
            }
            std::fs::remove_dir_all(folder.path().join("data")).unwrap();
        }
        panic!("etcd (Debian's etcd-server) does not start:\n{log}");
    }

    /// Kills it and starts it again on the same data.
    pub fn restart(&mut self) {
        self.stop();
        self.child = launch(self.client, self.peer, &self.folder).unwrap();
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn launch(
    client: SocketAddr,
    peer: SocketAddr,
    folder: &tempfile::TempDir,
) -> Result<Child, String> {
    let mut command = Command::new("etcd");
    command
        .arg("--name=test")
        .arg(format!(
            "--data-dir={}",
            folder.path().join("data").display()
        ))
        .arg(format!("--listen-client-urls=http://{client}"))
        .arg(format!("--advertise-client-urls=http://{client}"))
        .arg(format!("--listen-peer-urls=http://{peer}"))
        .arg(format!("--initial-advertise-peer-urls=http://{peer}"))
        .arg(format!("--initial-cluster=test=http://{peer}"))
        .args([
            "--heartbeat-interval=50",
            "--election-timeout=500",
            "--logger=zap",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    // Not a moment longer than the test, even if that is killed.
    // SAFETY: prctl is async-signal-safe and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            Ok(())
        });
    }
    let mut child = command
        .spawn()
        .expect("etcd is needed for this test: apt-get install etcd-server");
    let log = BufReader::new(child.stderr.take().unwrap());
    // A thread reads the log to its end, or etcd would block on a full pipe.
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        log.lines()
            .map_while(Result::ok)
            .for_each(|line| drop(sender.send(line)))
    });
    let mut said = String::new();
    let until = Instant::now() + Duration::from_secs(15);
    while let Ok(line) = lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
        if line.contains("serving client traffic") {
            return Ok(child);
        }
        said += &line;
        said.push('\n');
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(said)
}
