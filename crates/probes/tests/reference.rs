//! The reference for users is made from the table of kinds.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::path::Path;

use homeostat_model::library::{self, Presence, Role, Serves};

/// Set, this test writes the reference instead of comparing it.
const UPDATE: &str = "UPDATE_REFERENCE";

fn operators() -> String {
    let mut text = "| operator | beside it | holds when |\n|---|---|---|\n".to_owned();
    for operator in library::operators() {
        let doc = operator.doc.replace('|', "\\|");
        writeln!(
            text,
            "| `{}` | {} | {doc} |",
            operator.name, operator.operand
        )
        .unwrap();
    }
    text
}

fn kinds() -> String {
    let mut text = String::new();
    for kind in library::kinds() {
        let role = match kind.role {
            Role::Probe => "probe",
            Role::Fix => "fix",
            Role::State => "probe and fix",
        };
        writeln!(text, "### `{}`: {role}\n\n{}\n", kind.name, kind.summary).unwrap();
        text.push_str("| argument | | |\n|---|---|---|\n");
        for arg in kind.args {
            let mut what = arg.ty.words().to_owned();
            what.push_str(match arg.presence {
                Presence::Required => ", required",
                Presence::Optional => "",
            });
            what.push_str(match arg.serves {
                Serves::Both => "",
                Serves::Looking => "; probe only",
                Serves::Repairing => "; fix only",
            });
            writeln!(
                text,
                "| `{}` | {what} | {} |",
                arg.name,
                arg.doc.replace('|', "\\|")
            )
            .unwrap();
        }
        text.push('\n');
    }
    text.trim_end().to_owned() + "\n"
}

fn between(text: &str, name: &str, content: &str) -> String {
    let start = format!("<!-- {name} -->\n");
    let (before, rest) = text.split_once(&start).unwrap();
    let (_, after) = rest.split_once("<!-- end -->").unwrap();
    format!("{before}{start}\n{content}\n<!-- end -->{after}")
}

#[test]
fn the_reference_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src/library.md");
    let is = std::fs::read_to_string(&path).unwrap();
    let wanted = between(&between(&is, "operators", &operators()), "kinds", &kinds());
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, wanted).unwrap();
        return;
    }
    assert!(
        is == wanted,
        "docs/src/library.md is out of date: run this test with {UPDATE}=1"
    );
}
