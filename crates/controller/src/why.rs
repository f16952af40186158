//! Explains: where something is, how it is, and what it waits for, down to the root.

use std::time::Duration;

use homeostat_api::Refusal;
use homeostat_api::v1::{ActRequest, CellEvent, LookAtTask, WhyReply, to_agent};
use homeostat_model::{MachineName, ServiceName, TaskName};
use serde_json::{Value, json};

use crate::events;
use crate::leader::Leader;
use crate::status::status;

/// Events shown about one thing.
const EVENTS: usize = 12;
/// Lines of a task's log that are shown, and how long its agent may take to find them.
const LOG_LINES: u32 = 5;
const LOOK_WITHIN: Duration = Duration::from_secs(2);

pub(crate) async fn why(leader: &Leader, name: &str) -> Result<WhyReply, Refusal> {
    let status = serde_json::to_value(status(leader).await)
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
        explain_task(leader, &task, &mut lines).await;
        detail["task"] = task;
    } else if let Some(machine) = find("machines") {
        explain_machine(&status, &machine, &mut lines);
        detail["machine"] = machine;
    } else if let Some(operation) = find("operations") {
        explain_operation(&operation, &mut lines);
        detail["operation"] = operation;
    } else if let Some(check) = find("checks") {
        explain_check(&status, &check, 0, &mut lines);
        detail["check"] = check;
    } else {
        return Err(Refusal::not_found(format!(
            "there is no service, task, machine, check or operation under way called '{name}' (see: homeostat status)"
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

async fn explain_task(leader: &Leader, task: &Value, lines: &mut Vec<String>) {
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
    if let Some(place) = &place {
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
    if let Some(note) = own_words(leader, task).await {
        lines.push(format!("  {note}"));
    }
    if let Some(place) = place {
        last_run(leader, &place.machine, text(task, "name"), lines).await;
    }
    lines.push(format!(
        "  logs: homeostat logs {} ({})",
        text(task, "name"),
        text(task, "logs")
    ));
}

/// What the admin server of a task's service has to tell of it besides its state.
async fn own_words(leader: &Leader, task: &Value) -> Option<String> {
    let service = ServiceName::new(text(task, "service")).ok()?;
    let name = ("task".to_owned(), text(task, "name").to_owned());
    let request = ActRequest {
        service: service.to_string(),
        verb: "explain-task".into(),
        arguments: [name].into(),
        by: String::new(),
    };
    let reply = leader.services.admin(&service)?.act(request).await.ok()?;
    (!reply.text.is_empty()).then_some(reply.text)
}

/// How the task ended last and what it said last, as its machine knows it.
async fn last_run(leader: &Leader, machine: &MachineName, task: &str, lines: &mut Vec<String>) {
    let look = to_agent::Message::LookAt(LookAtTask {
        task: task.to_owned(),
        lines: LOG_LINES,
    });
    let seen = match leader.core.hub.order(machine, look, LOOK_WITHIN).await {
        Ok(body) => serde_json::from_slice::<Value>(&body).unwrap_or_default(),
        Err(refusal) => {
            lines.push(format!("  what it did last is not known: {refusal}"));
            return;
        }
    };
    if let Some(cause) = seen["exit"]["cause"].as_str() {
        let at = seen["exit"]["at_unix_ms"]
            .as_u64()
            .map_or_else(String::new, clock);
        lines.push(format!("  it ended last at {at}: {cause}"));
    }
    let said: Vec<&str> = seen["log"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if !said.is_empty() {
        lines.push("  it said last:".into());
        lines.extend(said.iter().map(|line| format!("    {line}")));
    }
}

fn explain_operation(operation: &Value, lines: &mut Vec<String>) {
    lines.push(format!(
        "operation {} is {}: {} (asked by {})",
        text(operation, "name"),
        text(operation, "state"),
        text(operation, "why"),
        text(operation, "asked_by"),
    ));
    lines.push(format!(
        "  {} of {} steps are done; now: {}",
        operation["steps_done"],
        operation["steps"],
        text(operation, "step")
    ));
    if !text(operation, "waits_for").is_empty() {
        lines.push(format!("  it waits for {}", text(operation, "waits_for")));
    }
}

fn explain_machine(status: &Value, machine: &Value, lines: &mut Vec<String>) {
    let name = text(machine, "name");
    let since = machine["since_unix_ms"].as_u64();
    lines.push(format!(
        "machine {name} (rack {}, {}) is {}",
        text(machine, "rack"),
        text(machine, "address"),
        text(machine, "state")
    ));
    if let Some(since) = since {
        lines.push(format!("  since {}", clock(since)));
    }
    for held in status["held"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        lines.push(format!("  {held}"));
    }
    for task in machine["stale"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        lines.push(format!(
            "  {task} of an earlier time is still to be stopped"
        ));
    }
    for operation in status["operations"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|operation| operation["machine"] == name)
    {
        explain_operation(operation, lines);
    }
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
