//! What takes more than one item to be wrong: names that point nowhere, cycles, cells that cannot fit.
//!
//! After this a [`CellSpec`] is complete and consistent by itself, as the model promises to every other room.

mod checks;
mod fit;
pub(crate) mod graph;
mod templates;

use std::collections::BTreeMap;

use homeostat_model::{CellSpec, MachineName, ServiceKind, ServiceName, ServiceSpec};

use crate::declare::{ABOUT_CELL, Draft, Drafts, KindDraft, ServiceDraft};
use crate::error::{Problem, ProblemKind};
use crate::item::{Builder, Datum, Item};
use crate::nearest::nearest;
use crate::reader::Problems;

/// Every name that was declared, also by items that are wrong otherwise: a mistake in a job must not make every mention
/// of it look like another mistake.
pub(crate) struct Names<'a> {
    pub services: Vec<&'a str>,
    pub machines: Vec<&'a str>,
    pub packages: Vec<&'a str>,
    pub checks: Vec<&'a str>,
}

/// Checks the whole; answers the cell if nothing at all was found wrong, here or before.
pub(crate) fn resolve(
    file: &str,
    items: &[Item],
    drafts: Drafts<'_>,
    problems: &mut Problems<'_>,
) -> Option<CellSpec> {
    completeness(file, items, problems);
    duplicates(items, problems);
    let names = Names::of(items);
    let services: BTreeMap<&str, &ServiceDraft> = drafts
        .services
        .iter()
        .map(|draft| (draft.spec.name.as_str(), &draft.spec))
        .collect();
    for draft in &drafts.services {
        references(draft, &names, problems);
        templates::of_service(draft, &names, &services, problems);
    }
    needs_cycle(&drafts.services, problems);
    if drafts.machines.len() == names.machines.len() {
        fit::fit(&drafts, problems);
    }
    let checks = checks::checks(&drafts, items, &names, &services, problems);
    if !problems.found.is_empty() {
        return None;
    }
    let cell = drafts.cells.into_iter().next()?.spec;
    let service = |draft: Draft<'_, ServiceDraft>| ServiceSpec {
        owner: draft.spec.owner.unwrap_or_else(|| cell.name.to_string()),
        name: draft.spec.name,
        needs: draft.spec.needs,
        kind: match draft.spec.kind {
            KindDraft::Job(job) => ServiceKind::Job(job),
            KindDraft::Sql(sql) => ServiceKind::Sql(sql),
        },
    };
    Some(CellSpec {
        machines: drafts
            .machines
            .into_iter()
            .map(|draft| draft.spec)
            .collect(),
        packages: drafts
            .packages
            .into_iter()
            .map(|draft| draft.spec)
            .collect(),
        services: drafts.services.into_iter().map(service).collect(),
        checks,
        kind: cell.kind,
        name: cell.name,
    })
}

impl<'a> Names<'a> {
    fn of(items: &'a [Item]) -> Self {
        let of = |builders: &[Builder]| {
            let declared = items.iter().filter(|item| builders.contains(&item.builder));
            let mut names: Vec<&str> = declared.filter_map(name_of).collect();
            names.sort_unstable();
            names.dedup();
            names
        };
        Self {
            services: of(&[Builder::Job, Builder::SqlCluster]),
            machines: of(&[Builder::Machine]),
            packages: of(&[Builder::Package]),
            checks: of(&[Builder::Check]),
        }
    }
}

/// The hint for a name that does not exist.
pub(crate) fn did_you_mean(text: &str, known: &[&str], what: &str) -> String {
    match nearest(text, known.iter().copied()) {
        Some(near) => format!("did you mean '{near}'?"),
        None if known.is_empty() => format!("the file declares no {what}"),
        None if known.len() <= 8 => format!("the {what}s are {}", known.join(", ")),
        None => format!("the file declares {} {what}s", known.len()),
    }
}

fn name_of(item: &Item) -> Option<&str> {
    let name = item
        .arguments
        .iter()
        .find(|argument| argument.name == "name")?;
    match &name.value {
        Datum::Text(text) => Some(text),
        _ => None,
    }
}

fn completeness(file: &str, items: &[Item], problems: &mut Problems<'_>) {
    let count = |wanted: &[Builder]| {
        items
            .iter()
            .filter(|item| wanted.contains(&item.builder))
            .count()
    };
    let mut missing = |message: &str, hint: &str| {
        problems.found.push(Problem {
            hint: Some(hint.to_owned()),
            ..Problem::without_place(file, ProblemKind::Declared, message.to_owned())
        });
    };
    if count(&[Builder::Cell]) == 0 {
        missing(
            "there is no cell()",
            "begin with cell(name = \"…\", kind = \"sandbox\")",
        );
    }
    if count(&[Builder::Machine]) == 0 {
        missing("there is no machine()", "add machine(\"m1\")");
    }
    if count(&[Builder::Job, Builder::SqlCluster]) == 0 {
        missing("there is no service", "add a job() or a sql_cluster()");
    }
    for item in items
        .iter()
        .filter(|item| item.builder == Builder::Cell)
        .skip(1)
    {
        let span = problems.sources.head(item);
        problems.at(item, &span, "there is a second cell()".to_owned(), None);
    }
}

/// Services and machines share their names, because `about = "…"` of a check may mean either.
fn duplicates(items: &[Item], problems: &mut Problems<'_>) {
    let mut first: BTreeMap<(&str, &str), &Item> = BTreeMap::new();
    for item in items {
        let space = match item.builder {
            Builder::Machine | Builder::Job | Builder::SqlCluster => "machines and services",
            Builder::Package => "packages",
            Builder::Check => "checks",
            Builder::Cell
            | Builder::Tcp
            | Builder::Http
            | Builder::Sql
            | Builder::Command
            | Builder::Tasks
            | Builder::SiteCheck
            | Builder::Library(_) => continue,
        };
        let Some(name) = name_of(item) else { continue };
        if name == ABOUT_CELL && space == "machines and services" {
            let message = format!("the name '{ABOUT_CELL}' stands for the cell as a whole");
            problems.argument(item, "name", None, message, None);
        }
        match first.get(&(space, name)) {
            None => {
                first.insert((space, name), item);
            }
            Some(before) => {
                let place = problems.sources.place(&problems.sources.head(before));
                let message = format!(
                    "the name '{name}' is taken: {}() at {place}",
                    before.builder.name()
                );
                problems.argument(item, "name", None, message, None);
            }
        }
    }
}

/// What a service names: its package, and the services it needs.
fn references(draft: &Draft<'_, ServiceDraft>, names: &Names<'_>, problems: &mut Problems<'_>) {
    let service = &draft.spec;
    if let KindDraft::Job(job) = &service.kind {
        let package = job.task.package.as_str();
        if !names.packages.contains(&package) {
            let hint = did_you_mean(package, &names.packages, "package");
            let message = format!("unknown package '{package}' in '{}'", service.name);
            problems.argument(draft.item, "package", None, message, Some(hint));
        }
    }
    for need in &service.needs {
        if *need == service.name {
            let message = format!("'{need}' cannot need itself");
            problems.argument(draft.item, "needs", Some(need.as_str()), message, None);
        } else if !names.services.contains(&need.as_str()) {
            let hint = did_you_mean(need.as_str(), &names.services, "service");
            let message = format!(
                "unknown service '{need}' in the needs of '{}'",
                service.name
            );
            problems.argument(
                draft.item,
                "needs",
                Some(need.as_str()),
                message,
                Some(hint),
            );
        }
    }
}

fn needs_cycle(services: &[Draft<'_, ServiceDraft>], problems: &mut Problems<'_>) {
    let edges: Vec<(&str, Vec<&str>)> = services
        .iter()
        .map(|draft| {
            let others = draft
                .spec
                .needs
                .iter()
                .filter(|need| **need != draft.spec.name);
            (
                draft.spec.name.as_str(),
                others.map(ServiceName::as_str).collect(),
            )
        })
        .collect();
    let Some(cycle) = graph::cycle(&edges) else {
        return;
    };
    let Some(draft) = services
        .iter()
        .find(|draft| draft.spec.name.as_str() == cycle[0])
    else {
        return;
    };
    let message = format!("services need each other: {}", cycle.join(" -> "));
    let hint = "a service is turned up after all it needs; leave out the need that may come later"
        .to_owned();
    problems.argument(draft.item, "needs", Some(cycle[1]), message, Some(hint));
}

/// The names of the machines that could be read.
fn machine_names<'a>(drafts: &'a Drafts<'_>) -> Vec<&'a MachineName> {
    drafts
        .machines
        .iter()
        .map(|draft| &draft.spec.name)
        .collect()
}
