//! What checks look at, on a real machine.
//!
//! Floor 2. A [`Probe`] is *resolved*: no templates, no names of services, nothing left to look up but host names.
//! [`Prober::run`] carries it out and always comes back with an [`Observation`] about when its deadline says, whatever
//! the other side does: hang, answer garbage, answer for ever, fork and hide.
//!
//! Three outcomes are told apart. *Passed* and *failed* are about what is tested. *Not run* is about the prober: it had
//! no file descriptor or process left, and says nothing about the target.
//!
//! What is seen is shown to people in terminals and stored, and comes from programs that may be broken or hostile. So
//! it is cut to size and cleaned of control characters here, at the edge (`shown`).

mod command;
mod deadline;
mod http;
mod shown;
mod sql;
mod strays;
mod tcp;

use std::error::Error;
use std::time::{Duration, Instant};

use homeostat_prodtest::{Observation, Outcome};

pub use command::{CommandProbe, RunAs};
pub use http::HttpProbe;
pub use sql::{SqlProbe, SqlUrl};

use deadline::Deadline;

/// Something to look at, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// `addr` (host:port) accepts a connection.
    Tcp {
        addr: String,
    },
    Http(HttpProbe),
    Sql(SqlProbe),
    Command(CommandProbe),
}

/// Carries out probes. One serves a whole process; it keeps SQL connections for a while, which is why it is a thing
/// and not a function.
#[derive(Debug, Default)]
pub struct Prober {
    sql: sql::Connections,
}

impl Prober {
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks once. Takes at most `deadline`, and a moment more where a command has to be killed.
    ///
    /// Dropping the future ends the probe and everything that it started.
    pub async fn run(&self, probe: &Probe, deadline: Duration) -> Observation {
        let started = Instant::now();
        let within = Deadline::starting_now(deadline);
        let found = match probe {
            Probe::Tcp { addr } => finding(tcp::look(addr, within).await),
            Probe::Http(http) => finding(http::look(http, within).await),
            Probe::Sql(sql) => finding(self.sql.look(sql, within).await),
            Probe::Command(command) => finding(command::look(command, within).await),
        };
        let (outcome, seen) = found;
        Observation {
            outcome,
            expected: expected(probe),
            seen,
            took: started.elapsed(),
        }
    }
}

fn expected(probe: &Probe) -> String {
    match probe {
        Probe::Tcp { addr } => format!("{addr} accepts a connection"),
        Probe::Http(http) => http.expected(),
        Probe::Sql(sql) => sql.expected(),
        Probe::Command(command) => command.expected(),
    }
}

fn finding<E: Error + 'static>(looked: Result<String, E>) -> (Outcome, String) {
    match looked {
        Ok(seen) => (Outcome::Passed, seen),
        Err(error) if is_our_own_trouble(&error) => (Outcome::NotRun, shown::error(&error)),
        Err(error) => (Outcome::Failed, shown::error(&error)),
    }
}

/// Whether a probe failed for want of something on the prober's side.
fn is_our_own_trouble(error: &(dyn Error + 'static)) -> bool {
    use rustix::io::Errno;
    // AGAIN: fork, at the limit of processes. The others: no descriptor here or in the whole system, no memory.
    const OURS: [Errno; 4] = [Errno::AGAIN, Errno::MFILE, Errno::NFILE, Errno::NOMEM];
    let ours = |error: &(dyn Error + 'static)| {
        let code = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::raw_os_error);
        code.is_some_and(|code| OURS.iter().any(|ours| ours.raw_os_error() == code))
    };
    shown::chain(error).any(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot connect to 127.0.0.1:1")]
    struct Outer(#[source] std::io::Error);

    fn outcome(errno: rustix::io::Errno) -> Outcome {
        finding(Err(Outer(errno.into()))).0
    }

    #[test]
    fn the_probers_own_trouble_is_no_failure_of_the_target() {
        assert_eq!(outcome(rustix::io::Errno::MFILE), Outcome::NotRun);
        assert_eq!(outcome(rustix::io::Errno::CONNREFUSED), Outcome::Failed);
    }
}
