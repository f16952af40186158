//! Proofs in real sandboxes. Who is not root cannot have one; then it must say so.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::{PATIENT, call};
use homeostat_model::library::Call;
use homeostat_probes::prove::{self, Finding, Refutation, Worker};
use serde_json::{Value, json};

const WORKER: &str = "HOMEOSTAT_TEST_WORKER";

/// Not a test of its own: the body of the processes that the others start, by this name.
#[test]
fn worker() {
    if std::env::var_os(WORKER).is_some() {
        prove::inside();
    }
}

fn prove_call(call: &Call) -> Finding {
    let worker = Worker {
        program: "/usr/bin/env".into(),
        args: vec![
            format!("{WORKER}=1").into(),
            std::env::current_exe().unwrap().into(),
            "worker".into(),
            "--exact".into(),
            "--nocapture".into(),
        ],
    };
    let scratch = tempfile::tempdir().unwrap();
    let proof = prove::prove(call, &worker, scratch.path(), PATIENT).unwrap();
    assert_eq!(
        proof.hash,
        homeostat_probes::Fix::from_call(call).unwrap().hash()
    );
    assert_eq!(
        std::fs::read_dir(scratch.path()).unwrap().count(),
        0,
        "nothing is left"
    );
    proof.finding
}

fn prove(kind: &str, args: Value) -> Finding {
    prove_call(&call(kind, args))
}

/// Whether sandboxes can be had; if not, that is what is said, and nothing is proved.
fn sandbox() -> bool {
    match prove(
        "file",
        json!({"path": "/etc/homeostat-test", "content": "x"}),
    ) {
        Finding::Nothing(why) => {
            assert!(why.starts_with("there is no sandbox: "), "{why}");
            assert!(!rustix::process::geteuid().is_root(), "{why}");
            false
        }
        Finding::Proved { .. } => true,
        Finding::Refuted(refuted) => panic!("{refuted}"),
    }
}

#[track_caller]
fn proved(finding: Finding) {
    assert_eq!(finding, Finding::Proved { kills: 6 });
}

fn exists(path: &str) -> bool {
    Path::new(path).exists()
}

#[test]
fn the_fixes_of_the_library_are_idempotent() {
    if !sandbox() {
        return;
    }
    assert!(!exists("/etc/homeostat-test"), "it left the sandbox");
    proved(prove(
        "file",
        json!({"path": "/etc/hosts", "content": "127.0.0.1 changed\n", "mode": "0600", "owner": "daemon"}),
    ));
    proved(prove(
        "directory",
        json!({"path": "/srv/homeostat-test/a/b", "mode": "0700", "group": "1"}),
    ));
    proved(prove(
        "symlink",
        json!({"path": "/etc/homeostat-test", "target": "passwd"}),
    ));
    proved(prove(
        "absent",
        json!({"path": "/usr/share/doc", "recursive": true}),
    ));
    assert!(
        exists("/usr/share/doc")
            && !std::fs::read_to_string("/etc/hosts")
                .unwrap()
                .contains("changed")
    );
    if exists("/usr/sbin/useradd") {
        let keys = json!(["ssh-ed25519 AAAA kim@one", "ssh-ed25519 BBBB kim@two"]);
        proved(prove(
            "user",
            json!({"name": "homeostat-kim", "groups": ["daemon", "adm"], "shell": "/bin/sh", "keys": keys}),
        ));
        proved(prove("user_absent", json!({"name": "games"})));
        proved(prove(
            "user",
            json!({"name": "games", "groups": ["adm"], "comment": "Gamers"}),
        ));
        proved(prove("group", json!({"name": "homeostat-ops"})));
    }
    proved(prove(
        "run",
        json!({"command": "mkdir -p /srv/made && touch /srv/made/it", "unless": "test -e /srv/made/it"}),
    ));
}

/// One server for each would take long; two kinds show that it works.
#[test]
fn fixes_of_servers_are_proved_on_one_that_is_made_for_them() {
    let url = "mysql://nobody@127.0.0.1:1/";
    let grant =
        json!({"url": url, "user": "kim", "privileges": ["SELECT", "INSERT"], "on": "shop.goods"});
    proved(prove("sql_grant", grant));
    let user = json!({"url": url, "name": "kim", "password": "secret"});
    proved(prove("sql_user", user));
}

/// On a machine where all is in order they are proved as well.
#[test]
fn what_is_in_order_is_disturbed_first() {
    if !sandbox() {
        return;
    }
    let content = std::fs::read_to_string("/etc/hosts").unwrap();
    proved(prove(
        "file",
        json!({"path": "/etc/hosts", "content": content}),
    ));
    proved(prove(
        "file",
        json!({"path": "/etc/hosts", "owner": "root", "mode": "0644"}),
    ));
    proved(prove(
        "directory",
        json!({"path": "/etc", "mode": "0755", "owner": "0", "group": "0"}),
    ));
    proved(prove("absent", json!({"path": "/etc/homeostat-test"})));
    if exists("/usr/sbin/useradd") {
        proved(prove("user", json!({"name": "games", "groups": ["games"]})));
        proved(prove(
            "user_absent",
            json!({"name": "homeostat-kim", "remove_home": true}),
        ));
        proved(prove("group_absent", json!({"name": "homeostat-ops"})));
    }
    assert_eq!(std::fs::read_to_string("/etc/hosts").unwrap(), content);
}

#[test]
fn what_is_not_idempotent_is_refuted() {
    if !sandbox() {
        return;
    }
    let run = |command: &str, unless: &str| match prove(
        "run",
        json!({"command": command, "unless": unless}),
    ) {
        Finding::Refuted(refuted) => refuted,
        other => panic!("{other:?}"),
    };
    let fails = run("echo broken >&2; exit 3", "false");
    assert!(
        matches!(&fails, Refutation::Fails(why) if why.contains("broken")),
        "{fails}"
    );
    let useless = run("echo x > /etc/homeostat-x", "false");
    assert!(matches!(useless, Refutation::CheckFails(_)), "{useless}");
    // It says that it changes nothing, and the disk says otherwise.
    let counts = run(
        "touch /etc/homeostat-made",
        "echo line >> /etc/homeostat-count; test -e /etc/homeostat-made",
    );
    let Refutation::Changes(difference) = &counts else {
        panic!("{counts}")
    };
    assert_eq!(difference.path, PathBuf::from("/etc/homeostat-count"));
    assert!(
        counts.to_string().contains("line 3:\n- \n+ line"),
        "{counts}"
    );
    // Killed in between, it leaves a half that its condition takes for the whole.
    let half = run(
        "echo half > /etc/homeostat-x; sleep 0.5; echo whole > /etc/homeostat-x",
        "test -e /etc/homeostat-x",
    );
    let Refutation::KilledEndsElsewhere { difference, .. } = &half else {
        panic!("{half}")
    };
    assert!(
        difference.to_string().ends_with("line 1:\n- whole\n+ half"),
        "{half}"
    );
    assert!(!exists("/etc/homeostat-x"), "it left the sandbox");
}

#[test]
fn what_cannot_be_shown_is_not_proved() {
    let nothing = |finding: Finding| match finding {
        Finding::Nothing(why) => why,
        other => panic!("{other:?}"),
    };
    let network = nothing(prove("package", json!({"name": "nginx"})));
    assert_eq!(
        network,
        "packages come over the network, which the sandbox has not"
    );
    if sandbox() {
        let idle = nothing(prove("run", json!({"command": "false", "unless": "true"})));
        assert_eq!(
            idle,
            "all is in order here already, so it has nothing to do: nobody knows how to disturb it"
        );
        // A process that does not speak: no sandbox, and no proof.
        let worker = Worker {
            program: "/bin/true".into(),
            args: Vec::new(),
        };
        let scratch = tempfile::tempdir().unwrap();
        let call = call("file", json!({"path": "/etc/homeostat-test"}));
        let proof = prove::prove(&call, &worker, scratch.path(), PATIENT).unwrap();
        assert!(nothing(proof.finding).starts_with("there is no sandbox: "));
    }
}
