//! A suite, ready to be run: every probe and fix resolved.

use std::time::Duration;

use homeostat_cellfile::{BadCall, CallUse, SiteCheck, SiteSpec};
use homeostat_model::library::{self, Call, Role};
use homeostat_model::{BadName, CheckName};
use homeostat_probes::{CallError, Fix, Probe, goss};
use homeostat_prodtest::{Check, FixPolicy, Repeatable, SuiteError};

use crate::proofs::{Found, ProofBook};

/// The longest that applying a fix may take. Packages are downloaded, services take their time to stop.
const FIX_TIMEOUT: Duration = Duration::from_secs(300);

/// Goss has no interval of its own; it waits ten seconds where a resource does not say otherwise.
const GOSS_EVERY: Duration = Duration::from_secs(10);
const GOSS_TIMEOUT: Duration = Duration::from_secs(10);

/// One check.
#[derive(Debug, Clone)]
pub struct Item {
    pub name: CheckName,
    pub probe: Probe,
    pub fix: Option<Fix>,
    /// As it was declared.
    pub fix_call: Option<Call>,
    /// Whether its fix may be applied again when it did not help.
    pub repeatable: Repeatable,
    pub after: Vec<CheckName>,
    pub owner: Option<String>,
    pub tags: Vec<String>,
    pub confirm: u32,
    pub settle: Duration,
    pub attempts: u32,
    pub every: Duration,
    pub timeout: Duration,
    /// What its probe weighs on: of one target only so many are looked at at once.
    pub target: Option<String>,
    /// A file whose change is worth a look.
    pub watched: Option<std::path::PathBuf>,
}

/// At least one check.
#[derive(Debug, Clone)]
pub struct Suite {
    pub items: Vec<Item>,
    /// Declared, and to be left out on purpose.
    pub skipped: Vec<CheckName>,
}

/// Why a suite cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum SuiteProblem {
    #[error("check {name}: {source}")]
    Call {
        name: CheckName,
        #[source]
        source: CallError,
    },
    #[error("check {name} has neither a probe nor a fix that brings one")]
    NothingToLookAt { name: CheckName },
    #[error("every check of the suite is to be skipped, so it asserts nothing")]
    AllSkipped,
    #[error(transparent)]
    Suite(#[from] SuiteError),
    #[error(transparent)]
    Goss(#[from] goss::GossError),
    #[error(transparent)]
    Name(#[from] BadName),
}

/// What `homeostat-cellfile` asks about each call while it still knows where it stands.
///
/// # Errors
/// [`BadCall`] with the argument that is wrong.
pub fn judge(call: &Call, call_use: CallUse) -> Result<(), BadCall> {
    let bad = |error: CallError| BadCall {
        argument: error.arg,
        problem: error.problem,
        hint: error.hint,
    };
    match call_use {
        CallUse::Probe => Probe::from_call(call).map(drop).map_err(bad),
        CallUse::Fix => Fix::from_call(call).map(drop).map_err(bad),
        CallUse::FixAndProbe => {
            let fix = Fix::from_call(call).map_err(bad)?;
            match fix.check() {
                Some(_) => Ok(()),
                None => Err(BadCall {
                    argument: None,
                    problem: format!("{} brings no check of its own", call.kind),
                    hint: Some("add 'probe', which sees whether it helped".to_owned()),
                }),
            }
        }
    }
}

/// A goss file, written in our language.
///
/// # Errors
/// When it is no plain goss file.
pub fn goss_to_site(text: &str) -> Result<String, goss::GossError> {
    goss::to_starlark(text)
}

impl Suite {
    /// # Errors
    /// [`SuiteProblem`] when a call cannot be carried out, which [`judge`] finds earlier and with its place.
    pub fn from_site(site: SiteSpec, proofs: &ProofBook) -> Result<Self, SuiteProblem> {
        let checks = site.checks.into_iter();
        let items: Result<Vec<Item>, SuiteProblem> =
            checks.map(|check| item(check, proofs)).collect();
        Self::new(items?, Vec::new())
    }

    /// A goss file: each resource a check by itself, believed at once, as goss does.
    ///
    /// # Errors
    /// [`SuiteProblem`] when it is none, or asserts nothing.
    pub fn from_goss(text: &str) -> Result<Self, SuiteProblem> {
        let (mut items, mut skipped) = (Vec::new(), Vec::new());
        for check in goss::read(text)? {
            let name = CheckName::new(check.name)?;
            if check.skip == goss::Skip::Yes {
                skipped.push(name);
                continue;
            }
            let call = |source| SuiteProblem::Call {
                name: name.clone(),
                source,
            };
            items.push(Item {
                probe: Probe::from_call(&check.call).map_err(call)?,
                target: target(&check.call),
                watched: watched(&check.call),
                fix: None,
                fix_call: None,
                repeatable: Repeatable::NotProved,
                after: Vec::new(),
                owner: None,
                tags: Vec::new(),
                confirm: 1,
                settle: Duration::ZERO,
                attempts: 1,
                every: GOSS_EVERY,
                timeout: check.timeout.unwrap_or(GOSS_TIMEOUT),
                name,
            });
        }
        Self::new(items, skipped)
    }

    /// # Errors
    /// [`SuiteProblem`] when there is nothing to be run, or the checks do not make a suite.
    pub fn new(items: Vec<Item>, skipped: Vec<CheckName>) -> Result<Self, SuiteProblem> {
        if items.is_empty() && !skipped.is_empty() {
            return Err(SuiteProblem::AllSkipped);
        }
        let suite = Self { items, skipped };
        homeostat_prodtest::Suite::new(suite.checks(|_| false))?;
        Ok(suite)
    }

    /// As the engine sees them; `fixes` says whose fixes may be applied.
    pub(crate) fn checks(&self, fixes: impl Fn(&Item) -> bool) -> Vec<Check> {
        let check = |item: &Item| Check {
            name: item.name.clone(),
            after: item.after.clone(),
            every: item.every,
            timeout: item.timeout,
            confirm: item.confirm,
            target: item.target.clone(),
            fix: item
                .fix
                .as_ref()
                .filter(|_| fixes(item))
                .map(|fix| FixPolicy {
                    resource: fix.resource(),
                    repeatable: item.repeatable,
                    attempts: item.attempts,
                    timeout: FIX_TIMEOUT,
                    settle: item.settle,
                }),
        };
        self.items.iter().map(check).collect()
    }
}

fn item(check: SiteCheck, proofs: &ProofBook) -> Result<Item, SuiteProblem> {
    let name = check.name;
    let call = |source| SuiteProblem::Call {
        name: name.clone(),
        source,
    };
    let fix = check
        .fix
        .as_ref()
        .map(Fix::from_call)
        .transpose()
        .map_err(call)?;
    let (probe, looked_at) = match (&check.probe, &fix) {
        (Some(probe), _) => (Probe::from_call(probe).map_err(call)?, Some(probe)),
        (None, Some(fix)) => match fix.check() {
            Some(probe) => (probe.clone(), check.fix.as_ref()),
            None => return Err(SuiteProblem::NothingToLookAt { name }),
        },
        (None, None) => return Err(SuiteProblem::NothingToLookAt { name }),
    };
    Ok(Item {
        target: looked_at.and_then(target),
        watched: looked_at.and_then(watched),
        repeatable: match (&check.fix, &fix) {
            (Some(call), Some(fix)) => repeatable(call, proofs.says(fix)),
            (None, _) | (_, None) => Repeatable::NotProved,
        },
        probe,
        fix,
        after: check.after,
        fix_call: check.fix,
        owner: check.owner,
        tags: check.tags,
        confirm: check.confirm,
        settle: check.settle,
        attempts: check.attempts,
        every: check.every,
        timeout: check.timeout,
        name,
    })
}

/// What is proved may be repeated. Without a proof: what says how things must be compares before it changes; what acts
/// does whatever it is told to, each time.
fn repeatable(call: &Call, found: Found) -> Repeatable {
    match (found, library::kind(&call.kind).map(|kind| kind.role)) {
        (Found::Proved, _) => Repeatable::Proved,
        (Found::Refuted, _) => Repeatable::NotProved,
        // Nobody knows what somebody's own program does.
        (Found::Unproved, Some(Role::State)) if call.kind != "program" => Repeatable::Proved,
        (Found::Unproved, Some(Role::State | Role::Probe | Role::Fix) | None) => {
            Repeatable::NotProved
        }
    }
}

/// Whom a probe asks: servers are counted one by one, what is on this machine is not.
pub(crate) fn target(call: &Call) -> Option<String> {
    let text = |name: &str| call.args.get(name).and_then(|value| value.as_str());
    match call.kind.as_str() {
        "tcp" | "grpc_health" => text("at").map(str::to_owned),
        "http" | "metric" | "sql" | "sql_replication" => {
            let url = text("url")?;
            let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
            let place = rest.split('/').next().unwrap_or(rest);
            Some(place.rsplit('@').next().unwrap_or(place).to_owned())
        }
        "dns" => Some(format!("dns {}", text("server").unwrap_or("system"))),
        _ => None,
    }
}

/// The path that a probe is about, if a change there is seen by the kernel.
pub(crate) fn watched(call: &Call) -> Option<std::path::PathBuf> {
    let path = call.args.get("path").and_then(|value| value.as_str())?;
    match call.kind.as_str() {
        "file" | "directory" | "symlink" | "absent" | "path" | "log" => Some(path.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_servers() {
        let of = |kind: &str, arg: &str, value: &str| {
            target(&Call {
                kind: kind.to_owned(),
                args: [(arg.to_owned(), value.into())].into(),
            })
        };
        assert_eq!(
            of("http", "url", "http://shop:80/a/b").as_deref(),
            Some("shop:80")
        );
        assert_eq!(
            of("sql", "url", "mysql://u:p@db:3306/x").as_deref(),
            Some("db:3306")
        );
        assert_eq!(of("tcp", "at", "db:3306").as_deref(), Some("db:3306"));
        assert_eq!(of("file", "path", "/etc/hosts"), None);
    }
}
