//! The faults: what is done to which processes, and what may follow from it.

use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::time::sleep;

use crate::cell::{CLUSTER, Cell};
use crate::chance::Chance;

/// H of the example's profile: a primary may be replaced for silence of at least this, and for nothing shorter.
const H: Duration = Duration::from_secs(3);
/// Silence shorter than this is a stall and must have no consequence: H less what a wake-up on a busy machine may take.
const STALL_MS: std::ops::Range<u64> = 50..2_500;
/// How long past H something stays stopped that is to be replaced.
const PAST_H_MS: u64 = 3_000;
const FLAPS: u32 = 4;
const FLAP_EVERY: Duration = Duration::from_millis(300);
/// In which a failover is over, so that a controller killed within it is killed at any of its steps.
const FAILOVER_MS: u64 = 60;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    PrimaryKilled,
    PrimaryKilledRepeatedly,
    PrimaryAndControllerKilled,
    ControllerKilledDuringFailover,
    PrimaryAndReplicaKilled,
    ServersKilled,
    ReplicaKilled,
    ReplicasKilled,
    PrimaryKeeperKilled,
    ReplicaKeeperKilled,
    PrimaryAgentKilled,
    ControllerKilled,
    EndpointKilled,
    PrimaryStalls,
    PrimaryHangs,
    PrimaryWithKeeperHangs,
    ReplicaHangs,
    ControllerHangs,
    PowerCord,
}

/// What the epoch may do in consequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epoch {
    Rises,
    /// A change of primary would be a false failover.
    Stays,
    /// What dies with it decides.
    Either,
}

impl Fault {
    pub const ALL: [Fault; 19] = [
        Fault::PrimaryKilled,
        Fault::PrimaryKilledRepeatedly,
        Fault::PrimaryAndControllerKilled,
        Fault::ControllerKilledDuringFailover,
        Fault::PrimaryAndReplicaKilled,
        Fault::ServersKilled,
        Fault::ReplicaKilled,
        Fault::ReplicasKilled,
        Fault::PrimaryKeeperKilled,
        Fault::ReplicaKeeperKilled,
        Fault::PrimaryAgentKilled,
        Fault::ControllerKilled,
        Fault::EndpointKilled,
        Fault::PrimaryStalls,
        Fault::PrimaryHangs,
        Fault::PrimaryWithKeeperHangs,
        Fault::ReplicaHangs,
        Fault::ControllerHangs,
        Fault::PowerCord,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Fault::PrimaryKilled => "primary's server killed",
            Fault::PrimaryKilledRepeatedly => "primaries killed every 300 ms",
            Fault::PrimaryAndControllerKilled => "primary's server and controller killed",
            Fault::ControllerKilledDuringFailover => "controller killed during a failover",
            Fault::PrimaryAndReplicaKilled => "primary's and a replica's server killed",
            Fault::ServersKilled => "all servers killed",
            Fault::ReplicaKilled => "a replica's server killed",
            Fault::ReplicasKilled => "both replicas' servers killed",
            Fault::PrimaryKeeperKilled => "primary's keeper killed",
            Fault::ReplicaKeeperKilled => "a replica's keeper killed",
            Fault::PrimaryAgentKilled => "the agent of the primary's machine killed",
            Fault::ControllerKilled => "controller killed",
            Fault::EndpointKilled => "an endpoint killed",
            Fault::PrimaryStalls => "primary's server stopped for less than H",
            Fault::PrimaryHangs => "primary's server stopped for more than H",
            Fault::PrimaryWithKeeperHangs => "primary's server and keeper stopped for more than H",
            Fault::ReplicaHangs => "a replica's server stopped for more than H",
            Fault::ControllerHangs => "controller stopped for up to 8 s",
            Fault::PowerCord => "everything killed at once",
        }
    }

    pub fn epoch(self) -> Epoch {
        match self {
            Fault::PrimaryKilled
            | Fault::PrimaryKilledRepeatedly
            | Fault::PrimaryAndControllerKilled
            | Fault::ControllerKilledDuringFailover
            | Fault::PrimaryAndReplicaKilled
            | Fault::ServersKilled
            | Fault::PrimaryKeeperKilled
            | Fault::PrimaryHangs
            | Fault::PrimaryWithKeeperHangs
            | Fault::PowerCord => Epoch::Rises,
            Fault::ReplicaKilled
            | Fault::ReplicaKeeperKilled
            | Fault::PrimaryAgentKilled
            | Fault::ControllerKilled
            | Fault::EndpointKilled
            | Fault::PrimaryStalls
            | Fault::ReplicaHangs
            | Fault::ControllerHangs => Epoch::Stays,
            // Without ackers a barrier of the lease cannot be acknowledged; the controller's grants keep it.
            Fault::ReplicasKilled => Epoch::Either,
        }
    }

    /// Does it. Returns when nothing is stopped any more.
    pub async fn strike(self, cell: &Cell, chance: &mut Chance) -> anyhow::Result<()> {
        let ids = Ids::look(cell).await?;
        let one = ids.replicas[chance.below(ids.replicas.len() as u64) as usize];
        match self {
            Fault::PrimaryKilled => kill(&[ids.primary.server]),
            Fault::PrimaryKilledRepeatedly => {
                kill(&[ids.primary.server])?;
                for _ in 1..FLAPS {
                    sleep(FLAP_EVERY).await;
                    // Whoever it is by now; nobody, while there is none.
                    if let Ok(ids) = Ids::look(cell).await {
                        kill(&[ids.primary.server])?;
                    }
                }
                Ok(())
            }
            Fault::PrimaryAndControllerKilled => kill(&[ids.primary.server, ids.controller]),
            Fault::ControllerKilledDuringFailover => {
                kill(&[ids.primary.server])?;
                sleep(Duration::from_millis(chance.below(FAILOVER_MS))).await;
                kill(&[ids.controller])
            }
            Fault::PrimaryAndReplicaKilled => kill(&[ids.primary.server, one.server]),
            Fault::ServersKilled => kill(&ids.servers()),
            Fault::ReplicaKilled => kill(&[one.server]),
            Fault::ReplicasKilled => kill(&ids.servers()[1..]),
            Fault::PrimaryKeeperKilled => kill(&[ids.primary.keeper]),
            Fault::ReplicaKeeperKilled => kill(&[one.keeper]),
            Fault::PrimaryAgentKilled => kill(&[ids.primary.agent]),
            Fault::ControllerKilled => kill(&[ids.controller]),
            Fault::EndpointKilled => kill(&[one.endpoint]),
            Fault::PrimaryStalls => {
                let ms = STALL_MS.start + chance.below(STALL_MS.end - STALL_MS.start);
                stop(&[ids.primary.server], Duration::from_millis(ms)).await
            }
            Fault::PrimaryHangs => stop(&[ids.primary.server], past_h(chance)).await,
            Fault::PrimaryWithKeeperHangs => {
                stop(&[ids.primary.keeper, ids.primary.server], past_h(chance)).await
            }
            Fault::ReplicaHangs => stop(&[one.server], past_h(chance)).await,
            Fault::ControllerHangs => {
                let ms = 500 + chance.below(7_500);
                stop(&[ids.controller], Duration::from_millis(ms)).await
            }
            Fault::PowerCord => cell.pull_the_cord().await,
        }
    }
}

fn past_h(chance: &mut Chance) -> Duration {
    H + Duration::from_millis(500 + chance.below(PAST_H_MS))
}

/// The processes of one member and of its machine.
#[derive(Debug, Clone, Copy)]
struct Member {
    server: u32,
    keeper: u32,
    agent: u32,
    endpoint: u32,
}

struct Ids {
    controller: u32,
    primary: Member,
    /// Not empty.
    replicas: Vec<Member>,
}

impl Ids {
    async fn look(cell: &Cell) -> anyhow::Result<Self> {
        let status = cell.status().await?;
        Self::of(&status).with_context(|| format!("the status lacks a pid: {status}"))
    }

    fn of(status: &Value) -> Option<Self> {
        let find = |list: &str, field: &str, name: &Value| {
            let rows = status[list].as_array()?;
            rows.iter().find(|row| row[field] == *name).cloned()
        };
        let pid = |value: &Value| value.as_u64().and_then(|pid| u32::try_from(pid).ok());
        let cluster = find("sql", "name", &Value::from(CLUSTER))?;
        let member = |row: &Value| {
            let machine = find("machines", "name", &row["machine"])?;
            let task = find("tasks", "name", &row["task"])?;
            Some(Member {
                server: pid(&row["pid"])?,
                keeper: pid(&task["supervisor_pid"])?,
                agent: pid(&machine["agent_pid"])?,
                endpoint: pid(&machine["endpoint_pid"])?,
            })
        };
        let rows = cluster["members"].as_array()?;
        let (primary, replicas): (Vec<&Value>, Vec<&Value>) = rows
            .iter()
            .partition(|row| row["task"] == cluster["primary"]);
        let replicas: Vec<Member> = replicas.into_iter().filter_map(member).collect();
        Some(Self {
            controller: pid(&status["controller_pid"])?,
            primary: member(primary.first()?)?,
            replicas: Some(replicas).filter(|replicas| !replicas.is_empty())?,
        })
    }

    /// The primary's first.
    fn servers(&self) -> Vec<u32> {
        let replicas = self.replicas.iter().map(|member| member.server);
        std::iter::once(self.primary.server)
            .chain(replicas)
            .collect()
    }
}

fn send(pids: &[u32], signal: Signal) -> anyhow::Result<()> {
    for pid in pids {
        let raw = i32::try_from(*pid).ok().and_then(Pid::from_raw);
        let Some(pid) = raw else {
            bail!("{pid} is no pid");
        };
        match kill_process(pid, signal) {
            // It ended meanwhile, by what else was done.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).context("send a signal"),
        }
    }
    Ok(())
}

fn kill(pids: &[u32]) -> anyhow::Result<()> {
    send(pids, Signal::KILL)
}

async fn stop(pids: &[u32], time: Duration) -> anyhow::Result<()> {
    send(pids, Signal::STOP)?;
    sleep(time).await;
    send(pids, Signal::CONT)
}
