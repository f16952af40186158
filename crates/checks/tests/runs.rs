//! Whole runs over this machine: what is believed, what is repaired, and that nothing is left.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{Site, words};
use homeostat_checks::{Doing, Standing};

#[tokio::test]
async fn a_chain_stops_at_its_root_cause() {
    let site = Site::new(
        r#"
check("base", probe = file("{dir}/base"))
check("mid", probe = file("{dir}/mid"), after = ["base"])
check("end", probe = file("{dir}/mid"), after = ["mid"])
check("other", probe = directory("{dir}"))
"#,
    );
    let report = site.run(Doing::Look).await.report;
    assert_eq!(
        words(&report),
        "base fail, mid blocked, end blocked, other pass"
    );
    assert_eq!(report.summary.standing(), Standing::Blocked);
    for row in &report.checks[1..3] {
        assert_eq!(row.blocked_by.len(), 1);
        assert_eq!(row.blocked_by[0].as_str(), "base");
        assert_eq!(row.at, None, "it was not run");
    }
    site.write("base", "");
    site.write("mid", "");
    let report = site.run(Doing::Look).await.report;
    assert_eq!(report.summary.standing(), Standing::Passed);
}

#[tokio::test]
async fn what_fails_is_repaired_in_the_order_of_what_depends_on_it() {
    let site = Site::new(
        r#"
check("folder", fix = directory("{dir}/a", mode = "0700"))
check("file", fix = file("{dir}/a/b", content = "hello\n", mode = "0600"), after = ["folder"])
check("reader", probe = command(["/bin/cat", "{dir}/a/b"], stdout = "hello\n"), after = ["file"])
"#,
    );
    let report = site.run(Doing::Look).await.report;
    assert_eq!(words(&report), "folder fail, file blocked, reader blocked");
    assert!(!site.path("a").exists(), "who looks changes nothing");
    let report = site.run(Doing::Repair).await.report;
    assert_eq!(words(&report), "folder pass, file pass, reader pass");
    assert_eq!(fs::read_to_string(site.path("a/b")).unwrap(), "hello\n");
    let fixes: Vec<u32> = report.checks.iter().map(|row| row.fixes).collect();
    assert_eq!(fixes, [1, 1, 0]);
    let again = site.run(Doing::Repair).await.report;
    assert!(
        again.checks.iter().all(|row| row.fixes == 0),
        "nothing was left to do"
    );
}

#[tokio::test]
async fn a_fix_that_does_not_help_is_given_up() {
    let site = Site::new(
        r#"
check("web", probe = file("{dir}/never"), fix = directory("{dir}/beside"), confirm = 1, attempts = 2, settle = "100ms")
check("acts", probe = file("{dir}/never"), fix = run(["/bin/true"], unless = ["/bin/false"]), confirm = 1, attempts = 2, settle = "100ms")
check("page", probe = directory("{dir}"), after = ["web"])
"#,
    );
    let report = site.run(Doing::Repair).await.report;
    assert_eq!(words(&report), "web gave-up, acts gave-up, page blocked");
    assert_eq!(report.checks[0].fixes, 2);
    assert_eq!(report.checks[1].fixes, 1, "what acts is not repeated");
    assert_eq!(report.summary.standing(), Standing::GaveUp);
}

#[tokio::test]
async fn only_what_was_asked_for_is_repaired() {
    let site = Site::new(
        r#"
check("base", fix = file("{dir}/base", content = ""))
check("top", fix = file("{dir}/top", content = ""), after = ["base"])
"#,
    );
    let report = site.run_only(Doing::Repair, &["top"]).await.unwrap().report;
    assert_eq!(words(&report), "base fail, top blocked");
    assert!(!report.checks[0].asked && report.checks[1].asked);
    let nothing = site.run_only(Doing::Look, &["topp"]).await.unwrap_err();
    assert_eq!(
        (nothing.to_string().as_str(), nothing.hint.as_str()),
        (
            "--only topp matches no check of the suite",
            "did you mean 'top'?"
        )
    );
}

#[tokio::test]
async fn a_slow_repair_has_its_time_to_settle() {
    let site = Site::new(
        r#"
check("slow", probe = file("{dir}/made"), fix = run(["/bin/true"], unless = ["/bin/false"]), confirm = 1, attempts = 1, settle = "10s")
"#,
    );
    // What the fix asked for, as a service that starts slowly would do it.
    let made = site.path("made");
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(700));
        fs::write(made, "").unwrap();
    });
    let report = site.run(Doing::Repair).await.report;
    thread.join().unwrap();
    assert_eq!(words(&report), "slow pass");
    assert_eq!(report.checks[0].fixes, 1);
}

#[tokio::test]
async fn probes_that_hang_or_garble_end_in_time() {
    let site = Site::new(
        r#"
check("hangs", probe = command(["/bin/sleep", "1000"]), timeout = "300ms", confirm = 1)
check("garbles", probe = command("printf '\\377\\376\\001\\033[31m'; exit 3"), confirm = 1)
check("leaves-children", probe = command("sleep 1007 & exit 0"), confirm = 1)
"#,
    );
    let began = Instant::now();
    let report = site.run(Doing::Look).await.report;
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(
        words(&report),
        "hangs fail, garbles fail, leaves-children pass"
    );
    assert!(common::ends("sleep 1007").await, "its children end with it");
    let seen = &report.checks[1].seen;
    assert!(!seen.chars().any(char::is_control), "{seen:?}");
}

#[tokio::test]
async fn who_is_stopped_leaves_nothing_running() {
    let site = Site::new(
        r#"
check("long", probe = command(["/bin/sh", "-c", "setsid sleep 1005 & sleep 0.2; touch {dir}/began; sleep 1003; true"]), timeout = "60s")
"#,
    );
    let began = site.path("began");
    let stop = async move {
        while !began.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let ended = site.run_until(Doing::Look, stop).await;
    assert!(ended.stopped);
    assert_eq!(words(&ended.report), "long unknown", "nothing was learnt");
    assert!(common::ends("sleep 1003").await);
    assert!(
        common::ends("sleep 1005").await,
        "it left the group, and does not get away"
    );
}

#[tokio::test]
async fn two_runs_at_once_fix_a_resource_once() {
    let site = Site::new(
        r#"
check("counted", probe = file("{dir}/made"), fix = run("echo x >> {dir}/count; sleep 0.3; touch {dir}/made", unless = ["/usr/bin/test", "-e", "{dir}/made"]), confirm = 1, settle = "5s")
"#,
    );
    let (one, two) = tokio::join!(site.run(Doing::Repair), site.run(Doing::Repair));
    assert_eq!(words(&one.report), "counted pass");
    assert_eq!(words(&two.report), "counted pass");
    assert_eq!(fs::read_to_string(site.path("count")).unwrap(), "x\n");
}

#[tokio::test]
async fn a_watched_file_is_repaired_when_it_changes() {
    let site = Site::new(
        r#"
check("kept", fix = file("{dir}/kept", content = "right\n"), confirm = 1, every = "1h")
"#,
    );
    let path = site.path("kept");
    let stop = async move {
        let right = || fs::read_to_string(&path).is_ok_and(|text| text == "right\n");
        for round in 0..4 {
            while !right() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // Until the check has settled: a change before that would count for the same attempt.
            tokio::time::sleep(Duration::from_millis(600)).await;
            match round {
                0 => fs::write(&path, "wrong\n").unwrap(),
                1 => fs::remove_file(&path).unwrap(),
                2 => fs::rename(path.with_extension("new"), &path)
                    .unwrap_or_else(|_| fs::write(&path, "").unwrap()),
                _ => {}
            }
        }
    };
    let bounded = tokio::time::timeout(Duration::from_secs(30), site.watch(Doing::Repair, stop));
    let ended = bounded.await.expect("it was repaired each time");
    assert_eq!(ended.report.checks[0].fixes, 4);
}

#[tokio::test]
async fn a_check_that_flakes_from_run_to_run_repairs_nothing() {
    // Every other look fails, until a file says that all do.
    let site = Site::new(
        r#"
check("shaky", probe = command("n=$(cat {dir}/n); echo $((n + 1)) > {dir}/n; test ! -e {dir}/broken -a $((n % 2)) -eq 1"), fix = run("touch {dir}/repaired", unless = ["/bin/false"]), settle = "0s")
"#,
    );
    site.write("n", "0\n");
    for _ in 0..14 {
        let report = site.run_again(Doing::Repair).await.report;
        assert!(
            words(&report) == "shaky pass" || words(&report) == "shaky flaky",
            "{}",
            words(&report)
        );
    }
    assert_eq!(
        words(&site.run_again(Doing::Repair).await.report),
        "shaky flaky"
    );
    site.write("broken", "");
    let report = site.run_again(Doing::Repair).await.report;
    assert_eq!(words(&report), "shaky fail", "in quarantine it reports");
    assert!(!site.path("repaired").exists());
    // Without the memory it would have been believed.
    site.run(Doing::Repair).await;
    assert!(site.path("repaired").exists());
}

#[tokio::test]
async fn twenty_thousand_checks_and_a_chain_are_run() {
    let site = Site::new(
        r#"
check("n0", probe = value(1, want = 1))
"#,
    );
    let chosen = site.many(20_000, 2_000);
    let began = Instant::now();
    let report = site.run_chosen(&chosen, Doing::Look).await.report;
    assert_eq!(report.summary.count(homeostat_checks::Mark::Pass), 20_000);
    println!("20,000 checks in {:?}", began.elapsed());
}
