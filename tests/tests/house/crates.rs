//! Which crate may use which, and how their files look.

use std::fs;

use super::nothing;
use super::workspace::{Package, packages, read, root, rust_files, shown};

/// The crates from the ground up. The same table, with words, is in ARCHITECTURE.md.
const FLOORS: [&[&str]; 6] = [
    &["model"],
    &[
        "placement",
        "prodtest",
        "decider",
        "journal",
        "cellfile",
        "api",
        "store",
    ],
    &[
        "probes",
        "checks",
        "supervisor",
        "sql",
        "ops",
        "turnup",
        "jobs",
    ],
    &["agent", "controller"],
    &["cell"],
    &["cli"],
];

/// Arrows within one floor, each with its reason in ARCHITECTURE.md.
const BESIDE: [(&str, &str); 3] = [
    ("sql", "supervisor"),
    ("turnup", "ops"),
    ("checks", "probes"),
];

/// Not part of the product: nothing of ours may use them.
const OUTSIDE: [&str; 3] = ["examples/shop", "tests", "bench"];

/// No IO, no clock, no async.
const PURE: [&str; 4] = ["placement", "prodtest", "decider", "journal"];

/// All that a pure crate may use: plain data, hashes of it, and (in simulators) seeded chance.
const PURE_USES: [&str; 7] = [
    "homeostat-model",
    "serde",
    "serde_json",
    "sha2",
    "thiserror",
    "rand",
    "rand_pcg",
];

/// What no source of a pure crate mentions. Clocks and unordered maps are in their clippy.toml.
const NOT_PURE: [&str; 8] = [
    "std::fs",
    "std::io",
    "std::net",
    "std::process",
    "std::thread",
    "std::env",
    "tokio",
    "async fn",
];

/// Dependencies that stay in one place, so that they can be replaced there.
const ONLY: [(&str, &[&str]); 3] = [
    ("starlark", &["crates/cellfile"]),
    ("redb", &["crates/store"]),
    (
        "mysql_async",
        &["crates/probes", "crates/sql", "examples/shop", "bench"],
    ),
];

/// What a crate does without, on purpose.
const WITHOUT: [(&str, &[&str]); 4] = [
    // Its memory is counted for every task of a cell.
    ("supervisor", &["tokio", "tonic", "homeostat-api"]),
    ("agent", &["homeostat-store", "homeostat-sql"]),
    ("cell", &["tokio", "tonic"]),
    // Driven through the contract and nothing else.
    ("jobs", &["homeostat-store", "homeostat-agent"]),
];

const LONGEST_FILE: usize = 600;

/// Files that may be longer, and why they are not cut up.
const LONG: [(&str, &str); 6] = [
    (
        "tests/tests/e2e/shop.rs",
        "every fault of the shop, one world and one way of looking at it",
    ),
    (
        "crates/sql/src/service/run.rs",
        "one loop that owns all state; a third of it are tests",
    ),
    (
        "crates/supervisor/tests/endpoint.rs",
        "one world of sockets, many short tests in it",
    ),
    (
        "crates/cellfile/tests/errors.rs",
        "golden output for each kind of mistake",
    ),
    (
        "crates/sql/tests/service/cell.rs",
        "a whole cell in one process, for the service's tests",
    ),
    (
        "crates/agent/src/agent.rs",
        "one loop, one place where wake-ups become actions",
    ),
];

#[test]
fn arrows_between_crates_point_down() {
    let mut wrong = Vec::new();
    for package in packages() {
        for dependency in package.ours() {
            let (Some(from), Some(to)) = (floor_of(&package), floor(&dependency)) else {
                if floor(&dependency).is_none() {
                    wrong.push(format!(
                        "{} uses {dependency}, which is no room",
                        package.folder
                    ));
                }
                continue;
            };
            let beside = BESIDE.contains(&(package.room(), dependency.as_str()));
            if to > from || (to == from && !beside) {
                wrong.push(format!(
                    "{} (floor {from}) uses {dependency} (floor {to})",
                    package.room()
                ));
            }
        }
        if package.folder == "examples/shop" && !package.ours().is_empty() {
            wrong
                .push("the example uses crates of ours; it has to know nothing of the cell".into());
        }
    }
    nothing(wrong);
}

#[test]
fn every_crate_has_its_floor_and_architecture_says_the_same() {
    let mut wrong = Vec::new();
    let text = read("ARCHITECTURE.md");
    for package in packages() {
        let known = floor_of(&package).is_some() || OUTSIDE.contains(&package.folder.as_str());
        if !known {
            wrong.push(format!("{} is on no floor of this test", package.folder));
        }
    }
    for (floor, rooms) in FLOORS.iter().enumerate() {
        for room in *rooms {
            let row = format!("| {floor} | [{room}](crates/{room}) |");
            if !text.contains(&row) {
                wrong.push(format!("ARCHITECTURE.md has no row `{row}`"));
            }
            if !root().join("crates").join(room).is_dir() {
                wrong.push(format!("there is no crates/{room}"));
            }
        }
    }
    let rows = text
        .lines()
        .filter(|line| line.contains("](crates/") && line.starts_with("| "));
    let rooms: usize = FLOORS.iter().map(|rooms| rooms.len()).sum();
    assert_eq!(rows.count(), rooms, "the code map has a row too many");
    nothing(wrong);
}

#[test]
fn pure_crates_stay_pure() {
    let mut wrong = Vec::new();
    for package in packages() {
        if !PURE.contains(&package.room()) {
            continue;
        }
        for (name, kind) in &package.uses {
            if kind == "normal" && !PURE_USES.contains(&name.as_str()) {
                wrong.push(format!("{} uses {name}", package.room()));
            }
        }
        if !root().join(&package.folder).join("clippy.toml").is_file() {
            wrong.push(format!("{} has no clippy.toml of its own", package.room()));
        }
        for file in rust_files(&root().join(&package.folder).join("src")) {
            for (number, line) in fs::read_to_string(&file).unwrap().lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                for word in NOT_PURE.iter().filter(|word| code.contains(**word)) {
                    wrong.push(format!("{}:{}: {word}", shown(&file), number + 1));
                }
            }
        }
    }
    nothing(wrong);
}

#[test]
fn dependencies_stay_where_they_belong() {
    let mut wrong = Vec::new();
    for package in packages() {
        for (name, kind) in package.uses.iter().filter(|(_, kind)| kind != "dev") {
            for (only, folders) in ONLY.iter().filter(|(only, _)| only == name) {
                if !folders.contains(&package.folder.as_str()) {
                    wrong.push(format!("{} uses {only}", package.folder));
                }
            }
            for (_, without) in WITHOUT.iter().filter(|(room, _)| *room == package.room()) {
                if without.contains(&name.as_str()) {
                    wrong.push(format!("{} uses {name} ({kind})", package.folder));
                }
            }
        }
    }
    nothing(wrong);
}

#[test]
fn every_dependency_is_justified() {
    let manifest = read("Cargo.toml");
    let text = read("ARCHITECTURE.md");
    let section = manifest.split("[workspace.dependencies]").nth(1).unwrap();
    let names = section
        .lines()
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, _)| name)
        .filter(|name| !name.starts_with("homeostat-") && !name.starts_with('#'));
    let unsaid: Vec<String> = names
        .filter(|name| !text.contains(&format!("`{name}`")))
        .map(|name| format!("ARCHITECTURE.md does not say what {name} is for"))
        .collect();
    nothing(unsaid);
}

/// A module that nobody declares is not compiled: it is read, and wrong.
#[test]
fn no_source_file_is_dead() {
    let mut wrong = Vec::new();
    for package in packages() {
        let files = rust_files(&root().join(&package.folder).join("src"));
        let all: String = files
            .iter()
            .map(|file| fs::read_to_string(file).unwrap())
            .collect();
        for file in &files {
            let stem = file.file_stem().unwrap().to_str().unwrap();
            let name = match stem {
                "lib" | "main" => continue,
                "mod" => file
                    .parent()
                    .unwrap()
                    .file_name()
                    .unwrap()
                    .to_str()
                    .unwrap(),
                other => other,
            };
            if !all.contains(&format!("mod {name};")) {
                wrong.push(format!("{} is no module of its crate", shown(file)));
            }
        }
    }
    nothing(wrong);
}

#[test]
fn every_crate_says_what_it_is() {
    let mut wrong = Vec::new();
    for package in packages() {
        let source = root().join(&package.folder).join("src");
        let file = [source.join("lib.rs"), source.join("main.rs")]
            .into_iter()
            .find(|file| file.is_file())
            .unwrap();
        if !fs::read_to_string(&file).unwrap().starts_with("//!") {
            wrong.push(format!(
                "{} does not begin with what it is for",
                shown(&file)
            ));
        }
    }
    nothing(wrong);
}

#[test]
fn files_can_be_held_in_the_head() {
    let mut wrong = Vec::new();
    for package in packages() {
        for file in rust_files(&root().join(&package.folder)) {
            let lines = fs::read_to_string(&file).unwrap().lines().count();
            let name = shown(&file);
            if lines > LONGEST_FILE && !LONG.iter().any(|(long, _)| *long == name) {
                wrong.push(format!("{name} has {lines} lines"));
            }
        }
    }
    for (name, _) in LONG {
        if !root().join(name).is_file() {
            wrong.push(format!("{name} is excused and not there"));
        }
    }
    nothing(wrong);
}

/// Of a package of ours; none for what is outside of the product.
fn floor_of(package: &Package) -> Option<usize> {
    package.folder.strip_prefix("crates/").and_then(floor)
}

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}
