//! `job()`: N equal tasks.

use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::time::Duration;

use homeostat_model::{
    Bytes, FileTemplate, JobSpec, MilliCpu, PackageName, PortName, Resources, RestartPolicy,
    ServiceName, TaskName, TaskTemplate, TaskUser,
};

use super::{KindDraft, ServiceDraft, resources};
use crate::item::Datum;
use crate::nearest::nearest;
use crate::reader::Reader;

const MOST_TASKS: i64 = 1000;
/// A file that a task is started with is configuration; data comes with its package.
const LARGEST_FILE: usize = 64 * 1024;

const DEFAULT_RESOURCES: Resources = Resources {
    cpu: MilliCpu(100),
    memory: Bytes::mib(64),
};
const DEFAULT_GRACE: Duration = Duration::from_secs(10);

pub(super) fn job(mut reader: Reader<'_, '_, '_>) -> Option<ServiceDraft> {
    let name: Option<ServiceName> = reader.required_name("name");
    let tasks = reader.whole("tasks", 1..=MOST_TASKS).unwrap_or(1);
    let package: Option<PackageName> = reader.required_name("package");
    let command = command(&mut reader);
    let env = env(&mut reader);
    let files = files(&mut reader);
    let ports = ports(&mut reader);
    let endpoint = endpoint(&mut reader, &ports);
    let needs = reader.names("needs").unwrap_or_default();
    let resources = resources(&mut reader, DEFAULT_RESOURCES);
    let user = user(&mut reader);
    let grace = reader
        .duration("grace", Duration::ZERO)
        .unwrap_or(DEFAULT_GRACE);
    let words = [
        ("always", RestartPolicy::Always),
        ("on-failure", RestartPolicy::OnFailure),
        ("never", RestartPolicy::Never),
    ];
    let restart = reader
        .word("restart", &words)
        .unwrap_or(RestartPolicy::Always);
    let owner = reader.text("owner").map(str::to_owned);
    let name = name?;
    fits_task_names(&mut reader, &name, tasks);
    let task = TaskTemplate {
        package: package?,
        command: command?,
        env,
        files,
        ports,
        resources,
        user,
        grace,
        restart,
    };
    Some(ServiceDraft {
        name,
        owner,
        needs,
        kind: KindDraft::Job(JobSpec {
            tasks,
            task,
            endpoint,
        }),
    })
}

/// The names of the tasks are made of the service's, and must be names too.
pub(super) fn fits_task_names(reader: &mut Reader<'_, '_, '_>, name: &ServiceName, tasks: u32) {
    if let Err(why) = TaskName::of(name, tasks.saturating_sub(1)) {
        reader.bad("name", None, format!("its tasks cannot be named: {why}"));
    }
}

pub(super) fn command(reader: &mut Reader<'_, '_, '_>) -> Option<Vec<String>> {
    if reader.given("command").is_none() {
        reader.missing("command");
    }
    let words = reader.texts("command")?;
    if words.first().is_none_or(|program| program.is_empty()) {
        let hint = "the program of the package is \"${package}\"".to_owned();
        reader.bad_with_hint("command", None, "'command' has no program".to_owned(), hint);
        return None;
    }
    for word in &words {
        if word.contains('\0') {
            reader.bad(
                "command",
                None,
                "'command' has a NUL character in it".to_owned(),
            );
        }
    }
    Some(words.into_iter().map(str::to_owned).collect())
}

fn env(reader: &mut Reader<'_, '_, '_>) -> BTreeMap<String, String> {
    let env = reader.text_dict("env");
    for (name, value) in &env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            let message = format!(
                "'{name}' cannot be the name of an environment variable, or its value has a NUL"
            );
            reader.bad("env", Some(name), message);
        }
    }
    env
}

pub(super) fn files(reader: &mut Reader<'_, '_, '_>) -> Vec<FileTemplate> {
    let mut files = Vec::new();
    for (path, content) in reader.text_dict("files") {
        let plain = Path::new(&path)
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if path.is_empty() || !plain {
            let message = format!("'{path}' must be a path within the task's folder");
            reader.bad("files", Some(&path), message);
        }
        if content.len() > LARGEST_FILE {
            let message = format!("the file '{path}' is larger than {LARGEST_FILE} bytes");
            reader.bad("files", Some(&path), message);
        }
        files.push(FileTemplate {
            path: path.into(),
            content,
        });
    }
    files
}

/// `["http"]`, or `{"http": 8080, "admin": None}`.
fn ports(reader: &mut Reader<'_, '_, '_>) -> BTreeMap<PortName, Option<u16>> {
    let mut ports = BTreeMap::new();
    if let Some(Datum::List(_)) = reader.given("ports") {
        for name in reader.names("ports").unwrap_or_default() {
            ports.insert(name, None);
        }
        return ports;
    }
    for (name, value) in reader.dict("ports").unwrap_or_default() {
        let number = match value {
            Datum::None => None,
            Datum::Int(number) => match u16::try_from(*number) {
                Ok(number) if number > 0 => Some(number),
                Ok(_) | Err(_) => {
                    let message = format!("port '{name}' must be from 1 to 65535, not {number}");
                    reader.bad("ports", Some(name), message);
                    None
                }
            },
            other => {
                let message = format!(
                    "port '{name}' must be a number or None, not {}",
                    other.kind()
                );
                reader.bad("ports", Some(name), message);
                None
            }
        };
        if let Some(name) = reader.parse_name("ports", name) {
            ports.insert(name, number);
        }
    }
    ports
}

fn endpoint(
    reader: &mut Reader<'_, '_, '_>,
    ports: &BTreeMap<PortName, Option<u16>>,
) -> Option<PortName> {
    let endpoint: PortName = reader.name("endpoint")?;
    if !ports.contains_key(&endpoint) {
        let message = format!("'endpoint' names the port '{endpoint}', which is not in 'ports'");
        let hint = match nearest(endpoint.as_str(), ports.keys().map(PortName::as_str)) {
            Some(near) => format!("did you mean '{near}'?"),
            None => format!("add ports = [\"{endpoint}\"]"),
        };
        reader.bad_with_hint("endpoint", None, message, hint);
    }
    Some(endpoint)
}

fn user(reader: &mut Reader<'_, '_, '_>) -> TaskUser {
    match reader.text("user") {
        None | Some("cell") => TaskUser::Cell,
        Some("root") => TaskUser::Root,
        Some(name) => {
            let allowed =
                |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.".contains(c);
            if name.is_empty() || name.len() > 32 || !name.chars().all(allowed) {
                reader.bad("user", None, format!("'{name}' is not the name of a user"));
            }
            TaskUser::Named(name.to_owned())
        }
    }
}
