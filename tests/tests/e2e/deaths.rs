//! kill -9 of every kind of process of a plain cell: alone, all of homeostat's own, and everything.

use std::time::Duration;

use homeostat_tests::{Cell, Pids, begin, net};

use crate::cells::plain;
use crate::people::one_of_each;

const SOON: Duration = Duration::from_secs(20);

/// All processes but these are the same as before.
#[track_caller]
fn only_changed(before: &Pids, after: &Pids, changed: &[&str]) {
    for (what, process) in before {
        let same = after.get(what) == Some(process);
        if changed.contains(&what.as_str()) {
            assert!(!same, "{what} was killed and is there");
        } else {
            assert!(
                same,
                "{what} was not to change: {process:?} became {:?}",
                after.get(what)
            );
        }
    }
}

#[test]
fn a_killed_task_is_started_again() {
    let _turn = begin();
    let cell = Cell::up(&plain());
    let before = cell.status().pids();
    before["task sleeper-0"].kill();
    let after = cell
        .await_another("task sleeper-0", before["task sleeper-0"], SOON)
        .pids();
    only_changed(&before, &after, &["task sleeper-0", "supervisor sleeper-0"]);
    // It had a child, which nobody killed.
    one_of_each(&cell);
    let sleeps = cell
        .processes()
        .iter()
        .filter(|p| p.words() == ["sleep", "100000"])
        .count();
    assert_eq!(sleeps, 2, "the dead task's child was left alive");
    cell.run(&["why", "sleeper-0"]).expect(0).prints("signal 9");

    before["task web-1"].kill();
    let after = cell.await_another("task web-1", before["task web-1"], SOON);
    let at = after.row("services", "web")["endpoint"]
        .as_str()
        .unwrap()
        .to_owned();
    for _ in 0..4 {
        assert_eq!(net::get(&at, "/report").unwrap().0, 200);
    }
}

#[test]
fn a_killed_supervisor_takes_its_task_along_and_both_come_back() {
    let _turn = begin();
    let cell = Cell::up(&plain());
    let before = cell.status().pids();
    before["supervisor web-0"].kill();
    let after = cell
        .await_another("supervisor web-0", before["supervisor web-0"], SOON)
        .pids();
    only_changed(&before, &after, &["supervisor web-0", "task web-0"]);
    assert!(
        !before["task web-0"].lives(),
        "the task goes on without a supervisor"
    );
    before["supervisor sleeper-1"].kill();
    let after = cell
        .await_another("supervisor sleeper-1", before["supervisor sleeper-1"], SOON)
        .pids();
    assert!(after["task sleeper-1"] != before["task sleeper-1"]);
    one_of_each(&cell);
}

#[test]
fn tasks_outlive_agents_endpoints_controller_and_warden() {
    let _turn = begin();
    let cell = Cell::up(&plain());
    let before = cell.status().pids();
    let at = cell
        .run(&["endpoint", "web"])
        .expect(0)
        .out
        .trim()
        .to_owned();
    let well = |what: &str| {
        assert_eq!(
            net::get(&at, "/report").unwrap().0,
            200,
            "after the death of {what}"
        );
    };
    for what in [
        "agent m1",
        "agent m2",
        "endpoint m1",
        "endpoint m3",
        "controller",
    ] {
        let status = cell.status().pids();
        status[what].kill();
        let after = cell.await_another(what, status[what], SOON).pids();
        only_changed(&status, &after, &[what]);
        well(what);
    }

    // Nobody keeps the cell now, and it goes on.
    let status = cell.status().pids();
    let warden = cell.warden();
    warden.kill();
    assert_eq!(cell.status().pids(), status);
    well("the warden");
    // Somebody does again, without having touched anything.
    cell.turn_up();
    assert_ne!(cell.warden(), warden);
    assert_eq!(cell.status().pids(), status);
    // And keeps those that it did not start, as soon as they end.
    status["agent m3"].kill();
    let after = cell
        .await_another("agent m3", status["agent m3"], SOON)
        .pids();
    only_changed(&status, &after, &["agent m3"]);
    status["controller"].kill();
    let after = cell
        .await_another("controller", status["controller"], SOON)
        .pids();
    only_changed(&status, &after, &["agent m3", "controller"]);

    for (what, process) in before
        .iter()
        .filter(|(what, _)| what.starts_with("task ") || what.starts_with("supervisor "))
    {
        assert_eq!(
            after.get(what),
            Some(process),
            "{what} was disturbed by all that"
        );
    }
    one_of_each(&cell);
}

#[test]
fn a_task_that_died_while_nobody_looked_is_started_once() {
    let _turn = begin();
    let cell = Cell::up(&plain());
    let before = cell.status().pids();
    cell.warden().kill();
    for what in ["controller", "agent m1", "agent m2", "agent m3"] {
        before[what].kill();
    }
    before["task web-0"].kill();
    before["supervisor web-1"].kill();
    cell.turn_up();
    let after = cell.await_well(SOON).pids();
    let changed = [
        "controller",
        "agent m1",
        "agent m2",
        "agent m3",
        "task web-0",
        "supervisor web-0",
        "task web-1",
        "supervisor web-1",
    ];
    only_changed(&before, &after, &changed);
    one_of_each(&cell);
}

#[test]
fn all_of_homeostat_may_die_at_once_and_no_task_notices() {
    let _turn = begin();
    let cell = Cell::up(&plain());
    let before = cell.status().pids();
    cell.warden().kill();
    let own: Vec<&str> = before
        .keys()
        .map(String::as_str)
        .filter(|what| !what.starts_with("task ") && !what.starts_with("supervisor "))
        .collect();
    assert_eq!(
        own.len(),
        7,
        "a controller, three agents, three endpoints: {own:?}"
    );
    for what in &own {
        before[*what].kill();
    }
    cell.run(&["status"]).one_error(1);
    // It says what to do, and that is what helps.
    cell.run_within(&["down", "--yes"], Duration::from_secs(30))
        .one_error(1)
        .says("homeostat up");
    cell.turn_up();
    let after = cell.await_well(SOON).pids();
    only_changed(&before, &after, &own);
    one_of_each(&cell);
}

#[test]
fn after_the_power_cord_everything_comes_back_once() {
    let _turn = begin();
    let cell = Cell::up(&plain());
    let before = cell.status();
    let term = before.0["term"].as_u64().unwrap();
    for round in 1..=2 {
        cell.power_cord();
        cell.turn_up();
        let after = cell.status();
        assert!(
            after.0["term"].as_u64().unwrap() > term,
            "round {round}: terms only rise"
        );
        for row in before.rows("tasks") {
            let name = row["name"].as_str().unwrap();
            assert_eq!(
                after.row("tasks", name)["machine"],
                row["machine"],
                "{name} keeps its machine"
            );
        }
        one_of_each(&cell);
    }
    let events = cell.events();
    let numbers: Vec<u64> = events
        .iter()
        .filter_map(|event| event["number"].as_u64())
        .collect();
    assert!(
        numbers.windows(2).all(|pair| pair[0] < pair[1]),
        "history goes on: {numbers:?}"
    );
    assert!(
        events
            .iter()
            .filter(|event| event["kind"] == "cell")
            .count()
            >= 3,
        "{events:?}"
    );
}
