//! Checks as text in the language of `site.star`.

use std::fmt::Write;

use homeostat_model::library;
use serde_json::Value;

use super::{GossCheck, Skip};

const HEADER: &str = "# Converted from a goss file.\n";

/// A call on one line is no longer than this.
const LONGEST_LINE: usize = 100;

pub(super) fn write(checks: &[GossCheck]) -> String {
    let mut text = HEADER.to_owned();
    for check in checks {
        text.push('\n');
        let check_text = one(check);
        match check.skip {
            Skip::No => text.push_str(&check_text),
            Skip::Yes => {
                text.push_str("# Skipped by the goss file:\n");
                for line in check_text.lines() {
                    // Writing to a string cannot fail.
                    let _ = writeln!(text, "# {line}");
                }
            }
        }
    }
    text
}

fn one(check: &GossCheck) -> String {
    let mut text = format!(
        "check(\n    {},\n    probe = {},\n",
        literal(&check.name.clone().into()),
        call(check)
    );
    if let Some(timeout) = check.timeout {
        let _ = writeln!(text, "    timeout = \"{}ms\",", timeout.as_millis());
    }
    text.push_str(")\n");
    text
}

/// The arguments in the order of the table, the first one by position.
fn call(check: &GossCheck) -> String {
    let call = &check.call;
    let known = library::kind(&call.kind).map_or(&[][..], |kind| kind.args);
    let given = known.iter().enumerate().filter_map(|(at, arg)| {
        let value = literal(call.args.get(arg.name)?);
        Some(if at == 0 {
            value
        } else {
            format!("{} = {value}", arg.name)
        })
    });
    let given: Vec<_> = given.collect();
    let line = format!("{}({})", call.kind, given.join(", "));
    if line.len() <= LONGEST_LINE {
        return line;
    }
    format!(
        "{}(\n        {},\n    )",
        call.kind,
        given.join(",\n        ")
    )
}

/// A value as Starlark.
fn literal(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => quoted(text),
        Value::Array(values) => {
            let values: Vec<_> = values.iter().map(literal).collect();
            format!("[{}]", values.join(", "))
        }
        Value::Object(entries) => {
            let entries = entries
                .iter()
                .map(|(key, value)| format!("{}: {}", quoted(key), literal(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
    }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
