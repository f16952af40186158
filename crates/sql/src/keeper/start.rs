//! The `Start` order: files, process, readiness, and the proof that the server started closed.

use std::rc::Rc;
use std::time::Duration;

use homeostat_decider::{Gtid, Recovery, ServerIncarnation};
use tokio::time::{Instant, sleep};

use super::config::Secret;
use super::orders::{Context, Job, OrderError, Progress, io_error};
use super::server::Server;
use super::tail::{self, SavedTail};
use crate::mariadb::{self, Driver, Known, Login, SqlError, relay, salvage, settings, template};

/// Crash recovery of a large server takes minutes; one that takes longer is looked at by a person.
const START: Duration = Duration::from_secs(600);

/// Starts the server closed and leaves its connection in the job.
///
/// # Errors
/// When it does not become ready, or is not closed: then nothing runs.
pub(super) async fn start(
    job: &mut Job,
    recovery: Recovery,
) -> Result<ServerIncarnation, OrderError> {
    let context = job.context.clone();
    let password = Secret::random()
        .map_err(|error| OrderError::Condition(format!("no randomness: {error}")))?;
    let saved = prepare(&context, recovery, &password).await?;
    let mut argv = vec![
        context.config.programs.server.display().to_string(),
        format!("--defaults-file={}", context.paths.options.display()),
    ];
    match recovery {
        Recovery::KeepTail => {}
        Recovery::DropTail => argv.push("--init-rpl-role=SLAVE".into()),
    }
    let server = Server::start(
        &argv,
        &context.launch,
        &context.run_dir,
        &context.group,
        &context.boot,
        &context.log,
    );
    let mut server = server.map_err(io_error("start the server"))?;
    // The guard is what receives this; without it nobody asks for the outcome either.
    let _ = job.progress.send(Progress::Spawned(server.clone()));
    let mut driver = Driver::new(Login {
        socket: context.paths.socket.clone(),
        password,
    });
    let ready = wait_until_ready(&context, &mut driver, &mut server, &mut job.known, saved).await;
    match ready {
        Ok(()) => {
            job.driver = Some(driver);
            Ok(server.incarnation)
        }
        Err(error) => {
            // Half-started is no state that anybody could use.
            server.kill();
            server.end().await;
            Err(error)
        }
    }
}

/// All that is done on disk before the server starts, off the loop: the first start of a machine makes a template.
async fn prepare(
    context: &Rc<Context>,
    recovery: Recovery,
    password: &Secret,
) -> Result<Option<SavedTail>, OrderError> {
    let (config, launch, paths) = (
        context.config.clone(),
        context.launch.clone(),
        context.paths.clone(),
    );
    let port = context.port();
    let init = settings::init_file(&config, password);
    let work = move || -> Result<Option<SavedTail>, OrderError> {
        if !paths.data.is_dir() {
            template::provide(&config.programs, &launch.shared, launch.user, &paths.data)?;
        }
        let place = settings::Place {
            member: &launch.task,
            host: &launch.address,
            port,
            data: &paths.data,
            temporary: &paths.temporary,
            socket: &paths.socket,
            pid_file: &paths.pid_file,
            init_file: &paths.init,
            memory_limit: launch.memory_limit,
        };
        let options = settings::option_file(&config, &place);
        paths
            .write(launch.user, &options, &init)
            .map_err(io_error("write the server's options"))?;
        match recovery {
            Recovery::KeepTail => Ok(None),
            Recovery::DropTail => tail::save(&launch.data)
                .map(Some)
                .map_err(io_error("save the tail before dropping it")),
        }
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        Err(OrderError::Condition(format!(
            "preparing the start was cut short: {error}"
        )))
    })
}

async fn wait_until_ready(
    context: &Context,
    driver: &mut Driver,
    server: &mut Server,
    known: &mut Known,
    saved: Option<SavedTail>,
) -> Result<(), OrderError> {
    let until = Instant::now() + START;
    loop {
        if let Some(cause) = server.ended() {
            let why = format!("the server ended at its start ({cause}); its log says why");
            return Err(OrderError::Condition(why));
        }
        if context.paths.socket.exists() {
            match driver.value("ask whether it is ready", "SELECT 1").await {
                Ok(_) => break,
                Err(SqlError::Unreachable(_)) if Instant::now() < until => {}
                Err(error) if error.lost() && Instant::now() < until => {}
                Err(error) => return Err(error.into()),
            }
        }
        if Instant::now() >= until {
            return Err(OrderError::Condition(format!(
                "the server was not ready after {} s",
                START.as_secs()
            )));
        }
        sleep(Duration::from_millis(3)).await;
    }
    context
        .paths
        .forget_init()
        .map_err(io_error("remove the init file"))?;
    verify_closed(driver).await?;
    known.barrier = None;
    known.relay = scan_relay(context).await?;
    if let Some(saved) = saved {
        let now = mariadb::read(driver).await?.applied;
        let programs = context.config.programs.clone();
        let kept = tokio::task::spawn_blocking(move || saved.conclude(&programs, now)).await;
        match kept {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(tail))) => {
                let from = now.map_or("the beginning".into(), |gtid| gtid.to_string());
                context.note(&format!(
                    "the log was truncated after {from}; what followed is in {}",
                    tail.display()
                ));
            }
            Ok(Err(error)) => {
                context.note(&format!("the dropped tail could not be decoded: {error}"))
            }
            Err(error) => {
                context.note(&format!("decoding the dropped tail was cut short: {error}"))
            }
        }
    }
    Ok(())
}

/// Every server starts closed; one that does not is of no use.
async fn verify_closed(driver: &mut Driver) -> Result<(), OrderError> {
    let seen = mariadb::read(driver).await?;
    let replicates = seen
        .source
        .as_ref()
        .is_some_and(|source| source.receives || source.applies);
    let closed = seen.read_only
        && !seen.waits_for_ackers
        && !seen.acker
        && !replicates
        && seen.admitted.is_empty();
    if closed {
        Ok(())
    } else {
        Err(OrderError::Condition(format!(
            "the server did not start closed: {seen:?}"
        )))
    }
}

async fn scan_relay(context: &Context) -> Result<Option<Gtid>, OrderError> {
    let index = salvage::index(&context.paths.data);
    let scan = move || relay::scan(&relay::files(&index)?).map(|found| found.last);
    let done = tokio::task::spawn_blocking(scan).await;
    done.unwrap_or_else(|error| Err(std::io::Error::other(error)))
        .map_err(io_error("read the relay log"))
}
