//! Explains: where something is, how it is, and what it waits for, down to the root.

use homeostat_api::Refusal;
use homeostat_api::v1::{ActRequest, CellEvent, WhyReply};
use homeostat_model::{ServiceName, TaskName};
use serde_json::{Value, json};

use crate::events;
use crate::leader::Leader;
use crate::status::status;

/// Events shown about one thing.
const EVENTS: usize = 12;

pub(crate) async fn why(leader: &Leader, name: &str) -> Result<WhyReply, Refusal> {
    let status = serde_json::to_value(status(&leader.core, &leader.services, &leader.checks).await)
        .map_err(|error| Refusal::internal(error.to_string()))?;
    let events = events::read(&*leader.core.store, 0).await?;
    let find = |list: &str| row(&status, list, name).cloned();
    let mut lines = Vec::new();
    let mut detail = json!({});
    if let Some(service) = find("services") {
        explain_service(&status, &service, &mut lines);
        if let Some(failover) = last_change(leader, name).await {
            lines.push(String::new());
            lines.extend(failover.0.lines().map(str::to_owned));
            detail["last_change"] = failover.1;
        }
        detail["service"] = service;
    } else if let Some(task) = find("tasks") {
        explain_task(leader, &task, &mut lines);
        detail["task"] = task;
    } else if let Some(machine) = find("machines") {
        explain_machine(&status, &machine, &mut lines);
        detail["machine"] = machine;
    } else if let Some(check) = find("checks") {
        explain_check(&status, &check, 0, &mut lines);
        detail["check"] = check;
    } else {
        return Err(Refusal::not_found(format!(
            "there is no service, task, machine or check called '{name}' (see: homeostat status)"
        )));
    }
    let about: Vec<&CellEvent> = events.iter().filter(|event| event.about == name).collect();
    if !about.is_empty() {
        lines.push(String::new());
        lines.push("lately:".into());
        for event in about.iter().rev().take(EVENTS).rev() {
            lines.push(format!("  {}  {}", clock(event.at_unix_ms), event.text));
        }
    }
    Ok(WhyReply {
        text: lines.join("\n"),
        json: detail.to_string(),
    })
}

fn row<'a>(status: &'a Value, list: &str, name: &str) -> Option<&'a Value> {
    status[list]
        .as_array()?
        .iter()
        .find(|row| row["name"] == name)
}

fn text<'a>(row: &'a Value, field: &str) -> &'a str {
    row[field].as_str().unwrap_or_default()
}

fn explain_service(status: &Value, service: &Value, lines: &mut Vec<String>) {
    let name = text(service, "name");
    lines.push(format!("service {name} is {}", text(service, "state")));
    if !text(service, "waits_for").is_empty() {
        lines.push(format!("  it waits for {}", text(service, "waits_for")));
    }
    if let Some(endpoint) = service["endpoint"].as_str() {
        lines.push(format!(
            "  clients reach it at {endpoint}, and at the same port of every machine"
        ));
    }
    for task in status["tasks"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|task| task["service"] == name)
    {
        let line = format!(
            "  {} is {} on {} {}",
            text(task, "name"),
            text(task, "state"),
            text(task, "machine"),
            text(task, "why")
        );
        lines.push(line.trim_end().to_owned());
    }
    for check in status["checks"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|check| check["about"] == name)
    {
        explain_check(status, check, 1, lines);
    }
}

fn explain_task(leader: &Leader, task: &Value, lines: &mut Vec<String>) {
    lines.push(format!(
        "task {} is {} on {}",
        text(task, "name"),
        text(task, "state"),
        text(task, "machine")
    ));
    if !text(task, "why").is_empty() {
        lines.push(format!("  {}", text(task, "why")));
    }
    let place = TaskName::new(text(task, "name"))
        .ok()
        .and_then(|name| leader.core.placements.of(&name));
    if let Some(place) = place {
        lines.push(format!(
            "  it was placed there with generation {}",
            place.generation
        ));
    }
    if let Some(pid) = task["pid"].as_u64() {
        lines.push(format!(
            "  pid {pid}, supervisor {}",
            task["supervisor_pid"]
        ));
    }
    lines.push(format!(
        "  logs: homeostat logs {} ({})",
        text(task, "name"),
        text(task, "logs")
    ));
}

fn explain_machine(status: &Value, machine: &Value, lines: &mut Vec<String>) {
    let name = text(machine, "name");
    lines.push(format!(
        "machine {name} (rack {}, {}) is {}",
        text(machine, "rack"),
        text(machine, "address"),
        text(machine, "state")
    ));
    for task in status["tasks"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|task| task["machine"] == name)
    {
        lines.push(format!(
            "  {} is {}",
            text(task, "name"),
            text(task, "state")
        ));
    }
}

fn explain_check(status: &Value, check: &Value, depth: usize, lines: &mut Vec<String>) {
    let indent = "  ".repeat(depth);
    let verdict = text(check, "verdict");
    lines.push(format!("{indent}check {}: {verdict}", text(check, "name")));
    if verdict != "pass" {
        if !text(check, "expected").is_empty() {
            lines.push(format!("{indent}  expected {}", text(check, "expected")));
        }
        if !text(check, "seen").is_empty() {
            lines.push(format!("{indent}  seen     {}", text(check, "seen")));
        }
        for cause in check["blocked_by"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            // Root causes are never blocked themselves, so this ends.
            match row(status, "checks", cause) {
                Some(root) if depth < 4 => explain_check(status, root, depth + 1, lines),
                Some(_) | None => lines.push(format!("{indent}  because of {cause}")),
            }
        }
    }
}

/// The story of a SQL cluster's last change of primary, told by its own admin server.
async fn last_change(leader: &Leader, name: &str) -> Option<(String, Value)> {
    let service = ServiceName::new(name).ok()?;
    let admin = leader.services.admin(&service)?;
    let request = ActRequest {
        service: name.to_owned(),
        verb: "explain".into(),
        ..ActRequest::default()
    };
    let reply = admin.act(request).await.ok()?;
    Some((
        reply.text,
        serde_json::from_str(&reply.detail_json).unwrap_or(Value::Null),
    ))
}

fn clock(at_unix_ms: u64) -> String {
    let at = i64::try_from(at_unix_ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(String::new, |at| at.strftime("%H:%M:%S%.3f").to_string())
}
