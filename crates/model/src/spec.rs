//! What a person declares in `cell.star`, after the cellfile room has evaluated and checked it.
//!
//! A `CellSpec` is complete and consistent by itself: names are unique, `needs` and `after` point at things that
//! exist and contain no cycle. `homeostat-cellfile` guarantees this; other rooms rely on it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    CellName, CheckName, MachineName, PackageName, PortName, RackName, Resources, ServiceName,
};

/// A whole cell as declared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellSpec {
    pub name: CellName,
    pub kind: CellKind,
    pub machines: Vec<MachineSpec>,
    pub packages: Vec<PackageSpec>,
    pub services: Vec<ServiceSpec>,
    pub checks: Vec<CheckSpec>,
}

/// Whether faults may be injected on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CellKind {
    /// `homeostat chaos` is allowed.
    Sandbox,
    Production,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    pub name: MachineName,
    pub rack: RackName,
    /// What tasks on it may use in sum.
    pub capacity: Resources,
}

/// A thing to run, under a name that tasks refer to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageSpec {
    pub name: PackageName,
    pub version: String,
    pub source: PackageSource,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "from")]
pub enum PackageSource {
    /// A program of the host, used where it is: `/usr/bin/redis-server`.
    Host { path: PathBuf },
    /// A file or folder, copied into the cell by its content hash. Several may be named, absolute after evaluation; the
    /// first that exists *when the cell is turned up* is used, so that a cell file can be read before anything is built.
    Path { candidates: Vec<PathBuf> },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceSpec {
    pub name: ServiceName,
    pub owner: String,
    /// Services that must be up before this one.
    pub needs: Vec<ServiceName>,
    pub kind: ServiceKind,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum ServiceKind {
    Job(JobSpec),
    Sql(SqlSpec),
}

/// N equal tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    pub tasks: u32,
    pub task: TaskTemplate,
    /// The port clients reach through the service's endpoint; none: the service has no endpoint.
    pub endpoint: Option<PortName>,
}

/// What a task is made of. Strings may contain `${…}` ([`crate::Template`]), resolved on the machine when the task
/// starts: `${address}` (its own), `${port.NAME}`, `${dir}` (its data folder), `${task}`, `${machine}`, `${package}` (the
/// path of its program or folder), `${endpoint.SERVICE}` (host:port on this machine),
/// `${secret.SERVICE.NAME}` (only in `files`, never in `command` or `env`, where other users could read it).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskTemplate {
    pub package: PackageName,
    pub command: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub files: Vec<FileTemplate>,
    /// Port name to a fixed number, or `None` for one that the machine picks.
    pub ports: BTreeMap<PortName, Option<u16>>,
    pub resources: Resources,
    pub user: TaskUser,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    pub restart: RestartPolicy,
}

/// A file written into the task's data folder before it starts, mode 0600, owned by the task's user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileTemplate {
    /// Relative to the data folder.
    pub path: PathBuf,
    pub content: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "as", content = "name")]
pub enum TaskUser {
    /// The cell's own unprivileged user when the cell runs as root, otherwise whoever runs the cell.
    Cell,
    /// A user of the host, by name.
    Named(String),
    /// Declared on purpose.
    Root,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Start again after any exit, with back-off.
    Always,
    /// Start again after a failure only.
    OnFailure,
    Never,
}

/// A replicated SQL cluster (failover.md).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SqlSpec {
    pub members: u32,
    pub flavor: Flavor,
    /// The database made for applications.
    pub database: String,
    pub resources: Resources,
    pub profile: Profile,
    pub reads: Reads,
    pub durability: Durability,
    /// How long a cold start waits for the last holder before it elects another member.
    pub cold_wait: Duration,
    /// Further server settings; those of failover.md section 8 cannot be overridden.
    pub settings: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flavor {
    MariaDb,
    MySql,
}

/// How soon silence counts as a hang (failover.md section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// 3 s: virtual machines do stall for a second or two.
    Steady,
    /// 500 ms.
    Fast,
}

impl Profile {
    /// H of failover.md section 7.
    pub const fn hang(self) -> Duration {
        match self {
            Profile::Steady => Duration::from_secs(3),
            Profile::Fast => Duration::from_millis(500),
        }
    }
}

/// What a client cut off together with an old primary may read (failover.md section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reads {
    Bounded,
    Strict,
}

/// What an acker promises of what it received (failover.md section 8, `sync_relay_log`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// Survives the loss of power: `sync_relay_log=1`.
    Power,
    /// Survives the loss of the process only: `sync_relay_log=0`.
    Process,
}

/// A production test as declared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckSpec {
    pub name: CheckName,
    pub about: CheckTarget,
    /// Checks that must pass before this one is worth running.
    pub after: Vec<CheckName>,
    pub probe: ProbeSpec,
    pub every: Duration,
    /// The longest one probe may take.
    pub timeout: Duration,
    /// How many failures in a row make a verdict.
    pub confirm: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "on", content = "name")]
pub enum CheckTarget {
    Service(ServiceName),
    Machine(MachineName),
    Cell,
}

/// What a check looks at. `at` is `host:port` and may contain `${endpoint.SERVICE}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "probe")]
pub enum ProbeSpec {
    Tcp {
        at: String,
    },
    Http(HttpProbe),
    /// Runs `query` as the application user of `service` through its endpoint and compares the single value.
    Sql {
        service: ServiceName,
        query: String,
        want: Option<String>,
    },
    /// Exit code 0 passes; run on the machine that the controller picks, or, when it names `${dir.TASK}` (the data folder
    /// of another task, allowed here only), on the machine of that task. Of the variables of [`TaskTemplate`] it may use
    /// `${package}`, `${dir}` (the check's own folder, kept between runs), `${machine}`, `${endpoint.SERVICE}`
    /// and, in `files`, `${secret.SERVICE.NAME}`.
    Command {
        package: Option<PackageName>,
        command: Vec<String>,
        files: Vec<FileTemplate>,
    },
    /// Every task of the service runs; for SQL also: every member replicates.
    Tasks {
        service: ServiceName,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HttpProbe {
    pub at: String,
    pub path: String,
    pub status: u16,
    /// A text the body must contain.
    pub contains: Option<String>,
}
