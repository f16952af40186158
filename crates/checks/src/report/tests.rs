//! Every format, golden, over one run with every verdict and texts that try to break out of it.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use homeostat_prodtest::Rounds;

use super::*;
use crate::event::{Event, FixView, Reporter};
use crate::row::{Mark, Report, Row, Summary};

fn name(text: &str) -> CheckName {
    CheckName::new(text).unwrap()
}

fn row(text: &str, verdict: &str, expected: &str, seen: &str) -> Row {
    Row {
        verdict: Mark::ALL
            .into_iter()
            .find(|mark| mark.word() == verdict)
            .unwrap(),
        expected: expected.to_owned(),
        seen: seen.to_owned(),
        at: Some("2026-11-26T04:00:00.000Z".to_owned()),
        took_ms: 12.5,
        ..Row::skipped(name(text))
    }
}

fn report() -> Report {
    let nasty = "<a> & \"b\" \u{1}\n'c'";
    let mut gave_up = row("dns/config", "gave-up", "/etc/x is a file", nasty);
    gave_up.owner = Some("net \"team\"".to_owned());
    gave_up.fixes = 3;
    gave_up.fix_said = Some("wrote /etc/x".to_owned());
    let mut blocked = row("dns/answers", "blocked", "", "");
    blocked.blocked_by = vec![name("dns/config"), name("db")];
    blocked.after = vec![name("dns/config"), name("db")];
    blocked.at = None;
    let checks = vec![
        row("base", "pass", "it is there", "it is there"),
        row("db", "fail", "127.0.0.1:1 accepts a connection", "refused"),
        gave_up,
        blocked,
        row(
            "odd",
            "unknown",
            "",
            "could not be run: no file descriptor left",
        ),
        row("shaky", "flaky", "200", "200"),
        Row::skipped(name("later")),
    ];
    Report {
        summary: Summary::of(&checks),
        checks,
        took_ms: 1234.0,
    }
}

fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    write(&mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn terminal() {
    let text = written(|out| {
        let mut terminal = Terminal::new(out, Vec::new(), Colour::Plain, Rounds::One);
        terminal.event(&Event::Ended(&report())).unwrap();
    });
    insta::assert_snapshot!(text);
}

#[test]
fn what_happens_meanwhile_is_told_apart_from_what_was_found() {
    let check = name("accounts/kim");
    let fix = FixView {
        check: &check,
        summary: "user kim",
        attempt: 2,
    };
    let progress = written(|progress| {
        let mut out = Vec::new();
        let mut terminal = Terminal::new(&mut out, progress, Colour::Plain, Rounds::One);
        let drawn_in = [name("base")];
        let began = Event::Began {
            checks: 2,
            drawn_in: &drawn_in,
        };
        let ended = Event::FixEnded {
            fix,
            outcome: "changed",
            said: "added to group ops",
            took: Duration::from_millis(130),
        };
        for event in [began, Event::FixBegan(fix), ended] {
            terminal.event(&event).unwrap();
        }
        assert!(out.is_empty());
    });
    insta::assert_snapshot!(progress);
}

#[test]
fn json() {
    let text = written(|out| {
        Json::new(out, Rounds::One)
            .event(&Event::Ended(&report()))
            .unwrap();
    });
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["checks"].as_array().unwrap().len(), 7);
    insta::assert_snapshot!(serde_json::to_string_pretty(&document["checks"][2]).unwrap());
    let page = include_str!("../../../../docs/src/checks.md");
    for field in document["checks"][0]
        .as_object()
        .unwrap()
        .keys()
        .chain(document.as_object().unwrap().keys())
    {
        let named = page.contains(&format!("`{field}`")) || page.contains(&format!(".{field}`"));
        assert!(named, "docs/src/checks.md does not name {field}");
    }
}

#[test]
fn junit() {
    insta::assert_snapshot!(written(|out| {
        Junit::new(out).event(&Event::Ended(&report())).unwrap();
    }));
}

#[test]
fn tap() {
    insta::assert_snapshot!(written(|out| {
        Tap::new(out).event(&Event::Ended(&report())).unwrap();
    }));
}

#[test]
fn prometheus() {
    insta::assert_snapshot!(written(|out| {
        Prometheus::new(out)
            .event(&Event::Ended(&report()))
            .unwrap();
    }));
}
