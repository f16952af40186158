//! `${…}` in commands, environments, files and probes: whether each variable will have a value when it is needed.
//!
//! A template is resolved on a machine when a task starts, long after the person who wrote it went away. So a variable
//! that could not be resolved there is refused here.

use std::collections::BTreeMap;

use homeostat_model::{BadTemplate, JobSpec, ServiceName, Template, Variable};

use super::{Names, did_you_mean};
use crate::declare::{Draft, KindDraft, ServiceDraft};
use crate::item::Item;
use crate::reader::Problems;

/// The secrets that a SQL cluster hands out: `dsn` is a `mysql://` address of the application's account at the endpoint
/// on the machine where it is resolved.
const SQL_SECRETS: [&str; 1] = ["dsn"];

/// Where a template stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    TaskCommand,
    TaskEnv,
    TaskFile,
    CheckCommand,
    CheckFile,
    CheckAddress,
}

/// All that decides whether a variable is allowed.
pub(super) struct Context<'a> {
    pub item: &'a Item,
    pub place: Place,
    /// The argument in which it stands.
    pub argument: &'static str,
    /// The job whose task it is; none for a check.
    pub job: Option<(&'a ServiceDraft, &'a JobSpec)>,
    /// Whether the command of a check has a package.
    pub has_package: bool,
    pub names: &'a Names<'a>,
    pub services: &'a BTreeMap<&'a str, &'a ServiceDraft>,
}

/// The templates of a service.
pub(super) fn of_service(
    draft: &Draft<'_, ServiceDraft>,
    names: &Names<'_>,
    services: &BTreeMap<&str, &ServiceDraft>,
    problems: &mut Problems<'_>,
) {
    let KindDraft::Job(job) = &draft.spec.kind else {
        return;
    };
    let context = |place, argument| Context {
        item: draft.item,
        place,
        argument,
        job: Some((&draft.spec, job)),
        has_package: true,
        names,
        services,
    };
    for word in &job.task.command {
        check(word, &context(Place::TaskCommand, "command"), problems);
    }
    for value in job.task.env.values() {
        check(value, &context(Place::TaskEnv, "env"), problems);
    }
    for file in &job.task.files {
        check(&file.content, &context(Place::TaskFile, "files"), problems);
    }
}

/// Checks one text.
pub(super) fn check(text: &str, context: &Context<'_>, problems: &mut Problems<'_>) {
    let template = match Template::parse(text) {
        Ok(template) => template,
        Err(why) => {
            let (part, hint) = match &why {
                BadTemplate::Unclosed => (
                    "${".to_owned(),
                    "write '$${' for the characters '${' themselves".to_owned(),
                ),
                BadTemplate::Unknown(variable) => {
                    (format!("${{{variable}}}"), near_variable(variable))
                }
                BadTemplate::Name { variable, .. } => (
                    format!("${{{variable}}}"),
                    "names are lower case".to_owned(),
                ),
            };
            problems.argument(
                context.item,
                context.argument,
                Some(&part),
                why.to_string(),
                Some(hint),
            );
            return;
        }
    };
    for variable in template.variables() {
        if let Err((message, hint)) = allowed(variable, context) {
            let text = variable.to_string();
            problems.argument(context.item, context.argument, Some(&text), message, hint);
        }
    }
}

fn near_variable(variable: &str) -> String {
    let head = variable.split('.').next().unwrap_or_default();
    let heads = Variable::FORMS.map(|form| form.split('.').next().unwrap_or_default());
    match crate::nearest::nearest(head, heads) {
        Some(near) if near != head => {
            let rest = &variable[head.len()..];
            format!("did you mean '${{{near}{rest}}}'?")
        }
        Some(_) | None => {
            let forms: Vec<String> = Variable::FORMS
                .iter()
                .map(|form| format!("${{{form}}}"))
                .collect();
            format!(
                "there are {}; write '$${{' for the characters '${{' themselves",
                forms.join(", ")
            )
        }
    }
}

type Refused = (String, Option<String>);

fn allowed(variable: &Variable, context: &Context<'_>) -> Result<(), Refused> {
    let in_address = context.place == Place::CheckAddress;
    let only_in_tasks = || {
        (
            format!("'{variable}' is of a task, and a check is none"),
            None,
        )
    };
    match variable {
        Variable::Endpoint(service) => endpoint(service, variable, context),
        Variable::Secret { service, name } => secret(service, name, variable, context),
        _ if in_address => Err((
            format!("'{variable}' has no meaning in 'at'"),
            Some("use ${endpoint.SERVICE}".to_owned()),
        )),
        Variable::Dir | Variable::Machine => Ok(()),
        Variable::Address | Variable::Task => context.job.map(|_| ()).ok_or_else(only_in_tasks),
        Variable::Package if context.has_package => Ok(()),
        Variable::Package => Err((
            format!("'{variable}' has no value: this command() has no 'package'"),
            Some("add package = \"…\"".to_owned()),
        )),
        Variable::Port(port) => {
            let (_, job) = context.job.ok_or_else(only_in_tasks)?;
            if job.task.ports.contains_key(port) {
                return Ok(());
            }
            let ports: Vec<&str> = job.task.ports.keys().map(|port| port.as_str()).collect();
            let hint = match crate::nearest::nearest(port.as_str(), ports.iter().copied()) {
                Some(near) => format!("did you mean '${{port.{near}}}'?"),
                None => format!("add ports = [\"{port}\"]"),
            };
            Err((
                format!("'{variable}': the port is not in 'ports'"),
                Some(hint),
            ))
        }
        Variable::DirOf(task) => {
            if context.place != Place::CheckCommand {
                return Err((
                    format!("'{variable}' is allowed only in the command of a check"),
                    None,
                ));
            }
            let tasks = task_names(context);
            if tasks.contains(&task.to_string()) {
                return Ok(());
            }
            let known: Vec<&str> = tasks.iter().map(String::as_str).collect();
            Err((
                format!("'{variable}': unknown task '{task}'"),
                Some(did_you_mean(task.as_str(), &known, "task")),
            ))
        }
    }
}

fn task_names(context: &Context<'_>) -> Vec<String> {
    let tasks = |service: &&ServiceDraft| match &service.kind {
        KindDraft::Job(job) => job.tasks,
        KindDraft::Sql(sql) => sql.members,
    };
    let services = context.services.values();
    services
        .flat_map(|service| (0..tasks(service)).map(|index| format!("{}-{index}", service.name)))
        .collect()
}

/// The service must exist and, for a task, be something it waits for; otherwise it may start before it can be reached.
fn reachable<'a>(
    service: &ServiceName,
    variable: &Variable,
    context: &'a Context<'_>,
) -> Result<Option<&'a ServiceDraft>, Refused> {
    if !context.names.services.contains(&service.as_str()) {
        let hint = did_you_mean(service.as_str(), &context.names.services, "service");
        return Err((
            format!("'{variable}': unknown service '{service}'"),
            Some(hint),
        ));
    }
    if let Some((own, _)) = context.job {
        if own.name == *service {
            let hint = "a task reaches itself at ${address}:${port.NAME}".to_owned();
            return Err((format!("'{variable}' is of '{service}' itself"), Some(hint)));
        }
        if !own.needs.contains(service) {
            let hint = format!("add '{service}' to its needs");
            return Err((
                format!("'{variable}': '{}' does not need '{service}'", own.name),
                Some(hint),
            ));
        }
    }
    Ok(context.services.get(service.as_str()).copied())
}

fn endpoint(
    service: &ServiceName,
    variable: &Variable,
    context: &Context<'_>,
) -> Result<(), Refused> {
    let Some(ServiceDraft {
        kind: KindDraft::Job(job),
        ..
    }) = reachable(service, variable, context)?
    else {
        return Ok(());
    };
    match job.endpoint {
        Some(_) => Ok(()),
        None => {
            let hint = format!("give '{service}' an endpoint: endpoint = \"PORT\"");
            Err((
                format!("'{variable}': '{service}' has no endpoint"),
                Some(hint),
            ))
        }
    }
}

fn secret(
    service: &ServiceName,
    name: &str,
    variable: &Variable,
    context: &Context<'_>,
) -> Result<(), Refused> {
    let where_ = match context.place {
        Place::TaskFile | Place::CheckFile => None,
        Place::TaskCommand | Place::CheckCommand => {
            Some("a command, where every user of the machine could read it")
        }
        Place::TaskEnv => Some("the environment, which is inherited and shows up in reports"),
        Place::CheckAddress => Some("an address"),
    };
    if let Some(where_) = where_ {
        let hint = format!(
            "put it into a file: files = {{\"secret\": \"{variable}\"}}, and name ${{dir}}/secret"
        );
        return Err((
            format!("the secret '{variable}' cannot stand in {where_}"),
            Some(hint),
        ));
    }
    match reachable(service, variable, context)?.map(|service| &service.kind) {
        None => Ok(()),
        Some(KindDraft::Sql(_)) if SQL_SECRETS.contains(&name) => Ok(()),
        Some(KindDraft::Sql(_)) => {
            let hint = format!("a SQL cluster has: {}", SQL_SECRETS.join(", "));
            Err((
                format!("'{variable}': '{service}' has no secret '{name}'"),
                Some(hint),
            ))
        }
        Some(KindDraft::Job(_)) => Err((format!("'{variable}': a job has no secrets"), None)),
    }
}
