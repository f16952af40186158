//! The verbs that homeostat calls itself by: each is the body of one process of a cell.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use homeostat_agent::{AgentError, AgentOptions};
use homeostat_cell::{home, warden};
use homeostat_controller::{ControllerError, ControllerOptions, ExternalAdmin, OpenError};
use homeostat_model::{CellLayout, MachineName, ServiceName};

/// Carries out a hidden verb; `None` when the words are something else. No argument parser, no runtime: a supervisor
/// counts its kilobytes.
pub(crate) fn run(words: &[OsString]) -> Option<ExitCode> {
    let verb = words.get(1)?.to_str()?;
    let rest: Vec<&Path> = words[2..].iter().map(Path::new).collect();
    if verb == "prove-inside" && rest.is_empty() {
        return Some(homeostat_checks::prove_inside());
    }
    let result = match (verb, rest.as_slice()) {
        ("supervise", [run]) => homeostat_supervisor::supervise(run)
            .map(|_| 0)
            .map_err(anyhow::Error::from),
        ("keeper", [run]) => homeostat_sql::keeper::keep(run)
            .map(|_| 0)
            .map_err(anyhow::Error::from),
        ("forward", [run]) => homeostat_supervisor::endpoint::forward(run)
            .map(|()| 0)
            .map_err(Into::into),
        ("agent", [state, machine]) => agent(state, machine),
        ("controller", [state, external @ ..]) => controller(state, external),
        ("warden", [state, external @ ..]) => keep_cell(state, external),
        ("read-cell", [path]) => homeostat_cellfile::answer(path, std::io::stdout())
            .map(|()| 0)
            .map_err(Into::into),
        ("read-site", [path, parameters]) => homeostat_cellfile::answer_site(
            path,
            &text(parameters),
            homeostat_checks::judge,
            std::io::stdout(),
        )
        .map(|()| 0)
        .map_err(Into::into),
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
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// How often a process that found its place taken looks whether it is free.
const STAND_BY: Duration = Duration::from_millis(100);

/// Runs `once` until it has an answer. `None`: another process has its place, left by a warden that was killed; this one
/// stands by to follow it at once, or ends with the cell.
fn stand_by(
    layout: &CellLayout,
    mut once: impl FnMut() -> anyhow::Result<Option<i32>>,
) -> anyhow::Result<i32> {
    let mut told = false;
    loop {
        if layout.down_mark().exists() {
            return Ok(warden::DONE);
        }
        if let Some(code) = once()? {
            return Ok(code);
        }
        if !told {
            eprintln!("another process has this one's place; standing by");
            told = true;
        }
        std::thread::sleep(STAND_BY);
    }
}

fn agent(state: &Path, machine: &Path) -> anyhow::Result<i32> {
    let (cell, layout) = home::find(state)?;
    let machine = MachineName::new(text(machine))?;
    let program = std::env::current_exe()?;
    stand_by(&layout, || {
        let options = AgentOptions {
            cell: cell.clone(),
            layout: layout.clone(),
            machine: machine.clone(),
            program: program.clone(),
        };
        let runtime = runtime()?;
        let ended = runtime.block_on(homeostat_agent::run(options));
        // A task that does not die is being buried for ever in a thread of its own: this process does not wait for it.
        runtime.shutdown_background();
        match ended {
            Ok(()) => Ok(Some(warden::DONE)),
            Err(AgentError::AlreadyRunning { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
}

fn controller(state: &Path, external: &[&Path]) -> anyhow::Result<i32> {
    let (identity, layout) = home::find(state)?;
    let external: Vec<ExternalAdmin> = external
        .iter()
        .map(|word| parse_external(&text(word)))
        .collect::<anyhow::Result<_>>()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    stand_by(&layout, || {
        let options = ControllerOptions {
            identity: identity.clone(),
            layout: layout.clone(),
            external: external.clone(),
        };
        match runtime.block_on(homeostat_controller::run(options)) {
            Ok(()) => Ok(Some(warden::DONE)),
            Err(ControllerError::Open(OpenError::InUse { .. })) => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
}

/// `SERVICE=ADMIN_SOCKET,CELL_SOCKET`.
fn parse_external(text: &str) -> anyhow::Result<ExternalAdmin> {
    let parts = text
        .split_once('=')
        .and_then(|(service, sockets)| Some((service, sockets.split_once(',')?)));
    let (service, (admin, cell)) =
        parts.ok_or_else(|| anyhow::anyhow!("'{text}' is not SERVICE=ADMIN_SOCKET,CELL_SOCKET"))?;
    Ok(ExternalAdmin {
        service: ServiceName::new(service)?,
        admin: PathBuf::from(admin),
        cell: PathBuf::from(cell),
    })
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
