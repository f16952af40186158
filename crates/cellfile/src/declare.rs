//! From noted calls to the model's types, one item at a time. What needs two items to be wrong is in [`crate::resolve`].
//!
//! The defaults of the language are here and in the modules below, each beside the argument that it is for.

mod check;
mod job;
mod settings;
mod sql;

use std::path::{Component, Path, PathBuf};

use homeostat_model::{
    Bytes, CellKind, CellName, CheckName, CheckTarget, JobSpec, MachineName, MachineSpec, MilliCpu,
    PackageName, PackageSource, PackageSpec, ProbeSpec, RackName, Resources, ServiceName, SqlSpec,
};

use crate::item::{Builder, Datum, Item};
use crate::reader::{Problems, Reader};

pub(crate) use check::{DEFAULT_CONFIRM, DEFAULT_EVERY, DEFAULT_TIMEOUT};

/// Something declared, with the call that declared it.
pub(crate) struct Draft<'a, T> {
    pub spec: T,
    pub item: &'a Item,
}

pub(crate) struct CellDraft {
    pub name: CellName,
    pub kind: CellKind,
}

pub(crate) struct ServiceDraft {
    pub name: ServiceName,
    pub owner: Option<String>,
    pub needs: Vec<ServiceName>,
    pub kind: KindDraft,
}

pub(crate) enum KindDraft {
    Job(JobSpec),
    Sql(SqlSpec),
}

pub(crate) struct CheckDraft {
    pub name: CheckName,
    /// As written; what it names is known only when everything was read.
    pub about: Option<String>,
    /// None when `after` was not given, which differs from an empty list.
    pub after: Option<Vec<CheckName>>,
    pub probe: ProbeDraft,
    pub every: std::time::Duration,
    pub timeout: std::time::Duration,
    pub confirm: u32,
}

/// A probe with the call that made it.
pub(crate) struct ProbeDraft {
    pub spec: ProbeSpec,
    /// The place of `at=` was left empty: it is the endpoint of what the check is about.
    pub at_endpoint_of_subject: bool,
    pub item: usize,
}

/// All that was declared and could be read.
#[derive(Default)]
pub(crate) struct Drafts<'a> {
    pub cells: Vec<Draft<'a, CellDraft>>,
    pub machines: Vec<Draft<'a, MachineSpec>>,
    pub packages: Vec<Draft<'a, PackageSpec>>,
    pub services: Vec<Draft<'a, ServiceDraft>>,
    pub checks: Vec<Draft<'a, CheckDraft>>,
}

/// Reads every item. `folder` is the absolute folder of the cell file.
pub(crate) fn declare<'a>(
    items: &'a [Item],
    folder: &Path,
    problems: &mut Problems<'_>,
) -> Drafts<'a> {
    let mut drafts = Drafts::default();
    for item in items {
        let reader = Reader::new(item, problems);
        match item.builder {
            Builder::Cell => push(&mut drafts.cells, item, cell(reader)),
            Builder::Machine => push(&mut drafts.machines, item, machine(reader)),
            Builder::Package => push(&mut drafts.packages, item, package(reader, folder)),
            Builder::Job => push(&mut drafts.services, item, job::job(reader)),
            Builder::SqlCluster => push(&mut drafts.services, item, sql::sql_cluster(reader)),
            Builder::Check => push(&mut drafts.checks, item, check::check(reader, items)),
            // Read by the check that uses it.
            Builder::Tcp | Builder::Http | Builder::Sql | Builder::Command | Builder::Tasks => {}
            // No functions of a cell file.
            Builder::SiteCheck | Builder::Library(_) => {}
        }
    }
    unused_probes(items, problems);
    drafts
}

fn push<'a, T>(drafts: &mut Vec<Draft<'a, T>>, item: &'a Item, spec: Option<T>) {
    drafts.extend(spec.map(|spec| Draft { spec, item }));
}

fn unused_probes(items: &[Item], problems: &mut Problems<'_>) {
    let used: Vec<usize> = items
        .iter()
        .flat_map(|item| &item.arguments)
        .filter_map(|argument| match argument.value {
            Datum::Probe(index) => Some(index),
            _ => None,
        })
        .collect();
    for (index, item) in items.iter().enumerate() {
        if item.builder.is_probe() && !used.contains(&index) {
            let builder = item.builder.name();
            let message = format!("this {builder}() is a probe that no check uses");
            let hint = format!("give it to a check: check(\"…\", probe = {builder}(…))");
            let span = problems.sources.head(item);
            problems.at(item, &span, message, Some(hint));
        }
    }
}

/// The kind is `production` unless said otherwise: in a sandbox faults may be injected on purpose.
fn cell(mut reader: Reader<'_, '_, '_>) -> Option<CellDraft> {
    let name = reader.required_name("name");
    let kinds = [
        ("sandbox", CellKind::Sandbox),
        ("production", CellKind::Production),
    ];
    let kind = reader.word("kind", &kinds).unwrap_or(CellKind::Production);
    Some(CellDraft { name: name?, kind })
}

/// A machine without a rack is a failure domain of its own.
fn machine(mut reader: Reader<'_, '_, '_>) -> Option<MachineSpec> {
    let name: Option<MachineName> = reader.required_name("name");
    let rack: Option<RackName> = reader.name("rack");
    let capacity = resources(
        &mut reader,
        Resources {
            cpu: MilliCpu(4000),
            memory: Bytes::mib(8 * 1024),
        },
    );
    let name = name?;
    let rack = match rack {
        Some(rack) => rack,
        None => reader.parse_name("name", name.as_str())?,
    };
    Some(MachineSpec {
        name,
        rack,
        capacity,
    })
}

fn resources(reader: &mut Reader<'_, '_, '_>, default: Resources) -> Resources {
    Resources {
        cpu: reader.cpu("cpu").unwrap_or(default.cpu),
        memory: reader.bytes("memory").unwrap_or(default.memory),
    }
}

fn package(mut reader: Reader<'_, '_, '_>, folder: &Path) -> Option<PackageSpec> {
    let name: Option<PackageName> = reader.required_name("name");
    let version = reader.text("version").unwrap_or("local").to_owned();
    let source = match (reader.given("path"), reader.given("host")) {
        (None, None) => {
            let message = "package() needs 'path' or 'host'".to_owned();
            let hint = "'path' is a file or folder to copy, 'host' a program of the machine, used where it is";
            reader.bad_with_hint("name", None, message, hint.to_owned());
            None
        }
        (Some(_), Some(_)) => {
            reader.bad(
                "host",
                None,
                "package() takes 'path' or 'host', not both".to_owned(),
            );
            None
        }
        (None, Some(_)) => {
            let path = reader.text("host")?;
            if !Path::new(path).is_absolute() {
                let message = format!("'host' must be an absolute path, not '{path}'");
                reader.bad("host", None, message);
            }
            Some(PackageSource::Host { path: path.into() })
        }
        (Some(Datum::Text(path)), None) => {
            Some(vec![path.as_str()]).map(|paths| beside(folder, &paths))
        }
        (Some(_), None) => {
            let paths = reader.texts("path")?;
            if paths.is_empty() {
                reader.bad("path", None, "'path' names nothing".to_owned());
            }
            Some(beside(folder, &paths))
        }
    };
    Some(PackageSpec {
        name: name?,
        version,
        source: source?,
    })
}

fn beside(folder: &Path, paths: &[&str]) -> PackageSource {
    let candidates = paths.iter().map(|path| join(folder, Path::new(path)));
    PackageSource::Path {
        candidates: candidates.collect(),
    }
}

/// Joins, and takes leading `..` off against the folder, which is free of symbolic links. A later `..` stays: what it
/// means depends on links that may not exist yet.
fn join(folder: &Path, path: &Path) -> PathBuf {
    let mut joined = folder.to_owned();
    let mut parts = path.components().peekable();
    while let Some(part) =
        parts.next_if(|part| matches!(part, Component::ParentDir | Component::CurDir))
    {
        if part == Component::ParentDir {
            joined.pop();
        }
    }
    joined.join(parts.collect::<PathBuf>())
}

/// The name under which a check is about the cell as a whole.
pub(crate) const ABOUT_CELL: &str = "cell";

/// What a check is about, by the name that was written.
pub(crate) fn target(
    text: &str,
    services: &[&ServiceName],
    machines: &[&MachineName],
) -> Option<CheckTarget> {
    if text == ABOUT_CELL {
        return Some(CheckTarget::Cell);
    }
    if let Some(service) = services.iter().find(|name| name.as_str() == text) {
        return Some(CheckTarget::Service((*service).clone()));
    }
    let machine = machines.iter().find(|name| name.as_str() == text)?;
    Some(CheckTarget::Machine((*machine).clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_to_the_folder() {
        let folder = Path::new("/cells/examples/shop");
        for (path, joined) in [
            ("../../target/release/shop", "/cells/target/release/shop"),
            ("./bin/shop", "/cells/examples/shop/bin/shop"),
            ("bin/../shop", "/cells/examples/shop/bin/../shop"),
            ("/opt/shop", "/opt/shop"),
        ] {
            assert_eq!(join(folder, Path::new(path)), Path::new(joined));
        }
    }
}
