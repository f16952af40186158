//! What can be typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::check::CheckOptions;
use crate::check_file::ConvertOptions;
use crate::check_prove::ProveOptions;

/// Runs a cell: a pool of machines and the services on it.
#[derive(Debug, Parser)]
#[command(
    name = "homeostat",
    version,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub(crate) struct Arguments {
    /// Where the cell keeps its state [default: found by the cell's name]
    #[arg(long, global = true, value_name = "DIR", env = "HOMEOSTAT_STATE")]
    pub state: Option<PathBuf>,
    #[command(subcommand)]
    pub verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run production tests over this machine and what it can reach, and repair what fails
    Check(CheckOptions),
    /// Show that the fixes of a file of checks are idempotent, where they can do no harm
    Prove(ProveOptions),
    /// Write a goss file as a file of checks
    Convert(ConvertOptions),
    /// Turn a cell up, and watch it come up
    Up(UpOptions),
    /// Take the cell down; its data stays
    Down(DownOptions),
    /// Machines, tasks, databases, services and checks at a glance
    Status(StatusOptions),
    /// Explain where something is and how it is: a service, task, machine or check
    Why(WhyOptions),
    /// What happened
    Events(EventsOptions),
    /// What a task wrote
    Logs(LogsOptions),
    /// Print the host:port at which clients reach a service
    Endpoint(EndpointOptions),
    /// A client for a SQL cluster, as the application's user
    Sql(SqlOptions),
    /// Make another member of a SQL cluster its primary, without losing a write
    Switchover(SwitchoverOptions),
    /// Move everything off a machine, and give it nothing new
    Drain(DrainOptions),
    /// Let a machine take tasks again; a drain that is under way is cancelled
    Undrain(UndrainOptions),
    /// Turn services up that are declared and down
    Turnup(TurnupOptions),
    /// Turn services down: stopped now, purged when the time is over for which they are kept
    Turndown(TurndownOptions),
    /// Break something on purpose (in a sandbox only)
    #[command(subcommand)]
    Chaos(ChaosVerb),
    /// What on this host limits a cell, and what to do about it
    Doctor(DoctorOptions),
}

#[derive(Debug, Args)]
pub(crate) struct UpOptions {
    /// The cell's folder (with a cell.star in it), or the file
    pub cell: PathBuf,
    /// Do not watch: return 0 when every check passes, non-zero after the deadline
    #[arg(long)]
    pub detach: bool,
    /// How long to wait for every check to pass
    #[arg(long, default_value = "120s", value_parser = duration)]
    pub deadline: Duration,
    /// An admin server in another process: SERVICE=ADMIN_SOCKET,CELL_SOCKET
    #[arg(long, hide = true)]
    pub external: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DownOptions {
    /// Also remove everything the cell kept: databases, logs, history
    #[arg(long)]
    pub purge: bool,
    /// Do not ask for the cell's name
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusOptions {
    /// Machine-readable; documented in docs/src/status.md
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WhyOptions {
    /// A service, task, machine or check
    pub name: String,
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EventsOptions {
    /// Go on showing what happens
    #[arg(long, short)]
    pub follow: bool,
    /// How many of the past
    #[arg(long, default_value_t = 50)]
    pub last: u32,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogsOptions {
    pub task: String,
    /// Go on showing what is written
    #[arg(long, short)]
    pub follow: bool,
    /// How many lines of the past
    #[arg(long, default_value_t = 100)]
    pub lines: usize,
}

#[derive(Debug, Args)]
pub(crate) struct EndpointOptions {
    pub service: String,
    /// As this machine reaches it [default: the cell's first machine]
    #[arg(long)]
    pub machine: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SqlOptions {
    pub cluster: String,
    /// Print the connection string, with its password, instead of connecting
    #[arg(long, conflicts_with = "execute")]
    pub dsn: bool,
    /// Run one statement
    #[arg(long, short)]
    pub execute: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DrainOptions {
    pub machine: String,
    /// Do not watch: return when the operation is written down
    #[arg(long)]
    pub detach: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UndrainOptions {
    pub machine: String,
}

#[derive(Debug, Args)]
pub(crate) struct TurnupOptions {
    #[arg(required = true)]
    pub services: Vec<String>,
    /// Do not watch: return when the operation is written down
    #[arg(long)]
    pub detach: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TurndownOptions {
    #[arg(required = true)]
    pub services: Vec<String>,
    /// For how long data and places are kept before they are purged: 30m, 24h, 7d
    #[arg(long, default_value = "7d", value_parser = long_duration)]
    pub keep: Duration,
    /// Do not watch: return when the operation is written down
    #[arg(long)]
    pub detach: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ChaosVerb {
    /// A machine with everything on it
    Machine(ChaosMachine),
    /// Kill a task's process (of a SQL member: its server)
    Stop { task: String },
    /// Stop a task's process without ending it: it hangs
    Hang {
        task: String,
        /// Let it go on after this time [default: only when told to]
        #[arg(long = "for", value_parser = duration)]
        lasting: Option<Duration>,
    },
    /// Let a task that hangs go on
    Resume { task: String },
}

#[derive(Debug, Args)]
pub(crate) struct ChaosMachine {
    pub machine: String,
    #[command(flatten)]
    pub fate: Fate,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Fate {
    /// Kill its agent, supervisors and tasks in one instant, and keep it dead
    #[arg(long)]
    pub kill: bool,
    /// Let it come back
    #[arg(long = "return")]
    pub comes_back: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorOptions {
    /// Machine-readable
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SwitchoverOptions {
    pub cluster: String,
    /// The member to become primary [default: the best one]
    #[arg(long)]
    pub to: Option<String>,
}

const LONGEST: Duration = Duration::from_secs(24 * 3600);

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    );
    let number: u64 = number
        .parse()
        .map_err(|_| "a number with a unit, such as 120s".to_owned())?;
    let duration = match unit {
        "ms" => Duration::from_millis(number),
        "s" | "" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.saturating_mul(60)),
        other => return Err(format!("'{other}' is not a unit: ms, s or m")),
    };
    if duration <= LONGEST {
        Ok(duration)
    } else {
        Err("a day at most".to_owned())
    }
}

const LONGEST_KEPT: Duration = Duration::from_secs(366 * 24 * 3600);

/// As [`duration`], with hours and days, up to a year.
fn long_duration(text: &str) -> Result<Duration, String> {
    let seconds = |unit: char| match unit {
        'h' => Some(3600),
        'd' => Some(24 * 3600),
        _ => None,
    };
    let long = text
        .chars()
        .next_back()
        .and_then(|unit| Some((text.strip_suffix(unit)?, seconds(unit)?)));
    let Some((number, unit)) = long else {
        return duration(text);
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "a number with a unit, such as 7d".to_owned())?;
    Some(Duration::from_secs(number.saturating_mul(unit)))
        .filter(|kept| *kept <= LONGEST_KEPT)
        .ok_or_else(|| "a year at most".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn durations_need_units_that_exist() {
        assert_eq!(duration("120s"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert!(duration("2h").is_err());
        assert!(duration("s").is_err());
        assert!(duration("18446744073709551615m").is_err());
        assert_eq!(long_duration("7d"), Ok(Duration::from_secs(7 * 24 * 3600)));
        assert_eq!(long_duration("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(long_duration("90s"), Ok(Duration::from_secs(90)));
        assert!(long_duration("400d").is_err());
        assert!(long_duration("d").is_err());
    }

    #[test]
    fn a_machine_is_killed_or_returns_and_never_both() {
        let parse = |words: &str| Arguments::try_parse_from(words.split(' '));
        assert!(parse("homeostat chaos machine m3 --kill").is_ok());
        assert!(parse("homeostat chaos machine m3 --return").is_ok());
        assert!(parse("homeostat chaos machine m3").is_err());
        assert!(parse("homeostat chaos machine m3 --kill --return").is_err());
    }
}
