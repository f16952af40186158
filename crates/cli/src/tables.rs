//! The cell in tables.

use comfy_table::Table;
use comfy_table::presets::NOTHING;

use crate::style::{Output, word};
use crate::view::Status;

fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(heads.iter().map(|head| head.to_uppercase()));
    table
}

/// Lines without the padding that tables end with.
fn lines(table: &Table) -> String {
    table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// Service, state, where, endpoint.
pub(crate) fn services(status: &Status, output: Output) -> String {
    let mut rows = table(&["service", "state", "where", "endpoint"]);
    for service in &status.services {
        rows.add_row([
            service.name.clone(),
            word(&service.state, output),
            service.machines.join(" "),
            service.endpoint.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    lines(&rows)
}

pub(crate) fn everything(status: &Status, output: Output) -> String {
    let mut parts = vec![format!("cell {}", status.cell)];
    let mut rows = table(&["machine", "rack", "address", "state"]);
    for machine in &status.machines {
        rows.add_row([
            machine.name.clone(),
            machine.rack.clone(),
            machine.address.clone(),
            word(&machine.state, output),
        ]);
    }
    parts.push(lines(&rows));
    parts.push(services(status, output));
    for cluster in &status.sql {
        let primary = cluster.primary.as_deref().unwrap_or("nobody");
        let mut part = format!("{}: epoch {}, {}, primary {primary}\n", cluster.name, cluster.epoch, cluster.phase);
        let mut rows = table(&["member", "machine", "pid", "role", "gtid"]);
        for member in &cluster.members {
            rows.add_row([
                member.task.clone(),
                member.machine.clone().unwrap_or_default(),
                member.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                word(&member.role, output),
                member.gtid.clone().unwrap_or_else(|| "-".to_owned()),
            ]);
        }
        part.push_str(&lines(&rows));
        for wait in &cluster.waits {
            part.push_str(&format!("\n  waits for {wait}"));
        }
        parts.push(part);
    }
    let mut rows = table(&["task", "state", "machine", "pid", ""]);
    for task in &status.tasks {
        rows.add_row([
            task.name.clone(),
            word(&task.state, output),
            task.machine.clone(),
            task.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            task.why.clone(),
        ]);
    }
    parts.push(lines(&rows));
    let mut rows = table(&["check", "verdict", "because"]);
    for check in &status.checks {
        let because = if check.blocked_by.is_empty() { check.seen.clone() } else { check.blocked_by.join(", ") };
        rows.add_row([check.name.clone(), word(&check.verdict, output), because]);
    }
    parts.push(lines(&rows));
    parts.join("\n\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn shop() -> Status {
        serde_json::from_str(
            r#"{"cell": "shop",
                "machines": [{"name": "m1", "rack": "r1", "address": "127.77.3.1", "state": "ready"}],
                "tasks": [{"name": "shop-web-0", "machine": "m1", "pid": 7, "state": "running", "why": "", "logs": "/l"},
                          {"name": "shop-web-1", "machine": "m1", "pid": null, "state": "exited", "why": "exit code 1", "logs": "/l"}],
                "sql": [{"name": "shop-db", "epoch": 2, "phase": "serving", "primary": "shop-db-1",
                         "members": [{"task": "shop-db-1", "machine": "m1", "pid": 9, "role": "primary", "gtid": "0-2-17"}],
                         "waits": []}],
                "services": [{"name": "shop-web", "state": "degraded", "waits_for": "shop-web-1: exit code 1",
                              "machines": ["m1"], "endpoint": "127.77.3.1:7002"}],
                "checks": [{"name": "shop-web/healthz", "verdict": "blocked", "seen": "", "blocked_by": ["shop-web/tasks"]}]}"#,
        )
        .unwrap()
    }

    #[test]
    fn the_whole_cell_reads_well() {
        insta::assert_snapshot!(everything(&shop(), Output::Plain), @"");
    }

    #[test]
    fn what_is_missing_is_said_in_sentences() {
        insta::assert_snapshot!(shop().missing().join("\n"), @"");
        assert!(!shop().is_well());
    }
}
