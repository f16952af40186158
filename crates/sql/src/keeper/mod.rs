//! The keeper: supervisor process of one SQL member (`homeostat keeper RUN_DIR`).
//!
//! A SQL server checks no epochs. Its keeper does, and it can because nobody else administers the server: it is its
//! parent (the server dies with it, by parent-death signal and cgroup) and the only one with its password, drawn anew for
//! every start and known to no file for longer than that start takes. What a decider wants of a member it asks of the
//! keeper, as an order that carries the record it was decided under ([`homeostat_decider::Order`]).
//!
//! **Persist, then act.** Whether an order is obeyed is decided by [`homeostat_decider::KeeperCore`], which is pure; what it
//! says to remember is on disk ([`file`]) before the first statement is sent. A keeper that dies in the middle of an
//! order takes its server with it and comes back as another incarnation, so no half-done order is ever continued.
//!
//! **The server starts closed, and never by itself.** When it exits the keeper says so, at once, and waits for an order.
//!
//! | module | for |
//! |---|---|
//! | [`config`] | what the SQL service tells a keeper |
//! | [`call`] | what may be asked through the supervisor protocol's `Call` |
//! | [`file`] | what it remembers |
//! | [`sign`] | what it says at every pulse |
//! | `reader` | whether the server answers reads, and hears its source |
//! | `fuse` | kills the server when its serving lease is over |
//! | `guard` | its loop: one thread, every event in one place |
//! | `orders`, `start` | carry one order out |
//! | `server` | the server's process: start, exit, kill |
//! | `peers` | the connections of agents |
//! | `tail` | saves what a truncation drops |

pub mod call;
pub mod config;
pub mod file;
mod fuse;
mod guard;
mod orders;
mod peers;
mod reader;
mod server;
pub mod sign;
mod start;
mod tail;

use std::io;
use std::path::{Path, PathBuf};

use homeostat_supervisor::launch::LaunchFile;
use homeostat_supervisor::leftovers::{LeftoverError, Swept, kill_leftovers};
use homeostat_supervisor::run::{ExitFile, RunError, RunLock};

pub(crate) use orders::chain;

pub use call::KeeperCall;
pub use config::{ConfigError, KeeperConfig, Peer, Programs, Secret};
pub use sign::KeeperSign;

#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("there is no launch file in {run_dir}: an agent writes it before it starts a keeper")]
    NoLaunchFile { run_dir: PathBuf },
    #[error("what an earlier keeper left could not be cleaned up")]
    Leftovers(#[from] LeftoverError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    File(#[from] file::FileError),
    #[error("what an earlier copy left could not be put right")]
    Copy(#[from] crate::copy::CopyError),
    #[error("cannot {what}")]
    System {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> KeepError {
    move |source| KeepError::System { what, source }
}

/// Guards the member that `launch.json` in `run_dir` describes, until it is told to stop. Must be called from the main
/// thread: the server's life is tied to the thread that starts it.
///
/// # Errors
/// When it could not begin: another keeper lives, the launch file or what was remembered cannot be read, the machine
/// refuses something basic. Whatever goes wrong later is reported to the agent and outlived.
pub fn keep(run_dir: &Path) -> Result<(), KeepError> {
    let run_dir = std::fs::canonicalize(run_dir).map_err(|source| RunError::Io {
        what: "open",
        path: run_dir.to_owned(),
        source,
    })?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // Fails when the agent made it the leader already, which is as good.
    let _ = rustix::process::setsid();
    std::env::set_current_dir("/").map_err(system("enter /"))?;
    let launch = LaunchFile::load(&run_dir)?.ok_or_else(|| KeepError::NoLaunchFile {
        run_dir: run_dir.clone(),
    })?;
    let config = KeeperConfig::of(&launch)?;
    // "No server runs" is the first thing this keeper will say: it has to be true.
    let swept = kill_leftovers(&run_dir)?;
    let lock = RunLock::take(&run_dir)?;
    ExitFile::remove(&run_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(system("make a runtime"))?;
    let ended = runtime.block_on(tokio::task::LocalSet::new().run_until(async {
        let mut guard = guard::Guard::begin(run_dir, launch, config)?;
        if let Swept::Killed(killed) = swept {
            guard.note(&format!(
                "killed {} processes that an earlier keeper left",
                killed.len()
            ));
        }
        guard.run().await
    }));
    // A program that a cancelled order left in a blocking thread must not hold up the end.
    runtime.shutdown_background();
    drop(lock);
    ended
}
