//! The status as this program reads it: only the fields it shows, so that it can read a newer controller's.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Status {
    pub cell: String,
    pub machines: Vec<Machine>,
    pub tasks: Vec<Task>,
    pub sql: Vec<Cluster>,
    pub services: Vec<Service>,
    pub checks: Vec<Check>,
    #[serde(default)]
    pub operations: Vec<Operation>,
    #[serde(default)]
    pub held: Vec<String>,
}

/// A change that is under way.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Operation {
    pub name: String,
    pub procedure: String,
    pub why: String,
    pub state: String,
    pub step: String,
    pub steps_done: usize,
    pub steps: usize,
    #[serde(default)]
    pub waits_for: String,
}

impl Operation {
    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let mut line = format!(
            "{} ({}): {}, {} of {} steps done",
            self.name, self.why, self.state, self.steps_done, self.steps
        );
        if !self.step.is_empty() {
            line.push_str(&format!("; now: {}", self.step));
        }
        if !self.waits_for.is_empty() {
            line.push_str(&format!("; waits for {}", self.waits_for));
        }
        line
    }
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Machine {
    pub name: String,
    pub rack: String,
    pub address: String,
    pub state: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Task {
    pub name: String,
    pub machine: String,
    pub pid: Option<u32>,
    pub state: String,
    pub why: String,
    pub logs: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Cluster {
    pub name: String,
    pub epoch: u64,
    pub phase: String,
    pub primary: Option<String>,
    pub members: Vec<Member>,
    #[serde(default)]
    pub waits: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Member {
    pub task: String,
    #[serde(default)]
    pub machine: Option<String>,
    pub pid: Option<u32>,
    pub role: String,
    pub gtid: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Service {
    pub name: String,
    pub state: String,
    pub waits_for: String,
    pub machines: Vec<String>,
    pub endpoint: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Check {
    pub name: String,
    pub verdict: String,
    pub seen: String,
    pub blocked_by: Vec<String>,
}

impl Status {
    /// Everything is as it should be: all services up and all checks passing, of which there is at least one, and no turnup
    /// under way that may be about to change them.
    pub(crate) fn is_well(&self) -> bool {
        let turning = |operation: &Operation| operation.procedure == "turnup";
        !self.checks.is_empty()
            && !self.operations.iter().any(turning)
            && self.services.iter().all(|service| service.state == "up")
            && self
                .checks
                .iter()
                .all(|check| check.verdict == "pass" || check.verdict == "flaky")
    }

    /// What is missing, for people; one line each.
    pub(crate) fn missing(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.services.is_empty() {
            lines.push("the cell has no services yet".to_owned());
        }
        for machine in self
            .machines
            .iter()
            .filter(|machine| machine.state != "ready")
        {
            lines.push(format!("machine {} is {}", machine.name, machine.state));
        }
        for service in self.services.iter().filter(|service| service.state != "up") {
            let mut line = format!("service {} is {}", service.name, service.state);
            if !service.waits_for.is_empty() {
                line.push_str(&format!(" and waits for {}", service.waits_for));
            }
            lines.push(line);
        }
        for check in self
            .checks
            .iter()
            .filter(|check| check.verdict != "pass" && check.verdict != "flaky")
        {
            lines.push(match check.blocked_by.as_slice() {
                [] => format!("check {}: {}, {}", check.name, check.verdict, check.seen),
                roots => format!(
                    "check {}: {} by {}",
                    check.name,
                    check.verdict,
                    roots.join(", ")
                ),
            });
        }
        lines
    }

    /// Checks by verdict, for one line.
    pub(crate) fn tally(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for check in &self.checks {
            *counts.entry(check.verdict.as_str()).or_default() += 1;
        }
        let parts: Vec<String> = counts
            .iter()
            .map(|(verdict, count)| format!("{count} {verdict}"))
            .collect();
        if parts.is_empty() {
            "no checks yet".to_owned()
        } else {
            parts.join(", ")
        }
    }
}
