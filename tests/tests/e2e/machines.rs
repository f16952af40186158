//! Machines that die, come back, and are emptied; services that are turned down one by one; tasks that fail again and
//! again; changes that break a service.

mod absences;

use std::time::Duration;

use homeostat_tests::wait::wait_for;
use homeostat_tests::{Cell, Status, begin, net};
use serde_json::Value;

use crate::cells::{head, plain, sleeper, web};
use crate::people::one_of_each;

/// A machine is called lost after six seconds of silence; the rest is room for a busy computer.
const LOST: Duration = Duration::from_secs(40);
const SOON: Duration = Duration::from_secs(30);

fn machine_of(status: &Status, task: &str) -> String {
    let machine = status.row("tasks", task)["machine"].as_str();
    machine.unwrap_or_default().to_owned()
}

fn tasks_on(status: &Status, machine: &str) -> Vec<String> {
    let rows = status.rows("tasks").iter();
    rows.filter(|row| row["machine"] == machine)
        .filter_map(|row| row["name"].as_str().map(str::to_owned))
        .collect()
}

fn state_of(status: &Status, machine: &str) -> String {
    let state = status.row("machines", machine)["state"].as_str();
    state.unwrap_or_default().to_owned()
}

#[track_caller]
fn await_state(cell: &Cell, machine: &str, wanted: &str, within: Duration) -> Status {
    cell.await_status(&format!("{machine} is {wanted}"), within, |status| {
        let state = state_of(status, machine);
        if state == wanted {
            Ok(status.clone())
        } else {
            Err(format!("it is {state}"))
        }
    })
}

fn told(cell: &Cell, about: &str, text: &str) -> bool {
    cell.events().iter().any(|event| {
        event["about"] == about && event["text"].as_str().unwrap_or_default().contains(text)
    })
}

/// The machine of `web-0`, dead, and the status once its tasks run elsewhere and all is well.
fn kill_one(cell: &Cell) -> (String, Status) {
    let before = cell.status();
    let machine = machine_of(&before, "web-0");
    let there = tasks_on(&before, &machine);
    cell.run(&["chaos", "machine", &machine, "--kill"])
        .expect(0)
        .prints("is dead");
    await_state(cell, &machine, "lost", LOST);
    let after = cell.await_status("its tasks run elsewhere", LOST, |status| {
        let left = tasks_on(status, &machine);
        if left.is_empty() && status.is_well() {
            Ok(status.clone())
        } else {
            Err(format!("left: {left:?}; {}", status.missing()))
        }
    });
    assert!(!there.is_empty());
    (machine, after)
}

#[test]
fn a_machine_that_dies_is_replaced_and_comes_back_empty() {
    let _turn = begin();
    let cell = Cell::up(&plain());
    let before = cell.status().pids();
    let (machine, after) = kill_one(&cell);
    for what in [format!("agent {machine}"), format!("endpoint {machine}")] {
        assert!(!before[&what].lives(), "{what} outlived its machine");
        assert!(!after.pids().contains_key(&what), "{what} is back");
    }
    // Whoever was not on it was not disturbed.
    for (what, process) in &before {
        let moved = !process.lives();
        assert_eq!(after.pids().get(what) != Some(process), moved, "{what}");
    }
    let at = after.row("services", "web")["endpoint"]
        .as_str()
        .unwrap()
        .to_owned();
    let port = at.rsplit(':').next().unwrap().to_owned();
    let alive = ["m1", "m2", "m3"]
        .into_iter()
        .find(|name| *name != machine)
        .unwrap();
    let address = after.row("machines", alive)["address"]
        .as_str()
        .unwrap()
        .to_owned();
    for _ in 0..4 {
        assert_eq!(
            net::get(&format!("{address}:{port}"), "/report").unwrap().0,
            200
        );
    }
    cell.run(&["why", &machine]).expect(0).prints("lost");
    assert!(told(&cell, "cell", &format!("machine {machine} is killed")));
    // It stays dead until it is let back; then it has nothing of before, and takes new tasks.
    cell.run(&["chaos", "machine", &machine, "--return"])
        .expect(0);
    await_state(&cell, &machine, "ready", SOON);
    let back = cell.status();
    assert_eq!(tasks_on(&back, &machine), Vec::<String>::new());
    wait_for("what it had is put aside", SOON, || {
        if told(&cell, "web-0", "is put aside") {
            Ok(())
        } else {
            Err("nothing is told of it".to_owned())
        }
    });
    let folder = cell.state().join("machines").join(&machine);
    assert!(
        !folder.join("data/web-0").exists(),
        "its old folder is trusted"
    );
    assert!(folder.join("aside").exists());
    one_of_each(&cell);
    cell.declare(&(plain() + &sleeper("late", 3)));
    cell.turn_up();
    let late = cell.status();
    assert!(
        !tasks_on(&late, &machine).is_empty(),
        "it takes no new tasks"
    );
}

#[test]
fn a_machine_that_hangs_is_lost_and_what_it_still_runs_is_stopped_when_it_wakes() {
    let _turn = begin();
    let cell = Cell::up(&plain());
    let before = cell.status();
    let machine = machine_of(&before, "web-0");
    let agent = before.process(&format!("agent {machine}"));
    let old = before.process("task web-0");
    agent.signal(rustix::process::Signal::STOP);
    await_state(&cell, &machine, "lost", LOST);
    cell.await_status("web-0 runs elsewhere", LOST, |status| {
        if status.is_well() && machine_of(status, "web-0") != machine {
            Ok(())
        } else {
            Err(status.missing())
        }
    });
    assert!(old.lives(), "nobody could stop it");
    agent.signal(rustix::process::Signal::CONT);
    await_state(&cell, &machine, "ready", SOON);
    assert!(!old.lives(), "a task of an older placement runs on");
    one_of_each(&cell);
}

#[test]
fn when_many_machines_of_a_large_cell_are_silent_nothing_is_moved() {
    let _turn = begin();
    let text = head("large").replace("[1, 2, 3]", "range(1, 13)") + &sleeper("sleeper", 12);
    let cell = Cell::up(&text);
    let before = cell.status();
    let dead = ["m1", "m2", "m3", "m4", "m5"];
    for machine in dead {
        cell.run(&["chaos", "machine", machine, "--kill"]).expect(0);
    }
    cell.await_status("it says that it holds", LOST, |status| {
        let held = status.0["held"][0].as_str().unwrap_or_default();
        if held.starts_with("5 of 12 machines are silent") {
            Ok(())
        } else {
            Err(format!("it holds '{held}'"))
        }
    });
    cell.run(&["why", "m1"])
        .expect(0)
        .prints("nothing is moved");
    for machine in dead {
        cell.run(&["chaos", "machine", machine, "--return"])
            .expect(0);
    }
    cell.await_status("it holds nothing any more", SOON, |status| {
        match status.0["held"].as_array().map(Vec::len) {
            Some(0) => Ok(()),
            Some(_) | None => Err(status.0["held"].to_string()),
        }
    });
    let after = cell.await_well(SOON);
    for row in before.rows("tasks") {
        let task = row["name"].as_str().unwrap();
        assert_eq!(
            machine_of(&after, task),
            machine_of(&before, task),
            "{task} moved"
        );
    }
    one_of_each(&cell);
}

#[test]
fn nothing_is_broken_on_purpose_in_production() {
    let _turn = begin();
    let text = plain().replace("kind = \"sandbox\"", "kind = \"production\"");
    let cell = Cell::up(&text);
    let before = cell.status().pids();
    for words in [
        &["chaos", "machine", "m1", "--kill"][..],
        &["chaos", "stop", "web-0"],
        &["chaos", "hang", "web-0"],
    ] {
        cell.run(words).one_error(1).says("not a sandbox");
    }
    assert_eq!(cell.status().pids(), before);
}

#[test]
fn tasks_are_stopped_and_hang_on_purpose() {
    let _turn = begin();
    let cell = Cell::up(&plain());
    let before = cell.status().process("task web-0");
    cell.run(&["chaos", "stop", "web-0"])
        .expect(0)
        .prints("killed web-0");
    let status = cell.await_another("task web-0", before, SOON);
    let hung = status.process("task web-0");
    cell.run(&["chaos", "hang", "web-0", "--for", "500ms"])
        .expect(0)
        .prints("goes on");
    assert!(hung.lives());
    cell.run(&["chaos", "hang", "nobody-0"])
        .one_error(2)
        .says("web-0");
    cell.await_well(SOON);
}

#[test]
fn a_drained_machine_is_empty_takes_nothing_and_is_let_back() {
    let _turn = begin();
    let cell = Cell::up(&plain());
    let machine = machine_of(&cell.status(), "web-0");
    let there = tasks_on(&cell.status(), &machine);
    cell.run_within(&["drain", &machine], Duration::from_secs(90))
        .expect(0)
        .prints("is drained");
    let after = cell.await_well(SOON);
    assert_eq!(tasks_on(&after, &machine), Vec::<String>::new());
    assert_eq!(state_of(&after, &machine), "drained");
    // No two tasks of one service were away at once: the moves are told in order.
    let moves: Vec<Value> = cell
        .events()
        .into_iter()
        .filter(|event| {
            event["text"]
                .as_str()
                .unwrap_or_default()
                .starts_with("moves from")
        })
        .collect();
    assert_eq!(moves.len(), there.len(), "{moves:?}");
    cell.declare(&(plain() + &sleeper("late", 4)));
    cell.turn_up();
    assert_eq!(tasks_on(&cell.status(), &machine), Vec::<String>::new());
    cell.run(&["undrain", &machine])
        .expect(0)
        .prints("takes tasks again");
    assert_eq!(state_of(&cell.status(), &machine), "ready");
    cell.run(&["undrain", &machine])
        .expect(0)
        .prints("nothing to do");
    cell.run(&["drain", "m9"]).one_error(2).says("m9");
    one_of_each(&cell);
}

#[test]
fn a_drain_and_a_rollout_share_one_budget() {
    let _turn = begin();
    let text = |version: &str| head("plain") + &web("web", 3, version);
    let cell = Cell::up(&text("1"));
    let machine = machine_of(&cell.status(), "web-1");
    cell.declare(&text("2"));
    let up = cell.start_up(&["--detach", "--deadline", "90s"]);
    cell.run_within(&["drain", &machine], Duration::from_secs(90))
        .expect(0)
        .prints("is drained");
    up.finish(Duration::from_secs(100)).expect(0);
    let after = cell.await_well(SOON);
    assert_eq!(tasks_on(&after, &machine), Vec::<String>::new());
    let mut away = std::collections::BTreeSet::new();
    let mut ends = 0;
    for event in cell.events().iter().filter(|event| event["kind"] == "task") {
        let (task, text) = (event["about"].to_string(), event["text"].to_string());
        if text.contains("runs on") {
            away.remove(&task);
        } else if text.contains("ended on") {
            ends += 1;
            away.insert(task);
        }
        assert!(away.len() <= 1, "away at the same time: {away:?}");
    }
    assert!(
        (3..=4).contains(&ends),
        "three were replaced, one of them moved: {ends}"
    );
    one_of_each(&cell);
}

/// Two machines, and a service that needs both: whoever leaves one has nowhere to go.
fn cramped() -> String {
    let machines = r#"cell(name = "cramped", kind = "sandbox")
machine("m1", rack = "r1", cpu = 1)
machine("m2", rack = "r2", cpu = 1)
package("sh", host = "/bin/sh")
"#;
    machines.to_owned() + &sleeper("wide", 2).replace("grace = ", "cpu = 0.75, grace = ")
}

#[test]
fn a_drain_waits_says_for_what_survives_its_controller_and_is_cancelled() {
    let _turn = begin();
    let cell = Cell::up(&cramped());
    let status = cell.status();
    let machine = machine_of(&status, "wide-0");
    let id = cell
        .run(&["drain", &machine, "--detach"])
        .expect(0)
        .out
        .trim()
        .to_owned();
    let waits = |status: &Status| {
        let row = status.find("operations", &id).ok_or("it is over")?;
        let text = row["waits_for"].as_str().unwrap_or_default().to_owned();
        if text.contains("0.25 free") {
            Ok(text)
        } else {
            Err(text)
        }
    };
    cell.await_status("the drain says what it waits for", SOON, waits);
    cell.run(&["why", &machine])
        .expect(0)
        .prints(&id)
        .prints("waits for");
    cell.run(&["drain", &machine]).one_error(1).says(&id);
    let controller = status.process("controller");
    controller.kill();
    cell.await_status("the next controller goes on with it", SOON, |status| {
        if status.pids().get("controller") == Some(&controller) {
            return Err("the old one is there".to_owned());
        }
        waits(status)
    });
    cell.run(&["undrain", &machine])
        .expect(0)
        .prints("cancelled");
    let after = cell.await_well(SOON);
    assert_eq!(state_of(&after, &machine), "ready");
    assert_eq!(after.rows("operations").len(), 0);
    assert_eq!(machine_of(&after, "wide-0"), machine);
    one_of_each(&cell);
}

#[test]
fn a_change_that_breaks_a_service_stops_at_the_first_task_and_is_taken_back() {
    let _turn = begin();
    let cell = Cell::new("");
    let folder = cell.home().path().join("mark");
    std::fs::create_dir(&folder).unwrap();
    let all = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&folder, all).unwrap();
    // The bad version leaves a mark, at which the check takes offence; the good one wipes it away.
    let text = |begin: &str| {
        let mark = folder.join("bad").display().to_string();
        let job = sleeper("web", 3).replace("echo hello", &format!("{begin} {mark}; echo hello"));
        let check = format!(
            r#"
check("web/clean", about = "web", every = "300ms", probe = command(package = "sh", command = ["${{package}}", "-c", "test ! -e {mark}"]))
"#
        );
        head("plain") + &job + &check
    };
    cell.declare(&text("rm -f"));
    cell.turn_up();
    let before = cell.status().pids();
    cell.declare(&text("touch"));
    let ran = cell.start_up(&["--detach", "--deadline", "6s"]);
    ran.finish(SOON).one_error(1);
    let told = cell.await_status("the rollout says why it stops", SOON, |status| {
        let waits = &status.row("services", "web")["waits_for"];
        let text = waits.as_str().unwrap_or_default().to_owned();
        if text.contains("nothing is replaced while") {
            Ok(text)
        } else {
            Err(text)
        }
    });
    assert!(told.contains("web/clean"), "{told}");
    let changed = |pids: &homeostat_tests::Pids| {
        let tasks = ["task web-0", "task web-1", "task web-2"].into_iter();
        tasks
            .filter(|what| pids.get(*what) != before.get(*what))
            .count()
    };
    assert_eq!(
        changed(&cell.status().pids()),
        1,
        "it went on although a check fails"
    );
    cell.declare(&text("rm -f"));
    cell.turn_up();
    let back = cell.await_well(SOON);
    assert_eq!(changed(&back.pids()), 1, "only the broken one was replaced");
    one_of_each(&cell);
}

#[test]
fn a_crash_loop_is_slowed_down_and_explained() {
    let _turn = begin();
    let job = r#"
job(
    "fails",
    package = "sh",
    command = ["${package}", "-c", "echo my last words; exit 7"],
)
job(
    "greedy",
    package = "sh",
    command = ["${package}", "-c", "echo hungry; x=$(head -c 60000000 /dev/zero | tr '\\0' x); sleep 100"],
    memory = "24MiB",
)
"#;
    let cell = Cell::new(&(head("loops") + job));
    cell.start_up(&["--detach", "--deadline", "5s"])
        .finish(SOON)
        .one_error(1);
    cell.await_status("the loop is called one", SOON, |status| {
        let waits = status.row("services", "fails")["waits_for"].to_string();
        if waits.contains("crash loop") {
            Ok(())
        } else {
            Err(waits)
        }
    });
    let why = cell.run(&["why", "fails-0"]).expect(0);
    why.prints("crash loop: failed")
        .prints("exit code 7")
        .prints("my last words");
    if homeostat_tests::is_root() {
        wait_for("the memory limit is named", SOON, || {
            let why = cell.run(&["why", "greedy-0"]).expect(0);
            if why.out.contains("out of memory") {
                Ok(())
            } else {
                Err(why.out)
            }
        });
    }
}

/// `web`, and `front` that needs it.
fn stacked() -> String {
    let front = sleeper("front", 1).replace("grace = ", "needs = [\"web\"], grace = ");
    head("stacked") + &web("web", 2, "1") + &front
}

#[test]
fn services_are_turned_down_in_order_and_purged_when_their_time_is_over() {
    let _turn = begin();
    let cell = Cell::up(&stacked());
    let before = cell.status();
    cell.run(&["turndown", "web"])
        .one_error(1)
        .says("front needs web");
    cell.run(&["turndown", "nobody"])
        .one_error(2)
        .says("nobody");
    assert!(
        cell.status().is_well(),
        "a refused turndown changes nothing"
    );
    let machine = machine_of(&before, "front-0");
    let data = cell
        .state()
        .join("machines")
        .join(&machine)
        .join("data/front-0");
    // Stopped and kept: turned up again, it is where it was.
    cell.run_within(&["turndown", "front", "web", "--keep", "1h"], SOON)
        .expect(0)
        .prints("down");
    assert!(data.exists());
    cell.run(&["turnup", "front"]).one_error(1).says("web");
    cell.run_within(&["turnup", "web", "front"], SOON)
        .expect(0)
        .prints("up");
    assert_eq!(machine_of(&cell.await_well(SOON), "front-0"), machine);
    // Stopped and purged.
    cell.run_within(&["turndown", "front", "--keep", "1s"], SOON)
        .expect(0);
    wait_for("it is purged", SOON, || {
        if told(&cell, "front", "purged") && !data.exists() {
            Ok(())
        } else {
            Err("it is still there".to_owned())
        }
    });
    assert!(
        cell.status().find("tasks", "front-0").is_none(),
        "its place is not free"
    );
    // Dropped: the places of what is not declared any more are free, its data stays.
    cell.run_within(&["turndown", "web", "--keep", "1h"], SOON)
        .expect(0);
    cell.declare(&(head("stacked") + &sleeper("other", 1)));
    cell.turn_up();
    cell.await_status("the places are free", SOON, |status| {
        match status.tasks_of("web").len() {
            0 => Ok(()),
            left => Err(format!("{left} are kept")),
        }
    });
    let kept = cell
        .state()
        .join("machines")
        .join(machine_of(&before, "web-0"))
        .join("data/web-0");
    assert!(kept.exists());
    cell.declare(&stacked());
    cell.run_within(&["turndown", "other"], SOON).expect(0);
    cell.turn_up();
    let after = cell.await_well(SOON);
    for task in ["web-0", "web-1"] {
        assert_eq!(
            machine_of(&after, task),
            machine_of(&before, task),
            "{task} is not where its data is"
        );
    }
}

#[test]
fn the_doctor_looks_at_this_host() {
    let _turn = begin();
    let cell = Cell::new(&plain());
    let ran = cell.run(&["doctor", "--json"]);
    let findings: Vec<Value> = serde_json::from_str(&ran.out).unwrap();
    assert!(
        findings.iter().any(|finding| finding["what"] == "disk"),
        "{findings:?}"
    );
    cell.run(&["doctor"]).prints("addresses");
}
