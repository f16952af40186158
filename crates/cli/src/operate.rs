//! The verbs that set an operation going and watch it: drain, turnup, turndown. Ctrl-C ends the watching, not the
//! operation.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use homeostat_api::v1::{DrainRequest, TurnDirection, TurnRequest, UndrainRequest};

use crate::args::{DrainOptions, TurndownOptions, TurnupOptions, UndrainOptions};
use crate::client::{Client, me};
use crate::failure::Failure;
use crate::place;
use crate::style::say;
use crate::view::Status;

const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(crate) async fn drain(
    state: Option<PathBuf>,
    options: DrainOptions,
) -> Result<ExitCode, Failure> {
    let (_, layout) = place::find(state)?;
    let client = Client::new(&layout);
    let request = DrainRequest {
        machine: options.machine.clone(),
        by: me(),
    };
    let operation = client
        .0
        .clone()
        .drain(request)
        .await?
        .into_inner()
        .operation;
    if options.detach {
        say(operation);
        return Ok(ExitCode::SUCCESS);
    }
    let Some(status) = watch(&client, &operation).await? else {
        let hint = format!("cancel it with: homeostat undrain {}", options.machine);
        eprintln!("\n{operation} goes on\n\nhint: {hint}");
        return Ok(ExitCode::SUCCESS);
    };
    let machine = status
        .machines
        .iter()
        .find(|machine| machine.name == options.machine);
    match machine.map(|machine| machine.state.as_str()) {
        Some("drained") => {
            say(format!("{} is drained", options.machine));
            Ok(ExitCode::SUCCESS)
        }
        other => Err(Failure::cell(anyhow::anyhow!(
            "{operation} ended, and {} is {}",
            options.machine,
            other.unwrap_or("gone")
        ))
        .hint(format!(
            "see what happened with: homeostat why {}",
            options.machine
        ))),
    }
}

pub(crate) async fn undrain(
    state: Option<PathBuf>,
    options: UndrainOptions,
) -> Result<ExitCode, Failure> {
    let (_, layout) = place::find(state)?;
    let request = UndrainRequest {
        machine: options.machine,
        by: me(),
    };
    let reply = Client::new(&layout).0.undrain(request).await?.into_inner();
    say(reply.text);
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn turnup(
    state: Option<PathBuf>,
    options: TurnupOptions,
) -> Result<ExitCode, Failure> {
    let request = TurnRequest {
        services: options.services,
        direction: TurnDirection::Up as i32,
        keep_ms: 0,
        by: me(),
    };
    turn(state, request, options.detach, "up").await
}

pub(crate) async fn turndown(
    state: Option<PathBuf>,
    options: TurndownOptions,
) -> Result<ExitCode, Failure> {
    let request = TurnRequest {
        services: options.services,
        direction: TurnDirection::Down as i32,
        keep_ms: u64::try_from(options.keep.as_millis()).unwrap_or(u64::MAX),
        by: me(),
    };
    turn(state, request, options.detach, "down").await
}

async fn turn(
    state: Option<PathBuf>,
    request: TurnRequest,
    detach: bool,
    wanted: &str,
) -> Result<ExitCode, Failure> {
    let (_, layout) = place::find(state)?;
    let client = Client::new(&layout);
    let services = request.services.clone();
    let operation = client.0.clone().turn(request).await?.into_inner().operation;
    if detach {
        say(operation);
        return Ok(ExitCode::SUCCESS);
    }
    let Some(status) = watch(&client, &operation).await? else {
        eprintln!("\n{operation} goes on; see it with: homeostat status");
        return Ok(ExitCode::SUCCESS);
    };
    let others: Vec<String> = status
        .services
        .iter()
        .filter(|service| services.contains(&service.name) && service.state != wanted)
        .map(|service| format!("{} is {}", service.name, service.state))
        .collect();
    if others.is_empty() {
        say(format!("{}: {wanted}", services.join(", ")));
        Ok(ExitCode::SUCCESS)
    } else {
        Err(Failure::cell(anyhow::anyhow!(
            "{operation} ended, and {}",
            others.join(", ")
        )))
    }
}

/// Shows what an operation does until it is over; then how the cell is. `None`: whoever watched stopped watching.
async fn watch(client: &Client, operation: &str) -> Result<Option<Status>, Failure> {
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    let mut shown = String::new();
    loop {
        // A controller that is being replaced answers again in a moment.
        match client.status().await {
            Ok(status) => {
                let Some(now) = status.operations.iter().find(|o| o.name == operation) else {
                    return Ok(Some(status));
                };
                let line = now.line();
                if line != shown {
                    eprintln!("{line}");
                    shown = line;
                }
            }
            Err(failure) => {
                let line = format!("{:#}", failure.error);
                if line != shown {
                    eprintln!("{line}; waiting for it");
                    shown = line;
                }
            }
        }
        tokio::select! {
            _ = &mut interrupted => return Ok(None),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}
