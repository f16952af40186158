//! The shop against a real server that is killed under it.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use support::{Process, Server, http, listening_shop, shop};

/// The load's first line in which at least `least` orders have been acknowledged.
fn wait_for_acknowledged(load: &Process, least: u64) -> u64 {
    load.wait_for("orders are acknowledged", |line| {
        let line: Value = serde_json::from_str(line).ok()?;
        let acknowledged = line["acknowledged"].as_u64()?;
        (acknowledged >= least).then_some(acknowledged)
    })
}

/// Exit status and the one line.
fn audit(args: &[&str]) -> (i32, String) {
    let (status, lines) = shop(&[&["orders-kept"], args].concat()).finish();
    (status.code().unwrap(), lines.join("\n"))
}

#[track_caller]
fn assert_audit(args: &[&str], status: i32, says: &str) {
    let (was, line) = audit(args);
    assert!(was == status && line.contains(says), "status {was}: {line}");
}

#[test]
fn no_order_is_lost_when_the_server_is_killed_under_the_shop() {
    let mut server = Server::start();
    let (log, state, url) = (server.path("log"), server.path("state"), server.path("url"));
    let (web, address) = listening_shop(&["web", "--db-file", &url]);
    let to_web = ["--to", &address, "--log", &log, "--state", &state];
    assert_audit(&to_web, 0, "no order has been acknowledged");

    let customers = [
        "load",
        "--to",
        &address,
        "--log",
        &log,
        "--connections",
        "4",
        "--rate",
        "200",
    ];
    let (load, control) = listening_shop(&customers);
    let before = wait_for_acknowledged(&load, 100);
    assert_eq!(http(&address, "GET /healthz", "").0, 200);
    assert_audit(&to_web, 0, "kept");

    server.kill();
    let (status, why) = http(&address, "GET /healthz", "");
    assert_eq!(status, 503, "{why}");
    // An audit that begins now waits for the server, like everybody else.
    let audit = shop(&[
        "orders-kept",
        "--db-file",
        &url,
        "--log",
        &log,
        "--state",
        &state,
    ]);
    server.restart();
    let (status, lines) = audit.finish();
    assert!(status.success(), "{lines:?}");
    wait_for_acknowledged(&load, before + 100);

    assert_eq!(http(&control, "POST /rate?per_second=0", "").0, 200);
    assert_eq!(http(&control, "POST /rate?per_second=fast", "").0, 400);
    let idle = load.wait_for("the load is idle", |line| {
        let line: Value = serde_json::from_str(line).ok()?;
        (line["rate"] == 0.0).then_some(line)
    });
    assert_eq!(idle["longest_pause_ms"], 0.0, "idle time is no pause");
    let report: Value = serde_json::from_str(&http(&control, "GET /report", "").1).unwrap();
    assert!(!report["gaps"].as_array().unwrap().is_empty(), "{report}");

    let (status, lines) = load.terminate();
    assert!(status.success());
    let report: Value = serde_json::from_str(lines.last().unwrap()).unwrap();
    let logged = std::fs::read_to_string(&log).unwrap().lines().count();
    assert_eq!(report["acknowledged"], logged);

    // A torn line is no order; a second look finds nothing new; nor does a full one.
    let torn = std::fs::read_to_string(&log).unwrap() + "1 1";
    std::fs::write(&log, torn).unwrap();
    assert_audit(&to_web, 0, &format!("kept: {logged} orders"));
    assert_audit(&to_web, 0, "(0 new)");
    assert_audit(
        &[&to_web[..], &["--full"]].concat(),
        0,
        &format!("({logged} new)"),
    );

    assert!(web.terminate().0.success());
    assert_audit(&to_web, 2, "connect");
}

#[test]
fn the_auditor_notices_orders_that_are_gone() {
    let server = Server::start();
    let (log, state, url) = (server.path("log"), server.path("state"), server.url());
    let load = shop(&[
        "load",
        "--sql",
        &url,
        "--log",
        &log,
        "--connections",
        "2",
        "--rate",
        "max",
        "--seconds",
        "1",
    ]);
    let (status, lines) = load.finish();
    assert!(status.success(), "{lines:?}");
    let report: Value = serde_json::from_str(lines.last().unwrap()).unwrap();
    assert_eq!(report["errors"], 0, "{report}");
    assert!(report["throughput"].as_f64().unwrap() > 0.0);

    let orders = std::fs::read_to_string(&log).unwrap();
    let orders: Vec<&str> = orders.lines().collect();
    let delete = |line: &str| {
        let (client, seq) = line.split_once(' ').unwrap();
        let statement = format!("DELETE FROM orders WHERE client = {client} AND seq = {seq}");
        server.execute(&statement);
    };
    let incremental = ["--sql", &url, "--log", &log, "--state", &state];
    assert_audit(&incremental, 0, "kept");

    // Among the newest, already verified: the incremental check sees it, and goes on seeing it.
    let newest = orders.last().unwrap();
    delete(newest);
    let complaint = format!("the first is `{newest}`");
    assert_audit(&incremental, 1, &complaint);
    assert_audit(&incremental, 1, &complaint);
    let insert = newest.replace(' ', ", ");
    server.execute(&format!(
        "INSERT INTO orders (client, seq, item) VALUES ({insert}, 'back')"
    ));
    assert_audit(&incremental, 0, "kept");

    // The very first: found by looking at everything.
    delete(orders[0]);
    let complaint = format!("the first is `{}`", orders[0]);
    assert_audit(&[&incremental[..], &["--full"]].concat(), 1, &complaint);
}

#[test]
fn the_web_service_places_an_order_once_and_refuses_nonsense() {
    let server = Server::start();
    let (_web, address) = listening_shop(&["web", "--db-file", &server.path("url")]);
    let order = r#"{"client": 1, "seq": 2, "item": "a teapot; DROP TABLE orders --'"}"#;
    for _ in 0..2 {
        let (status, body) = http(&address, "POST /orders", order);
        assert_eq!(
            (status, body.as_str()),
            (201, r#"{"placed":{"client":1,"seq":2}}"#)
        );
    }
    let (status, body) = http(&address, "GET /orders/count", "");
    assert_eq!((status, body.as_str()), (200, r#"{"orders":1}"#));
    let both = r#"{"orders": [{"client": 1, "seq": 2}, {"client": 1, "seq": 3}]}"#;
    let (status, body) = http(&address, "POST /orders/verify", both);
    assert_eq!(
        (status, body.as_str()),
        (200, r#"{"missing":[{"client":1,"seq":3}]}"#)
    );

    let long = format!(
        r#"{{"client": 1, "seq": 4, "item": "{}"}}"#,
        "x".repeat(201)
    );
    assert_eq!(http(&address, "POST /orders", &long).0, 400);
    assert_eq!(http(&address, "POST /orders", r#"{"client": -1}"#).0, 422);
}
