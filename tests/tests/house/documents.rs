//! Documents lead somewhere, name commands that exist, and say what the code says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::nothing;
use super::workspace::{files, read, root, shown};

#[test]
fn documents_lead_somewhere() {
    let mut wrong = Vec::new();
    for file in documents() {
        let text = fs::read_to_string(&file).unwrap();
        for link in links(&text) {
            if link.contains("://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() {
                file.clone()
            } else {
                file.parent().unwrap().join(path)
            };
            if !target.exists() {
                wrong.push(format!("{}: {link} is not there", shown(&file)));
            } else if !anchor.is_empty() && !anchors(&target).contains(anchor) {
                wrong.push(format!("{}: {link} has no such heading", shown(&file)));
            }
        }
    }
    let summary = read("docs/src/SUMMARY.md");
    for page in documents() {
        let name = page.file_name().unwrap().to_str().unwrap();
        let in_book = page.starts_with(root().join("docs/src")) && name != "SUMMARY.md";
        if in_book && !summary.contains(&format!("({name})")) {
            wrong.push(format!("{name} is not in SUMMARY.md"));
        }
    }
    nothing(wrong);
}

/// `make x` and `homeostat x` in a document are things that exist.
#[test]
fn documents_name_commands_that_exist() {
    let makefile = read("Makefile");
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter(|line| !line.starts_with(['\t', '#', '.']) && !line.contains(":="))
        .filter_map(|line| line.split_once(':'))
        .map(|(target, _)| target)
        .collect();
    let verbs = verbs();
    let mut wrong = Vec::new();
    for file in documents() {
        let text = fs::read_to_string(&file).unwrap();
        for (program, word) in commands(&text) {
            let known = match program {
                "make" => targets.contains(word.as_str()),
                _ => verbs.contains(&word),
            };
            if !known {
                wrong.push(format!("{}: {program} {word}", shown(&file)));
            }
        }
    }
    nothing(wrong);
}

#[test]
fn the_status_page_names_every_field() {
    let page = read("docs/src/status.md");
    let structs = [
        ("crates/controller/src/status.rs", "struct Status "),
        ("crates/controller/src/status.rs", "struct MachineStatus "),
        ("crates/controller/src/status.rs", "struct TaskStatus "),
        ("crates/controller/src/status.rs", "struct ServiceStatus "),
        ("crates/controller/src/checks.rs", "struct CheckView "),
        ("crates/sql/src/service/view.rs", "struct ClusterView "),
        ("crates/sql/src/service/view.rs", "struct MemberRow "),
    ];
    let mut wrong = Vec::new();
    for (file, name) in structs {
        let fields = fields(&read(file), name);
        assert!(!fields.is_empty(), "{file} has no {name}");
        for field in fields {
            if !page.contains(&format!("`{field}`")) {
                wrong.push(format!(
                    "{name}in {file}: `{field}` is not in docs/src/status.md"
                ));
            }
        }
    }
    nothing(wrong);
}

#[test]
fn the_cell_file_page_names_every_argument() {
    let page = read("docs/src/cell-file.md");
    let source = read("crates/cellfile/src/item.rs");
    let parameters = source.split("fn parameters").nth(1).unwrap();
    let parameters = parameters.split("fn positional").next().unwrap();
    let names: BTreeSet<&str> = parameters.split('"').skip(1).step_by(2).collect();
    assert!(names.contains("cold_wait"), "{names:?}");
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words: BTreeSet<&str> = page.split(|c| !is_word(c)).collect();
    let missing = names.iter().filter(|name| !words.contains(*name));
    nothing(
        missing
            .map(|name| format!("'{name}' is not in docs/src/cell-file.md"))
            .collect(),
    );
}

fn documents() -> Vec<PathBuf> {
    let found = files(&root(), "md");
    for name in [
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "docs/src/status.md",
    ] {
        assert!(found.contains(&root().join(name)), "{name} is not there");
    }
    found
}

/// The targets of `[text](target)`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("](").filter_map(|(at, _)| {
        let rest = &text[at + 2..];
        Some(&rest[..rest.find(')')?])
    })
}

/// The headings of a page as links name them.
fn anchors(page: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(page).unwrap_or_default();
    let headings = text.lines().filter_map(|line| line.strip_prefix('#'));
    let slug = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = kept
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(slug).collect()
}

/// `make x` and `homeostat x` where they are typed: in a code span, or at the beginning of a line of a block.
fn commands(text: &str) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let mut in_block = false;
    for line in text.lines() {
        if line.starts_with("```") {
            in_block = !in_block;
        }
        let typed: Vec<&str> = if in_block || line.starts_with("    ") {
            vec![line.trim_start_matches([' ', '$'])]
        } else {
            line.split('`').skip(1).step_by(2).collect()
        };
        for typed in typed {
            for program in ["make", "homeostat"] {
                let Some(rest) = typed
                    .strip_prefix(program)
                    .and_then(|rest| rest.strip_prefix(' '))
                else {
                    continue;
                };
                let word = rest
                    .split([' ', ','])
                    .find(|word| !word.is_empty() && !word.contains('='));
                let plain = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
                if let Some(word) = word.filter(plain).filter(|word| !word.starts_with('-')) {
                    found.push((program, word.to_owned()));
                }
            }
        }
    }
    found
}

/// What `homeostat` answers to: the verbs of people, and those it calls itself by.
fn verbs() -> BTreeSet<String> {
    let arguments = read("crates/cli/src/args.rs");
    let people = body(&arguments, "enum Verb ");
    let people = people
        .lines()
        .filter_map(|line| line.trim().split_once('('));
    let hidden = read("crates/cli/src/hidden.rs");
    let hidden = hidden
        .lines()
        .filter_map(|line| line.trim().strip_prefix("(\""));
    let hidden = hidden.filter_map(|line| line.split('"').next());
    let verbs: BTreeSet<String> = people
        .map(|(name, _)| name.to_lowercase())
        .chain(hidden.map(str::to_owned))
        .collect();
    assert!(
        verbs.contains("up") && verbs.contains("keeper"),
        "{verbs:?}"
    );
    verbs
}

/// The fields of a struct, as written.
fn fields(source: &str, name: &str) -> BTreeSet<String> {
    let lines = body(source, name).lines();
    let lines = lines.map(|line| line.trim().trim_start_matches("pub "));
    let fields = lines.filter(|line| !line.starts_with("//") && !line.starts_with('#'));
    let fields = fields.filter_map(|line| line.split_once(": "));
    fields.map(|(name, _)| name.to_owned()).collect()
}

/// What stands between the braces of an item, which ends at the first brace at the beginning of a line.
fn body<'a>(source: &'a str, head: &str) -> &'a str {
    let rest = source.split_once(head).map_or("", |(_, rest)| rest);
    rest.split("\n}").next().unwrap_or_default()
}

#[test]
fn links_and_commands_are_found() {
    let text = "see [a](b.md#c), `make up` and `homeostat why X`; make no mistake\n\n    $ homeostat --state D down\n";
    assert_eq!(links(text).collect::<Vec<_>>(), ["b.md#c"]);
    let found: BTreeMap<_, _> = commands(text).into_iter().collect();
    assert_eq!(
        found,
        BTreeMap::from([("make", "up".into()), ("homeostat", "why".into())])
    );
}
