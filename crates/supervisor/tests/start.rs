//! What does not start, and says so.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use common::*;
use homeostat_model::ExitCause;
use homeostat_supervisor::run::RunRecord;

/// Why the task was not started.
fn refused(prepared: Prepared) -> String {
    let task = prepared.start();
    let ExitCause::NotStarted { why } = end_of(&task) else {
        panic!("it ran");
    };
    let data = task.prepared.launch.data.display().to_string();
    assert!(task.finish().success());
    why.replace(&data, "DATA")
}

#[test]
fn a_program_that_is_not_there() {
    assert_eq!(
        refused(Prepared::command(&["/nowhere/at/all"])),
        "cannot run /nowhere/at/all: /nowhere does not exist"
    );
    assert_eq!(
        refused(Prepared::command(&["no-such-program"])),
        "cannot run no-such-program: it is in none of the folders of PATH (/usr/bin:/bin)"
    );
    assert_eq!(refused(Prepared::command(&[])), "the command is empty");
}

#[test]
fn a_file_that_is_no_program() {
    let prepared = Prepared::command(&["./it"]);
    let path = prepared.launch.data.join("it");
    fs::write(&path, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(
        refused(prepared),
        "cannot run DATA/./it: the interpreter or loader that it names does not exist"
    );

    let prepared = Prepared::command(&["./it"]);
    let path = prepared.launch.data.join("it");
    fs::write(&path, "text").unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let why = refused(prepared);
    assert!(
        why.starts_with("cannot run DATA/./it: the file may not be executed by user"),
        "{why}"
    );
}

#[test]
fn a_folder_that_is_not_there() {
    let prepared = Prepared::script("true");
    fs::remove_dir(&prepared.launch.data).unwrap();
    assert_eq!(
        refused(prepared),
        "cannot enter its folder DATA: it does not exist"
    );
}

#[test]
fn a_folder_that_the_task_s_user_may_not_enter() {
    if !is_root() {
        println!("skipped: not root");
        return;
    }
    let mut prepared = Prepared::script("true");
    prepared.launch.user = Some(NOBODY);
    fs::set_permissions(&prepared.launch.data, PermissionsExt::from_mode(0o700)).unwrap();
    assert_eq!(
        refused(prepared),
        "cannot enter its folder DATA: it may not be entered by user 77001 group 77001 (mode 0700, owner 0:0)"
    );

    let prepared = Prepared::script("true").task_as(NOBODY);
    fs::set_permissions(prepared.dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let why = refused(prepared);
    assert!(why.contains("may not be entered by user 77001"), "{why}");
}

#[test]
fn another_user_without_being_root() {
    if !is_root() {
        println!("skipped: not root");
        return;
    }
    let mut prepared = Prepared::script("true").supervisor_as(NOBODY);
    prepared.launch.user = Some(homeostat_supervisor::launch::UserIds {
        uid: 77_002,
        gid: 77_002,
    });
    let why = refused(prepared);
    assert!(
        why.starts_with("cannot become user 77002 group 77002"),
        "{why}"
    );
}

#[test]
fn a_task_as_another_user_has_none_of_root_s_rights() {
    if !is_root() {
        println!("skipped: not root");
        return;
    }
    let task = Prepared::script("id -u; id -g; id -G; grep CapEff /proc/self/status")
        .task_as(NOBODY)
        .start();
    end_of(&task);
    assert_eq!(
        task.logs(),
        "77001\n77001\n77001\nCapEff:\t0000000000000000\n"
    );
    task.finish();
}

fn fails(prepared: &Prepared) -> String {
    let Output { status, stderr, .. } = prepared.command_line().output().unwrap();
    assert_eq!(status.code(), Some(1));
    let root = prepared.dir.path().canonicalize().unwrap();
    String::from_utf8(stderr)
        .unwrap()
        .replace(root.to_str().unwrap(), "DIR")
}

#[test]
fn a_second_supervisor_is_refused_and_harms_nothing() {
    let task = Prepared::script("sleep 1000").start();
    let child = task.child();
    let record = RunRecord::load(task.run_dir()).unwrap();
    let error = fails(&task.prepared);
    assert_eq!(
        error,
        "error: another process of this folder lives: it holds DIR/run/lock\n"
    );
    assert_eq!(RunRecord::load(task.run_dir()).unwrap(), record);
    assert_eq!(task.child(), child);
}

#[test]
fn launch_files_that_are_not_for_us() {
    let mut prepared = Prepared::script("true");
    prepared.launch.format = 99;
    assert!(fails(&prepared).contains("has format 99; this program knows formats up to 1"));

    let mut prepared = Prepared::script("true");
    prepared.launch.keeper = Some(serde_json::json!({}));
    assert!(fails(&prepared).contains("is for a keeper"));

    let prepared = Prepared::script("true");
    let mut command = prepared.command_line();
    let elsewhere = prepared.dir.path().join("elsewhere");
    fs::rename(&prepared.launch.run, &elsewhere).unwrap();
    fs::create_dir(&prepared.launch.run).unwrap();
    assert!(fails_with(command.arg("ignored")).contains("there is no launch file"));
    let mut command = std::process::Command::new(BINARY);
    assert!(
        fails_with(command.arg("supervise").arg(&elsewhere)).contains("it was copied or moved")
    );
}

fn fails_with(command: &mut std::process::Command) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    assert_eq!(status.code(), Some(1));
    String::from_utf8(stderr).unwrap()
}
