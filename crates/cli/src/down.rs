//! `homeostat down`: takes the cell down in reverse order of its dependencies, and removes it only when asked to.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use homeostat_api::v1::DownRequest;
use homeostat_cell::{home, warden};

use crate::args::DownOptions;
use crate::client::{Client, me};
use crate::failure::Failure;
use crate::place;

/// How long the cell may take. Databases shut down cleanly, which takes as long as their dirty pages need.
const WITHIN: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A cell that was not running at all has no controller to ask.
const CONTROLLER_WITHIN: Duration = Duration::from_secs(10);

pub(crate) async fn down(
    state: Option<PathBuf>,
    options: DownOptions,
) -> Result<ExitCode, Failure> {
    let (identity, layout) = place::find(state)?;
    if !options.yes {
        let loss = if options.purge {
            " AND REMOVES ITS DATABASES, LOGS AND HISTORY"
        } else {
            "; its data stays"
        };
        confirm(identity.name.as_str(), loss)?;
    }
    // An `up` that has begun gets its processes started first: before that the cell looks as if it were down already.
    drop(home::take_turn(&layout.state).map_err(Failure::cell)?);
    let client = Client::new(&layout);
    let until = Instant::now() + WITHIN;
    let controller_until = Instant::now() + CONTROLLER_WITHIN;
    let mut shown = String::new();
    let mut asked = false;
    // Held until the end of this function: nobody starts what is being removed.
    let _lock = loop {
        if let Some(lock) = warden::lock(&layout).map_err(Failure::cell)? {
            break lock;
        }
        if !asked {
            match client.0.clone().down(DownRequest { by: me() }).await {
                Ok(_) => asked = true,
                Err(status)
                    if status.code() == tonic::Code::Unavailable
                        && Instant::now() < controller_until => {}
                Err(status) => return Err(status.into()),
            }
        }
        if let Ok(status) = client.status().await {
            let line = status
                .services
                .iter()
                .map(|service| format!("{} {}", service.name, service.state))
                .collect::<Vec<_>>()
                .join(", ");
            if line != shown {
                eprintln!("{line}");
                shown = line;
            }
        }
        if Instant::now() >= until {
            return Err(Failure::cell(anyhow::anyhow!(
                "the cell is not down after {} s",
                WITHIN.as_secs()
            ))
            .hint("see what it waits for with: homeostat status"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    if still_runs(&layout) {
        return Err(Failure::cell(anyhow::anyhow!(
            "tasks of {} run, but the processes that could stop them do not; nothing was removed",
            identity.name
        ))
        .hint("start them again with: homeostat up CELL_FOLDER, then: homeostat down"));
    }
    if options.purge {
        let _turn = home::take_turn(&layout.state).map_err(Failure::cell)?;
        home::purge(&layout).map_err(Failure::cell)?;
        eprintln!("{} is down and everything of it is removed", identity.name);
    } else {
        eprintln!(
            "{} is down; its data is in {}",
            identity.name,
            layout.state.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether something still listens in the run folders of this cell's tasks.
fn still_runs(layout: &homeostat_model::CellLayout) -> bool {
    let machines = std::fs::read_dir(&layout.run)
        .into_iter()
        .flatten()
        .flatten();
    machines
        .flat_map(|machine| {
            std::fs::read_dir(machine.path().join("t"))
                .into_iter()
                .flatten()
                .flatten()
        })
        .any(|task| std::os::unix::net::UnixStream::connect(task.path().join("s")).is_ok())
}

fn confirm(name: &str, loss: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::input(anyhow::anyhow!(
            "this stops cell {name} and there is nobody to ask"
        ))
        .hint("say --yes if you mean it"));
    }
    eprint!("this stops every service of cell {name}{loss}.\ntype the cell's name to go on: ");
    std::io::stderr().flush().unwrap_or_default();
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(Failure::input)?;
    if line.trim() == name {
        Ok(())
    } else {
        Err(Failure::input(anyhow::anyhow!(
            "'{}' is not '{name}': nothing was done",
            line.trim()
        )))
    }
}
