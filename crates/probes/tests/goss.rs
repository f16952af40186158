//! A goss file gets the verdicts that goss gives.
#![allow(clippy::unwrap_used)]

mod common;

use homeostat_model::library::Call;
use homeostat_probes::goss::{self, Skip};
use homeostat_probes::{Probe, Prober};
use homeostat_prodtest::Outcome;

const SAMPLE: &str = include_str!("goss/sample.yaml");

#[tokio::test]
async fn every_verdict_is_that_of_goss() {
    let prober = Prober::new();
    let mut wrong = Vec::new();
    let checks = goss::read(SAMPLE).unwrap();
    assert_eq!(checks.len(), 101);
    for check in checks {
        let line = SAMPLE.lines().nth(check.line - 1).unwrap();
        let expected = match line.rsplit_once(" # ").unwrap().1 {
            "pass" => Outcome::Passed,
            "fail" => Outcome::Failed,
            other => panic!("{other}"),
        };
        // Without dpkg there is nobody to ask.
        if check.call.kind.starts_with("package") && !std::path::Path::new("/usr/bin/dpkg").exists()
        {
            continue;
        }
        let probe = Probe::from_call(&check.call).unwrap();
        let seen = prober
            .run(&probe, check.timeout.unwrap_or(common::PATIENT))
            .await;
        if seen.outcome != expected {
            wrong.push(format!("{line}\n  {seen:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What was written as text is read again as JSON would be: the calls of a converted file are those that ran.
#[test]
fn a_converted_file_says_the_same() {
    let text = "
file:
  /etc/motd: {exists: true, mode: '0644', contents: [\"/^Wel\\\\w+/\", '!\"quoted\"']}
  /etc/old: {exists: false, title: gone, skip: true}
command:
  \"printf 'a\\tb'\": {exit-status: 0, stdout: {and: [{have-prefix: a}, {not: {contain-substring: c}}]}, timeout: 500}
http:
  https://example.org: {status: 200}
  http://example.org:8080/x?y=1: {status: {or: [200, 204]}, request-headers: ['Accept: text/html'], body: [ok], no-follow-redirects: true}
service:
  ssh: {enabled: true}
dns:
  'MX:example.org': {resolvable: true, server: 9.9.9.9, addrs: {consist-of: ['10 mail.example.org.']}}
package:
  a-package-with-a-very-long-name-indeed-that-does-not-fit-into-the-name-of-a-check: {installed: true, versions: ['1.2']}
user:
  Kim.One: {exists: true, groups: [ops]}
  kim-one: {exists: true}
";
    insta::assert_snapshot!(goss::to_starlark(text).unwrap());
}

#[test]
fn skipped_and_impossible_checks_stay_visible() {
    let text = "
http:
  https://example.org: {status: 200}
addr:
  udp://127.0.0.1:53: {reachable: true}
dns:
  CAA:example.org: {resolvable: true, server: 9.9.9.9}
service:
  ssh: {running: true, runlevels: ['3'], skip: true}
";
    let checks = goss::read(text).unwrap();
    let not_run = |call: &Call| call.kind == "not_run";
    assert!(checks.iter().all(|check| not_run(&check.call)));
    assert_eq!(checks[3].skip, Skip::Yes);
}

#[test]
fn errors_name_the_line() {
    let table = [
        "",
        "file:\n  /a:\n    exists: true\n    mode: [",
        "file:\n  /a: {exists: true}\n  /a: {exists: false}",
        "file:\n  /a:\n    exist: true",
        "file:\n  /a:\n    mode: '0644'",
        "file:\n  /a:\n    exists: yes",
        "file:\n  /a: {exists: true, filetype: folder}",
        "file:\n  /a:\n    exists: true\n    size: {bigger: 3}",
        "file:\n  /a:\n    exists: true\n    contents:\n    - \"/(/\"",
        "fille:\n  /a: {exists: true}",
        "gossfile:\n  other.yaml: {}",
        "file:\n  {{.Vars.path}}: {exists: true}",
        "port:\n  tcp:http: {listening: true}",
        "command:\n  true: {stdout: [a]}",
        "matching:\n  a: {content: 1}",
        "http:\n  example.org: {status: 200}",
        "a: &a [1]\nb: *c",
        "file: {}",
        "- file",
        "a: 1\n---\nb: 1",
    ];
    let lines = table.map(|text| goss::read(text).unwrap_err().to_string());
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn a_bomb_of_aliases_is_refused() {
    let mut text = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n".to_owned();
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        let list = vec![before; 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{list}]\n"));
    }
    assert_eq!(
        goss::read(&text).unwrap_err().message,
        "the file is too large"
    );
    let deep = format!("matching: {}", "[".repeat(100_000));
    assert!(goss::read(&deep).is_err());
}
