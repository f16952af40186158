//! The command probe against real programs that misbehave on purpose.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use homeostat_probes::{CommandProbe, Probe, Prober, RunAs};
use homeostat_prodtest::{Observation, Outcome};

const PATIENT: Duration = Duration::from_secs(20);

fn shell(script: &str, dir: &Path) -> CommandProbe {
    CommandProbe {
        dir: dir.to_owned(),
        ..CommandProbe::new(["/bin/sh", "-c", script].map(Into::into).to_vec())
    }
}

async fn run(command: CommandProbe, deadline: Duration) -> Observation {
    let started = Instant::now();
    let observation = Prober::new().run(&Probe::Command(command), deadline).await;
    assert!(
        started.elapsed() < deadline + Duration::from_secs(5),
        "{observation:?}"
    );
    observation
}

/// Whether a process runs; one that is dead and not reaped by its parent does not.
fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap().starts_with(" Z"))
}

/// Waits for files that a script writes when it has come so far.
async fn pids(dir: &Path, names: &[&str]) -> Vec<String> {
    let end = Instant::now() + PATIENT;
    loop {
        let read = |name: &&str| {
            let text = std::fs::read_to_string(dir.join(name)).ok()?;
            text.ends_with('\n').then(|| text.trim().to_owned())
        };
        match names.iter().map(read).collect::<Option<Vec<_>>>() {
            Some(pids) => return pids,
            None => assert!(
                Instant::now() < end,
                "the script did not start its children"
            ),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn all_die(pids: &[String]) {
    let end = Instant::now() + PATIENT;
    while pids.iter().any(|pid| is_alive(pid)) {
        assert!(Instant::now() < end, "still alive: {pids:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A child in the group, a grandchild that ignores what it can, and a daemon with a session of its own whose parent is
/// gone; then it hangs.
const FAMILY: &str = "
    sleep 1000 & echo $! > child
    (trap '' TERM HUP INT; sleep 1000 & echo $! > grandchild; wait) &
    setsid sh -c 'sh -c \"echo \\$\\$ > daemon; sleep 1000; :\" & exit 0'
    echo started
    sleep 1000";
const MEMBERS: [&str; 3] = ["child", "grandchild", "daemon"];

#[tokio::test]
async fn exit_codes_and_last_words() {
    let dir = tempfile::tempdir().unwrap();
    let good = run(shell("echo fine", dir.path()), PATIENT).await;
    assert_eq!(
        (good.outcome, good.seen.as_str()),
        (Outcome::Passed, "exit code 0; it said: fine")
    );
    assert_eq!(good.expected, "`/bin/sh -c echo fine` exits with code 0");

    let bad = run(shell("echo out; echo err >&2; exit 3", dir.path()), PATIENT).await;
    assert_eq!(
        (bad.outcome, bad.seen.as_str()),
        (Outcome::Failed, "exit code 3; it said: out\nerr")
    );

    let killed = run(shell("kill -9 $$", dir.path()), PATIENT).await;
    assert_eq!(
        (killed.outcome, killed.seen.as_str()),
        (Outcome::Failed, "ended by signal 9")
    );

    let silent = run(shell("exec >&- 2>&-; exit 4", dir.path()), PATIENT).await;
    assert_eq!(
        (silent.outcome, silent.seen.as_str()),
        (Outcome::Failed, "exit code 4")
    );
}

#[tokio::test]
async fn what_cannot_be_started_fails_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let missing = CommandProbe {
        argv: vec!["/no/such/program".into()],
        ..shell("", dir.path())
    };
    let seen = run(missing, PATIENT).await;
    assert_eq!(seen.outcome, Outcome::Failed);
    assert!(
        seen.seen.starts_with("cannot start /no/such/program in /"),
        "{seen:?}"
    );
    assert!(seen.seen.contains("No such file"), "{seen:?}");
    let empty = CommandProbe {
        argv: vec![],
        ..shell("", dir.path())
    };
    assert_eq!(run(empty, PATIENT).await.seen, "the command is empty");
}

#[tokio::test]
async fn the_environment_is_minimal_and_the_folder_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = shell(
        "env | cut -d= -f1 | sort | tr '\\n' ' '; echo $WHO; pwd -P",
        dir.path(),
    );
    command.env.insert("WHO".into(), "somebody".into());
    let seen = run(command, PATIENT).await.seen;
    let folder = dir.path().canonicalize().unwrap();
    let expected = format!(
        "HOMEOSTAT_PROBE LANG PATH PWD WHO somebody\n{}",
        folder.display()
    );
    assert_eq!(seen, format!("exit code 0; it said: {expected}"));
}

#[tokio::test]
async fn it_runs_as_somebody_else_if_asked() {
    let nobody = RunAs::Ids {
        uid: 65534,
        gid: 65534,
    };
    let seen = run(
        CommandProbe {
            run_as: Some(nobody),
            ..shell("id -u; id -G", Path::new("/"))
        },
        PATIENT,
    )
    .await;
    if rustix::process::geteuid().is_root() {
        assert_eq!(seen.seen, "exit code 0; it said: 65534\n65534");
    } else {
        assert!(
            seen.outcome == Outcome::Failed && seen.seen.contains("not permitted"),
            "{seen:?}"
        );
    }
}

#[tokio::test]
async fn output_is_bounded_and_may_be_anything() {
    let dir = tempfile::tempdir().unwrap();
    let odd = run(
        shell(r"printf 'a\377\033[2Jb\000c'; exit 1", dir.path()),
        PATIENT,
    )
    .await;
    assert_eq!(
        odd.seen,
        "exit code 1; it said: a\u{fffd}\u{fffd}[2Jb\u{fffd}c"
    );

    let endless = run(shell("yes endless", dir.path()), PATIENT).await;
    assert_eq!(endless.outcome, Outcome::Failed);
    assert!(
        endless
            .seen
            .starts_with("wrote more than 1048576 bytes; it said: …"),
        "{endless:?}"
    );

    let much = run(
        shell("yes x | head -c 500000; echo the end", dir.path()),
        PATIENT,
    )
    .await;
    assert_eq!(much.outcome, Outcome::Passed);
    assert!(
        much.seen.ends_with("the end") && much.seen.len() < 512,
        "{much:?}"
    );
}

#[tokio::test]
async fn at_the_deadline_everything_it_started_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let command = shell(FAMILY, dir.path());
    let seen = run(command, Duration::from_secs(2)).await;
    let pids = pids(dir.path(), &MEMBERS).await;
    assert_eq!(
        (seen.outcome, seen.seen.as_str()),
        (Outcome::Failed, "still running after 2s; it said: started")
    );
    all_die(&pids).await;
}

#[tokio::test]
async fn cancelled_everything_it_started_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let command = shell(FAMILY, dir.path());
    let probe = tokio::spawn(async move {
        Prober::new()
            .run(&Probe::Command(command), PATIENT * 10)
            .await
    });
    let pids = pids(dir.path(), &MEMBERS).await;
    assert!(pids.iter().all(|pid| is_alive(pid)));
    probe.abort();
    assert!(probe.await.unwrap_err().is_cancelled());
    all_die(&pids).await;
}

#[tokio::test]
async fn what_it_leaves_behind_is_ended_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let seen = run(
        shell("sleep 1000 & echo $! > child; echo left", dir.path()),
        PATIENT,
    )
    .await;
    assert_eq!(
        (seen.outcome, seen.seen.as_str()),
        (Outcome::Passed, "exit code 0; it said: left")
    );
    all_die(&pids(dir.path(), &["child"]).await).await;
}
