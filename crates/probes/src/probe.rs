//! Something to look at, resolved, and who looks.

use std::error::Error;
use std::time::{Duration, Instant};

use homeostat_model::library::Call;
use homeostat_prodtest::{Observation, Outcome};

use crate::call::{Args, As, CallError};
use crate::clock::{self, ClockProbe};
use crate::command::{self, CommandProbe};
use crate::deadline::Deadline;
use crate::dns::{self, DnsProbe};
use crate::grpc::{self, GrpcProbe};
use crate::http::{self, HttpProbe};
use crate::is_our_own_trouble;
use crate::local::{self, LocalError, LocalProbe};
use crate::log::{self, LogProbe};
use crate::managed::{self, ManagedProbe};
use crate::metric::{self, MetricProbe};
use crate::program::{self, ProgramProbe};
use crate::shown;
use crate::sql::{self, SqlProbe, SqlStateProbe};
use crate::tcp::{self, TcpProbe};
use crate::value::{self, ValueProbe};

/// Something to look at, and what would be right.
#[derive(Debug, Clone, PartialEq)]
pub enum Probe {
    Tcp(TcpProbe),
    Http(HttpProbe),
    Sql(SqlProbe),
    /// Of a database, a user or a grant on a SQL server, or of its replication.
    SqlState(SqlStateProbe),
    Command(CommandProbe),
    /// A file, an account, a port, a mount …
    Local(LocalProbe),
    /// A package or a service.
    Managed(ManagedProbe),
    Dns(DnsProbe),
    Clock(ClockProbe),
    Log(LogProbe),
    Metric(MetricProbe),
    Grpc(GrpcProbe),
    Program(ProgramProbe),
    Value(ValueProbe),
    /// Cannot be run here, for this reason.
    NotRun(String),
}

impl Probe {
    /// # Errors
    /// When the call is of no kind of probe, or an argument does not fit; the error names it.
    pub fn from_call(call: &Call) -> Result<Self, CallError> {
        Self::from_args(&Args::bind(call, As::Probe)?)
    }

    /// The arguments are bound to their kind already.
    pub(crate) fn from_args(args: &Args<'_>) -> Result<Self, CallError> {
        if let Some(local) = LocalProbe::from_args(args)? {
            return Ok(Probe::Local(local));
        }
        if let Some(managed) = ManagedProbe::from_args(args)? {
            return Ok(Probe::Managed(managed));
        }
        if let Some(state) = SqlStateProbe::from_args(args)? {
            return Ok(Probe::SqlState(state));
        }
        Ok(match args.kind.name {
            "tcp" => Probe::Tcp(TcpProbe::from_args(args)?),
            "http" => Probe::Http(HttpProbe::from_args(args)?),
            "sql" => Probe::Sql(SqlProbe::from_args(args)?),
            "command" => Probe::Command(CommandProbe::from_args(args)?),
            "dns" => Probe::Dns(DnsProbe::from_args(args)?),
            "clock" => Probe::Clock(ClockProbe::from_args(args)?),
            "log" => Probe::Log(LogProbe::from_args(args)?),
            "metric" => Probe::Metric(MetricProbe::from_args(args)?),
            "grpc_health" => Probe::Grpc(GrpcProbe::from_args(args)?),
            "program" => Probe::Program(ProgramProbe::from_args(args)?),
            "not_run" => Probe::NotRun(args.need("why")?),
            "value" => Probe::Value(ValueProbe::from_args(args)?),
            _ => return args.whole("it is no probe", "see docs/src/library.md"),
        })
    }
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
        let mut right = None;
        let (outcome, seen) = match probe {
            Probe::Tcp(tcp) => finding(tcp::look(tcp, within).await),
            Probe::Http(http) => finding(http::look(http, within).await),
            Probe::Sql(sql) => finding(self.sql.look(sql, within).await),
            Probe::SqlState(state) => finding(sql::look_at_state(state, within).await),
            Probe::Command(command) => finding(command::look(command, within).await),
            Probe::Local(local) => match local::look(local, within).await {
                Err(error @ LocalError::Panicked) => (Outcome::NotRun, error.to_string()),
                looked => finding(looked),
            },
            Probe::Managed(managed) => match managed::look(managed, within).await {
                Err(error) if error.is_not_run() => (Outcome::NotRun, error.to_string()),
                looked => finding(looked),
            },
            Probe::Dns(dns) => finding(dns::look(dns, within).await),
            Probe::Clock(clock) => finding(clock::look(clock, within).await),
            Probe::Log(log) => finding(log::look(log, within).await),
            Probe::Metric(metric) => finding(metric::look(metric, within).await),
            Probe::Grpc(grpc) => finding(grpc::look(grpc, within).await),
            Probe::Program(program) => {
                let (expected, looked) = program::look(program, within).await;
                right = expected;
                match looked {
                    Err(error) if error.is_not_run() => (Outcome::NotRun, shown::error(&error)),
                    looked => finding(looked),
                }
            }
            Probe::Value(value) => finding(value::look(value)),
            Probe::NotRun(why) => (Outcome::NotRun, why.clone()),
        };
        Observation {
            outcome,
            expected: right.unwrap_or_else(|| expected(probe)),
            seen,
            took: started.elapsed(),
        }
    }
}

fn expected(probe: &Probe) -> String {
    match probe {
        Probe::Tcp(tcp) => tcp.expected(),
        Probe::Http(http) => http.expected(),
        Probe::Sql(sql) => sql.expected(),
        Probe::SqlState(state) => state.expected(),
        Probe::Command(command) => command.expected(),
        Probe::Local(local) => local.expected(),
        Probe::Managed(managed) => managed.expected(),
        Probe::Dns(dns) => dns.expected(),
        Probe::Clock(clock) => clock.expected(),
        Probe::Log(log) => log.expected(),
        Probe::Metric(metric) => metric.expected(),
        Probe::Grpc(grpc) => grpc.expected(),
        Probe::Program(program) => program.expected(),
        Probe::Value(value) => value.expected(),
        Probe::NotRun(_) => "something that cannot be looked at here".to_owned(),
    }
}

fn finding<E: Error + 'static>(looked: Result<String, E>) -> (Outcome, String) {
    match looked {
        Ok(seen) => (Outcome::Passed, seen),
        Err(error) if is_our_own_trouble(&error) => (Outcome::NotRun, shown::error(&error)),
        Err(error) => (Outcome::Failed, shown::error(&error)),
    }
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
