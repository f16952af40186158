//! A cell under measurement: turned up, asked and taken down through the program that people run, and gone when it is
//! dropped, however the measurement ended.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::sleep;

use crate::processes;
use crate::programs::Programs;

/// The SQL cluster and the customer of the example.
pub const CLUSTER: &str = "shop-db";
const CUSTOMER: &str = "shop-load";
/// The port that the copy of the cell file adds to the customer.
const KNOB: &str = "report";

const UP_WITHIN: Duration = Duration::from_secs(180);
/// For verbs that ask.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Until all members replicate again after a change of primary.
const WHOLE_WITHIN: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Writes a copy of the example's cell file: with the programs that are measured here, and a knob for the customer's
/// rate. Nothing else is changed.
pub fn write_cell_file(programs: &Programs, folder: &Path) -> anyhow::Result<PathBuf> {
    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/shop/cell.star");
    let text = std::fs::read_to_string(&original)
        .with_context(|| format!("read {}", original.display()))?;
    let package = format!("path = {:?}", programs.shop.display().to_string());
    let edits = [
        (
            r#"path = ["../../target/release/shop", "../../target/debug/shop"]"#,
            package.as_str(),
        ),
        (
            r#""--log", "${dir}/orders.log","#,
            r#""--log", "${dir}/orders.log", "--listen", "${address}:${port.report}","#,
        ),
        (
            r#"    needs = ["shop-web"],"#,
            "    needs = [\"shop-web\"],\n    ports = [\"report\"],",
        ),
    ];
    let mut copy = text;
    for (from, to) in edits {
        if copy.matches(from).count() != 1 {
            bail!(
                "{} has changed: '{from}' is not in it exactly once; change bench/src/cell.rs",
                original.display()
            );
        }
        copy = copy.replace(from, to);
    }
    let path = folder.join("cell.star");
    std::fs::write(&path, copy).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

pub struct Cell {
    homeostat: PathBuf,
    file: PathBuf,
    state: PathBuf,
}

/// The cluster as `status --json` shows it.
pub struct Cluster {
    pub epoch: u64,
    pub primary: String,
    pub primary_pid: u32,
}

impl Cell {
    /// Turns a cell up in `state` and tells how long it took until all checks passed. What is in the folder already (a
    /// template) is used.
    pub async fn up(
        programs: &Programs,
        file: &Path,
        state: &Path,
    ) -> anyhow::Result<(Self, Duration)> {
        let cell = Self {
            homeostat: programs.homeostat.clone(),
            file: file.to_owned(),
            state: state.to_owned(),
        };
        let began = Instant::now();
        // From here on dropping it takes the cell down, also when it did not come up.
        cell.turn_up().await?;
        Ok((cell, began.elapsed()))
    }

    async fn turn_up(&self) -> anyhow::Result<()> {
        let deadline = format!("{}s", UP_WITHIN.as_secs());
        let file = self.file.display().to_string();
        let words = ["up", &file, "--detach", "--deadline", &deadline];
        self.ask(&words, UP_WITHIN + ANSWER_WITHIN).await.map(drop)
    }

    /// Kills every process of it, all at once, and turns it up again.
    pub async fn pull_the_cord(&self) -> anyhow::Result<()> {
        self.kill_all();
        self.turn_up().await
    }

    fn kill_all(&self) {
        let marks = self.marks();
        let borrowed: Vec<&Path> = marks.iter().map(PathBuf::as_path).collect();
        // More than once: a process may start another between the look and the kill.
        for _ in 0..3 {
            for pid in processes::of(&borrowed).into_keys() {
                if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Takes it down and removes all of it.
    pub async fn down(self) -> anyhow::Result<()> {
        self.ask(&["down", "--yes", "--purge"], UP_WITHIN)
            .await
            .map(drop)
    }

    pub async fn status(&self) -> anyhow::Result<Value> {
        self.json(&["status", "--json"]).await
    }

    /// Where clients reach the primary, with user and password.
    pub async fn dsn(&self) -> anyhow::Result<String> {
        Ok(self
            .ask(&["sql", CLUSTER, "--dsn"], ANSWER_WITHIN)
            .await?
            .trim()
            .to_owned())
    }

    /// The last change of primary.
    pub async fn last_change(&self) -> anyhow::Result<Value> {
        let mut why = self.json(&["why", CLUSTER, "--json"]).await?;
        Ok(why["last_change"].take())
    }

    pub async fn switchover(&self) -> anyhow::Result<()> {
        self.ask(&["switchover", CLUSTER], ANSWER_WITHIN)
            .await
            .map(drop)
    }

    /// Waits until a primary of an epoch after `epoch` serves and all other members replicate and acknowledge.
    pub async fn until_whole(&self, epoch: u64) -> anyhow::Result<Cluster> {
        let until = Instant::now() + WHOLE_WITHIN;
        loop {
            let status = self.status().await?;
            if let Some(cluster) = whole(&status, epoch) {
                return Ok(cluster);
            }
            if Instant::now() >= until {
                let seconds = WHOLE_WITHIN.as_secs();
                bail!(
                    "{CLUSTER} is not whole after {seconds} s: {}",
                    status["sql"]
                );
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Sets the rate of the cell's own customer.
    pub async fn customer_rate(&self, per_second: u32) -> anyhow::Result<()> {
        let status = self.status().await?;
        let task = rows(&status, "tasks").find(|task| task["service"] == CUSTOMER);
        let task = task.with_context(|| format!("{CUSTOMER} has no task"))?;
        let port = task["ports"][KNOB]
            .as_u64()
            .with_context(|| format!("{CUSTOMER} has no port '{KNOB}'"))?;
        let address = format!("{}:{port}", task["address"].as_str().unwrap_or_default());
        post(&address, &format!("/rate?per_second={per_second}"))
            .await
            .with_context(|| format!("set the rate of {CUSTOMER}"))
    }

    /// The folders that its processes name on their command lines: state, and run.
    pub fn marks(&self) -> Vec<PathBuf> {
        let identity = std::fs::read(self.state.join("cell.json")).unwrap_or_default();
        let identity: Value = serde_json::from_slice(&identity).unwrap_or_default();
        let run = identity["run"].as_str().map(PathBuf::from);
        std::iter::once(self.state.clone()).chain(run).collect()
    }

    async fn json(&self, words: &[&str]) -> anyhow::Result<Value> {
        let text = self.ask(words, ANSWER_WITHIN).await?;
        serde_json::from_str(&text)
            .with_context(|| format!("read the answer to 'homeostat {}'", words.join(" ")))
    }

    async fn ask(&self, words: &[&str], within: Duration) -> anyhow::Result<String> {
        let verb = words.join(" ");
        let mut command = Command::new(&self.homeostat);
        command
            .arg("--state")
            .arg(&self.state)
            .args(words)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let out = tokio::time::timeout(within, command.output())
            .await
            .with_context(|| {
                format!(
                    "'homeostat {verb}' did not end within {} s",
                    within.as_secs()
                )
            })?
            .with_context(|| format!("run 'homeostat {verb}'"))?;
        if !out.status.success() {
            bail!(
                "'homeostat {verb}' failed ({}): {}",
                out.status,
                String::from_utf8_lossy(&out.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if !self.state.join("cell.json").exists() {
            return; // it was taken down
        }
        // In a process group of its own: a second Ctrl-C must not stop the tidying.
        let mut down = std::process::Command::new(&self.homeostat);
        down.arg("--state")
            .arg(&self.state)
            .args(["down", "--yes", "--purge"]);
        down.stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut down, 0);
        if down.status().is_ok_and(|status| status.success()) {
            return;
        }
        eprintln!(
            "the cell in {} did not go down: its processes are killed",
            self.state.display()
        );
        let marks = self.marks();
        self.kill_all();
        for folder in &marks {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

fn rows<'a>(status: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    status[list].as_array().into_iter().flatten()
}

/// The cluster, when it is as it should be.
fn whole(status: &Value, after_epoch: u64) -> Option<Cluster> {
    let cluster = rows(status, "sql").find(|cluster| cluster["name"] == CLUSTER)?;
    let epoch = cluster["epoch"]
        .as_u64()
        .filter(|epoch| *epoch > after_epoch)?;
    let primary = cluster["primary"]
        .as_str()
        .filter(|_| cluster["phase"] == "serving")?;
    let mut primary_pid = None;
    for member in rows(cluster, "members") {
        let fit = if member["task"] == primary {
            "primary"
        } else {
            "replica"
        };
        let copies = if member["task"] == primary {
            "none"
        } else {
            "acker"
        };
        if member["role"] != fit || member["acker"] != copies || member["state"] != "well" {
            return None;
        }
        if member["task"] == primary {
            primary_pid = member["pid"]
                .as_u64()
                .and_then(|pid| u32::try_from(pid).ok());
        }
    }
    Some(Cluster {
        epoch,
        primary: primary.to_owned(),
        primary_pid: primary_pid?,
    })
}

/// An HTTP POST without a body that has to be answered with 200.
async fn post(address: &str, path: &str) -> anyhow::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let exchange = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(ANSWER_WITHIN, exchange)
        .await
        .with_context(|| format!("{address} does not answer"))?;
    let answer = answer.with_context(|| format!("ask {address}"))?;
    if !answer.starts_with("HTTP/1.1 200 ") {
        bail!(
            "{address} answered: {}",
            answer.lines().next().unwrap_or("nothing")
        );
    }
    Ok(())
}
