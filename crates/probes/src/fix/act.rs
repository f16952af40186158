//! What a fix is, by kind: its arguments, what it locks, where it can be proved, and its plan.

use std::collections::BTreeMap;
use std::path::Path;

use hyper::Method;

use super::local::Local;
use super::step::{RunStep, Step};
use super::{FixError, Ground, sql};
use crate::call::{Args, CallError};
use crate::command::CommandProbe;
use crate::deadline::Deadline;
use crate::execute::{Program, RunAs, execute};
use crate::http::{HttpRequest, Redirects};
use crate::local::{Cancelled, blocking};
use crate::managed::{self, Manager, unit};
use crate::matcher::Matcher;
use crate::probe::Probe;
use crate::program::{Do, ProgramProbe, Verdict};
use crate::sql::SqlStateProbe;

#[derive(Debug, Clone)]
pub(super) enum Act {
    Local(Local),
    Package {
        name: String,
        installed: Installed,
    },
    Service {
        unit: String,
        running: Option<bool>,
        enabled: Option<bool>,
    },
    Restart {
        unit: String,
    },
    Sql(SqlStateProbe),
    Run {
        step: RunStep,
        unless: Vec<String>,
        resource: Option<String>,
    },
    Http {
        request: HttpRequest,
        status: Matcher,
        resource: Option<String>,
    },
    Program {
        program: ProgramProbe,
        argv: Vec<String>,
        resource: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Installed {
    Yes,
    No,
}

impl Act {
    pub(super) fn from_args(args: &Args<'_>) -> Result<Self, CallError> {
        if let Some(local) = Local::from_args(args)? {
            return Ok(Act::Local(local));
        }
        if let Some(state) = SqlStateProbe::from_args(args)? {
            return Ok(Act::Sql(state));
        }
        let resource = || {
            args.has("resource")
                .then(|| args.need("resource"))
                .transpose()
        };
        Ok(match args.kind.name {
            "package" => Act::Package {
                name: managed::package(args)?,
                installed: Installed::Yes,
            },
            "package_absent" => Act::Package {
                name: managed::package(args)?,
                installed: Installed::No,
            },
            "service" => Act::Service {
                unit: unit(args)?,
                running: managed::running(args),
                enabled: args.bool("enabled"),
            },
            "service_restarted" => Act::Restart { unit: unit(args)? },
            "run" => Act::Run {
                step: RunStep {
                    argv: args.command("command")?,
                    run_as: args.text("user").map(|user| RunAs::User(user.to_owned())),
                    dir: if args.has("dir") {
                        args.path("dir")?
                    } else {
                        "/".into()
                    },
                    env: args.strings("env")?,
                },
                unless: args.command("unless")?,
                resource: resource()?,
            },
            "http_call" => Act::Http {
                request: HttpRequest::from_args(args, Method::POST, Redirects::Show)?,
                status: args
                    .matcher("status")?
                    .unwrap_or_else(|| Matcher::between(200, 299)),
                resource: resource()?,
            },
            "program" => Act::Program {
                program: ProgramProbe::from_args(args)?,
                argv: args.command("command")?,
                resource: resource()?,
            },
            _ => return args.whole("it is no fix", "see docs/src/library.md"),
        })
    }

    /// The probe that belongs to it.
    pub(super) fn check(&self, args: &Args<'_>) -> Result<Option<Probe>, CallError> {
        match self {
            Act::Http { .. } => Ok(None),
            Act::Run { step, unless, .. } => Ok(Some(Probe::Command(CommandProbe {
                run_as: step.run_as.clone(),
                dir: step.dir.clone(),
                env: step.env.clone(),
                ..CommandProbe::new(unless.clone())
            }))),
            Act::Local(_)
            | Act::Package { .. }
            | Act::Service { .. }
            | Act::Restart { .. }
            | Act::Sql(_)
            | Act::Program { .. } => Probe::from_args(args).map(Some),
        }
    }

    /// To be raised for a kind whenever it does something else than before: its proofs lapse then.
    pub(super) fn implementation(&self) -> u32 {
        match self {
            Act::Local(_) => 1,
            Act::Package { .. } => 1,
            Act::Service { .. } | Act::Restart { .. } => 1,
            Act::Sql(_) => 1,
            Act::Run { .. } => 1,
            Act::Http { .. } => 1,
            Act::Program { .. } => 1,
        }
    }

    /// Programs whose content decides what happens.
    pub(super) fn files(&self) -> Vec<&Path> {
        let argvs: &[&[String]] = match self {
            Act::Run { step, unless, .. } => &[&step.argv, unless],
            Act::Program { argv, .. } => &[argv],
            Act::Local(_)
            | Act::Package { .. }
            | Act::Service { .. }
            | Act::Restart { .. }
            | Act::Sql(_)
            | Act::Http { .. } => &[],
        };
        let words = argvs.iter().flat_map(|argv| argv.iter()).map(Path::new);
        words
            .filter(|word| word.is_absolute() && word.is_file())
            .collect()
    }

    pub(super) fn proving_ground(&self) -> Ground {
        let nowhere = |reason| Ground::Nowhere { reason };
        match self {
            Act::Local(Local::Param { .. }) => {
                nowhere("kernel parameters are those of the whole machine")
            }
            Act::Local(_) | Act::Run { .. } | Act::Program { .. } => Ground::Sandbox,
            Act::Package { .. } => {
                nowhere("packages come over the network, which the sandbox has not")
            }
            Act::Service { .. } | Act::Restart { .. } => nowhere("no systemd runs in the sandbox"),
            Act::Sql(_) => Ground::SqlServer,
            Act::Http { .. } => nowhere("what it calls is not ours to copy"),
        }
    }

    /// Steps that put things out of order, so that there is something to repair; none where nobody can say how.
    pub(super) fn disturbance(&self) -> Vec<Step> {
        match self {
            Act::Local(local) => local.disturbance(),
            Act::Package { .. }
            | Act::Service { .. }
            | Act::Restart { .. }
            | Act::Sql(_)
            | Act::Run { .. }
            | Act::Http { .. }
            | Act::Program { .. } => Vec::new(),
        }
    }

    pub(super) fn resource(&self) -> String {
        match self {
            // Package managers lock the whole machine.
            Act::Package { .. } => "packages".to_owned(),
            Act::Service { unit, .. } | Act::Restart { unit } => format!("service {unit}"),
            Act::Sql(state) => format!("sql {}", state.url.shown()),
            Act::Run {
                resource: Some(resource),
                ..
            }
            | Act::Http {
                resource: Some(resource),
                ..
            }
            | Act::Program {
                resource: Some(resource),
                ..
            } => resource.clone(),
            Act::Run { .. } | Act::Program { .. } => format!("program {}", self.subject()),
            Act::Http { request, .. } => format!("http {}", request.addr()),
            Act::Local(local) => local.resource(),
        }
    }

    /// What it is about, for people.
    pub(super) fn subject(&self) -> String {
        match self {
            Act::Package { name, .. } => name.clone(),
            Act::Service { unit, .. } | Act::Restart { unit } => unit.clone(),
            Act::Sql(state) => state.expected(),
            Act::Run { step, .. } => crate::shown::head(step.argv.join(" ").as_bytes()),
            Act::Http { request, .. } => request.shown(),
            Act::Program { program, .. } => program.shown(),
            Act::Local(local) => local.subject(),
        }
    }

    pub(super) async fn plan(&self, within: Deadline) -> Result<Vec<Step>, FixError> {
        match self {
            Act::Local(local) => {
                let local = local.clone();
                blocking(within, move |_: &Cancelled| local.plan()).await?
            }
            Act::Package { name, installed } => package(name, *installed, within).await,
            Act::Service {
                unit,
                running,
                enabled,
            } => {
                let is = managed::service(unit, within).await?;
                let mut steps = Vec::new();
                if let Some(enabled) = enabled
                    && *enabled != is.is_enabled()
                {
                    let verb = if *enabled { "enable" } else { "disable" };
                    steps.push(RunStep::of(&["systemctl", verb, "--", unit]));
                }
                if let Some(running) = running
                    && *running != is.runs()
                {
                    let verb = if *running { "start" } else { "stop" };
                    steps.push(RunStep::of(&["systemctl", verb, "--", unit]));
                }
                Ok(steps)
            }
            // Always: what is wrong with it need not show in its state.
            Act::Restart { unit } => {
                managed::service(unit, within).await?;
                Ok(vec![RunStep::of(&["systemctl", "restart", "--", unit])])
            }
            Act::Sql(state) => sql::plan(state, within).await,
            Act::Run { step, unless, .. } => {
                let asked = Program {
                    run_as: step.run_as.as_ref(),
                    dir: &step.dir,
                    env: &step.env,
                    ..Program::new(unless)
                };
                let nothing_to_do = execute(&asked, within).await?.status.success();
                Ok(if nothing_to_do {
                    Vec::new()
                } else {
                    vec![Step::Run(step.clone())]
                })
            }
            Act::Http {
                request, status, ..
            } => {
                let (request, status) = (request.clone(), status.clone());
                Ok(vec![Step::Http { request, status }])
            }
            Act::Program { program, .. } => {
                let answer = program.ask(Do::Plan, within).await?;
                match answer.verdict {
                    Verdict::Pass => Ok(Vec::new()),
                    Verdict::Fail => Ok(vec![Step::Program {
                        program: program.clone(),
                        plan: answer.steps,
                    }]),
                    Verdict::NotRun => Err(FixError::Other(answer.shown())),
                    other @ (Verdict::Changed | Verdict::Unchanged) => {
                        Err(crate::program::ProgramError::NoAnswer(other).into())
                    }
                }
            }
        }
    }
}

async fn package(
    name: &str,
    installed: Installed,
    within: Deadline,
) -> Result<Vec<Step>, FixError> {
    let manager = Manager::of_this_machine()?;
    let is_there = !manager.versions(name, within).await?.is_empty();
    let argv = match (installed, is_there) {
        (Installed::Yes, true) | (Installed::No, false) => return Ok(Vec::new()),
        (Installed::Yes, false) => manager.install(name),
        (Installed::No, true) => manager.remove(name),
    };
    // Nobody is there to answer questions.
    let env = BTreeMap::from([("DEBIAN_FRONTEND".to_owned(), "noninteractive".to_owned())]);
    Ok(vec![Step::Run(RunStep {
        env,
        ..RunStep::new(argv)
    })])
}
