//! What is wrong is said once, clearly, with the right exit status; and nothing is lost.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use homeostat_tests::{Cell, Home, NOBODY, Ran, begin, is_root};

use crate::cells::{head, plain, sleeper, web};

const SOON: Duration = Duration::from_secs(20);

/// Cell files that cannot be: what is wrong, the file's end, where, and words that must be said.
fn wrong() -> Vec<(&'static str, String, &'static str, &'static [&'static str])> {
    let job = |rest: &str| {
        format!("job(\"a\", package = \"sh\", command = [\"${{package}}\"], {rest})\n")
    };
    vec![
        (
            "syntax",
            "job(\"a\",, package = \"sh\")\n".to_owned(),
            "6:9",
            &["error"],
        ),
        ("type", job("tasks = \"two\""), "6:", &["tasks", "number"]),
        (
            "unknown builder",
            "jbo(\"a\")\n".to_owned(),
            "6:1",
            &["jbo", "hint: ", "job"],
        ),
        (
            "unknown argument",
            job("task = 2"),
            "6:",
            &["task", "hint: ", "tasks"],
        ),
        ("unknown service", job("needs = [\"b\"]"), "6:", &["'b'"]),
        (
            "unknown package",
            "job(\"a\", package = \"hs\", command = [\"x\"])\n".to_owned(),
            "6:",
            &["hs", "hint: ", "sh"],
        ),
        (
            "cycle",
            job("needs = [\"b\"]") + &job("needs = [\"a\"]").replacen("\"a\"", "\"b\"", 1),
            "6:",
            &["a", "b", "needs"],
        ),
        (
            "more than a machine has",
            job("memory = \"900TiB\""),
            "6:",
            &["'a'", "no machine", "hint: "],
        ),
        (
            "more than all have",
            job("tasks = 900, cpu = 3"),
            "",
            &["together"],
        ),
    ]
}

#[test]
fn a_wrong_cell_file_is_pointed_at_and_starts_nothing() {
    let _turn = begin();
    for (what, end, place, words) in wrong() {
        let cell = Cell::new(&(head("plain") + &end));
        let ran = one_clear_error(&cell, what, place, words);
        assert!(
            !cell.state().exists(),
            "{what}: it made a state folder: {ran}"
        );
        assert!(cell.processes().is_empty(), "{what}: it started something");
    }
}

fn one_clear_error(cell: &Cell, what: &str, place: &str, words: &[&str]) -> Ran {
    let ran = cell.try_up(SOON).one_error(2);
    let at = format!("cell.star:{place}");
    assert!(ran.err.contains(&at), "{what}: no '{at}' in {ran}");
    for word in words {
        assert!(ran.err.contains(word), "{what}: no '{word}' in {ran}");
    }
    ran
}

#[test]
fn a_wrong_change_leaves_the_running_cell_alone() {
    let _turn = begin();
    let cell = Cell::up(&plain());
    let before = cell.status().pids();
    for (what, end, place, words) in wrong() {
        cell.declare(&(head("plain") + &end));
        one_clear_error(&cell, what, place, words);
    }
    // Readable, and impossible all the same.
    let nowhere = "package(\"gone\", path = \"nowhere/app\")\n";
    cell.declare(&(plain() + nowhere));
    cell.try_up(SOON)
        .one_error(2)
        .says("gone")
        .says("nowhere/app");
    assert_eq!(cell.status().pids(), before);
    cell.declare(&plain());
    cell.turn_up();
    assert_eq!(cell.status().pids(), before);
}

#[test]
fn a_missing_cell_file_is_named() {
    let _turn = begin();
    let cell = Cell::new("");
    fs::remove_file(cell.file()).unwrap();
    cell.try_up(SOON).one_error(2).says("cell.star");
    assert!(!cell.state().exists());
}

#[test]
fn a_missing_program_is_named_at_once() {
    let _turn = begin();
    for package in [
        "package(\"gone\", host = \"/nowhere/app\")",
        "package(\"gone\", path = [\"/nowhere/app\"])",
    ] {
        let job = "\njob(\"a\", package = \"gone\", command = [\"${package}\"])\n";
        let cell = Cell::new(&(head("plain") + package + job));
        let ran = cell
            .try_up(Duration::from_secs(60))
            .one_error(2)
            .says("gone")
            .says("/nowhere/app");
        assert!(ran.took < SOON, "it waited for the deadline: {ran}");
        // Mended, it goes up.
        cell.declare(&plain());
        cell.turn_up();
    }
}

#[test]
fn a_program_that_cannot_run_is_explained() {
    let _turn = begin();
    let home = Home::new();
    let program = home.write("app", "#!/nowhere/interpreter\n");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let job = format!(
        "package(\"app\", path = \"{}\")\njob(\"a\", package = \"app\", command = [\"${{package}}\"])\n",
        program.display()
    );
    let cell = Cell::at(home, &(head("plain") + &job));
    cell.try_up(Duration::from_secs(5))
        .one_error(1)
        .says("a/tasks");
    cell.run(&["why", "a-0"])
        .expect(0)
        .prints("not started")
        .prints("app");
}

#[test]
fn an_occupied_port_is_named_and_taken_when_it_is_free() {
    let _turn = begin();
    // On every address of this host, so that the cell's are among them.
    let squatter = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = squatter.local_addr().unwrap().port();
    let fixed = web("web", 1, "1").replace(
        "ports = [\"http\"]",
        &format!("ports = {{\"http\": {port}}}"),
    );
    let cell = Cell::new(&(head("plain") + &fixed));
    let late = cell.try_up(Duration::from_secs(5)).one_error(1);
    let why = cell.run(&["why", "web-0"]).expect(0);
    assert!(
        late.err.contains(&port.to_string()) || why.out.contains(&port.to_string()),
        "nobody names port {port}: {late} {why}"
    );
    drop(squatter);
    let status = cell.await_well(Duration::from_secs(40));
    assert_eq!(status.row("tasks", "web-0")["ports"]["http"], port);
}

#[test]
fn a_state_folder_of_a_newer_format_is_left_alone() {
    let _turn = begin();
    let cell = Cell::up(&plain());
    cell.turn_down();
    let path = cell.state().join("cell.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut newer: serde_json::Value = serde_json::from_str(&text).unwrap();
    newer["format"] = 99.into();
    newer["of-the-future"] = "kept".into();
    let newer = newer.to_string();
    fs::write(&path, &newer).unwrap();
    for words in [&["status"][..], &["down", "--yes", "--purge"]] {
        cell.run(words).one_error(2).says("99");
    }
    cell.try_up(SOON).one_error(2).says("99").says("cell.json");
    assert_eq!(fs::read_to_string(&path).unwrap(), newer, "it was changed");
    cell.nothing_runs();
    fs::write(&path, text).unwrap();
    cell.turn_up();
}

#[test]
fn a_garbled_identity_is_named_and_left_alone() {
    let _turn = begin();
    let cell = Cell::up(&plain());
    cell.turn_down();
    let path = cell.state().join("cell.json");
    let text = fs::read(&path).unwrap();
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    cell.try_up(SOON).one_error(2).says("cell.json");
    assert_eq!(fs::read(&path).unwrap(), text[..text.len() / 2]);
    fs::write(&path, text).unwrap();
    cell.turn_up();
}

#[test]
fn a_truncated_store_is_refused_and_works_when_restored() {
    let _turn = begin();
    let cell = Cell::up(&plain());
    let before = cell.status();
    cell.turn_down();
    let path = cell.state().join("store.redb");
    let whole = fs::read(&path).unwrap();
    for length in [whole.len() / 2, 100, 0] {
        fs::write(&path, &whole[..length]).unwrap();
        let ran = cell
            .try_up(Duration::from_secs(60))
            .one_error(1)
            .says("store.redb");
        assert!(
            ran.took < SOON,
            "cut to {length}: it waited for the deadline: {ran}"
        );
        assert_eq!(
            fs::read(&path).unwrap(),
            whole[..length],
            "cut to {length}: it was changed"
        );
    }
    fs::write(&path, &whole).unwrap();
    cell.turn_up();
    let after = cell.status();
    assert!(
        after.0["term"].as_u64() > before.0["term"].as_u64(),
        "what was in the store counts"
    );
    for row in before.rows("tasks") {
        assert_eq!(
            after.row("tasks", row["name"].as_str().unwrap())["machine"],
            row["machine"]
        );
    }
}

#[test]
fn two_cells_cannot_share_a_state_folder() {
    let _turn = begin();
    let cell = Cell::up(&plain());
    let before = cell.status().pids();
    cell.declare(&(head("other") + &sleeper("sleeper", 1)));
    cell.try_up(SOON)
        .one_error(2)
        .says("'plain'")
        .says("'other'")
        .says("--state");
    assert_eq!(cell.status().pids(), before);
}

#[test]
fn a_state_folder_that_cannot_be_made_is_named() {
    let turn = begin();
    // Beneath a file there are no folders, not even for root.
    let cell = Cell::new(&plain()).with_state("cell.star/state");
    cell.try_up(SOON).one_error(2).says("cell.star");
    if !is_root() {
        turn.skip("the part in which another user may not write");
        return;
    }
    let home = Home::of_user(NOBODY);
    let closed = home.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
    let cell = Cell::at(home, &plain()).with_state("closed/state");
    cell.try_up(SOON)
        .one_error(2)
        .says("closed")
        .says("ermission denied");
    assert_eq!(fs::read_dir(&closed).unwrap().count(), 0);
}

#[test]
fn a_state_folder_that_tasks_cannot_enter_is_refused_by_root() {
    let turn = begin();
    if !is_root() {
        turn.skip("an ordinary user's tasks run as himself");
        return;
    }
    let home = Home::new();
    let closed = home.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let cell = Cell::at(home, &plain()).with_state("closed/state");
    cell.try_up(SOON).one_error(2).says("closed").says("enter");
}

#[test]
fn a_full_disk_is_named_and_nothing_is_lost() {
    let turn = begin();
    if !is_root() {
        turn.skip("only root can mount a small disk");
        return;
    }
    full_from_the_start();
    full_later();
}

fn full_from_the_start() {
    let cell = Cell::at(Home::new().with_disk(16 * 1024), &plain()).with_state("disk/state");
    cell.home().fill_disk();
    let ran = cell
        .try_up(Duration::from_secs(60))
        .one_error_of(&[1, 2])
        .says("No space left");
    assert!(ran.took < SOON, "it waited for the deadline: {ran}");
    cell.home().free_disk();
    cell.turn_up();
}

fn full_later() {
    let cell = Cell::at(Home::new().with_disk(16 * 1024), &plain()).with_state("disk/state");
    cell.turn_up();
    let before = cell.status().pids();
    cell.home().fill_disk();

    // What runs goes on; what ends may not come back before there is room.
    let victim = before["task sleeper-0"];
    victim.kill();
    cell.try_up(Duration::from_secs(5));
    let undisturbed = ["task web-0", "task web-1", "task sleeper-1"];
    for what in undisturbed {
        assert!(before[what].lives(), "{what} was disturbed");
    }
    cell.home().free_disk();
    cell.turn_up();
    let after = cell.await_another("task sleeper-0", victim, SOON).pids();
    for what in undisturbed {
        assert_eq!(after.get(what), before.get(what), "{what} was disturbed");
    }
}
