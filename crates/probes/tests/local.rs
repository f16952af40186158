//! Probes of this machine: real files, processes, ports, accounts.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use common::{failed, look, look_within, passed};
use serde_json::json;

#[tokio::test]
async fn files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("motd");
    fs::write(&path, "hello\nworld\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let at = path.to_str().unwrap();

    let all = json!({
        "path": at, "mode": "0640", "size": 12,
        "contents": {"lines": ["/^wor/", "!moon"]},
        "sha256": "4d5bbb2c9ee1ecc01dd3bd3e9c0e6e3b8d2bc2f8ff9a8b3b2e0b0c1d4b7e3a10"
    });
    let seen = look("file", all).await;
    failed(&seen, "sha256 \"");
    assert!(!seen.seen.contains("mode"), "{seen:?}");
    passed(
        &look(
            "file",
            json!({"path": at, "mode": "0640", "content": "hello\nworld\n"}),
        )
        .await,
        "mode \"0640\"",
    );
    failed(
        &look("file", json!({"path": at, "mode": "0600"})).await,
        "mode \"0640\"",
    );
    failed(
        &look("file", json!({"path": at, "contents": {"lines": ["moon"]}})).await,
        "no line with \"moon\"",
    );
    failed(
        &look("directory", json!({"path": at})).await,
        "type \"file\"",
    );
    failed(&look("absent", json!({"path": at})).await, "it is there: ");
    failed(
        &look("file", json!({"path": format!("{at}.no")})).await,
        "it is not there",
    );
    passed(
        &look("absent", json!({"path": format!("{at}/below/a/file")})).await,
        "it is not there",
    );
    let sums = json!({
        "path": at,
        "md5": "cf6f7f4d9bf1bf3ed0a6c3ef1d5e2f5b",
    });
    failed(&look("path", sums).await, "md5 \"");

    // As the tools of the system say.
    for (sum, program) in [
        ("md5", "md5sum"),
        ("sha256", "sha256sum"),
        ("sha512", "sha512sum"),
    ] {
        let output = std::process::Command::new(program)
            .arg(&path)
            .output()
            .unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        let hex = output.split(' ').next().unwrap();
        passed(&look("path", json!({"path": at, sum: hex})).await, sum);
    }
    let me = rustix::process::geteuid().as_raw();
    passed(&look("path", json!({"path": at, "uid": me})).await, "uid");
    if me == 0 {
        passed(
            &look(
                "file",
                json!({"path": at, "owner": "root", "group": "root"}),
            )
            .await,
            "owner \"root\"",
        );
        passed(
            &look("file", json!({"path": at, "owner": "0"})).await,
            "uid 0",
        );
    }
}

#[tokio::test]
async fn links_sockets_and_what_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    symlink("nowhere", at("link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), rustix::fs::Mode::RUSR).unwrap();
    passed(
        &look("symlink", json!({"path": at("link"), "target": "nowhere"})).await,
        "nowhere",
    );
    failed(
        &look("symlink", json!({"path": at("link"), "target": "here"})).await,
        "target \"nowhere\"",
    );
    passed(
        &look("path", json!({"path": at("socket"), "type": "socket"})).await,
        "socket",
    );
    // Opening it would wait for a writer.
    let fifo = look_within(
        "path",
        json!({"path": at("fifo"), "contents": "x"}),
        Duration::from_secs(5),
    )
    .await;
    failed(&fifo, "contents null");
    failed(
        &look("path", json!({"path": at("link"), "contents": "x"})).await,
        "contents null",
    );
    // Not UTF-8 is shown, not obeyed.
    fs::write(at("odd"), b"\xff\x1b[2J").unwrap();
    failed(
        &look("file", json!({"path": at("odd"), "content": "x"})).await,
        "\u{fffd}",
    );
}

#[tokio::test]
async fn processes() {
    let me = fs::read_to_string("/proc/self/comm").unwrap();
    let me = me.trim();
    passed(&look("process", json!({"name": me})).await, "count 1");
    passed(
        &look("process", json!({"name": "no-such-process", "count": 0})).await,
        "count 0",
    );
    failed(
        &look("process", json!({"name": "no-such-process"})).await,
        "count 0",
    );
    failed(
        &look(
            "process",
            json!({"name": me, "command": {"contains": "no such argument"}}),
        )
        .await,
        "count 0",
    );
    failed(
        &look("process", json!({"name": me, "user": "no-such-user"})).await,
        "count 0",
    );
    // A zombie does not run.
    let mut child = std::process::Command::new("/bin/sh")
        .args(["-c", "exec sleep 0"])
        .spawn()
        .unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    while !fs::read_to_string(&stat).unwrap().contains(") Z") {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let name = fs::read_to_string(&stat).unwrap();
    let name = name.split(['(', ')']).nth(1).unwrap();
    failed(
        &look(
            "process",
            json!({"name": name, "command": {"contains": "sleep 0"}}),
        )
        .await,
        "count 0",
    );
    child.wait().unwrap();
}

#[tokio::test]
async fn ports() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (tcp_port, udp_port) = (
        tcp.local_addr().unwrap().port(),
        udp.local_addr().unwrap().port(),
    );
    passed(
        &look("port", json!({"port": tcp_port})).await,
        "it is there",
    );
    passed(
        &look(
            "port",
            json!({"port": tcp_port, "protocol": "tcp", "ip": ["127.0.0.1"]}),
        )
        .await,
        "127.0.0.1",
    );
    failed(
        &look(
            "port",
            json!({"port": tcp_port, "ip": {"contains": "0.0.0.0"}}),
        )
        .await,
        "ip [\"127.0.0.1\"]",
    );
    failed(
        &look("port", json!({"port": tcp_port, "protocol": "tcp6"})).await,
        "it is not there",
    );
    failed(
        &look("port", json!({"port": tcp_port, "listening": false})).await,
        "it is there: ip",
    );
    passed(
        &look("port", json!({"port": udp_port, "protocol": "udp"})).await,
        "it is there",
    );
    drop(tcp);
    failed(
        &look("port", json!({"port": tcp_port})).await,
        "it is not there",
    );
    passed(
        &look("port", json!({"port": tcp_port, "listening": false})).await,
        "it is not there",
    );
}

#[tokio::test]
async fn accounts() {
    passed(&look("user", json!({"name": "root", "uid": 0, "gid": 0, "home": {"prefix": "/"}, "all_groups": {"has": ["root"]}})).await, "uid 0");
    failed(
        &look(
            "user",
            json!({"name": "root", "uid": 1, "shell": "/no/shell"}),
        )
        .await,
        "uid 0, shell \"",
    );
    failed(
        &look("user", json!({"name": "root", "groups": ["no-such-group"]})).await,
        "groups [",
    );
    failed(
        &look("user", json!({"name": "no-such-user"})).await,
        "it is not there",
    );
    passed(
        &look("user_absent", json!({"name": "no-such-user"})).await,
        "it is not there",
    );
    failed(
        &look("user_absent", json!({"name": "daemon"})).await,
        "it is there: uid 1",
    );
    passed(
        &look("group", json!({"name": "root", "gid": 0})).await,
        "gid 0",
    );
    passed(
        &look("group_absent", json!({"name": "no-such-group"})).await,
        "it is not there",
    );
    failed(
        &look("group", json!({"name": "no-such-group"})).await,
        "it is not there",
    );
}

#[tokio::test]
async fn disks_mounts_and_the_kernel() {
    passed(
        &look(
            "mount",
            json!({"path": "/proc", "filesystem": "proc", "options": {"contains": "rw"}}),
        )
        .await,
        "filesystem \"proc\"",
    );
    failed(
        &look("mount", json!({"path": "/proc", "filesystem": "ext4"})).await,
        "filesystem \"proc\"",
    );
    failed(
        &look("mount", json!({"path": "/no/such/mount"})).await,
        "it is not there",
    );
    passed(
        &look("mount", json!({"path": "/no/such/mount", "mounted": false})).await,
        "it is not there",
    );
    passed(
        &look(
            "disk",
            json!({"path": "/", "free": 1, "inodes_free": 1, "used_percent": {"at_most": 100}}),
        )
        .await,
        "free",
    );
    failed(
        &look("disk", json!({"path": "/", "free": "8000TiB"})).await,
        "free ",
    );
    failed(
        &look("disk", json!({"path": "/no/such/disk", "free": 1})).await,
        "No such file",
    );
    passed(
        &look(
            "kernel_param",
            json!({"name": "kernel.ostype", "value": "Linux"}),
        )
        .await,
        "Linux",
    );
    passed(
        &look(
            "kernel_param",
            json!({"name": "kernel.pid_max", "value": {"greater": 100}}),
        )
        .await,
        "value",
    );
    failed(
        &look(
            "kernel_param",
            json!({"name": "kernel.ostype", "value": "Minix"}),
        )
        .await,
        "value \"Linux\"",
    );
    failed(
        &look(
            "kernel_param",
            json!({"name": "kernel.no_such_thing", "value": 1}),
        )
        .await,
        "it is not there",
    );
    let loopback = json!({"name": "lo", "up": true, "mtu": {"at_least": 1500}, "addresses": {"has": ["127.0.0.1/8"]}});
    passed(&look("interface", loopback).await, "127.0.0.1/8");
    failed(
        &look(
            "interface",
            json!({"name": "lo", "addresses": ["10.0.0.1/8"]}),
        )
        .await,
        "127.0.0.1/8",
    );
    failed(
        &look("interface", json!({"name": "none0"})).await,
        "it is not there",
    );
    passed(
        &look("interface", json!({"name": "none0", "exists": false})).await,
        "it is not there",
    );
}

#[tokio::test]
async fn packages_services_and_values() {
    if std::path::Path::new("/usr/bin/dpkg-query").exists() {
        passed(
            &look(
                "package",
                json!({"name": "dpkg", "version": {"regex": "^1\\."}}),
            )
            .await,
            "installed: 1.",
        );
        failed(
            &look("package", json!({"name": "dpkg", "version": "0"})).await,
            "version \"1.",
        );
        failed(
            &look("package", json!({"name": "no-such-package"})).await,
            "not installed",
        );
        passed(
            &look("package_absent", json!({"name": "no-such-package"})).await,
            "not installed",
        );
        failed(
            &look("package_absent", json!({"name": "dpkg"})).await,
            "installed: 1.",
        );
    }
    if !std::path::Path::new("/run/systemd/system").exists() {
        common::not_run(
            &look("service", json!({"name": "cron"})).await,
            "does not run systemd",
        );
        let fix = common::fix("service_restarted", json!({"name": "cron"}));
        common::refused(&common::apply(&fix).await, "does not run systemd");
    }
    passed(
        &look("value", json!({"value": [1, 2], "want": {"length": 2}})).await,
        "[1,2]",
    );
    failed(
        &look("value", json!({"value": 3, "want": {"less": 3}})).await,
        "3",
    );
    common::not_run(&look("not_run", json!({"why": "because"})).await, "because");
}

#[tokio::test]
async fn commands_with_wishes() {
    passed(
        &look("command", json!({"command": "exit 3", "exit": 3})).await,
        "exit code 3",
    );
    failed(
        &look("command", json!({"command": "exit 3", "exit": {"less": 3}})).await,
        "exit 3",
    );
    failed(
        &look("command", json!({"command": "exit 3", "stdout": ""})).await,
        "exit code 3",
    );
    let both = json!({"command": ["/bin/sh", "-c", "echo out; echo err >&2"], "stdout": "out\n", "stderr": {"lines": ["err"]}});
    passed(&look("command", both).await, "exit code 0");
    failed(
        &look(
            "command",
            json!({"command": "echo out >&2", "stdout": "out\n"}),
        )
        .await,
        "stdout \"\"",
    );
    passed(
        &look("command", json!({"command": "kill -9 $$", "exit": -1})).await,
        "signal 9",
    );
    failed(
        &look(
            "command",
            json!({"command": "true", "user": "no-such-user"}),
        )
        .await,
        "no user 'no-such-user'",
    );
    passed(&look("command", json!({"command": "echo $A; pwd", "env": {"A": "x"}, "dir": "/usr", "stdout": "x\n/usr\n"})).await, "x");
}

#[tokio::test]
async fn logs_are_read_once_and_through_a_rotation() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let add = |text: &str| {
        let file = fs::File::options()
            .create(true)
            .append(true)
            .open(at("log"));
        file.unwrap().write_all(text.as_bytes()).unwrap();
    };
    let args = json!({"path": at("log"), "pattern": "ERROR", "state": at("state")});
    add("old ERROR\n");
    passed(&look("log", args.clone()).await, "count 0");
    add("fine\nERROR one\nERROR two\nERROR half");
    failed(
        &look("log", args.clone()).await,
        "count 2; the last: ERROR two",
    );
    passed(&look("log", args.clone()).await, "count 0");
    add(" of a line\n");
    failed(
        &look("log", args.clone()).await,
        "count 1; the last: ERROR half of a line",
    );
    // Rotated, with lines that nobody has seen in both.
    add("ERROR before\n");
    fs::rename(at("log"), at("log.1")).unwrap();
    add("ERROR after\n");
    failed(
        &look("log", args.clone()).await,
        "count 2; the last: ERROR after",
    );
    // Cut.
    fs::write(at("log"), "ERROR\n").unwrap();
    failed(&look("log", args.clone()).await, "count 1");
    fs::write(
        at("log"),
        [b"\xff\xfe ERROR\n".as_slice(), &[b'x'; 100]].concat(),
    )
    .unwrap();
    failed(&look("log", args.clone()).await, "count 1");
    fs::write(at("state"), "garbage").unwrap();
    failed(&look("log", args.clone()).await, "cannot read");
    fs::remove_file(at("state")).unwrap();
    fs::remove_file(at("log")).unwrap();
    failed(&look("log", args).await, "No such file");
}
