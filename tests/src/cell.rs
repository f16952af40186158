//! One cell under test.

use std::cell::RefCell;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::command::{Ran, Running};
use crate::home::Home;
use crate::leftovers;
use crate::process::{self, Process};
use crate::programs::homeostat;
use crate::status::Status;
use crate::wait::{try_for, wait_for};

/// For a verb that only looks.
const LOOK: Duration = Duration::from_secs(20);
/// For a cell of a few tasks to come up, on a small machine that builds something else meanwhile.
const UP: Duration = Duration::from_secs(60);
const DOWN: Duration = Duration::from_secs(60);
/// Between the end of `down` and the end of the last process.
const SETTLE: Duration = Duration::from_secs(5);

/// Taken down, purged and looked after when dropped.
pub struct Cell {
    home: Home,
    /// Below the home; perhaps on another disk.
    state: PathBuf,
    file: PathBuf,
    /// Where its sockets are, once that is known. Only the cell decides that, and writes it down.
    run: RefCell<Option<PathBuf>>,
}

impl Cell {
    /// Writes the cell file and does nothing else.
    pub fn new(text: &str) -> Self {
        Self::at(Home::new(), text)
    }

    pub fn at(home: Home, text: &str) -> Self {
        let file = home.write("cell.star", text);
        let state = home.state();
        Self {
            home,
            state,
            file,
            run: RefCell::default(),
        }
    }

    /// With its state in another folder below its home.
    #[must_use]
    pub fn with_state(mut self, below: &str) -> Self {
        self.state = self.home.path().join(below);
        self
    }

    /// A cell that is up and well.
    #[track_caller]
    pub fn up(text: &str) -> Self {
        let cell = Self::new(text);
        cell.turn_up();
        cell
    }

    pub fn home(&self) -> &Home {
        &self.home
    }

    pub fn state(&self) -> &Path {
        &self.state
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Replaces the cell file.
    pub fn declare(&self, text: &str) {
        self.home.write("cell.star", text);
    }

    // ---- verbs

    /// A command line of this cell, not yet run.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(homeostat());
        for variable in ["HOMEOSTAT_STATE", "XDG_STATE_HOME", "SUDO_USER"] {
            command.env_remove(variable);
        }
        command
            .env("XDG_RUNTIME_DIR", self.home.runtime())
            .current_dir("/");
        command.arg("--state").arg(&self.state).args(words);
        if let Some(user) = self.home.user() {
            command.uid(user).gid(user).env("HOME", self.home.path());
        }
        command
    }

    /// Runs a verb to its end.
    #[track_caller]
    pub fn run_within(&self, words: &[&str], within: Duration) -> Ran {
        // Known before the cell is gone, and this file with it.
        self.run_folder();
        Running::start(self.command(words)).finish(within)
    }

    /// Runs a verb that only looks.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Ran {
        self.run_within(words, LOOK)
    }

    /// Starts `up` with these options and does not wait for it.
    pub fn start_up(&self, options: &[&str]) -> Running {
        let mut command = self.command(&["up"]);
        command.arg(&self.file).args(options);
        Running::start(command)
    }

    /// `up --detach`, whatever comes of it.
    #[track_caller]
    pub fn try_up(&self, deadline: Duration) -> Ran {
        let deadline_text = format!("{}s", deadline.as_secs());
        self.start_up(&["--detach", "--deadline", &deadline_text])
            .finish(deadline + LOOK)
    }

    /// `up --detach`, which must succeed.
    #[track_caller]
    pub fn turn_up(&self) -> Ran {
        self.try_up(UP).expect(0)
    }

    /// `down`, which must succeed.
    #[track_caller]
    pub fn turn_down(&self) -> Ran {
        let ran = self.run_within(&["down", "--yes"], DOWN).expect(0);
        self.nothing_runs();
        ran
    }

    // ---- looking

    /// # Errors
    /// When the cell does not answer.
    pub fn try_status(&self) -> Result<Status, String> {
        let ran = self.run(&["status", "--json"]);
        if ran.code != Some(0) {
            return Err(ran.to_string());
        }
        serde_json::from_str(&ran.out)
            .map(Status)
            .map_err(|error| format!("{error}: {ran}"))
    }

    #[track_caller]
    pub fn status(&self) -> Status {
        self.try_status()
            .unwrap_or_else(|error| panic!("the cell has no status: {error}"))
    }

    /// Waits for a status that is as wanted; `look` says what is missing.
    pub fn await_status<T>(
        &self,
        what: &str,
        within: Duration,
        mut look: impl FnMut(&Status) -> Result<T, String>,
    ) -> T {
        wait_for(what, within, || look(&self.try_status()?))
    }

    /// Waits until everything is well.
    pub fn await_well(&self, within: Duration) -> Status {
        self.await_status("the cell is well", within, |status| {
            if status.is_well() {
                Ok(status.clone())
            } else {
                Err(status.missing())
            }
        })
    }

    /// Waits until the process in a role is another living one than this, and everything is well.
    pub fn await_another(&self, what: &str, than: Process, within: Duration) -> Status {
        self.await_status(&format!("another {what}"), within, |status| {
            match status.pids().get(what) {
                Some(now) if *now != than && status.is_well() => Ok(status.clone()),
                Some(now) => Err(format!("it is {now:?}; not well: {}", status.missing())),
                None => Err(format!("there is none; not well: {}", status.missing())),
            }
        })
    }

    /// The events, oldest first.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        let ran = self
            .run(&["events", "--json", "--last", "100000"])
            .expect(0);
        ran.out
            .lines()
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
            })
            .collect()
    }

    // ---- processes

    /// Every living process of this cell: all that is started for it has its home or its run folder in its words, its
    /// environment or its working folder.
    pub fn processes(&self) -> Vec<Process> {
        process::mentioning(&self.places())
    }

    fn run_folder(&self) -> Option<PathBuf> {
        let text = fs::read(self.state.join("cell.json")).unwrap_or_default();
        let identity: Value = serde_json::from_slice(&text).unwrap_or_default();
        if let Some(run) = identity["run"].as_str() {
            self.run.replace(Some(PathBuf::from(run)));
        }
        self.run.borrow().clone()
    }

    fn places(&self) -> Vec<PathBuf> {
        std::iter::once(self.home.path().to_owned())
            .chain(self.run_folder())
            .collect()
    }

    /// The process of the cell that keeps the others.
    #[track_caller]
    pub fn warden(&self) -> Process {
        let wardens = self.with_verb("warden");
        assert_eq!(
            wardens.len(),
            1,
            "expected one warden: {}",
            describe(&wardens)
        );
        wardens[0]
    }

    /// homeostat's own processes of one kind.
    pub fn with_verb(&self, verb: &str) -> Vec<Process> {
        self.processes()
            .into_iter()
            .filter(|p| p.words().get(1).is_some_and(|word| word == verb))
            .collect()
    }

    #[track_caller]
    pub fn nothing_runs(&self) {
        let none = try_for(SETTLE, || match self.processes() {
            left if left.is_empty() => Ok(()),
            left => Err(describe(&left)),
        });
        if let Err(left) = none {
            panic!("still running: {left}");
        }
    }

    /// SIGKILL to everything of the cell at once, as if somebody had pulled the cord. Repeated until nothing is left,
    /// because what lives may start something between the look and the kill.
    pub fn power_cord(&self) {
        wait_for("everything is dead", SETTLE, || {
            let left = self.processes();
            for process in &left {
                process.signal(rustix::process::Signal::KILL);
            }
            if left.is_empty() {
                Ok(())
            } else {
                Err(describe(&left))
            }
        });
    }

    // ---- the end

    /// What a person would look at.
    fn explain(&self) {
        for words in [&["status"][..], &["events", "--last", "80"]] {
            eprintln!("{}", self.run(words));
        }
        let status = self.try_status();
        for service in status
            .iter()
            .flat_map(|status| status.rows("services"))
            .filter(|row| row["state"] != "up")
        {
            eprintln!(
                "{}",
                self.run(&["why", service["name"].as_str().unwrap_or_default()])
            );
        }
        let mut logs = log_files(self.home.path());
        logs.sort();
        for path in logs {
            let text = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            if !lines.is_empty() {
                eprintln!("--- the end of {}:", path.display());
                eprintln!("{}", lines[lines.len().saturating_sub(25)..].join("\n"));
            }
        }
        for process in self.processes() {
            eprintln!("running: {}", process.describe());
        }
    }

    fn take_away(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let places = self.places();
        let run = self.run_folder();
        let cgroups = leftovers::cgroups(run.as_deref(), &places);
        if self.state.join("cell.json").exists() {
            let ran = self.run_within(&["down", "--yes", "--purge"], DOWN);
            if ran.code != Some(0) {
                faults.push(format!("it cannot be purged: {ran}"));
            }
        }
        let look = || match leftovers::left(&places, run.as_deref(), &self.state, &cgroups) {
            left if left.is_empty() => Ok(()),
            left => Err(left.join("\n  ")),
        };
        if let Err(left) = try_for(SETTLE, look) {
            faults.push(format!("it left behind:\n  {left}"));
        }
        faults
    }

    /// By force, and only what is certainly of this cell.
    fn sweep(&self) {
        for process in self.processes() {
            process.signal(rustix::process::Signal::KILL);
        }
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Whatever happens in here, the sweep must.
            let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.explain();
                self.take_away()
            }));
            match told {
                Ok(faults) => faults.iter().for_each(|fault| eprintln!("{fault}")),
                Err(_) => eprintln!("the failed cell could not be explained or taken down"),
            }
            self.sweep();
            return;
        }
        let faults = self.take_away();
        if !faults.is_empty() {
            self.explain();
            self.sweep();
            panic!("the cell did not go away cleanly: {}", faults.join("\n"));
        }
    }
}

fn describe(processes: &[Process]) -> String {
    let lines: Vec<String> = processes.iter().map(|process| process.describe()).collect();
    lines.join("\n  ")
}

fn log_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(log_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "log")
            && path
                .file_name()
                .is_none_or(|name| name != "orders.log" && !name.as_bytes().starts_with(b"ddl_"))
        {
            found.push(path);
        }
    }
    found
}
