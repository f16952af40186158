//! `homeostat check`: what a person types, reads, and what scripts go by.

use std::fs;
use std::process::Command;
use std::time::Duration;

use homeostat_tests::process;
use homeostat_tests::wait::wait_for;
use homeostat_tests::{Cell, Home, Ran, Running, begin, homeostat};
use rustix::process::Signal;

use crate::cells::plain;

const SOON: Duration = Duration::from_secs(30);

/// A folder with a `site.star`; `{dir}` in it is the folder.
struct Site {
    home: Home,
}

impl Site {
    fn new(text: &str) -> Self {
        let home = Home::new();
        let text = text.replace("{dir}", home.path().to_str().unwrap());
        home.write("site.star", &text);
        Self { home }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(homeostat());
        command
            .arg("check")
            .args(words)
            .current_dir(self.home.path());
        command
    }

    fn check(&self, words: &[&str]) -> Ran {
        Running::start(self.command(words)).finish(SOON)
    }
}

#[test]
fn the_exit_status_says_how_it_stands() {
    let _turn = begin();
    let passes = "check(\"ok\", probe = directory(\"{dir}\"))\n";
    let fails = "check(\"bad\", probe = file(\"{dir}/none\"), confirm = 1)\n";
    let blocked = "check(\"behind\", probe = directory(\"{dir}\"), after = [\"bad\"])\n";
    let unknown = "check(\"odd\", probe = not_run(\"no such thing here\"))\n";
    let gives_up = "check(\"lost\", probe = file(\"{dir}/none\"), fix = directory(\"{dir}/x\"), confirm = 1, attempts = 1, settle = \"0s\")\n";
    for (text, words, code) in [
        (passes.to_owned(), &["."][..], 0),
        ([passes, fails].concat(), &["."], 1),
        ([passes, fails, blocked].concat(), &["."], 4),
        ([passes, unknown].concat(), &["."], 6),
        ([passes, fails, unknown].concat(), &["."], 1),
        (gives_up.to_owned(), &[".", "--fix"], 5),
        (gives_up.to_owned(), &["."], 1),
    ] {
        let site = Site::new(&text);
        site.check(words).expect(code);
    }
}

#[test]
fn what_is_wrong_with_the_input_is_said_once() {
    let _turn = begin();
    let site = Site::new("check(\"a\", probe = fiel(\"/etc/hosts\"))\n");
    site.check(&["."])
        .one_error(2)
        .says("site.star:1:20")
        .says("did you mean 'file'?");
    let site = Site::new("check(\"a\", probe = file(\"etc/hosts\"))\n");
    site.check(&["."]).one_error(2).says("site.star:1:25");
    let site = Site::new("\n");
    site.check(&["."]).one_error(2).says("no check");
    let site = Site::new("check(\"web\", probe = directory(\"/\"))\n");
    site.check(&[".", "--only", "wbe"])
        .one_error(2)
        .says("did you mean 'web'?");
    site.check(&[".", "--tag", "net"])
        .one_error(2)
        .says("matches no check");
    site.check(&[".", "--set", "a=b"])
        .one_error(2)
        .says("no parameter 'a'");
    site.check(&["nowhere.star"])
        .one_error(2)
        .says("nowhere.star");
    site.check(&[".", "--watch", "--format", "tap"])
        .one_error(2);
    site.check(&[".", "--graph", "picture.png"])
        .one_error(2)
        .says(".svg");
}

#[test]
fn the_plan_is_what_the_repair_does() {
    let _turn = begin();
    let site = Site::new(
        "check(\"folder\", fix = directory(\"{dir}/a\", mode = \"0700\"))\nfile(\"{dir}/motd\", content = \"hello\\n\")\n",
    );
    let plan = site.check(&[".", "--plan"]).expect(1);
    assert!(!site.home.path().join("a").exists() && !site.home.path().join("motd").exists());
    let repair = site.check(&[".", "--fix"]).expect(0);
    let planned: Vec<&str> = plan
        .out
        .lines()
        .skip_while(|line| !line.contains("would apply"))
        .filter_map(|line| line.strip_prefix("    "))
        .collect();
    assert_eq!(planned.len(), 2, "{plan}");
    for step in planned {
        assert!(repair.err.contains(step), "'{step}' was planned: {repair}");
    }
    site.check(&[".", "--plan"])
        .expect(0)
        .prints("nothing to repair");
}

#[test]
fn programs_can_read_it() {
    let turn = begin();
    let site = Site::new(
        "check(\"db\", probe = tcp(\"127.0.0.1:1\"), confirm = 1)\ncheck(\"web/up\", probe = directory(\"/\"), after = [\"db\"])\n",
    );
    let json = site
        .check(&[".", "--format", "json", "--graph", "g.svg"])
        .expect(4);
    let document: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(document["checks"][1]["blocked_by"][0], "db");
    assert_eq!(document["summary"]["fail"], 1);
    let picture = fs::read_to_string(site.home.path().join("g.svg")).unwrap();
    assert!(picture.contains("1 root cause") && picture.ends_with("</svg>\n"));
    site.check(&[".", "--format", "tap"])
        .expect(4)
        .prints("1..2")
        .prints("not ok 2 - web/up");
    let verdict = "homeostat_check_verdict{check=\"db\",owner=\"\",verdict=\"fail\"} 1";
    site.check(&[".", "--format", "prometheus"])
        .expect(4)
        .prints(verdict);

    let junit = site.check(&[".", "--format", "junit"]).expect(4);
    site.home.write("junit.xml", &junit.out);
    let read = "import xml.etree.ElementTree as t; s = t.parse('junit.xml').getroot(); print([(c.get('name'), [e.tag for e in c]) for c in s.iter('testcase')])";
    let mut python = Command::new("python3");
    python.args(["-c", read]).current_dir(site.home.path());
    match python.output() {
        Ok(output) => {
            let read = String::from_utf8_lossy(&output.stdout);
            assert_eq!(
                read.trim(),
                "[('db', ['failure']), ('web/up', ['skipped'])]"
            );
        }
        Err(_) => turn.skip("JUnit was not read: there is no python3"),
    }
}

#[test]
fn a_goss_file_is_run_as_it_is() {
    let _turn = begin();
    let site = Site::new("");
    let goss = "file:\n  /etc/passwd:\n    exists: true\n    owner: root\ncommand:\n  echo hello:\n    exit-status: 0\n    stdout:\n    - hello\n";
    site.home.write("goss.yaml", goss);
    site.check(&["goss.yaml"])
        .expect(0)
        .prints("file/etc-passwd")
        .prints("2 pass");
    site.home
        .write("goss.yaml", &goss.replace("owner: root", "owner: nobody"));
    site.check(&["goss.yaml"]).expect(1).prints("nobody");
}

#[test]
fn whoever_stops_it_leaves_nothing_running() {
    let _turn = begin();
    let site = Site::new(
        "check(\"long\", probe = command(\"touch {dir}/began; sleep 1009; true\"), timeout = \"1m\")\n",
    );
    for watch in [&["."][..], &[".", "--watch"]] {
        let running = Running::start(site.command(watch));
        let mark = site.home.path().join("began");
        wait_for("the check to begin", SOON, || {
            if mark.exists() {
                Ok(())
            } else {
                Err("it has not".to_owned())
            }
        });
        running.signal(Signal::INT);
        running.finish(SOON).expect(130);
        wait_for("nothing to be left", SOON, || {
            // One that was killed takes a moment to be gone.
            match process::all()
                .iter()
                .find(|process| process.words() == ["sleep", "1009"])
            {
                None => Ok(()),
                Some(left) => Err(left.describe()),
            }
        });
        fs::remove_file(mark).unwrap();
    }
}

#[test]
fn what_is_not_idempotent_is_found_out() {
    let turn = begin();
    let site = Site::new(
        "file(\"/etc/homeostat-test-motd\", content = \"hello\\n\")\ncheck(\"grows\", fix = run(\"echo x >> /etc/homeostat-test-grows\", unless = \"test $(wc -l < /etc/homeostat-test-grows) -gt 1\"))\ncheck(\"called\", probe = directory(\"/\"), fix = http_call(\"http://127.0.0.1:1/\"))\n",
    );
    let prove = |only: &str| {
        let mut command = Command::new(homeostat());
        command
            .args(["prove", ".", "--only", only])
            .current_dir(site.home.path());
        command.env("XDG_STATE_HOME", site.home.path());
        Running::start(command).finish(Duration::from_secs(120))
    };
    prove("called").expect(6).prints("unproved");
    let file = prove("file/*");
    if file.out.contains("there is no sandbox") {
        turn.skip(&format!("no sandbox to be had: {}", file.out));
        return;
    }
    file.expect(0)
        .prints("proved   file /etc/homeostat-test-motd");
    prove("grows").expect(1).prints("refuted");
    assert!(!std::path::Path::new("/etc/homeostat-test-motd").exists());
    assert!(!std::path::Path::new("/etc/homeostat-test-grows").exists());
    let records = fs::read_dir(site.home.path().join("homeostat/proofs")).unwrap();
    let names = records.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    assert_eq!(names.filter(|name| name.ends_with(".json")).count(), 2);
}

#[test]
fn the_checks_of_cells_make_a_matrix() {
    let _turn = begin();
    let cell = Cell::up(&plain());
    cell.await_well(SOON);
    let state = cell.state().to_str().unwrap().to_owned();
    let matrix = |words: &[&str]| {
        let mut command = Command::new(homeostat());
        command.arg("check").args(words);
        Running::start(command).finish(SOON)
    };
    let both = ["--cell", &state, "--cell", &state];
    matrix(&both)
        .expect(0)
        .prints("SERVICE  plain   plain\n")
        .prints("web      pass 2  pass 2");
    cell.turn_down();
    matrix(&both[..2]).expect(6).prints("plain does not answer");
}

#[test]
fn a_suite_of_many_checks_is_run() {
    let _turn = begin();
    let site = Site::new(
        "for n in range(10000):\n    check(\"n%d\" % n, probe = value(1, want = 1), after = [\"n%d\" % (n - 1)] if n else [])\n",
    );
    site.check(&["."])
        .expect(0)
        .prints("10000 checks: 10000 pass");
}
