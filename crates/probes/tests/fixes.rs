//! Fixes of files, folders and links: real ones, on real (and on full) file systems.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use common::{apply, call, fix, in_order, refused, repairs};
use homeostat_probes::{AppliedOutcome, Fix, Ground};
use serde_json::json;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// The names in a folder.
fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_file_is_written_whole_and_keeps_what_nobody_mentions() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("motd");
    let plan = repairs(&fix("file", json!({"path": path, "content": "hello\n"}))).await;
    assert_eq!(
        plan,
        [format!("write {} (6 bytes, mode 0644)", path.display())]
    );
    assert_eq!(
        (fs::read_to_string(&path).unwrap().as_str(), mode(&path)),
        ("hello\n", 0o644)
    );

    let plan = repairs(&fix("file", json!({"path": path, "mode": "4750"}))).await;
    assert_eq!(
        plan,
        [format!(
            "change the mode of {} from 0644 to 4750",
            path.display()
        )]
    );
    repairs(&fix("file", json!({"path": path, "content": "moon\n"}))).await;
    assert_eq!(
        (fs::read_to_string(&path).unwrap().as_str(), mode(&path)),
        ("moon\n", 0o4750)
    );
    if rustix::process::geteuid().is_root() {
        let plan = repairs(&fix(
            "file",
            json!({"path": path, "owner": "daemon", "group": "1", "mode": "4755"}),
        ))
        .await;
        assert_eq!(plan.len(), 2, "{plan:?}");
        repairs(&fix("file", json!({"path": path, "content": "sun\n"}))).await;
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(
            (metadata.uid(), metadata.gid(), mode(&path)),
            (1, 1, 0o4755)
        );
    }
    repairs(&fix("file", json!({"path": dir.path().join("empty")}))).await;
    assert_eq!(names(dir.path()), ["empty", "motd"], "nothing else is left");
}

#[tokio::test]
async fn what_is_in_the_way_stays() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("folder")).unwrap();
    fs::write(at("folder/inside"), "").unwrap();
    fs::write(at("file"), "").unwrap();
    symlink("file", at("link")).unwrap();
    let refuses = async |kind: &str, args, why: &str| {
        refused(&apply(&fix(kind, args)).await, why);
    };
    refuses(
        "file",
        json!({"path": at("link"), "content": "x"}),
        "is a symlink, not a file; remove it first",
    )
    .await;
    refuses(
        "file",
        json!({"path": at("folder")}),
        "is a folder, not a file",
    )
    .await;
    refuses("file", json!({"path": at("none/file")}), "is not there").await;
    refuses(
        "directory",
        json!({"path": at("file")}),
        "is a file, not a folder",
    )
    .await;
    refuses(
        "directory",
        json!({"path": at("file/below")}),
        "is not a folder",
    )
    .await;
    refuses(
        "symlink",
        json!({"path": at("file"), "target": "x"}),
        "is a file, not a symlink",
    )
    .await;
    refuses(
        "absent",
        json!({"path": at("folder")}),
        "is not empty; say recursive = True",
    )
    .await;
    refuses(
        "file",
        json!({"path": at("file"), "owner": "no-such-user"}),
        "there is no user 'no-such-user'",
    )
    .await;
    assert_eq!(names(dir.path()), ["file", "folder", "link"]);
}

#[tokio::test]
async fn folders_links_and_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let plan = repairs(&fix(
        "directory",
        json!({"path": at("a/b/c"), "mode": "0700"}),
    ))
    .await;
    assert_eq!(plan.len(), 3, "{plan:?}");
    assert_eq!((mode(&at("a")), mode(&at("a/b/c"))), (0o755, 0o700));
    repairs(&fix(
        "directory",
        json!({"path": at("a/b/c"), "mode": "0750"}),
    ))
    .await;
    repairs(&fix("symlink", json!({"path": at("link"), "target": "a"}))).await;
    repairs(&fix(
        "symlink",
        json!({"path": at("link"), "target": "a/b"}),
    ))
    .await;
    assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("a/b"));
    repairs(&fix("absent", json!({"path": at("link")}))).await;
    repairs(&fix("absent", json!({"path": at("a/b/c")}))).await;
    repairs(&fix("absent", json!({"path": at("a"), "recursive": true}))).await;
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[tokio::test]
async fn what_a_killed_run_left_is_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at(".motd.homeostat-unfinished"), "hal").unwrap();
    repairs(&fix(
        "file",
        json!({"path": at("motd"), "content": "whole"}),
    ))
    .await;
    fs::create_dir(at(".folder.homeostat-unfinished")).unwrap();
    repairs(&fix("directory", json!({"path": at("folder")}))).await;
    assert_eq!(names(dir.path()), ["folder", "motd"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_runs_at_once_leave_one_whole_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("motd");
    let content = |letter: char| letter.to_string().repeat(300_000);
    let mut running = tokio::task::JoinSet::new();
    for letter in "abcdefgh".chars() {
        let fix = fix("file", json!({"path": path, "content": content(letter)}));
        running.spawn(async move { fix.apply(common::PATIENT).await });
    }
    while let Some(applied) = running.join_next().await {
        let applied = applied.unwrap();
        assert_eq!(applied.outcome, AppliedOutcome::Changed, "{applied:?}");
    }
    let is = fs::read_to_string(&path).unwrap();
    assert_eq!(is, content(is.chars().next().unwrap()));
    assert_eq!(names(dir.path()), ["motd"]);
}

/// A file system of 1 MiB, in a mount namespace that ends with the test: only root can have one.
#[test]
fn on_a_full_disk_the_old_content_stays() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().to_owned();
    let thread = std::thread::spawn(move || {
        // SAFETY: nothing here relies on the file system of other threads.
        unsafe {
            rustix::thread::unshare_unsafe(
                rustix::thread::UnshareFlags::NEWNS | rustix::thread::UnshareFlags::FS,
            )
        }
        .unwrap();
        use rustix::mount::{MountFlags, MountPropagationFlags, mount_change};
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .unwrap();
        rustix::mount::mount(
            "tmpfs",
            &mount,
            "tmpfs",
            MountFlags::empty(),
            Some(c"size=1m"),
        )
        .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let path = mount.join("motd");
            repairs(&fix(
                "file",
                json!({"path": path, "content": "old\n", "mode": "0600"}),
            ))
            .await;
            let large = fix(
                "file",
                json!({"path": path, "content": "x".repeat(2 << 20)}),
            );
            refused(&apply(&large).await, "No space left on device");
            assert_eq!(fs::read_to_string(&path).unwrap(), "old\n");
            assert_eq!(
                (names(&mount), mode(&path)),
                (vec!["motd".to_owned()], 0o600)
            );
            // With room again it goes on.
            in_order(&fix("file", json!({"path": path, "content": "old\n"}))).await;
            // A fix that fails says what it had done before.
            let deep = mount.join("a/b");
            fs::write(mount.join("fill"), vec![0; 900 << 10]).unwrap();
            repairs(&fix("directory", json!({"path": deep}))).await;
        });
    });
    thread.join().unwrap();
    assert_eq!(
        names(dir.path()),
        Vec::<String>::new(),
        "the mount was only the thread's"
    );
}

fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap().starts_with(" Z"))
}

async fn dies(pid: &str) {
    let end = std::time::Instant::now() + common::PATIENT;
    while is_alive(pid) {
        assert!(std::time::Instant::now() < end, "{pid} still lives");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn out_of_time_or_cancelled_everything_it_started_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let args = json!({
        "command": "setsid sh -c 'echo $$ > daemon.new; mv daemon.new daemon; sleep 1000; :' & sleep 1000",
        "unless": "false", "dir": dir.path()
    });
    let daemon = dir.path().join("daemon");
    let hangs = fix("run", args);
    let applied = hangs.apply(std::time::Duration::from_secs(1)).await;
    refused(&applied, "still running after 1s");
    dies(fs::read_to_string(&daemon).unwrap().trim()).await;

    fs::remove_file(&daemon).unwrap();
    let running = tokio::spawn(async move { hangs.apply(common::PATIENT * 10).await });
    let end = std::time::Instant::now() + common::PATIENT;
    while !daemon.exists() {
        assert!(std::time::Instant::now() < end, "it did not start");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    let pid = fs::read_to_string(&daemon).unwrap();
    assert!(is_alive(pid.trim()));
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    dies(pid.trim()).await;
}

#[test]
fn a_hash_is_of_kind_arguments_and_programs() {
    let hash = |kind: &str, args| Fix::from_call(&call(kind, args)).unwrap().hash();
    let one = hash(
        "file",
        json!({"path": "/a", "content": "x", "mode": "0644"}),
    );
    assert_eq!(
        one,
        hash(
            "file",
            json!({"mode": "0644", "content": "x", "path": "/a"})
        )
    );
    assert_eq!(one.len(), 64);
    assert_ne!(
        one,
        hash(
            "file",
            json!({"path": "/a", "content": "y", "mode": "0644"})
        )
    );
    assert_ne!(
        hash("file", json!({"path": "/a"})),
        hash("directory", json!({"path": "/a"}))
    );
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("repair");
    let of_program = || hash("program", json!({"command": [program]}));
    fs::write(&program, "one").unwrap();
    let before = of_program();
    assert_eq!(before, of_program());
    fs::write(&program, "two").unwrap();
    assert_ne!(before, of_program());
}

#[test]
fn each_fix_says_what_it_locks_and_where_it_can_be_proved() {
    let url = "mysql://root@127.0.0.1/";
    let table = [
        ("file", json!({"path": "/etc/motd"})),
        (
            "cron",
            json!({"name": "backup", "schedule": "@daily", "command": "true"}),
        ),
        ("user", json!({"name": "kim"})),
        ("user_absent", json!({"name": "kim"})),
        ("group", json!({"name": "ops"})),
        (
            "kernel_param",
            json!({"name": "vm.swappiness", "value": 10}),
        ),
        ("package", json!({"name": "nginx"})),
        ("service", json!({"name": "nginx"})),
        ("service_restarted", json!({"name": "nginx"})),
        ("sql_database", json!({"url": url, "name": "shop"})),
        ("run", json!({"command": "true", "unless": "true"})),
        (
            "run",
            json!({"command": "true", "unless": "true", "resource": "the thing"}),
        ),
        ("http_call", json!({"url": "http://10.0.0.1:8080/reload"})),
        ("program", json!({"command": ["/usr/local/bin/repair"]})),
    ];
    let lines = table.map(|(kind, args)| {
        let fix = fix(kind, args);
        let ground = match fix.proving_ground() {
            Ground::Sandbox => "sandbox",
            Ground::SqlServer => "SQL server",
            Ground::Nowhere { reason } => reason,
        };
        let check = if fix.check().is_some() {
            "checked"
        } else {
            "no check"
        };
        format!(
            "{} | {} | {check} | {ground}",
            fix.summary(),
            fix.resource()
        )
    });
    insta::assert_snapshot!(lines.join("\n"));
}
