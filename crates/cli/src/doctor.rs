//! `homeostat doctor`: what on this host limits a cell, and what to do about it. It looks and changes nothing, but for a
//! small file with which it measures the disk, and removes again.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use homeostat_cell::home;
use homeostat_model::{CellLayout, CellName};
use homeostat_supervisor::cgroup::{self, CgroupSupport, Tracking};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use crate::args::DoctorOptions;
use crate::failure::Failure;
use crate::place;
use crate::style::{Output, output, say};

/// Blocks written and synced to learn how fast the disk is.
const SYNCS: usize = 40;
const BLOCK: [u8; 4096] = [7; 4096];
/// A database waits for a sync at every commit.
const SLOW_SYNC: Duration = Duration::from_millis(5);
/// Below this nothing was synced: memory, or a disk that lies. Good for trying out, not for keeping.
const TOO_FAST: Duration = Duration::from_micros(5);
/// A forwarder needs two descriptors for each connection, a server some for each table.
const FEW_FILES: u64 = 4096;
/// An address that no cell uses: the last block is never given away.
const PROBED_ADDRESS: &str = "127.77.255.1:0";
/// The programs of MariaDB that a SQL cluster uses, and what for.
const PROGRAMS: [(&str, &str); 6] = [
    ("mariadbd", "the server"),
    ("mariadb-install-db", "makes new data folders"),
    (
        "mariadb-binlog",
        "saves what a crashed replica had received",
    ),
    ("mariadb-backup", "copies a member"),
    ("mbstream", "unpacks the copy"),
    ("mariadb", "the client of: homeostat sql"),
];
const PACKAGES: &str =
    "install mariadb-server, mariadb-backup and mariadb-client (Debian), or put them into PATH";
/// 2025-01-01: this program did not exist before.
const NOT_BEFORE: Duration = Duration::from_secs(1_735_689_600);

/// How much of a limit something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Level {
    Good,
    /// Cells run, with less than they could have.
    Limits,
    /// Something of a cell cannot work.
    Stops,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    what: &'static str,
    level: Level,
    seen: String,
    /// Empty when there is nothing to do.
    advice: String,
}

impl Finding {
    fn good(what: &'static str, seen: impl Into<String>) -> Self {
        Self {
            what,
            level: Level::Good,
            seen: seen.into(),
            advice: String::new(),
        }
    }

    fn new(what: &'static str, level: Level, seen: impl Into<String>, advice: &str) -> Self {
        Self {
            what,
            level,
            seen: seen.into(),
            advice: advice.to_owned(),
        }
    }
}

pub(crate) fn doctor(state: Option<PathBuf>, options: DoctorOptions) -> Result<ExitCode, Failure> {
    let folder = existing(state.unwrap_or_else(usual_folder));
    let findings = vec![
        user(rustix::process::geteuid().is_root()),
        cgroups(&cgroup::detect()),
        addresses(TcpListener::bind(PROBED_ADDRESS).map(drop)),
        disk(&folder, sync_time(&folder)),
        clock(SystemTime::now(), newest_state()),
        programs(&find_program),
        files(getrlimit(Resource::Nofile).current),
    ];
    if options.json {
        let json = serde_json::to_string(&findings)
            .map_err(|error| Failure::bug(anyhow::anyhow!(error)))?;
        say(json);
    } else {
        say(render(&findings, output()));
    }
    let stops = findings.iter().any(|finding| finding.level == Level::Stops);
    Ok(if stops {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn render(findings: &[Finding], output: Output) -> String {
    let mut lines = Vec::new();
    for finding in findings {
        let (word, colour) = match finding.level {
            Level::Good => ("good", 32),
            Level::Limits => ("limits", 33),
            Level::Stops => ("stops", 31),
        };
        let pad = " ".repeat(8 - word.len());
        let word = match output {
            Output::Terminal => format!("\x1b[{colour}m{word}\x1b[0m"),
            Output::Plain => word.to_owned(),
        };
        lines.push(format!("{word}{pad}{:<10} {}", finding.what, finding.seen));
        if !finding.advice.is_empty() {
            lines.push(format!("{:19}do: {}", "", finding.advice));
        }
    }
    let worst = |level| findings.iter().filter(|f| f.level == level).count();
    lines.push(match (worst(Level::Stops), worst(Level::Limits)) {
        (0, 0) => "nothing here limits a cell".to_owned(),
        (0, limits) => format!("cells run here; {limits} of these limit them"),
        (stops, _) => format!("{stops} of these keep something of a cell from working"),
    });
    lines.join("\n")
}

fn user(root: bool) -> Finding {
    if root {
        return Finding::good("user", "root: tasks run as a user of their own");
    }
    Finding::new(
        "user",
        Level::Limits,
        "not root: tasks run as you, and may read what you may",
        "run homeostat as root to give tasks an unprivileged user, or leave it: nothing else needs root",
    )
}

fn cgroups(support: &CgroupSupport) -> Finding {
    let seen = support.to_string();
    let advice = "run as root, or in a delegated cgroup: systemd-run --user --scope -p Delegate=yes homeostat up …";
    match (&support.tracking, &support.memory) {
        (Tracking::None { .. }, _) | (_, None) => {
            Finding::new("cgroups", Level::Limits, seen, advice)
        }
        (Tracking::V1 { .. } | Tracking::V2(_), Some(_)) => Finding::good("cgroups", seen),
    }
}

fn addresses(bound: std::io::Result<()>) -> Finding {
    match bound {
        Ok(()) => Finding::good("addresses", "127.77.x.y can be listened at"),
        Err(error) => Finding::new(
            "addresses",
            Level::Stops,
            format!("cannot listen at 127.77.x.y: {error}"),
            "machines of a cell have loopback addresses of their own; on Linux the whole of 127.0.0.0/8 is there: \
             look at `ip address show lo` and at the firewall",
        ),
    }
}

fn disk(folder: &Path, time: std::io::Result<Duration>) -> Finding {
    let at = folder.display();
    match time {
        Err(error) => Finding::new(
            "disk",
            Level::Stops,
            format!("cannot write and sync a file in {at}: {error}"),
            "choose another folder with --state",
        ),
        Ok(time) if time > SLOW_SYNC => Finding::new(
            "disk",
            Level::Limits,
            format!(
                "a sync in {at} takes {}: every commit waits for some",
                shown(time)
            ),
            "keep the state on a faster disk with --state",
        ),
        Ok(time) if time < TOO_FAST => Finding::new(
            "disk",
            Level::Limits,
            format!(
                "a sync in {at} takes {}: that is memory, or a disk that does not sync",
                shown(time)
            ),
            "what is acknowledged may be lost with the power; keep the state on a real disk with --state",
        ),
        Ok(time) => Finding::good("disk", format!("a sync in {at} takes {}", shown(time))),
    }
}

fn clock(now: SystemTime, newest: Option<SystemTime>) -> Finding {
    let wrong = "set the clock and keep it set (chrony, systemd-timesyncd); nothing is decided by it, but people \
                 read its times";
    let since = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    if since < NOT_BEFORE {
        return Finding::new("clock", Level::Limits, "it is set to the past", wrong);
    }
    match newest.and_then(|newest| newest.duration_since(now).ok()) {
        Some(ahead) if ahead > Duration::from_secs(60) => Finding::new(
            "clock",
            Level::Limits,
            format!(
                "a cell here was written to {} s in the future",
                ahead.as_secs()
            ),
            wrong,
        ),
        Some(_) | None => Finding::good("clock", "it is plausible"),
    }
}

fn programs(find: &dyn Fn(&str) -> Option<PathBuf>) -> Finding {
    let missing: Vec<String> = PROGRAMS
        .iter()
        .filter(|(name, _)| find(name).is_none())
        .map(|(name, what)| format!("{name} ({what})"))
        .collect();
    if missing.is_empty() {
        let server = find(PROGRAMS[0].0).unwrap_or_default();
        return Finding::good(
            "mariadb",
            format!("all programs are there ({})", server.display()),
        );
    }
    let seen = format!("not found: {}", missing.join(", "));
    let none = missing.len() == PROGRAMS.len();
    if none {
        let seen = "not installed: cells without SQL clusters do not need it";
        return Finding::new("mariadb", Level::Limits, seen, PACKAGES);
    }
    Finding::new("mariadb", Level::Stops, seen, PACKAGES)
}

fn files(limit: Option<u64>) -> Finding {
    match limit {
        Some(limit) if limit < FEW_FILES => Finding::new(
            "files",
            Level::Limits,
            format!("{limit} files may be open at once in a process"),
            "raise it before `homeostat up`: ulimit -n 65536",
        ),
        Some(limit) => Finding::good("files", format!("{limit} may be open at once in a process")),
        None => Finding::good("files", "no limit to how many may be open"),
    }
}

/// The median time of a write with its sync.
fn sync_time(folder: &Path) -> std::io::Result<Duration> {
    let path = folder.join(format!(".homeostat-doctor-{}", std::process::id()));
    // Never through something that another one has put there.
    let mut file = File::create_new(&path)?;
    let measured = measure(&mut file);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => measured,
    }
}

fn measure(file: &mut File) -> std::io::Result<Duration> {
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let began = Instant::now();
        file.write_all(&BLOCK)?;
        file.sync_data()?;
        times.push(began.elapsed());
    }
    times.sort();
    Ok(times[SYNCS / 2])
}

/// Where state is kept as a rule.
fn usual_folder() -> PathBuf {
    CellName::new("x").map_or_else(|_| PathBuf::from("/"), |any| home::default_state(&any))
}

/// The folder, or the nearest one above it that is there.
fn existing(folder: PathBuf) -> PathBuf {
    let found = folder.ancestors().find(|folder| folder.is_dir());
    found.map_or_else(|| PathBuf::from("/"), Path::to_owned)
}

/// When a cell of this user was written to last.
fn newest_state() -> Option<SystemTime> {
    let written = |state: PathBuf| {
        let layout = CellLayout::new(state, "");
        fs::metadata(layout.store()).ok()?.modified().ok()
    };
    place::all().into_iter().filter_map(written).max()
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Servers are often where only root's PATH leads.
    let more = ["/usr/sbin", "/usr/local/sbin", "/usr/bin", "/usr/local/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(more)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

fn shown(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn poor() -> Vec<Finding> {
        let support = CgroupSupport {
            tracking: Tracking::None {
                why: "this user may not make any".into(),
            },
            memory: None,
        };
        let refused = || std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let found = |name: &str| (name == "mariadb").then(|| PathBuf::from("/usr/bin/mariadb"));
        vec![
            user(false),
            cgroups(&support),
            addresses(Err(refused())),
            disk(Path::new("/srv"), Ok(Duration::from_millis(12))),
            clock(SystemTime::UNIX_EPOCH, None),
            programs(&found),
            files(Some(1024)),
        ]
    }

    fn rich() -> Vec<Finding> {
        let now = SystemTime::UNIX_EPOCH + 2 * NOT_BEFORE;
        vec![
            user(true),
            addresses(Ok(())),
            disk(Path::new("/srv"), Ok(Duration::from_micros(41))),
            clock(now, Some(now)),
            programs(&|name| Some(PathBuf::from("/usr/sbin").join(name))),
            files(Some(65536)),
        ]
    }

    #[test]
    fn a_poor_host_is_told_what_to_do() {
        insta::assert_snapshot!(render(&poor(), Output::Plain), @r"
        limits  user       not root: tasks run as you, and may read what you may
                           do: run homeostat as root to give tasks an unprivileged user, or leave it: nothing else needs root
        limits  cgroups    no cgroup here: this user may not make any; tasks are found by session and parentage instead; memory limits are not enforced
                           do: run as root, or in a delegated cgroup: systemd-run --user --scope -p Delegate=yes homeostat up …
        stops   addresses  cannot listen at 127.77.x.y: permission denied
                           do: machines of a cell have loopback addresses of their own; on Linux the whole of 127.0.0.0/8 is there: look at `ip address show lo` and at the firewall
        limits  disk       a sync in /srv takes 12.00 ms: every commit waits for some
                           do: keep the state on a faster disk with --state
        limits  clock      it is set to the past
                           do: set the clock and keep it set (chrony, systemd-timesyncd); nothing is decided by it, but people read its times
        stops   mariadb    not found: mariadbd (the server), mariadb-install-db (makes new data folders), mariadb-binlog (saves what a crashed replica had received), mariadb-backup (copies a member), mbstream (unpacks the copy)
                           do: install mariadb-server, mariadb-backup and mariadb-client (Debian), or put them into PATH
        limits  files      1024 files may be open at once in a process
                           do: raise it before `homeostat up`: ulimit -n 65536
        2 of these keep something of a cell from working
        ");
    }

    #[test]
    fn a_good_host_has_nothing_to_do() {
        insta::assert_snapshot!(render(&rich(), Output::Plain), @r"
        good    user       root: tasks run as a user of their own
        good    addresses  127.77.x.y can be listened at
        good    disk       a sync in /srv takes 0.04 ms
        good    clock      it is plausible
        good    mariadb    all programs are there (/usr/sbin/mariadbd)
        good    files      65536 may be open at once in a process
        nothing here limits a cell
        ");
    }

    #[test]
    fn a_host_without_databases_is_no_broken_host() {
        let none = programs(&|_| None);
        assert_eq!(none.level, Level::Limits);
        assert_eq!(
            programs(&|name| (name != "mbstream").then(PathBuf::new)).level,
            Level::Stops
        );
    }

    #[test]
    fn the_json_names_levels() {
        let json = serde_json::to_value(user(true)).unwrap();
        assert_eq!(json["level"], "good");
        assert_eq!(json["advice"], "");
    }

    #[test]
    fn the_disk_is_measured_and_left_as_it_was() {
        let folder = existing(std::env::temp_dir().join("nothing/here"));
        assert!(sync_time(&folder).unwrap() > Duration::ZERO);
        let left = format!(".homeostat-doctor-{}", std::process::id());
        assert!(!folder.join(left).exists());
    }
}
