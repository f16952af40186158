//! The verbs that homeostat calls itself by: each is the body of one process of a cell.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use homeostat_agent::{AgentError, AgentOptions};
use homeostat_cell::{home, warden};
use homeostat_controller::{ControllerOptions, ExternalAdmin};
use homeostat_model::{MachineName, ServiceName};

/// Carries out a hidden verb; `None` when the words are something else. No argument parser, no runtime: a supervisor
/// counts its kilobytes.
pub(crate) fn run(words: &[OsString]) -> Option<ExitCode> {
    let verb = words.get(1)?.to_str()?;
    let rest: Vec<&Path> = words[2..].iter().map(Path::new).collect();
    let result = match (verb, rest.as_slice()) {
        ("supervise", [run]) => homeostat_supervisor::supervise(run).map(|_| 0).map_err(anyhow::Error::from),
        ("keeper", [run]) => homeostat_sql::keeper::keep(run).map(|_| 0).map_err(anyhow::Error::from),
        ("forward", [run]) => homeostat_supervisor::endpoint::forward(run).map(|()| 0).map_err(Into::into),
        ("agent", [state, machine]) => agent(state, machine),
        ("controller", [state, external @ ..]) => controller(state, external),
        ("warden", [state, external @ ..]) => keep_cell(state, external),
        ("read-cell", [path]) => homeostat_cellfile::answer(path, std::io::stdout()).map(|()| 0).map_err(Into::into),
        ("sql-service", [cell, admin, service]) => sql_service(cell, admin, service),
        _ => return None,
    };
    Some(match result {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("homeostat {verb}: {error:#}");
            ExitCode::FAILURE
        }
    })
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn agent(state: &Path, machine: &Path) -> anyhow::Result<i32> {
    let (cell, layout) = home::find(state)?;
    let machine = MachineName::new(text(machine))?;
    let options = AgentOptions { cell, layout, machine, program: std::env::current_exe()? };
    match runtime()?.block_on(homeostat_agent::run(options)) {
        Ok(()) => Ok(warden::DONE),
        Err(AgentError::AlreadyRunning { .. }) => Ok(warden::TAKEN),
        Err(error) => Err(error.into()),
    }
}

fn controller(state: &Path, external: &[&Path]) -> anyhow::Result<i32> {
    let (identity, layout) = home::find(state)?;
    let external = external.iter().map(|word| parse_external(&text(word))).collect::<anyhow::Result<_>>()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(homeostat_controller::run(ControllerOptions { identity, layout, external }))?;
    Ok(warden::DONE)
}

/// `SERVICE=ADMIN_SOCKET,CELL_SOCKET`.
fn parse_external(text: &str) -> anyhow::Result<ExternalAdmin> {
    let parts = text.split_once('=').and_then(|(service, sockets)| Some((service, sockets.split_once(',')?)));
    let (service, (admin, cell)) =
        parts.ok_or_else(|| anyhow::anyhow!("'{text}' is not SERVICE=ADMIN_SOCKET,CELL_SOCKET"))?;
    Ok(ExternalAdmin { service: ServiceName::new(service)?, admin: PathBuf::from(admin), cell: PathBuf::from(cell) })
}

fn keep_cell(state: &Path, external: &[&Path]) -> anyhow::Result<i32> {
    let (identity, layout) = home::find(state)?;
    let external: Vec<String> = external.iter().map(|word| text(word)).collect();
    warden::keep(&identity, &layout, &std::env::current_exe()?, &external)?;
    Ok(0)
}

fn sql_service(cell: &Path, admin: &Path, service: &Path) -> anyhow::Result<i32> {
    let service = ServiceName::new(text(service))?;
    runtime()?.block_on(homeostat_sql::service::serve_service(cell, admin, service))?;
    Ok(0)
}
