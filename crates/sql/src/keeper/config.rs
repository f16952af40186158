//! What a keeper is told when it is placed: `LaunchFile::keeper`, as JSON.
//!
//! Where it is (its address, its ports, its folders, its user) is in the launch file itself, resolved by the agent; here is
//! what the SQL service decided about the cluster.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use homeostat_decider::{LEASE, MemberId};
use homeostat_model::{Bytes, Durability, Flavor};
use homeostat_supervisor::launch::LaunchFile;
use serde::{Deserialize, Serialize};

use crate::copy::CopyPrograms;
use crate::mariadb::{Application, settings};

/// The newest format of [`KeeperConfig`]; a newer one is refused by name.
pub const FORMAT: u32 = 1;
/// The name of the port in the launch file at which the server listens.
pub const PORT: &str = "sql";
/// Oftener would cost more than it tells; more rarely and it says nothing about half a second.
const PULSE_MS: RangeInclusive<u64> = 10..=1000;

/// Everything a keeper must know of its cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeeperConfig {
    pub format: u32,
    pub flavor: Flavor,
    /// All members, this one included. A keeper makes a replication account for each when its server starts, so a new
    /// member needs a restart of the others' servers.
    pub members: BTreeMap<MemberId, Peer>,
    pub application: Application,
    pub durability: Durability,
    /// `None`: derived from the launch file's memory limit.
    pub buffer_pool: Option<Bytes>,
    /// Further server settings of the cell file; the reserved ones are refused ([`settings::refusal`]).
    pub settings: BTreeMap<String, String>,
    pub programs: Programs,
    /// How often the keeper gives a sign of life, and a source sends heartbeats.
    #[serde(default = "steady_pulse")]
    pub pulse_ms: u64,
    /// How long the holder's server stays open after its serving lease was renewed last.
    #[serde(default = "usual_lease")]
    pub lease_ms: u64,
}

fn steady_pulse() -> u64 {
    100
}

fn usual_lease() -> u64 {
    u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Unique in the cluster, from 1 to [`Peer::LARGEST_ID`], and never given to another member later: it is part of the
    /// GTID of everything this member writes as holder.
    pub server_id: u32,
    /// With which this member connects to the holder.
    pub replication_password: Secret,
}

impl Peer {
    pub const LARGEST_ID: u32 = (1 << 30) - 1;

    /// The server id while this member receives. Another one than it writes with, because a MariaDB replica **silently
    /// skips what carries its own id**, unless it replicates semi-synchronously. A former holder whose tail was dropped,
    /// or a member rebuilt from an older copy, has to receive its own writes back from its successor.
    pub fn receiving_id(&self) -> u32 {
        self.server_id | (Self::LARGEST_ID + 1)
    }
}

/// Where the server's programs are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programs {
    pub server: PathBuf,
    pub install: PathBuf,
    pub binlog: PathBuf,
    pub client: PathBuf,
    #[serde(default = "CopyPrograms::debian")]
    pub copy: CopyPrograms,
}

impl Programs {
    /// Where Debian's `mariadb-server-core` and `mariadb-client-core` put them.
    pub fn debian() -> Self {
        Self {
            server: "/usr/sbin/mariadbd".into(),
            install: "/usr/bin/mariadb-install-db".into(),
            binlog: "/usr/bin/mariadb-binlog".into(),
            client: "/usr/bin/mariadb".into(),
            copy: CopyPrograms::debian(),
        }
    }

    pub fn all(&self) -> [&Path; 4] {
        [&self.server, &self.install, &self.binlog, &self.client]
    }
}

/// A password. It is written to files of mode 0600 and to sockets, and to nothing that people read.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 20];
        getrandom::fill(&mut bytes)?;
        Ok(Self(
            bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        ))
    }

    /// The text itself: only for what is about to send or store it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{task} was launched without a keeper's configuration")]
    Missing { task: MemberId },
    #[error("the configuration of {task}'s keeper cannot be read")]
    Malformed {
        task: MemberId,
        #[source]
        source: serde_json::Error,
    },
    #[error(
        "the configuration of {task}'s keeper has format {found}; this keeper reads up to {FORMAT}: upgrade it"
    )]
    Newer { task: MemberId, found: u32 },
    #[error("the configuration of {task}'s keeper {why}")]
    Inconsistent { task: MemberId, why: String },
}

impl KeeperConfig {
    /// Reads and checks the configuration in a launch file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn of(launch: &LaunchFile) -> Result<Self, ConfigError> {
        let task = || launch.task.clone();
        let json = launch
            .keeper
            .as_ref()
            .ok_or_else(|| ConfigError::Missing { task: task() })?;
        // The number first: a newer format need not look like this one.
        let found = json
            .get("format")
            .and_then(serde_json::Value::as_u64)
            .unwrap_or(0);
        if found > u64::from(FORMAT) {
            return Err(ConfigError::Newer {
                task: task(),
                found: u32::try_from(found).unwrap_or(u32::MAX),
            });
        }
        let config: Self =
            serde_json::from_value(json.clone()).map_err(|source| ConfigError::Malformed {
                task: task(),
                source,
            })?;
        match config.mistake(launch) {
            Some(why) => Err(ConfigError::Inconsistent { task: task(), why }),
            None => Ok(config),
        }
    }

    pub fn pulse(&self) -> Duration {
        Duration::from_millis(self.pulse_ms)
    }

    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    fn mistake(&self, launch: &LaunchFile) -> Option<String> {
        match self.flavor {
            Flavor::MariaDb => {}
            Flavor::MySql => {
                return Some("asks for MySQL, which this version does not run yet".into());
            }
        }
        if !self.members.contains_key(&launch.task) {
            return Some("does not name the member itself".into());
        }
        let mut ids: Vec<u32> = self.members.values().map(|peer| peer.server_id).collect();
        ids.sort_unstable();
        let in_range = |id: &u32| (1..=Peer::LARGEST_ID).contains(id);
        if !ids.iter().all(in_range) || ids.windows(2).any(|pair| pair[0] == pair[1]) {
            return Some(format!(
                "has server ids that are used twice or not from 1 to {}",
                Peer::LARGEST_ID
            ));
        }
        if !launch.ports.keys().any(|port| port.as_str() == PORT) {
            return Some(format!(
                "needs a port named '{PORT}', and the launch file has none"
            ));
        }
        if !PULSE_MS.contains(&self.pulse_ms) || self.lease_ms < self.pulse_ms.saturating_mul(10) {
            return Some(format!(
                "has a pulse of {} ms and a lease of {} ms; a pulse is from {} to {} ms, and a lease ten of them or more",
                self.pulse_ms,
                self.lease_ms,
                PULSE_MS.start(),
                PULSE_MS.end()
            ));
        }
        settings::refusal(&self.settings)
    }
}
