//! Programs that speak the protocol, and programs that do not.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{apply, failed, fix, look, look_within, not_run, passed, repairs};
use homeostat_probes::AppliedOutcome;
use homeostat_prodtest::Outcome;
use serde_json::json;

fn example() -> String {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = here.join("../../examples/checks/queue_depth.py");
    fs::canonicalize(path).unwrap().display().to_string()
}

#[tokio::test]
async fn the_example_probes_and_fixes() {
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("spool");
    fs::create_dir(&spool).unwrap();
    for number in 0..5 {
        fs::write(spool.join(format!("mail-{number}")), "x").unwrap();
    }
    let args = json!({"command": [example()], "parameters": {"folder": spool, "most": 3}});
    let seen = look("program", args.clone()).await;
    failed(&seen, "5 files ({\"oldest\":[\"mail-0\"");
    assert_eq!(
        seen.expected,
        format!("at most 3 files in {}", spool.display())
    );

    let fix = fix("program", args.clone());
    let plan = fix.plan(common::PATIENT).await.unwrap();
    assert_eq!(plan.len(), 1, "{plan:?}");
    assert!(
        plan[0].contains("mail-0") && plan[0].contains("; move "),
        "{plan:?}"
    );
    let applied = apply(&fix).await;
    assert_eq!(applied.outcome, AppliedOutcome::Changed, "{applied:?}");
    assert!(
        applied.evidence.starts_with("moved 2 files to "),
        "{applied:?}"
    );
    common::in_order(&fix).await;
    passed(&look("program", args).await, "3 files");

    let missing =
        json!({"command": [example()], "parameters": {"folder": "/no/such/folder", "most": 3}});
    failed(&look("program", missing).await, "No such file");
    // It forgets a parameter, and its traceback is shown.
    let forgotten = look("program", json!({"command": [example()]})).await;
    not_run(&forgotten, "ended with exit code 1 instead of an answer");
    assert!(forgotten.seen.contains("KeyError"), "{forgotten:?}");
}

async fn misbehaves(script: &str) -> (Outcome, String) {
    let started = Instant::now();
    let seen = look_within(
        "program",
        json!({ "command": script }),
        Duration::from_secs(2),
    )
    .await;
    assert!(started.elapsed() < Duration::from_secs(7), "{seen:?}");
    (seen.outcome, seen.seen)
}

#[tokio::test]
async fn misbehaviour_is_named_and_never_a_pass() {
    let mut all = Vec::new();
    for script in [
        "sleep 1000",
        "echo garbage",
        "printf '\\377\\376'",
        "true",
        "exit 3",
        "yes ''",
        "echo '{\"version\": 2, \"verdict\": \"pass\"}'",
        "echo '{\"version\": 1, \"verdict\": \"splendid\"}'",
        "echo '{\"version\": 1, \"verdict\": \"changed\"}'",
        "echo '{\"version\": 1, \"verdict\": \"not-run\", \"seen\": \"no idea\"}'",
        "echo '{\"version\": 1, \"verdict\": \"pass\"} {\"version\": 1}'",
        "echo '{\"version\": 1, \"verdict\": \"pass\"}'; exit 1",
        "exec 2>/dev/null; /no/such/program",
    ] {
        let (outcome, seen) = misbehaves(script).await;
        all.push(format!("{script}\n  {outcome:?}: {seen}"));
    }
    insta::assert_snapshot!(all.join(
        "
"
    ));
}

#[tokio::test]
async fn what_it_needs_not_read_and_adds_does_no_harm() {
    let script = "exec <&-; echo '{\"version\": 1, \"verdict\": \"pass\", \"new\": [1]}'";
    passed(&look("program", json!({ "command": script })).await, "");
    let large = json!({"command": "cat >/dev/null; echo '{\"version\": 1, \"verdict\": \"pass\"}'",
                       "parameters": {"large": "x".repeat(300_000)}});
    passed(&look("program", large).await, "");
}

#[tokio::test]
async fn children_end_with_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "cd {}; sleep 1000 & echo $! > child; setsid sh -c 'echo $$ > daemon; sleep 1000; :' & sleep 1000",
        dir.path().display()
    );
    let (outcome, seen) = misbehaves(&script).await;
    assert_eq!(
        (outcome, seen.starts_with("the program hangs")),
        (Outcome::Failed, true),
        "{seen}"
    );
    for name in ["child", "daemon"] {
        let pid = fs::read_to_string(dir.path().join(name)).unwrap();
        let stat = || fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        let end = Instant::now() + common::PATIENT;
        while stat().is_ok_and(|stat| !stat.contains(") Z")) {
            assert!(Instant::now() < end, "{name} still lives");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn a_command_with_its_condition_is_a_fix() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("done");
    let args = json!({"command": ["touch", file], "unless": ["test", "-e", file]});
    let plan = repairs(&fix("run", args)).await;
    assert_eq!(plan, [format!("run `touch {}`", file.display())]);
    let args = json!({"command": "echo no >&2; exit 4", "unless": "false"});
    common::refused(&apply(&fix("run", args)).await, "exit code 4; it said: no");
}
