//! Nothing of a task outlives it: not what forked twice, not what began a session of its own, not after the death of
//! the supervisor.

#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::net::UnixListener;
use std::time::Duration;

use common::*;
use homeostat_model::{ExitCause, Generation};
use homeostat_supervisor::find::{Found, NotOurs, identify};
use homeostat_supervisor::leftovers::{LeftoverError, Swept, kill_leftovers, verify_empty};
use homeostat_supervisor::line::encode_line;
use homeostat_supervisor::process;
use homeostat_supervisor::protocol::{Hello, Message, Phase, Process, VERSION, Verb};
use homeostat_supervisor::run::{RunError, RunRecord};

/// A child, a grandchild whose parent ended, and a daemon in a session of its own with a cleared environment.
const TREE: &str = "
    sleep 1000 & echo $! > pids
    (sleep 1000 & echo $! > pids)
    setsid env -i /bin/sh -c 'sleep 1000 & echo $! > pids; exec sleep 1000' &
    echo $! > pids
    ";

struct Tree {
    task: Task,
    members: Members,
}

/// Without a cgroup, what left the session *and* cleared its environment cannot be found after its supervisor died. It
/// must not stay here all the same.
struct Members(Vec<Process>);

impl Drop for Members {
    fn drop(&mut self) {
        for member in &self.0 {
            let _ = process::kill(*member);
        }
    }
}

fn tree(prepare: impl Fn(Prepared) -> Prepared, then: &str) -> Tree {
    let prepared = prepare(Prepared::script(&format!("{TREE}{then}")));
    let mut pids = prepared.fifo("pids");
    let mut go = prepared.fifo("go");
    let task = prepared.start();
    let members = Members((0..4).map(|_| pids.process()).collect());
    go.write_line();
    Tree { task, members }
}

impl Tree {
    fn none_lives(&self) -> bool {
        self.members.0.iter().all(|member| !process::alive(*member))
    }
}

/// The ways in which a task is kept together: with a cgroup (as root), as another user, and without any cgroup.
fn ways() -> Vec<fn(Prepared) -> Prepared> {
    let mut ways: Vec<fn(Prepared) -> Prepared> = vec![|prepared| prepared];
    if is_root() {
        ways.push(|prepared| prepared.task_as(NOBODY));
        ways.push(|prepared| prepared.supervisor_as(NOBODY));
    }
    ways
}

#[test]
fn kill_takes_the_whole_tree_before_the_end_is_told() {
    for way in ways() {
        let tree = tree(way, "wait");
        let (hello, mut connection) = tree.task.connect();
        connection.send(Verb::Kill).unwrap();
        assert_eq!(
            await_end(&hello, &mut connection),
            ExitCause::Signal { signal: 9 }
        );
        assert!(tree.none_lives(), "the end was told too early");
        tree.task.finish();
    }
}

#[test]
fn what_is_left_at_a_task_s_own_exit_is_killed_before_the_end_is_told() {
    for way in ways() {
        let tree = tree(way, "read line < go; exit 6");
        assert_eq!(end_of(&tree.task), ExitCause::Code { code: 6 });
        assert!(tree.none_lives(), "the end was told too early");
        tree.task.finish();
    }
}

#[test]
fn a_task_dies_with_its_supervisor_and_the_rest_is_found() {
    for way in ways() {
        let mut tree = tree(way, "wait");
        let child = tree.task.child();
        assert!(matches!(
            kill_leftovers(tree.task.run_dir()),
            Err(LeftoverError::Run(RunError::Locked { .. }))
        ));
        let cgroups = tree.task.cgroups();
        tree.task.supervisor.kill().unwrap();
        tree.task.supervisor.wait().unwrap();
        // By the kernel alone; nobody else has looked yet.
        await_death(child);
        assert!(matches!(
            identify(tree.task.run_dir(), Duration::ZERO).unwrap(),
            Found::Gone { .. }
        ));
        let swept = kill_leftovers(tree.task.run_dir()).unwrap();
        assert!(matches!(swept, Swept::Killed(_)) || tree.none_lives());
        assert!(tree.none_lives() || cgroups.is_empty());
        assert_eq!(verify_empty(tree.task.run_dir()).unwrap(), []);
        assert!(cgroups.iter().all(|path| !path.exists()));
        assert_eq!(kill_leftovers(tree.task.run_dir()).unwrap(), Swept::Clean);
    }
}

#[test]
fn a_successor_cleans_up_after_a_dead_supervisor() {
    let mut tree = tree(|prepared| prepared, "wait");
    tree.task.supervisor.kill().unwrap();
    tree.task.supervisor.wait().unwrap();
    let launch = &mut tree.task.prepared.launch;
    launch.argv = vec!["sleep".into(), "1000".into()];
    launch.generation = Generation(4);
    tree.task.supervisor = tree.task.prepared.command_line().spawn().unwrap();
    tree.task.process = process_of(tree.task.supervisor.id());
    let (hello, mut connection) = tree.task.connect();
    assert_eq!(hello.generation, Generation(4));
    if !tree.task.cgroups().is_empty() {
        assert!(tree.members.0.iter().all(|member| !process::alive(*member)));
    }
    connection.send(Verb::Kill).unwrap();
    await_end(&hello, &mut connection);
    tree.task.finish();
}

#[test]
fn leftovers_are_found_without_any_record() {
    let mut tree = tree(|prepared| prepared, "wait");
    tree.task.supervisor.kill().unwrap();
    tree.task.supervisor.wait().unwrap();
    let has_cgroup = !tree.task.cgroups().is_empty();
    std::fs::remove_file(tree.task.run_dir().join("supervisor.json")).unwrap();
    assert!(matches!(
        kill_leftovers(tree.task.run_dir()).unwrap(),
        Swept::Killed(_)
    ));
    for (member, clean) in tree
        .members
        .0
        .iter()
        .zip([true, true, has_cgroup, has_cgroup])
    {
        assert!(!clean || !process::alive(*member));
    }
}

#[test]
fn a_record_whose_pid_is_used_again_kills_no_stranger() {
    let prepared = Prepared::script("true");
    prepared.launch.store().unwrap();
    let mut stranger = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    let is = process_of(stranger.id());
    let used_again = Process {
        start_ticks: is.start_ticks - 1,
        ..is
    };
    let record = RunRecord {
        format: RunRecord::FORMAT,
        task: prepared.launch.task.clone(),
        generation: prepared.launch.generation,
        boot_id: process::boot_id().unwrap(),
        supervisor: used_again,
        child: Some(used_again),
        uid: rustix::process::geteuid().as_raw(),
        cgroups: Vec::new(),
    };
    record.store(&prepared.launch.run).unwrap();
    assert_eq!(kill_leftovers(&prepared.launch.run).unwrap(), Swept::Clean);
    assert!(process::alive(is));
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

/// What `identify` says about a socket on which we ourselves say `change(truth)`.
fn answer(change: impl FnOnce(&mut Hello)) -> Found {
    let prepared = Prepared::script("true");
    prepared.launch.store().unwrap();
    let mut hello = Hello {
        version: VERSION,
        task: prepared.launch.task.clone(),
        generation: prepared.launch.generation,
        supervisor: process::current().unwrap(),
        phase: Phase::Starting,
    };
    change(&mut hello);
    let listener = UnixListener::bind(prepared.launch.run.join("s")).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let line = encode_line(&Message::Hello(hello)).unwrap();
        std::io::Write::write_all(&mut stream, &line).unwrap();
    });
    let found = identify(&prepared.launch.run, PATIENCE).unwrap();
    server.join().unwrap();
    found
}

#[test]
fn a_supervisor_is_believed_only_if_everything_fits() {
    assert!(matches!(answer(|_| {}), Found::Alive { .. }));
    let found = answer(|hello| hello.supervisor.start_ticks -= 1);
    assert!(
        matches!(found, Found::Stranger(NotOurs::Reused { .. })),
        "{found:?}"
    );
    let found = answer(|hello| hello.supervisor = process_of(1));
    assert!(
        matches!(found, Found::Stranger(NotOurs::Pid { said: 1, .. })),
        "{found:?}"
    );
    let found = answer(|hello| hello.generation = Generation(2));
    assert!(
        matches!(found, Found::Stranger(NotOurs::Generation { .. })),
        "{found:?}"
    );
    let found = answer(|hello| hello.task = "shop-web-1".parse().unwrap());
    assert!(
        matches!(found, Found::Stranger(NotOurs::Task { .. })),
        "{found:?}"
    );
}

#[test]
fn a_supervisor_that_hangs_is_silent_and_not_gone() {
    let task = Prepared::script("sleep 1000").start();
    task.connect();
    send(task.process.pid, rustix::process::Signal::STOP);
    let found = identify(task.run_dir(), Duration::from_millis(50)).unwrap();
    assert!(matches!(found, Found::Silent { .. }), "{found:?}");
    send(task.process.pid, rustix::process::Signal::CONT);
    assert!(matches!(
        identify(task.run_dir(), PATIENCE).unwrap(),
        Found::Alive { .. }
    ));
}

#[test]
fn nothing_is_found_where_nothing_is() {
    let prepared = Prepared::script("true");
    assert!(matches!(
        identify(&prepared.launch.run, Duration::ZERO).unwrap(),
        Found::Nothing
    ));
    prepared.launch.store().unwrap();
    assert!(matches!(
        identify(&prepared.launch.run, Duration::ZERO).unwrap(),
        Found::Gone { .. }
    ));
    assert_eq!(kill_leftovers(&prepared.launch.run).unwrap(), Swept::Clean);
    assert_eq!(
        kill_leftovers(&prepared.dir.path().join("not there")).unwrap(),
        Swept::Clean
    );
}
