//! What people do: up, look, change, down; twice, at once, and half-way.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use homeostat_tests::process::Process;
use homeostat_tests::wait::{wait_for, wait_until};
use homeostat_tests::{Cell, Home, NOBODY, Pids, Status, begin, homeostat, is_root, net};
use rustix::process::Signal;

use crate::cells::{NEVER, head, plain, sleeper, web};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_cell_goes_up_answers_and_goes_down() {
    let _turn = begin();
    let cell = Cell::new(&plain());
    cell.run(&["status"]).one_error(2).says("homeostat up");

    cell.turn_up().prints("web").prints("up");
    let status = cell.status();
    looks_as_documented(&status);
    for (task, service) in [("sleeper-0", "sleeper"), ("web-1", "web")] {
        let row = status.row("tasks", task);
        assert_eq!(
            (row["service"].as_str(), row["state"].as_str()),
            (Some(service), Some("running"))
        );
    }
    let root = is_root();
    for (what, process) in status
        .pids()
        .iter()
        .filter(|(what, _)| what.starts_with("task "))
    {
        assert!(
            !root || process.user() != Some(0),
            "{what} runs as root and did not ask for it"
        );
    }

    // Every way to look at it.
    cell.run(&["status"])
        .expect(0)
        .prints("sleeper-1")
        .prints("127.77.");
    cell.run(&["why", "web"])
        .expect(0)
        .prints("service web is up")
        .prints("web-0");
    cell.run(&["why", "web-0"]).expect(0).prints("running");
    cell.run(&["why", "m2"]).expect(0).prints("ready");
    cell.run(&["why", "web/answers"]).expect(0).prints("pass");
    cell.run(&["why", "nothing-like-it"])
        .one_error(2)
        .says("nothing-like-it");
    cell.run(&["logs", "sleeper-0"])
        .expect(0)
        .prints("hello from sleeper-0 on m");
    cell.run(&["logs", "sleeper-9"])
        .one_error(2)
        .says("sleeper-0");
    cell.run(&["endpoint", "nobody"]).one_error(2).says("web");
    let events = cell.events();
    assert!(
        events.iter().any(|event| event["about"] == "web-0"),
        "nothing was told of web-0: {events:?}"
    );

    // The endpoint, as every machine reaches it.
    for machine in ["m1", "m2", "m3"] {
        let at = cell
            .run(&["endpoint", "web", "--machine", machine])
            .expect(0)
            .out;
        let (code, body) = net::get(at.trim(), "/report").unwrap();
        assert_eq!(code, 200, "{machine}: {body}");
    }

    cell.run(&["down"]).one_error(2).says("--yes");
    assert!(cell.status().is_well(), "a refused `down` changes nothing");

    cell.turn_down();
    cell.run(&["status"]).one_error(1).says("homeostat up");
    let before = places(&status);
    cell.turn_up();
    assert_eq!(
        places(&cell.status()),
        before,
        "tasks come back to their data"
    );
    cell.run_within(&["down", "--yes", "--purge"], Duration::from_secs(60))
        .expect(0);
    assert!(!cell.state().exists(), "purged");
    cell.run(&["down", "--yes"]).one_error(2);
}

/// docs/status.md, field by field.
fn looks_as_documented(status: &Status) {
    let fields: [(&str, &[&str]); 5] = [
        ("machines", &["name", "state"]),
        ("tasks", &["name", "service", "machine", "pid", "state"]),
        ("sql", &["name", "epoch", "phase", "primary", "members"]),
        ("services", &["name", "state", "endpoint"]),
        ("checks", &["name", "verdict"]),
    ];
    for (list, names) in fields {
        assert!(
            status.0[list].is_array(),
            "'{list}' is missing: {}",
            status.0
        );
        for row in status.rows(list) {
            for name in names {
                assert!(
                    row.get(*name).is_some(),
                    "'{name}' is missing in '{list}': {row}"
                );
            }
        }
    }
    assert_eq!(status.rows("machines").len(), 3);
    assert_eq!(status.rows("tasks").len(), 4);
}

fn places(status: &Status) -> BTreeMap<String, String> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    status
        .rows("tasks")
        .iter()
        .map(|row| (text(&row["name"]), text(&row["machine"])))
        .collect()
}

#[test]
fn up_twice_changes_nothing() {
    let _turn = begin();
    let cell = Cell::up(&plain());
    let before = cell.status().pids();
    let again = cell.turn_up();
    assert!(again.took < SOON, "it is up already: {again}");
    assert_eq!(cell.status().pids(), before);
    one_of_each(&cell);
}

#[test]
fn two_ups_at_once_make_one_cell() {
    let _turn = begin();
    let cell = Cell::new(&plain());
    let ups: Vec<_> = (0..2)
        .map(|_| cell.start_up(&["--detach", "--deadline", "60s"]))
        .collect();
    for up in ups {
        up.finish(Duration::from_secs(70)).expect(0);
    }
    cell.await_well(SOON);
    cell.warden();
    assert_eq!(cell.with_verb("controller").len(), 1);
    assert_eq!(cell.with_verb("agent").len(), 3);
    assert_eq!(cell.with_verb("forward").len(), 3);
    one_of_each(&cell);
}

#[test]
fn down_during_up_wins() {
    let _turn = begin();
    let cell = Cell::new(&(plain() + NEVER));
    let up = cell.start_up(&["--detach", "--deadline", "30s"]);
    // As soon as there is something to take down.
    wait_until("the cell has a home", SOON, || {
        cell.state().join("lock").exists()
    });
    cell.run_within(&["down", "--yes"], Duration::from_secs(60))
        .expect(0);
    let up = up.finish(Duration::from_secs(60));
    assert!(up.took < SOON, "it waits for a cell that is down: {up}");
    up.one_error(1);
    cell.nothing_runs();

    // And once everything but one check is there.
    let up = cell.start_up(&["--detach", "--deadline", "30s"]);
    cell.await_status("all tasks run", SOON, all_run);
    cell.run_within(&["down", "--yes"], Duration::from_secs(60))
        .expect(0);
    up.finish(SOON).one_error(1).says("taken down");
    cell.nothing_runs();
}

fn all_run(status: &Status) -> Result<Pids, String> {
    let tasks = status.rows("tasks");
    let waiting: Vec<String> = tasks
        .iter()
        .filter(|row| row["state"] != "running")
        .map(|row| row["name"].to_string())
        .collect();
    if tasks.len() == 4 && waiting.is_empty() {
        Ok(status.pids())
    } else {
        Err(format!("{} tasks, not running: {waiting:?}", tasks.len()))
    }
}

#[test]
fn ctrl_c_ends_the_watching_and_not_the_cell() {
    let _turn = begin();
    let cell = Cell::new(&(plain() + NEVER));
    let viewer = cell.start_up(&[]);
    let before = cell.await_status("all tasks run", SOON, all_run);
    viewer.signal(Signal::INT);
    let ended = viewer.finish(SOON);
    assert!(matches!(ended.code, Some(0 | 130)), "{ended}");
    ended.says("homeostat down").prints("web");
    let after = cell.status().pids();
    for (what, process) in &before {
        assert_eq!(after.get(what), Some(process), "{what} is not as it was");
    }
}

#[test]
fn an_up_that_is_late_says_what_is_missing() {
    let _turn = begin();
    let cell = Cell::new(&(plain() + NEVER));
    let late = cell.try_up(Duration::from_secs(8)).one_error(1);
    late.says("never").says("hint: ");
    cell.await_status("all tasks run", SOON, all_run);
}

#[test]
fn two_cells_do_not_collide() {
    let _turn = begin();
    let one = Cell::up(&plain());
    let other = Cell::up(&plain());
    let addresses = |cell: &Cell| -> Vec<String> {
        cell.status()
            .rows("machines")
            .iter()
            .map(|row| row["address"].to_string())
            .collect()
    };
    assert!(
        addresses(&one)
            .iter()
            .all(|address| !addresses(&other).contains(address))
    );
    let before = one.status().pids();
    other.turn_down();
    assert_eq!(one.status().pids(), before);
    // What is down keeps its place as long as nobody else takes it.
    other.turn_up();
    assert_eq!(one.status().pids(), before);
}

#[test]
fn an_ordinary_user_can_run_a_cell() {
    let turn = begin();
    if !is_root() {
        turn.skip(
            "only root can become somebody else (and all other tests ran as an ordinary user)",
        );
        return;
    }
    let home = Home::of_user(NOBODY);
    let may_run = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(homeostat())
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success());
    if !may_run {
        turn.skip("user nobody may not read the programs under test");
        return;
    }
    let cell = Cell::at(home, &plain());
    cell.turn_up();
    for process in cell.processes() {
        assert_eq!(process.user(), Some(NOBODY), "{}", process.describe());
    }
    let before = cell.status().process("task web-0");
    before.kill();
    cell.await_another("task web-0", before, SOON);
    one_of_each(&cell);
    cell.turn_down();
}

#[test]
fn a_changed_job_is_replaced_one_task_at_a_time() {
    let _turn = begin();
    let text = |version: &str| head("plain") + &sleeper("sleeper", 2) + &web("web", 3, version);
    let cell = Cell::up(&text("1"));
    let before = cell.status().pids();
    cell.declare(&text("2"));
    cell.turn_up();
    cell.await_status("all are of the new version", SOON, |status| {
        let pids = status.pids();
        let tasks = ["task web-0", "task web-1", "task web-2"].map(|what| pids.get(what));
        let new = |process: &&Process| process.variable("E2E_VERSION").as_deref() == Some("2");
        match tasks.iter().flatten().copied().filter(new).count() {
            3 => Ok(()),
            count => Err(format!("{count} are")),
        }
    });
    // Every end and beginning is an event, in order.
    let mut away = BTreeSet::new();
    let mut ends = 0;
    for event in cell.events().iter().filter(|event| event["kind"] == "task") {
        let (task, text) = (event["about"].to_string(), event["text"].to_string());
        if !task.contains("web-") {
            continue;
        }
        if text.contains("runs on") {
            away.remove(&task);
        } else {
            ends += 1;
            away.insert(task);
        }
        assert!(away.len() <= 1, "away at the same time: {away:?}");
    }
    assert_eq!(ends, 3, "each ended once");
    let after = cell.await_well(SOON).pids();
    for (what, process) in &before {
        let same = after.get(what) == Some(process);
        let changed = what.ends_with("web-0") || what.ends_with("web-1") || what.ends_with("web-2");
        assert_eq!(
            same,
            !changed,
            "{what}: {process:?} became {:?}",
            after.get(what)
        );
    }
    one_of_each(&cell);
}

#[test]
fn a_running_service_does_not_vanish_with_its_declaration() {
    let _turn = begin();
    let cell = Cell::up(&plain());
    let before = cell.status().pids();
    cell.declare(&(head("plain") + &web("web", 2, "1")));
    cell.try_up(SOON)
        .one_error(2)
        .says("sleeper")
        .says("homeostat down");
    assert_eq!(cell.status().pids(), before);
    // As it says: down, then up without it.
    cell.turn_down();
    cell.turn_up();
    assert_eq!(cell.status().tasks_of("web").len(), 2);
    let asleep = cell
        .status()
        .tasks_of("sleeper")
        .iter()
        .filter(|row| !row["pid"].is_null())
        .count();
    assert_eq!(asleep, 0);
}

/// No task runs twice, and no supervisor.
pub fn one_of_each(cell: &Cell) {
    let check = || {
        let mut families: BTreeMap<String, Vec<Process>> = BTreeMap::new();
        for process in cell.processes() {
            // A task's first process is the child of its supervisor; its own children have the same variable.
            if let Some(task) = process.variable("E2E_TASK")
                && parent_is_supervisor(process)
            {
                families.entry(task).or_default().push(process);
            }
        }
        for supervisor in cell.with_verb("supervise") {
            let run = PathBuf::from(supervisor.words().last().cloned().unwrap_or_default());
            let name = run
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            families
                .entry(format!("supervisor of {name}"))
                .or_default()
                .push(supervisor);
        }
        let doubled: Vec<String> = families
            .iter()
            .filter(|(_, processes)| processes.len() != 1)
            .map(|(task, processes)| format!("{task}: {processes:?}"))
            .collect();
        if doubled.is_empty() {
            Ok(())
        } else {
            Err(doubled.join("; "))
        }
    };
    wait_for("one process of each task", Duration::from_secs(2), check);
}

fn parent_is_supervisor(process: Process) -> bool {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap_or_default();
    let parent = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
    parent.and_then(Process::find).is_some_and(|parent| {
        parent
            .words()
            .get(1)
            .is_some_and(|verb| verb == "supervise" || verb == "keeper")
    })
}
