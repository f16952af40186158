//! `homeostat chaos`: breaks something on purpose. The controller is asked for leave first; it refuses outside of a sandbox,
//! and writes down who broke what.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use homeostat_api::v1::ChaosRequest;
use homeostat_cell::chaos::{ChaosError, kill_machine, return_machine, signal_process, start_of};
use homeostat_model::{CellLayout, MachineName};
use rustix::process::Signal;

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
            let target = ask(&client, &task, "is killed").await?;
            target.send(Signal::KILL)?;
            say(format!("killed {task} (pid {})", target.pid));
        }
        ChaosVerb::Hang { task, lasting } => hang(&client, &task, lasting).await?,
        ChaosVerb::Resume { task } => {
            let target = ask(&client, &task, "goes on").await?;
            target.send(Signal::CONT)?;
            say(format!("{task} goes on (pid {})", target.pid));
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
    let target = ask(client, task, "hangs").await?;
    target.send(Signal::STOP)?;
    match lasting {
        None => say(format!(
            "{task} hangs (pid {}); let it go on with: homeostat chaos resume {task}",
            target.pid
        )),
        Some(lasting) => {
            eprintln!("{task} hangs for {} s", lasting.as_secs_f64());
            let interrupted = tokio::signal::ctrl_c();
            tokio::select! {
                () = tokio::time::sleep(lasting) => {}
                _ = interrupted => {}
            }
            // It may have been killed meanwhile: then there is nothing to let go.
            drop(target.send(Signal::CONT));
            say(format!("{task} goes on"));
        }
    }
    Ok(())
}

/// The process to be hurt, once the controller allowed it.
async fn ask(client: &Client, task: &str, what: &str) -> Result<Target, Failure> {
    let pid = process_of(&client.status().await?, task)?;
    let start_ticks = start_of(pid);
    leave(client, format!("{task} {what}")).await?;
    // Still the same after its start was read: it is the process that was meant.
    let again = process_of(&client.status().await?, task)?;
    match start_ticks {
        Some(start_ticks) if again == pid => Ok(Target { pid, start_ticks }),
        Some(_) | None => Err(Failure::cell(anyhow::anyhow!(
            "{task} has just been replaced; nothing was done to it"
        ))),
    }
}

/// A process, and no other one that has its number later.
struct Target {
    pid: i32,
    start_ticks: u64,
}

impl Target {
    fn send(&self, signal: Signal) -> Result<(), Failure> {
        let Self { pid, start_ticks } = self;
        signal_process(*pid, *start_ticks, signal).map_err(|error| {
            let what = format!("cannot send a signal to pid {pid}");
            Failure::cell(anyhow::anyhow!(error).context(what))
        })
    }
}

async fn leave(client: &Client, what: String) -> Result<(), Failure> {
    let request = ChaosRequest { what, by: me() };
    client.0.clone().chaos(request).await?;
    Ok(())
}

/// Of a SQL member the server is meant, and not the keeper, which is a part of homeostat.
fn process_of(status: &Status, name: &str) -> Result<i32, Failure> {
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
        .filter(|pid| *pid > 0)
        .ok_or_else(|| Failure::cell(anyhow::anyhow!("{name} has no process now")))
}
