//! Checks: what they are about, what they come after, what their probes name, and the one that every service has.

use std::collections::{BTreeMap, BTreeSet};

use homeostat_model::{
    CheckName, CheckSpec, CheckTarget, MachineName, PackageName, ProbeSpec, ServiceName,
};

use super::templates::{self, Context, Place};
use super::{Names, did_you_mean, graph, machine_names};
use crate::declare::{
    CheckDraft, DEFAULT_CONFIRM, DEFAULT_EVERY, DEFAULT_TIMEOUT, Draft, Drafts, KindDraft,
    ServiceDraft, target,
};
use crate::item::Item;
use crate::reader::Problems;

/// The part of the name of the check that every service gets.
const TASKS: &str = "tasks";

struct Looking<'a, 'p, 's> {
    items: &'a [Item],
    names: &'a Names<'a>,
    services: &'a BTreeMap<&'a str, &'a ServiceDraft>,
    service_names: Vec<&'a ServiceName>,
    machine_names: Vec<&'a MachineName>,
    problems: &'p mut Problems<'s>,
}

/// All checks of the cell: `SERVICE/tasks` for each service that does not declare it, then the declared ones.
pub(super) fn checks<'a>(
    drafts: &'a Drafts<'a>,
    items: &'a [Item],
    names: &'a Names<'a>,
    services: &'a BTreeMap<&'a str, &'a ServiceDraft>,
    problems: &mut Problems<'_>,
) -> Vec<CheckSpec> {
    let mut all = Vec::new();
    for draft in &drafts.services {
        let Ok(name) = tasks_check(&draft.spec.name) else {
            continue;
        };
        if !names.checks.contains(&name.as_str()) {
            all.push(automatic(name, &draft.spec.name));
        }
    }
    let mut looking = Looking {
        items,
        names,
        services,
        service_names: drafts
            .services
            .iter()
            .map(|draft| &draft.spec.name)
            .collect(),
        machine_names: machine_names(drafts),
        problems,
    };
    let declared: Vec<Option<CheckSpec>> = drafts
        .checks
        .iter()
        .map(|draft| looking.check(draft))
        .collect();
    all.extend(declared.into_iter().flatten());
    looking.after(drafts, &all);
    all
}

fn tasks_check(service: &ServiceName) -> Result<CheckName, homeostat_model::BadName> {
    CheckName::new(format!("{service}/{TASKS}"))
}

fn automatic(name: CheckName, service: &ServiceName) -> CheckSpec {
    CheckSpec {
        name,
        about: CheckTarget::Service(service.clone()),
        after: Vec::new(),
        probe: ProbeSpec::Tasks {
            service: service.clone(),
        },
        every: DEFAULT_EVERY,
        timeout: DEFAULT_TIMEOUT,
        confirm: DEFAULT_CONFIRM,
    }
}

impl Looking<'_, '_, '_> {
    fn check(&mut self, draft: &Draft<'_, CheckDraft>) -> Option<CheckSpec> {
        let about = self.about(draft);
        let probe = self.probe(draft, about.as_ref());
        let check = &draft.spec;
        let about = about?;
        let after = match &check.after {
            Some(after) => after.clone(),
            None => self.default_after(&check.name, &about),
        };
        Some(CheckSpec {
            name: check.name.clone(),
            about,
            after,
            probe: probe?,
            every: check.every,
            timeout: check.timeout,
            confirm: check.confirm,
        })
    }

    /// What `about` names; when it is left out, what stands before the `/` in the name.
    fn about(&mut self, draft: &Draft<'_, CheckDraft>) -> Option<CheckTarget> {
        let check = &draft.spec;
        let (argument, text) = match &check.about {
            Some(text) => ("about", text.as_str()),
            None => (
                "name",
                check.name.as_str().split('/').next().unwrap_or_default(),
            ),
        };
        if let Some(target) = target(text, &self.service_names, &self.machine_names) {
            return Some(target);
        }
        let known: Vec<&str> = self
            .names
            .services
            .iter()
            .chain(&self.names.machines)
            .copied()
            .collect();
        if known.contains(&text) {
            // It exists, and is wrong otherwise.
            return None;
        }
        let (message, hint) = match &check.about {
            Some(_) => (
                format!("'about' names '{text}', which is no service and no machine"),
                did_you_mean(text, &known, "service or machine"),
            ),
            None => (
                format!("what is '{}' about?", check.name),
                "add about = a service, a machine or \"cell\"; or begin its name with one: \"shop-web/healthz\"".to_owned(),
            ),
        };
        self.problems
            .argument(draft.item, argument, None, message, Some(hint));
        None
    }

    /// A check about a service is not worth running while its tasks do not run.
    fn default_after(&self, name: &CheckName, about: &CheckTarget) -> Vec<CheckName> {
        match about {
            CheckTarget::Service(service) => tasks_check(service)
                .ok()
                .filter(|tasks| tasks != name)
                .into_iter()
                .collect(),
            CheckTarget::Machine(_) | CheckTarget::Cell => Vec::new(),
        }
    }

    fn probe(
        &mut self,
        draft: &Draft<'_, CheckDraft>,
        about: Option<&CheckTarget>,
    ) -> Option<ProbeSpec> {
        let draft_probe = &draft.spec.probe;
        let item = self.items.get(draft_probe.item)?;
        let mut probe = draft_probe.spec.clone();
        match &mut probe {
            ProbeSpec::Tcp { at } => self.address(item, at, draft, about),
            ProbeSpec::Http(http) => self.address(item, &mut http.at, draft, about),
            ProbeSpec::Sql { service, .. } => self.sql(item, service),
            ProbeSpec::Tasks { service } => {
                self.known_service(item, service);
            }
            ProbeSpec::Command {
                package,
                command,
                files,
            } => {
                self.package(item, package.as_ref());
                let has_package = package.is_some();
                for word in command {
                    self.template(item, word, Place::CheckCommand, "command", has_package);
                }
                for file in files {
                    self.template(item, &file.content, Place::CheckFile, "files", has_package);
                }
            }
        }
        Some(probe)
    }

    /// An address left empty is the endpoint of the service that the check is about.
    fn address(
        &mut self,
        item: &Item,
        at: &mut String,
        draft: &Draft<'_, CheckDraft>,
        about: Option<&CheckTarget>,
    ) {
        if draft.spec.probe.at_endpoint_of_subject {
            match about {
                Some(CheckTarget::Service(service)) => *at = format!("${{endpoint.{service}}}"),
                Some(CheckTarget::Machine(_) | CheckTarget::Cell) => {
                    let message = format!("{}() needs the argument 'at'", item.builder.name());
                    let hint = "only for a check about a service it may be left out".to_owned();
                    self.problems
                        .argument(item, "at", None, message, Some(hint));
                    return;
                }
                None => return,
            }
        }
        self.template(item, at, Place::CheckAddress, "at", false);
    }

    fn template(
        &mut self,
        item: &Item,
        text: &str,
        place: Place,
        argument: &'static str,
        has_package: bool,
    ) {
        let context = Context {
            item,
            place,
            argument,
            job: None,
            has_package,
            names: self.names,
            services: self.services,
        };
        templates::check(text, &context, self.problems);
    }

    fn known_service(&mut self, item: &Item, service: &ServiceName) -> bool {
        let known = self.names.services.contains(&service.as_str());
        if !known {
            let hint = did_you_mean(service.as_str(), &self.names.services, "service");
            let message = format!("unknown service '{service}'");
            self.problems
                .argument(item, "service", None, message, Some(hint));
        }
        known
    }

    fn sql(&mut self, item: &Item, service: &ServiceName) {
        if !self.known_service(item, service) {
            return;
        }
        if let Some(ServiceDraft {
            kind: KindDraft::Job(_),
            ..
        }) = self.services.get(service.as_str())
        {
            let message = format!("'{service}' is a job, not a SQL cluster");
            self.problems.argument(item, "service", None, message, None);
        }
    }

    fn package(&mut self, item: &Item, package: Option<&PackageName>) {
        if let Some(package) = package
            && !self.names.packages.contains(&package.as_str())
        {
            let hint = did_you_mean(package.as_str(), &self.names.packages, "package");
            let message = format!("unknown package '{package}'");
            self.problems
                .argument(item, "package", None, message, Some(hint));
        }
    }

    /// Unknown names in `after`, and cycles. `all` holds the checks with their defaults filled in.
    fn after(&mut self, drafts: &Drafts<'_>, all: &[CheckSpec]) {
        let automatic = all.iter().map(|check| check.name.as_str());
        let known: BTreeSet<&str> = self.names.checks.iter().copied().chain(automatic).collect();
        let known: Vec<&str> = known.into_iter().collect();
        for draft in &drafts.checks {
            for after in draft.spec.after.iter().flatten() {
                if !known.contains(&after.as_str()) {
                    let hint = did_you_mean(after.as_str(), &known, "check");
                    let message = format!(
                        "unknown check '{after}' in 'after' of '{}'",
                        draft.spec.name
                    );
                    self.problems.argument(
                        draft.item,
                        "after",
                        Some(after.as_str()),
                        message,
                        Some(hint),
                    );
                }
            }
        }
        let edges: Vec<(&str, Vec<&str>)> = all
            .iter()
            .map(|check| {
                (
                    check.name.as_str(),
                    check.after.iter().map(CheckName::as_str).collect(),
                )
            })
            .collect();
        let Some(cycle) = graph::cycle(&edges) else {
            return;
        };
        if let Some(draft) = drafts
            .checks
            .iter()
            .find(|draft| draft.spec.name.as_str() == cycle[0])
        {
            let message = format!("checks come after each other: {}", cycle.join(" -> "));
            let hint = "a check about a service comes after its 'tasks' check unless 'after' says otherwise".to_owned();
            self.problems
                .argument(draft.item, "after", Some(cycle[1]), message, Some(hint));
        }
    }
}
