//! Fixes that reach for the whole machine, on a machine of their own: a thread with mounts and a network that end with it.
//! Only root can have those; for others these tests do nothing.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use common::{PATIENT, apply, failed, fix, in_order, look, passed, refused, repairs};
use homeostat_probes::AppliedOutcome;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::json;

/// Runs a test with an empty `/run` and a network of its own, and with these folders replaced by empty ones.
fn apart<F: Future<Output = ()>>(
    empty: &'static [&'static str],
    test: impl FnOnce() -> F + Send + 'static,
) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let thread = std::thread::spawn(move || {
        let flags = UnshareFlags::NEWNS | UnshareFlags::FS | UnshareFlags::NEWNET;
        // SAFETY: nothing here relies on the file system of other threads.
        unsafe { unshare_unsafe(flags) }.unwrap();
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .unwrap();
        for folder in empty.iter().chain(&["/run"]) {
            mount("tmpfs", *folder, "tmpfs", MountFlags::empty(), None).unwrap();
        }
        // Threads that it starts are in the same place.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    });
    thread.join().unwrap();
}

/// Puts a script in the place of a program. What it stands for is not everywhere, or must not be let loose in a test.
fn instead_of(program: &str, dir: &Path, script: &str) {
    let path = dir.join(Path::new(program).file_name().unwrap());
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    mount_bind(&path, program).unwrap();
}

#[test]
fn cron_and_kernel_parameters() {
    apart(&["/etc"], || async {
        fs::create_dir("/etc/cron.d").unwrap();
        fs::create_dir("/etc/sysctl.d").unwrap();
        let args =
            json!({"name": "backup", "schedule": "*/5 * * * *", "command": "backup --all % now"});
        repairs(&fix("cron", args.clone())).await;
        let path = Path::new("/etc/cron.d/backup");
        let text = fs::read_to_string(path).unwrap();
        assert_eq!(
            text,
            "# Written by homeostat.\n*/5 * * * * root backup --all % now\n"
        );
        // cron would pass over it.
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
        failed(&look("cron", args.clone()).await, "mode \"0666\"");
        repairs(&fix("cron", args)).await;
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o644);

        let name = "net.ipv4.ip_forward";
        let wanted = 1 - fs::read_to_string("/proc/sys/net/ipv4/ip_forward")
            .unwrap()
            .trim()
            .parse::<i32>()
            .unwrap();
        let plan = repairs(&fix("kernel_param", json!({"name": name, "value": wanted}))).await;
        assert_eq!(plan, [format!("set {name} to {wanted}")]);
        repairs(&fix(
            "kernel_param",
            json!({"name": name, "value": wanted, "persist": true}),
        ))
        .await;
        let file =
            fs::read_to_string("/etc/sysctl.d/90-homeostat-net.ipv4.ip_forward.conf").unwrap();
        assert_eq!(
            file,
            format!("# Written by homeostat.\n{name} = {wanted}\n")
        );
        let range = json!({"name": "net.ipv4.ip_local_port_range", "value": "20000  30000"});
        repairs(&fix("kernel_param", range)).await;
        refused(
            &apply(&fix("kernel_param", json!({"name": name, "value": "many"}))).await,
            "Invalid argument",
        );
        refused(
            &apply(&fix(
                "kernel_param",
                json!({"name": "net.none.such", "value": 1}),
            ))
            .await,
            "No such file",
        );
    });
}

/// Keeps the state of units in files: `NAME.active`, `NAME.enabled`.
const SYSTEMCTL: &str = r#"#!/bin/sh
cd "$(dirname "$(cat /run/where)")" || exit 9
verb=$1; shift
for unit; do :; done
case "$verb" in
show) [ -e "$unit" ] && echo LoadState=loaded || echo LoadState=not-found
      [ -e "$unit.active" ] && echo ActiveState=active || echo ActiveState=inactive
      [ -e "$unit.enabled" ] && echo UnitFileState=enabled || echo UnitFileState=disabled ;;
start) touch "$unit.active" ;;
stop) rm -f "$unit.active" ;;
restart) [ "$unit" = broken.service ] && { echo "Job for $unit failed." >&2; exit 1; }; touch "$unit.active"; echo x >> restarts ;;
enable) touch "$unit.enabled" ;;
disable) rm -f "$unit.enabled" ;;
esac
"#;

#[test]
fn services() {
    if !Path::new("/usr/bin/systemctl").exists() {
        return;
    }
    apart(&[], || async {
        let dir = tempfile::tempdir().unwrap();
        fs::write("/run/where", dir.path().join("x").to_str().unwrap()).unwrap();
        fs::create_dir_all("/run/systemd/system").unwrap();
        instead_of("/usr/bin/systemctl", dir.path(), SYSTEMCTL);
        for unit in ["web.service", "broken.service", "backup.timer"] {
            fs::write(dir.path().join(unit), "").unwrap();
        }
        failed(
            &look("service", json!({"name": "web"})).await,
            "running false",
        );
        let plan = repairs(&fix(
            "service",
            json!({"name": "web", "running": true, "enabled": true}),
        ))
        .await;
        assert_eq!(
            plan,
            [
                "run `systemctl enable -- web.service`",
                "run `systemctl start -- web.service`"
            ]
        );
        passed(
            &look("service", json!({"name": "web.service"})).await,
            "running true",
        );
        failed(
            &look("service", json!({"name": "web", "enabled": false})).await,
            "enabled true",
        );
        repairs(&fix("service", json!({"name": "web", "running": false}))).await;
        in_order(&fix("service", json!({"name": "web", "enabled": true}))).await;
        repairs(&fix("service", json!({"name": "backup.timer"}))).await;
        failed(
            &look("service", json!({"name": "none"})).await,
            "there is no service none.service",
        );

        let restart = fix("service_restarted", json!({"name": "web"}));
        repairs_always(&restart, "run `systemctl restart -- web.service`").await;
        repairs_always(&restart, "run `systemctl restart -- web.service`").await;
        assert_eq!(
            fs::read_to_string(dir.path().join("restarts")).unwrap(),
            "x\nx\n"
        );
        let broken = apply(&fix("service_restarted", json!({"name": "broken"}))).await;
        refused(
            &broken,
            "systemctl ended with exit code 1; it said: Job for broken.service failed.",
        );
        refused(
            &apply(&fix("service_restarted", json!({"name": "none"}))).await,
            "there is no service",
        );
    });
}

async fn repairs_always(fix: &homeostat_probes::Fix, step: &str) {
    assert_eq!(fix.plan(PATIENT).await.unwrap(), [step]);
    assert_eq!(apply(fix).await.outcome, AppliedOutcome::Changed);
    passed(
        &homeostat_probes::Prober::new()
            .run(fix.check().unwrap(), PATIENT)
            .await,
        "running true",
    );
}

const APT_GET: &str = r#"#!/bin/sh
[ "$DEBIAN_FRONTEND" = noninteractive ] || exit 9
for name; do :; done
case "$name-$1" in
missing-*) echo "E: Unable to locate package $name" >&2; exit 100 ;;
*-install) echo "$name 1.2-3" > /run/installed ;;
*-remove) rm -f /run/installed ;;
esac
"#;

const DPKG_QUERY: &str = r#"#!/bin/sh
for name; do :; done
grep -q "^$name " /run/installed 2>/dev/null || { echo "dpkg-query: no packages found matching $name" >&2; exit 1; }
sed 's/^[^ ]* /installed /' /run/installed
"#;

#[test]
fn packages() {
    if !Path::new("/usr/bin/apt-get").exists() {
        return;
    }
    apart(&[], || async {
        let dir = tempfile::tempdir().unwrap();
        instead_of("/usr/bin/apt-get", dir.path(), APT_GET);
        instead_of("/usr/bin/dpkg-query", dir.path(), DPKG_QUERY);
        let plan = repairs(&fix("package", json!({"name": "nginx"}))).await;
        assert_eq!(
            plan,
            ["run `apt-get install --yes --no-install-recommends -- nginx`"]
        );
        passed(
            &look(
                "package",
                json!({"name": "nginx", "version": {"prefix": "1.2"}}),
            )
            .await,
            "installed: 1.2-3",
        );
        repairs(&fix("package_absent", json!({"name": "nginx"}))).await;
        let missing = apply(&fix("package", json!({"name": "missing"}))).await;
        refused(
            &missing,
            "apt-get ended with exit code 100; it said: E: Unable to locate package missing",
        );
    });
}

/// `/etc` is a copy, so the accounts of the machine are safe.
#[test]
fn accounts() {
    if !Path::new("/usr/sbin/useradd").exists() {
        return;
    }
    apart(&["/home"], || async {
        let dir = tempfile::tempdir().unwrap();
        let etc = dir.path().join("etc");
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .arg("/etc")
            .arg(&etc)
            .status();
        assert!(copied.unwrap().success());
        mount_bind(&etc, "/etc").unwrap();

        repairs(&fix("group", json!({"name": "ops", "gid": 4711}))).await;
        let keys = json!(["ssh-ed25519 AAAA kim@one", "ssh-ed25519 BBBB kim@two"]);
        let args = json!({"name": "kim", "uid": 4712, "groups": ["ops"], "shell": "/bin/sh", "comment": "Kim", "keys": keys});
        let plan = repairs(&fix("user", args.clone())).await;
        assert_eq!(plan.len(), 5, "{plan:?}");
        assert!(
            plan[1].starts_with(
                "run `useradd --create-home --home-dir /home/kim --uid 4712 --groups ops"
            ),
            "{plan:?}"
        );
        let file = Path::new("/home/kim/.ssh/authorized_keys");
        let metadata = fs::metadata(file).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (4712, 0o600));
        assert_eq!(
            fs::metadata("/home/kim/.ssh").unwrap().mode() & 0o7777,
            0o700
        );

        // Somebody lets a third person in.
        let text = fs::read_to_string(file).unwrap();
        fs::write(file, format!("# mine\n{text}ssh-ed25519 CCCC stranger\n")).unwrap();
        failed(&look("user", args.clone()).await, "stranger");
        repairs(&fix("user", args)).await;
        repairs(&fix("user", json!({"name": "kim", "comment": "Kim O.", "groups": ["daemon"], "shell": "/bin/false"}))).await;
        in_order(&fix(
            "user",
            json!({"name": "kim", "groups": ["ops", "daemon"]}),
        ))
        .await;
        repairs(&fix("user", json!({"name": "kim", "only_groups": ["ops"]}))).await;
        failed(
            &look("user", json!({"name": "kim", "groups": ["daemon"]})).await,
            "groups [\"kim\",\"ops\"]",
        );
        refused(
            &apply(&fix("user", json!({"name": "kim", "uid": 4713}))).await,
            "changing it would leave its files behind",
        );
        refused(
            &apply(&fix("group_absent", json!({"name": "kim"}))).await,
            "primary group",
        );
        repairs(&fix("user", json!({"name": "kim", "keys": []}))).await;
        assert!(!file.exists());

        // A folder of the user's that leads elsewhere is not followed.
        fs::remove_dir("/home/kim/.ssh").unwrap();
        std::os::unix::fs::symlink(dir.path(), "/home/kim/.ssh").unwrap();
        let led = apply(&fix(
            "user",
            json!({"name": "kim", "keys": ["ssh-ed25519 AAAA kim"]}),
        ))
        .await;
        refused(&led, "cannot write /home/kim/.ssh/authorized_keys");
        fs::remove_file("/home/kim/.ssh").unwrap();
        repairs(&fix(
            "user",
            json!({"name": "kim", "keys": ["ssh-ed25519 AAAA kim"]}),
        ))
        .await;

        // Removed with all that it had, also while something of it runs.
        use std::os::unix::process::CommandExt;
        let mut running = std::process::Command::new("sleep")
            .arg("1000")
            .uid(4712)
            .spawn()
            .unwrap();
        failed(
            &look("user_absent", json!({"name": "kim"})).await,
            "groups [\"ops\"], keys \"/home/kim/.ssh/authorized_keys\", uid 4712",
        );
        let plan = repairs(&fix(
            "user_absent",
            json!({"name": "kim", "remove_home": true}),
        ))
        .await;
        assert_eq!(plan[0], "remove /home/kim/.ssh/authorized_keys", "{plan:?}");
        assert!(
            plan.contains(&"kill all processes of user 4712".to_owned()),
            "{plan:?}"
        );
        assert!(!running.wait().unwrap().success());
        assert!(!Path::new("/home/kim").exists());
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        assert!(
            !passwd.contains("kim") && !fs::read_to_string("/etc/group").unwrap().contains("kim")
        );

        // What only group remembers is a trace as well.
        let group = fs::read_to_string("/etc/group").unwrap();
        fs::write("/etc/group", group.replace("ops:x:4711:", "ops:x:4711:kim")).unwrap();
        let plan = repairs(&fix("user_absent", json!({"name": "kim"}))).await;
        assert_eq!(plan, ["run `gpasswd --delete kim ops`"]);
        repairs(&fix("group_absent", json!({"name": "ops"}))).await;

        // Made by half, as a loss of power leaves it: it is taken away and made again.
        fs::write(
            "/etc/.homeostat-account-lee",
            r#"{"format":1,"home":"/home/lee","group":"Yes"}"#,
        )
        .unwrap();
        fs::write(
            "/etc/passwd",
            format!("{passwd}lee:x:4720:4720::/home/lee:/bin/sh\n"),
        )
        .unwrap();
        failed(&look("user", json!({"name": "lee"})).await, "by half");
        let plan = repairs(&fix("user", json!({"name": "lee"}))).await;
        assert_eq!(plan[0], "run `userdel -- lee`", "{plan:?}");
        assert!(
            Path::new("/home/lee").is_dir() && !Path::new("/etc/.homeostat-account-lee").exists()
        );
        // A group of the same name is its own, whether it was there before or not.
        repairs(&fix("user", json!({"name": "max", "groups": ["max"]}))).await;
        repairs(&fix("group", json!({"name": "eve", "gid": 4730}))).await;
        repairs(&fix(
            "user",
            json!({"name": "eve", "groups": ["eve", "daemon"]}),
        ))
        .await;
        passed(
            &look("user", json!({"name": "eve", "gid": 4730})).await,
            "gid 4730",
        );
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        fs::write(
            "/etc/passwd",
            format!("{passwd}toor:x:0:0::/root:/bin/sh\n"),
        )
        .unwrap();
        refused(
            &apply(&fix("user_absent", json!({"name": "toor"}))).await,
            "is root, or runs this program",
        );
    });
}
