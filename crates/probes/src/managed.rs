//! What another program manages and is asked about: packages (dpkg, rpm, apk) and services (systemd).

use std::path::Path;

use crate::call::{Args, CallError};
use crate::deadline::Deadline;
use crate::execute::{ExecuteError, Finished, Program, execute};
use crate::local::Presence;
use crate::matcher::Matcher;
use crate::wants::{Facts, Unmet, Wants};

#[derive(Debug, Clone, PartialEq)]
pub struct ManagedProbe {
    subject: Managed,
    presence: Presence,
    wants: Wants,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Managed {
    Package(String),
    Service(String),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ManagedError {
    #[error("this machine does not run systemd")]
    NoSystemd,
    #[error("this machine has no dpkg, rpm or apk")]
    NoPackages,
    #[error(transparent)]
    Execute(#[from] ExecuteError),
    #[error("{program} ended with {how}{said}")]
    Failed {
        program: String,
        how: String,
        said: String,
    },
    #[error(transparent)]
    Unmet(#[from] Unmet),
    #[error("not installed")]
    Missing,
    #[error("installed: {0}")]
    Installed(String),
}

impl ManagedError {
    /// Whether it says nothing about what was to be looked at.
    pub(crate) fn is_not_run(&self) -> bool {
        match self {
            ManagedError::NoSystemd | ManagedError::NoPackages => true,
            ManagedError::Execute(_)
            | ManagedError::Failed { .. }
            | ManagedError::Unmet(_)
            | ManagedError::Missing
            | ManagedError::Installed(_) => false,
        }
    }
}

impl ManagedProbe {
    pub(crate) fn from_args(args: &Args<'_>) -> Result<Option<Self>, CallError> {
        let mut wants = Wants::default();
        let (subject, presence) = match args.kind.name {
            "package" => {
                wants = Wants::read(args, &["version", "versions"])?;
                (Managed::Package(word(args)?), Presence::There)
            }
            "package_absent" => (Managed::Package(word(args)?), Presence::NotThere),
            "service" => {
                if let Some(running) = running(args) {
                    wants.push("running", Matcher::equals(running));
                }
                if let Some(enabled) = args.bool("enabled") {
                    wants.push("enabled", Matcher::equals(enabled));
                }
                (Managed::Service(unit(args)?), Presence::There)
            }
            "service_restarted" => {
                wants.push("running", Matcher::equals(true));
                (Managed::Service(unit(args)?), Presence::There)
            }
            _ => return Ok(None),
        };
        Ok(Some(Self {
            subject,
            presence,
            wants,
        }))
    }

    pub(crate) fn expected(&self) -> String {
        match (&self.subject, self.presence) {
            (Managed::Package(name), Presence::NotThere) => {
                format!("package {name} is not installed")
            }
            (Managed::Package(name), Presence::There) if self.wants.is_empty() => {
                format!("package {name} is installed")
            }
            (Managed::Package(name), Presence::There) => format!("package {name}: {}", self.wants),
            (Managed::Service(name), _) => format!("service {name}: {}", self.wants),
        }
    }
}

/// A name that no program takes for an option.
fn word(args: &Args<'_>) -> Result<String, CallError> {
    let name = args.need("name")?;
    let good = |c: char| c.is_ascii_alphanumeric() || "+-._:@\\".contains(c);
    if name.starts_with('-') || !name.chars().all(good) {
        return args.refuse("name", format!("'{name}' is not possible"));
    }
    Ok(name)
}

/// Whether a service must run; `None`: either.
pub(crate) fn running(args: &Args<'_>) -> Option<bool> {
    args.bool("running").or(if args.has("enabled") {
        None
    } else {
        Some(true)
    })
}

pub(crate) fn unit(args: &Args<'_>) -> Result<String, CallError> {
    let name = word(args)?;
    let kinds = [
        ".service", ".socket", ".timer", ".target", ".mount", ".path",
    ];
    if kinds.iter().any(|kind| name.ends_with(kind)) {
        Ok(name)
    } else {
        Ok(format!("{name}.service"))
    }
}

pub(crate) fn package(args: &Args<'_>) -> Result<String, CallError> {
    word(args)
}

pub(crate) async fn look(probe: &ManagedProbe, within: Deadline) -> Result<String, ManagedError> {
    match &probe.subject {
        Managed::Service(name) => {
            let state = service(name, within).await?;
            Ok(probe.wants.judge(&state.facts())?)
        }
        Managed::Package(name) => {
            let versions = Manager::of_this_machine()?.versions(name, within).await?;
            match probe.presence {
                Presence::There if versions.is_empty() => Err(ManagedError::Missing),
                Presence::NotThere if versions.is_empty() => Ok("not installed".to_owned()),
                Presence::NotThere => Err(ManagedError::Installed(versions.join(", "))),
                Presence::There => {
                    let shown = versions.join(", ");
                    let version = versions.last().cloned().unwrap_or_default();
                    let facts = [("version", version.into()), ("versions", versions.into())];
                    probe.wants.judge(&Facts::from(facts))?;
                    Ok(format!("installed: {shown}"))
                }
            }
        }
    }
}

/// Who manages packages here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manager {
    Dpkg,
    Rpm,
    Apk,
}

impl Manager {
    pub(crate) fn of_this_machine() -> Result<Self, ManagedError> {
        // In this order: Debian may have rpm installed as a tool.
        let known = [
            ("dpkg-query", Manager::Dpkg),
            ("rpm", Manager::Rpm),
            ("apk", Manager::Apk),
        ];
        let found = known.into_iter().find(|(program, _)| find(program));
        found
            .map(|(_, manager)| manager)
            .ok_or(ManagedError::NoPackages)
    }

    fn question(self, name: &str) -> Vec<String> {
        let argv: &[&str] = match self {
            Manager::Dpkg => &[
                "dpkg-query",
                "-W",
                "-f",
                "${db:Status-Status} ${Version}\\n",
                "--",
                name,
            ],
            Manager::Rpm => &[
                "rpm",
                "-q",
                "--qf",
                "installed %{VERSION}-%{RELEASE}\\n",
                "--",
                name,
            ],
            Manager::Apk => &["apk", "list", "--installed", name],
        };
        argv.iter().map(ToString::to_string).collect()
    }

    fn read(self, name: &str, output: &str) -> Vec<String> {
        let lines = output.lines();
        match self {
            Manager::Dpkg | Manager::Rpm => lines
                .filter_map(|line| line.trim().strip_prefix("installed "))
                .map(str::to_owned)
                .collect(),
            // `busybox-1.36.1-r5 x86_64 {busybox} (GPL-2.0-only) [installed]`
            Manager::Apk => lines
                .filter_map(|line| {
                    let version = line
                        .split(' ')
                        .next()?
                        .strip_prefix(name)?
                        .strip_prefix('-')?;
                    (line.ends_with("[installed]")
                        && version.starts_with(|c: char| c.is_ascii_digit()))
                    .then(|| version.to_owned())
                })
                .collect(),
        }
    }

    /// The versions that are installed; none: it is not.
    pub(crate) async fn versions(
        self,
        name: &str,
        within: Deadline,
    ) -> Result<Vec<String>, ManagedError> {
        let argv = self.question(name);
        let finished = execute(&Program::new(&argv), within).await?;
        match finished.status.code() {
            // 1: dpkg-query and rpm know no such package.
            Some(0 | 1) => Ok(self.read(name, &String::from_utf8_lossy(&finished.said.stdout))),
            Some(_) | None => Err(failed(&argv, &finished)),
        }
    }

    pub(crate) fn install(self, name: &str) -> Vec<String> {
        let argv: &[&str] = match self {
            Manager::Dpkg => &[
                "apt-get",
                "install",
                "--yes",
                "--no-install-recommends",
                "--",
                name,
            ],
            Manager::Rpm => &["dnf", "install", "--assumeyes", "--", name],
            Manager::Apk => &["apk", "add", "--", name],
        };
        argv.iter().map(ToString::to_string).collect()
    }

    pub(crate) fn remove(self, name: &str) -> Vec<String> {
        let argv: &[&str] = match self {
            Manager::Dpkg => &["apt-get", "remove", "--yes", "--", name],
            Manager::Rpm => &["dnf", "remove", "--assumeyes", "--", name],
            Manager::Apk => &["apk", "del", "--", name],
        };
        argv.iter().map(ToString::to_string).collect()
    }
}

fn failed(argv: &[String], finished: &Finished) -> ManagedError {
    ManagedError::Failed {
        program: argv.first().cloned().unwrap_or_default(),
        how: finished.how(),
        said: finished.said.shown(),
    }
}

/// Whether a program is where programs are.
pub(crate) fn find(program: &str) -> bool {
    crate::execute::PATH
        .split(':')
        .any(|folder| Path::new(folder).join(program).exists())
}

/// A systemd unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    loaded: String,
    pub(crate) active: String,
    enabled: String,
}

impl Unit {
    /// On its way up counts as running for systemd's own `is-active` only when it is there; so here.
    pub(crate) fn runs(&self) -> bool {
        matches!(self.active.as_str(), "active" | "reloading")
    }

    pub(crate) fn is_enabled(&self) -> bool {
        matches!(
            self.enabled.as_str(),
            "enabled" | "enabled-runtime" | "alias" | "static" | "indirect" | "generated"
        )
    }

    fn facts(&self) -> Facts {
        Facts::from([
            ("running", self.runs().into()),
            ("enabled", self.is_enabled().into()),
        ])
    }
}

pub(crate) async fn service(name: &str, within: Deadline) -> Result<Unit, ManagedError> {
    // As sd_booted(3).
    if !Path::new("/run/systemd/system").is_dir() {
        return Err(ManagedError::NoSystemd);
    }
    let properties = "--property=LoadState,ActiveState,UnitFileState";
    let argv = ["systemctl", "show", properties, "--", name].map(str::to_owned);
    let finished = execute(&Program::new(&argv), within).await?;
    if !finished.status.success() {
        return Err(failed(&argv, &finished));
    }
    let unit = read_unit(&String::from_utf8_lossy(&finished.said.stdout));
    if unit.loaded == "not-found" {
        return Err(Unmet(format!("there is no service {name}")).into());
    }
    Ok(unit)
}

fn read_unit(output: &str) -> Unit {
    let property = |name: &str| {
        let value = output
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_default().to_owned()
    };
    Unit {
        loaded: property("LoadState"),
        active: property("ActiveState"),
        enabled: property("UnitFileState"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_managers_say() {
        let read = |manager: Manager, output| manager.read("busybox", output);
        assert_eq!(
            read(Manager::Dpkg, "installed 1:1.35.0-4\n"),
            ["1:1.35.0-4"]
        );
        assert!(read(Manager::Dpkg, "config-files 1:1.35.0-4\n").is_empty());
        assert_eq!(
            read(Manager::Rpm, "installed 1-2\ninstalled 1-3\n"),
            ["1-2", "1-3"]
        );
        assert!(read(Manager::Rpm, "package busybox is not installed\n").is_empty());
        let apk = "busybox-1.36.1-r5 x86_64 {busybox} (GPL-2.0-only) [installed]\n\
                   busybox-binsh-1.36.1-r5 x86_64 {busybox} (GPL-2.0-only) [installed]\n";
        assert_eq!(read(Manager::Apk, apk), ["1.36.1-r5"]);
    }

    #[test]
    fn what_systemd_says() {
        let unit = read_unit("LoadState=loaded\nActiveState=active\nUnitFileState=static\n");
        assert!(unit.runs() && unit.is_enabled());
        let unit = read_unit("LoadState=loaded\nActiveState=failed\nUnitFileState=disabled\n");
        assert!(!unit.runs() && !unit.is_enabled());
    }
}
