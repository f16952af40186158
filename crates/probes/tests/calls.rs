//! What is wrong with a declaration is found before anything runs, and the error names the argument.
#![allow(clippy::unwrap_used)]

mod common;

use common::call;
use homeostat_model::library::{self, ArgType, Call, Presence};
use homeostat_probes::{Fix, Probe};
use serde_json::{Value, json};

/// Something right for an argument, by its type; a few need more than that.
fn right(kind: &str, arg: &str, ty: ArgType) -> Value {
    match (kind, arg) {
        (_, "url") if kind.starts_with("sql") => json!("mysql://root:secret@127.0.0.1:3306/"),
        (_, "url") => json!("http://127.0.0.1:8080/x"),
        (_, "at") => json!("127.0.0.1:80"),
        (_, "path" | "state" | "dir" | "home") => json!(format!("/tmp/{arg}")),
        ("kernel_param", "name") => json!("net.ipv4.ip_forward"),
        (_, "mode") => json!("0644"),
        (_, "schedule") => json!("*/5 * * * *"),
        ("sql_grant", "on") => json!("shop.*"),
        ("path", "type") => json!("file"),
        ("dns", "type") => json!("MX"),
        ("dns", "server") => json!("127.0.0.53"),
        ("tcp", "local_address") => json!("127.0.0.1"),
        ("port", "protocol") => json!("tcp6"),
        (_, "privileges") => json!(["SELECT"]),
        (_, "sha256") => json!("00"),
        (_, "json") => json!({"a.b": 1}),
        (_, "owner" | "group" | "name" | "user" | "charset" | "collation") => json!("kim"),
        (_, "uid" | "gid") => json!(1000),
        _ => match ty {
            ArgType::Text => json!("text"),
            ArgType::Int => json!(7),
            ArgType::Float => json!(0.5),
            ArgType::Bool => json!(true),
            ArgType::Duration => json!("5s"),
            ArgType::Size => json!("1GiB"),
            ArgType::Texts => json!(["text"]),
            ArgType::Map => json!({"KEY": "value"}),
            ArgType::Matcher => json!("plain"),
            ArgType::Command => json!(["true"]),
            ArgType::Any => json!([1]),
        },
    }
}

fn wrong(ty: ArgType) -> Option<Value> {
    match ty {
        ArgType::Text | ArgType::Duration | ArgType::Size => Some(json!(true)),
        ArgType::Int | ArgType::Float | ArgType::Bool | ArgType::Map => Some(json!("text")),
        ArgType::Texts => Some(json!(["text", 1])),
        ArgType::Command => Some(json!([1])),
        ArgType::Matcher => Some(json!({"no_such_operator": 1})),
        ArgType::Any => None,
    }
}

/// The least that a kind needs.
fn least(kind: &library::Kind) -> Call {
    let required = kind
        .args
        .iter()
        .filter(|arg| arg.presence == Presence::Required);
    let args = required.map(|arg| (arg.name.to_owned(), right(kind.name, arg.name, arg.ty)));
    let mut call = Call {
        kind: kind.name.to_owned(),
        args: args.collect(),
    };
    // The one kind that would ask for nothing.
    if kind.name == "disk" {
        call.args.insert("free".to_owned(), json!("1GiB"));
    }
    call
}

/// Everything that is wrong with a call, in both of its roles.
fn errors(call: &Call) -> Vec<homeostat_probes::CallError> {
    let role = library::kind(&call.kind).unwrap().role;
    let probe = role.may_be_probe().then(|| Probe::from_call(call).err());
    let fix = role.may_be_fix().then(|| Fix::from_call(call).err());
    [probe, fix].into_iter().flatten().flatten().collect()
}

#[test]
fn every_kind_takes_what_its_table_says_and_names_what_is_wrong() {
    for kind in library::kinds() {
        assert_eq!(errors(&least(kind)), [], "{}", kind.name);
        for arg in kind.args {
            let mut good = least(kind);
            good.args
                .insert(arg.name.to_owned(), right(kind.name, arg.name, arg.ty));
            // Some need company: a password a user, a pair excludes itself.
            let companions = ["password", "resolves", "rows", "persist", "only_groups"];
            if !companions.contains(&arg.name) {
                let found: Vec<_> = errors(&good)
                    .into_iter()
                    .filter(|error| !error.problem.contains("can only be looked at"))
                    .collect();
                assert_eq!(found, [], "{} {}", kind.name, arg.name);
            }
            if let Some(wrong) = wrong(arg.ty) {
                let mut bad = least(kind);
                bad.args.insert(arg.name.to_owned(), wrong);
                let found = errors(&bad);
                assert!(
                    !found.is_empty(),
                    "{} {} takes anything",
                    kind.name,
                    arg.name
                );
                for error in found {
                    assert_eq!(error.arg.as_deref(), Some(arg.name), "{error}");
                }
            }
            if arg.presence == Presence::Required {
                let mut bad = least(kind);
                bad.args.remove(arg.name);
                for error in errors(&bad) {
                    assert_eq!(
                        (error.arg.as_deref(), error.problem.as_str()),
                        (Some(arg.name), "it is missing")
                    );
                    assert!(error.hint.is_some());
                }
            }
        }
        let mut odd = least(kind);
        odd.args.insert("no_such_argument".to_owned(), json!(1));
        assert!(
            errors(&odd)[0]
                .to_string()
                .contains("no_such_argument: there is no such argument")
        );
    }
}

#[test]
fn one_clear_error_for_each_mistake() {
    let table = [
        ("file", json!({"path": "etc/motd"})),
        ("file", json!({"path": "/a/../b"})),
        ("file", json!({"path": "/a", "mode": "rw-r--r--"})),
        (
            "file",
            json!({"path": "/a", "sha256": "00", "content": "x"}),
        ),
        ("absent", json!({"path": "/etc", "recursive": true})),
        (
            "path",
            json!({"path": "/a", "exists": false, "mode": "0644"}),
        ),
        ("port", json!({"port": 70000})),
        ("port", json!({"port": 80, "protocol": "sctp"})),
        ("tcp", json!({"at": "localhost"})),
        ("http", json!({"url": "https://example.org"})),
        ("http", json!({"url": "http://user:secret@example.org/"})),
        (
            "http",
            json!({"url": "http://h/", "request_headers": {"a b": "c"}}),
        ),
        ("dns", json!({"name": "a..b"})),
        ("dns", json!({"name": "a", "server": "dns.example.org"})),
        ("command", json!({"command": ""})),
        ("command", json!({"command": "x", "stdout": {"regex": "("}})),
        ("disk", json!({"path": "/"})),
        ("disk", json!({"path": "/", "free": "5 gigabytes"})),
        ("clock", json!({"within": "soon"})),
        ("sql", json!({"url": "postgres://root:secret@h/"})),
        ("sql", json!({"url": "mysql://h/", "want": 1, "rows": []})),
        (
            "sql_grant",
            json!({"url": "mysql://h/", "user": "a", "privileges": ["SELECT; DROP"], "on": "*.*"}),
        ),
        (
            "sql_grant",
            json!({"url": "mysql://h/", "user": "a", "privileges": ["SELECT"], "on": "shop"}),
        ),
        ("log", json!({"path": "/a", "pattern": "*", "state": "/b"})),
        ("user", json!({"name": "kim:x"})),
        ("user", json!({"name": "kim", "shell": {"prefix": "/bin"}})),
        ("user", json!({"name": "kim", "keys": ["a\nb"]})),
        ("user_absent", json!({"name": "root"})),
        (
            "kernel_param",
            json!({"name": "../../etc/passwd", "value": 1}),
        ),
        (
            "kernel_param",
            json!({"name": "vm.swappiness", "value": {"less": 5}}),
        ),
        (
            "cron",
            json!({"name": "a.b", "schedule": "@daily", "command": "x"}),
        ),
        (
            "cron",
            json!({"name": "a", "schedule": "every day", "command": "x"}),
        ),
        ("program", json!({"command": ["a\0b"]})),
        ("service", json!({"name": "-H evil"})),
        ("package", json!({"name": "--purge"})),
        ("value", json!({"value": 1})),
        ("fille", json!({})),
    ];
    let lines = table.map(|(kind, args)| {
        let call = call(kind, args);
        let probe = Probe::from_call(&call).err();
        let error = probe.unwrap_or_else(|| Fix::from_call(&call).unwrap_err());
        match error.hint {
            Some(ref hint) if hint.len() < 80 => format!("{error} ({hint})"),
            _ => error.to_string(),
        }
    });
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn a_role_is_kept() {
    let refused = |error: homeostat_probes::CallError| error.to_string();
    let tcp = call("tcp", json!({"at": "h:1"}));
    assert_eq!(
        refused(Fix::from_call(&tcp).unwrap_err()),
        "tcp: it is no fix"
    );
    let run = call("run", json!({"command": "x", "unless": "y"}));
    assert_eq!(
        refused(Probe::from_call(&run).unwrap_err()),
        "run: it is no probe"
    );
}
