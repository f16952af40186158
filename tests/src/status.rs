//! `homeostat status --json`, as its documentation promises it.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::process::Process;

/// A cell at one moment.
#[derive(Debug, Clone)]
pub struct Status(pub Value);

/// Processes of a cell by what they are: `task web-0`, `supervisor web-0`, `agent m1`, `endpoint m1`, `controller`.
pub type Pids = BTreeMap<String, Process>;

impl Status {
    pub fn rows(&self, list: &str) -> &[Value] {
        self.0[list].as_array().map_or(&[], Vec::as_slice)
    }

    pub fn find(&self, list: &str, name: &str) -> Option<&Value> {
        self.rows(list).iter().find(|row| row["name"] == name)
    }

    pub fn row(&self, list: &str, name: &str) -> &Value {
        self.find(list, name)
            .unwrap_or_else(|| panic!("there is no '{name}' in '{list}': {}", self.0))
    }

    /// The tasks of a service, by name.
    pub fn tasks_of(&self, service: &str) -> Vec<&Value> {
        self.rows("tasks")
            .iter()
            .filter(|row| row["service"] == service)
            .collect()
    }

    /// All services are up and all checks pass, and there is something that could fail.
    pub fn is_well(&self) -> bool {
        let checks = self.rows("checks");
        !checks.is_empty()
            && self.rows("services").iter().all(|row| row["state"] == "up")
            && checks
                .iter()
                .all(|row| row["verdict"] == "pass" || row["verdict"] == "flaky")
    }

    /// What is not well, in one line.
    pub fn missing(&self) -> String {
        let mut missing = Vec::new();
        for row in self
            .rows("services")
            .iter()
            .filter(|row| row["state"] != "up")
        {
            missing.push(format!(
                "{} is {}: {}",
                row["name"], row["state"], row["waits_for"]
            ));
        }
        for row in self
            .rows("checks")
            .iter()
            .filter(|row| row["verdict"] != "pass" && row["verdict"] != "flaky")
        {
            missing.push(format!(
                "{} {}: {} {}",
                row["name"], row["verdict"], row["seen"], row["blocked_by"]
            ));
        }
        if missing.is_empty() {
            format!("nothing: {}", self.0)
        } else {
            missing.join("; ")
        }
    }

    /// Every process that the status names and that lives.
    pub fn pids(&self) -> Pids {
        let mut pids = Pids::new();
        let mut add = |what: String, value: &Value| {
            let process = value
                .as_i64()
                .and_then(|pid| i32::try_from(pid).ok())
                .and_then(Process::find);
            if let Some(process) = process {
                pids.insert(what, process);
            }
        };
        add("controller".to_owned(), &self.0["controller_pid"]);
        for row in self.rows("machines") {
            let name = row["name"].as_str().unwrap_or_default();
            add(format!("agent {name}"), &row["agent_pid"]);
            add(format!("endpoint {name}"), &row["endpoint_pid"]);
        }
        for row in self.rows("tasks") {
            let name = row["name"].as_str().unwrap_or_default();
            add(format!("task {name}"), &row["pid"]);
            add(format!("supervisor {name}"), &row["supervisor_pid"]);
        }
        pids
    }

    /// One of [`Self::pids`].
    #[track_caller]
    pub fn process(&self, what: &str) -> Process {
        self.pids()
            .get(what)
            .copied()
            .unwrap_or_else(|| panic!("there is no living '{what}': {}", self.0))
    }
}
