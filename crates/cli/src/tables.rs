//! The cell in tables.

use crate::style::{Output, width, word};
use crate::view::{Operation, Status};

/// Columns as wide as their widest cell, two spaces apart, the first one at the left edge.
struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    fn new(heads: [&str; N]) -> Self {
        Self {
            rows: vec![heads.map(str::to_uppercase)],
        }
    }

    fn add_row(&mut self, row: [String; N]) {
        // A cell is one line, whatever it was made of.
        self.rows
            .push(row.map(|cell| cell.split_whitespace().collect::<Vec<_>>().join(" ")));
    }

    fn text(&self) -> String {
        let widest = |column: usize| {
            self.rows
                .iter()
                .map(|row| width(&row[column]))
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..N).map(widest).collect();
        let line = |row: &[String; N]| {
            let cells = row
                .iter()
                .zip(&widths)
                .map(|(cell, wide)| format!("{cell}{}", " ".repeat(wide - width(cell))));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Service, state, where, endpoint.
pub(crate) fn services(status: &Status, output: Output) -> String {
    let mut rows = Table::new(["service", "state", "where", "endpoint"]);
    for service in &status.services {
        rows.add_row([
            service.name.clone(),
            word(&service.state, output),
            service.machines.join(" "),
            service.endpoint.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    rows.text()
}

pub(crate) fn everything(status: &Status, output: Output) -> String {
    let mut parts = vec![format!("cell {}", status.cell)];
    let mut rows = Table::new(["machine", "rack", "address", "state"]);
    for machine in &status.machines {
        rows.add_row([
            machine.name.clone(),
            machine.rack.clone(),
            machine.address.clone(),
            word(&machine.state, output),
        ]);
    }
    parts.push(rows.text());
    parts.extend(status.held.iter().cloned());
    let operations: Vec<String> = status.operations.iter().map(Operation::line).collect();
    if !operations.is_empty() {
        parts.push(operations.join("\n"));
    }
    parts.push(services(status, output));
    for cluster in &status.sql {
        let primary = cluster.primary.as_deref().unwrap_or("nobody");
        let mut part = format!(
            "{}: epoch {}, {}, primary {primary}\n",
            cluster.name, cluster.epoch, cluster.phase
        );
        let mut rows = Table::new(["member", "machine", "pid", "role", "gtid"]);
        for member in &cluster.members {
            rows.add_row([
                member.task.clone(),
                member.machine.clone().unwrap_or_default(),
                member
                    .pid
                    .map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                word(&member.role, output),
                member.gtid.clone().unwrap_or_else(|| "-".to_owned()),
            ]);
        }
        part.push_str(&rows.text());
        for wait in &cluster.waits {
            part.push_str(&format!("\n  waits for {wait}"));
        }
        parts.push(part);
    }
    let mut rows = Table::new(["task", "state", "machine", "pid", "why"]);
    for task in &status.tasks {
        rows.add_row([
            task.name.clone(),
            word(&task.state, output),
            task.machine.clone(),
            task.pid
                .map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            task.why.clone(),
        ]);
    }
    parts.push(rows.text());
    let mut rows = Table::new(["check", "verdict", "because"]);
    for check in &status.checks {
        let because = if check.blocked_by.is_empty() {
            check.seen.clone()
        } else {
            check.blocked_by.join(", ")
        };
        rows.add_row([check.name.clone(), word(&check.verdict, output), because]);
    }
    parts.push(rows.text());
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
        insta::assert_snapshot!(everything(&shop(), Output::Plain), @r"
        cell shop

        MACHINE  RACK  ADDRESS     STATE
        m1       r1    127.77.3.1  ready

        SERVICE   STATE     WHERE  ENDPOINT
        shop-web  degraded  m1     127.77.3.1:7002

        shop-db: epoch 2, serving, primary shop-db-1
        MEMBER     MACHINE  PID  ROLE     GTID
        shop-db-1  m1       9    primary  0-2-17

        TASK        STATE    MACHINE  PID  WHY
        shop-web-0  running  m1       7
        shop-web-1  exited   m1       -    exit code 1

        CHECK             VERDICT  BECAUSE
        shop-web/healthz  blocked  shop-web/tasks
        ");
    }

    #[test]
    fn what_is_under_way_and_what_is_held_back_stands_below_the_machines() {
        let mut status = shop();
        status.held = vec!["5 of 12 machines are silent".to_owned()];
        status.operations = vec![
            serde_json::from_str(
                r#"{"name": "drain-1", "procedure": "drain", "why": "m2 is to be empty", "state": "running", "step": "move web-0",
                    "steps_done": 1, "steps": 4, "waits_for": "the budget of web: web-1 does not run: exit code 1"}"#,
            )
            .unwrap(),
        ];
        let text = everything(&status, Output::Plain);
        let parts: Vec<&str> = text.split("\n\n").skip(2).take(2).collect();
        insta::assert_snapshot!(parts.join("\n"), @r"
        5 of 12 machines are silent
        drain-1 (m2 is to be empty): running, 1 of 4 steps done; now: move web-0; waits for the budget of web: web-1 does not run: exit code 1
        ");
    }

    #[test]
    fn colours_do_not_move_columns() {
        let plain = everything(&shop(), Output::Plain);
        let coloured = everything(&shop(), Output::Terminal);
        assert_ne!(plain, coloured);
        for (plain, coloured) in plain.lines().zip(coloured.lines()) {
            assert_eq!(width(coloured), plain.chars().count(), "{coloured}");
        }
    }

    #[test]
    fn what_is_missing_is_said_in_sentences() {
        insta::assert_snapshot!(shop().missing().join("\n"), @r"
        service shop-web is degraded and waits for shop-web-1: exit code 1
        check shop-web/healthz: blocked by shop-web/tasks
        ");
        assert!(!shop().is_well());
    }
}
