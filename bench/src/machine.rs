//! Where and of what the figures are: without this they compare with nothing.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Context;
use serde_json::{Value, json};

use crate::programs::Programs;
use crate::stats::{Distribution, rounded};

/// Syncs of one block that say how fast the disk answers.
const SYNCS: u32 = 100;

/// What a run is told to do, and where.
#[derive(Debug)]
pub struct Machine(Vec<(&'static str, String)>);

impl Machine {
    pub fn look(programs: &Programs, folder: &Path, seed: u64) -> anyhow::Result<Self> {
        let sync = sync_ms(folder)?;
        Ok(Self(vec![
            ("commit", commit()),
            ("profile", programs.profile.clone()),
            (
                "homeostat",
                first_line(Command::new(&programs.homeostat).arg("--version")),
            ),
            (
                "mariadbd",
                first_line(Command::new(&programs.mariadbd).args(["--no-defaults", "--version"])),
            ),
            ("machine", hardware()),
            ("kernel", read("/proc/sys/kernel/osrelease")),
            ("filesystem", filesystem(folder)),
            (
                "fdatasync of 4 KiB",
                format!(
                    "median {:.3} ms, p95 {:.3} ms there",
                    sync.median(),
                    sync.p95()
                ),
            ),
            ("load average", read("/proc/loadavg")),
            (
                "user",
                if rustix::process::geteuid().is_root() {
                    "root"
                } else {
                    "ordinary"
                }
                .to_owned(),
            ),
            ("seed", seed.to_string()),
        ]))
    }

    pub fn text(&self) -> String {
        self.0
            .iter()
            .map(|(name, value)| format!("{name:<20} {value}\n"))
            .collect()
    }

    pub fn json(&self) -> Value {
        self.0
            .iter()
            .map(|(name, value)| (name.replace(' ', "_"), json!(value)))
            .collect()
    }
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let out = Command::new("git")
            .arg("-C")
            .arg(env!("CARGO_MANIFEST_DIR"))
            .args(arguments)
            .output();
        out.ok()
            .filter(|out| out.status.success())
            .map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    match (
        git(&["rev-parse", "--short=12", "HEAD"]),
        git(&["status", "--porcelain"]),
    ) {
        (Some(commit), Some(changes)) if changes.is_empty() => commit,
        (Some(commit), _) => format!("{commit} and changes that are not committed"),
        (None, _) => "unknown".to_owned(),
    }
}

fn first_line(command: &mut Command) -> String {
    let out = command.output().map(|out| {
        String::from_utf8_lossy(&out.stdout)
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned()
    });
    out.unwrap_or_else(|error| format!("unknown ({error})"))
}

fn hardware() -> String {
    let value = |file: &str, field: &str| {
        let line = read_all(file)
            .lines()
            .find(|line| line.starts_with(field))
            .map(str::to_owned);
        line.and_then(|line| {
            line.split_once(':')
                .map(|(_, value)| value.trim().to_owned())
        })
        .unwrap_or_else(|| "?".into())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{cores} cores ({}), memory {}",
        value("/proc/cpuinfo", "model name"),
        value("/proc/meminfo", "MemTotal")
    )
}

fn read_all(file: &str) -> String {
    fs::read_to_string(file).unwrap_or_default()
}

fn read(file: &str) -> String {
    read_all(file).trim().to_owned()
}

/// The type and source of the mount that `folder` is on: the one with the longest mount point above it, the last one
/// where several are.
fn filesystem(folder: &Path) -> String {
    let mounts = read_all("/proc/self/mountinfo");
    let mut best: Option<(usize, String)> = None;
    for line in mounts.lines() {
        // 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw
        let Some((mount, kind)) = line.split_once(" - ") else {
            continue;
        };
        let Some(point) = mount
            .split(' ')
            .nth(4)
            .filter(|point| folder.starts_with(point))
        else {
            continue;
        };
        if best
            .as_ref()
            .is_none_or(|(length, _)| point.len() >= *length)
        {
            let kind: Vec<&str> = kind.split(' ').take(2).collect();
            best = Some((point.len(), kind.join(" on ")));
        }
    }
    best.map_or_else(
        || "unknown".to_owned(),
        |(_, kind)| format!("{kind} (state below {})", folder.display()),
    )
}

/// How long the disk takes to make one small write durable.
fn sync_ms(folder: &Path) -> anyhow::Result<Distribution> {
    let path = folder.join("sync");
    let mut file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let mut took = Vec::new();
    for _ in 0..SYNCS {
        let began = Instant::now();
        file.write_all(&[1; 4096])
            .and_then(|()| file.sync_data())
            .with_context(|| format!("write {}", path.display()))?;
        took.push(rounded(began.elapsed().as_secs_f64() * 1e3));
    }
    fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    Distribution::of(took).context("no sync was measured")
}
