//! `homeostat chaos`: breaks something on purpose. The controller is asked for leave first; it refuses outside of a sandbox,
//! and writes down who broke what.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use homeostat_api::v1::ChaosRequest;
use homeostat_cell::chaos::{ChaosError, kill_machine, return_machine};
use homeostat_model::{CellLayout, MachineName};
use rustix::process::{Pid, Signal, kill_process};

use crate::args::{ChaosMachine, ChaosVerb};
use crate::client::{Client, me};
use crate::failure::Failure;
use crate::place;
use crate::style::say;
use crate::view::Status;

pub(crate) async fn chaos(state: Option<PathBuf>, verb: ChaosVerb) -> Result<ExitCode, Failure> {
    let (identity, layout) = place::find(state)?;
    let client = Client::new(&layout);
    match verb {
        ChaosVerb::Machine(options) => {
            let name = MachineName::new(options.machine.clone()).map_err(Failure::input)?;
            if identity.machine(&name).is_none() {
                return Err(Failure::input(anyhow::anyhow!(
                    "there is no machine called '{name}'"
                )));
            }
            machine(&client, &layout, &name, options).await?;
        }
        ChaosVerb::Stop { task } => {
            let pid = ask(&client, &task, "is killed").await?;
            send(pid, Signal::KILL)?;
            say(format!("killed {task} (pid {})", pid.as_raw_nonzero()));
        }
        ChaosVerb::Hang { task, lasting } => hang(&client, &task, lasting).await?,
        ChaosVerb::Resume { task } => {
            let pid = ask(&client, &task, "goes on").await?;
            send(pid, Signal::CONT)?;
            say(format!("{task} goes on (pid {})", pid.as_raw_nonzero()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn machine(
    client: &Client,
    layout: &CellLayout,
    name: &MachineName,
    options: ChaosMachine,
) -> Result<(), Failure> {
    let fails = |error: ChaosError| match error {
        ChaosError::DeadAlready(_) | ChaosError::NotDead(_) => Failure::input(error),
        ChaosError::Io { .. } | ChaosError::Immortal { .. } => Failure::cell(error),
    };
    if options.fate.kill {
        leave(client, format!("machine {name} is killed")).await?;
        let dead = kill_machine(layout, name).map_err(fails)?;
        say(format!(
            "{name} is dead: {dead} processes; let it come back with: homeostat chaos machine {name} --return"
        ));
    } else {
        leave(client, format!("machine {name} comes back")).await?;
        return_machine(layout, name).map_err(fails)?;
        say(format!("{name} comes back"));
    }
    Ok(())
}

async fn hang(client: &Client, task: &str, lasting: Option<Duration>) -> Result<(), Failure> {
    let pid = ask(client, task, "hangs").await?;
    send(pid, Signal::STOP)?;
    match lasting {
        None => say(format!(
            "{task} hangs (pid {}); let it go on with: homeostat chaos resume {task}",
            pid.as_raw_nonzero()
        )),
        Some(lasting) => {
            eprintln!("{task} hangs for {} s", lasting.as_secs_f64());
            let interrupted = tokio::signal::ctrl_c();
            tokio::select! {
                () = tokio::time::sleep(lasting) => {}
                _ = interrupted => {}
            }
            // It may have been killed meanwhile: then there is nothing to let go.
            let _ = kill_process(pid, Signal::CONT);
            say(format!("{task} goes on"));
        }
    }
    Ok(())
}

/// The process to be hurt, once the controller allowed it.
async fn ask(client: &Client, task: &str, what: &str) -> Result<Pid, Failure> {
    let status = client.status().await?;
    let pid = process_of(&status, task)?;
    leave(client, format!("{task} {what}")).await?;
    Ok(pid)
}

async fn leave(client: &Client, what: String) -> Result<(), Failure> {
    let request = ChaosRequest { what, by: me() };
    client.0.clone().chaos(request).await?;
    Ok(())
}

/// Of a SQL member the server is meant, and not the keeper, which is a part of homeostat.
fn process_of(status: &Status, name: &str) -> Result<Pid, Failure> {
    let mut members = status.sql.iter().flat_map(|cluster| &cluster.members);
    let member = members.find(|member| member.task == name);
    let task = status.tasks.iter().find(|task| task.name == name);
    let pid = match (member, task) {
        (Some(member), _) => member.pid,
        (None, Some(task)) => task.pid,
        (None, None) => {
            let names: Vec<&str> = status.tasks.iter().map(|task| task.name.as_str()).collect();
            return Err(
                Failure::input(anyhow::anyhow!("there is no task called '{name}'"))
                    .hint(format!("the tasks are: {}", names.join(", "))),
            );
        }
    };
    pid.and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw)
        .ok_or_else(|| Failure::cell(anyhow::anyhow!("{name} has no process now")))
}

fn send(pid: Pid, signal: Signal) -> Result<(), Failure> {
    kill_process(pid, signal).map_err(|error| {
        Failure::cell(anyhow::anyhow!(error).context(format!(
            "cannot send a signal to pid {}",
            pid.as_raw_nonzero()
        )))
    })
}
