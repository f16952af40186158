//! From what was declared to what a keeper is started with.

use std::collections::BTreeMap;
use std::time::Duration;

use homeostat_api::Refusal;
use homeostat_api::v1::{Launch, Resources, Supervision};
use homeostat_decider::{Config, MemberId};
use homeostat_model::{Flavor, ServiceName, SqlSpec, TaskName};

use super::secrets::{Secrets, USER};
use crate::keeper::config::{FORMAT, PORT};
use crate::keeper::{KeeperConfig, Peer, Programs};
use crate::mariadb::{Application, settings};

/// A clean shutdown writes what is dirty in memory; a server that takes longer is killed, and recovers at its next start.
pub(super) const GRACE: Duration = Duration::from_secs(60);
/// A primary and somebody to acknowledge for it.
const FEWEST: u32 = 2;
const MOST: u32 = 32;

/// The members of a cluster, in order: their place in it is their server id.
pub(super) fn members(service: &ServiceName, spec: &SqlSpec) -> Result<Vec<MemberId>, Refusal> {
    if !(FEWEST..=MOST).contains(&spec.members) {
        let why = format!(
            "{service} has {} members; a cluster has {FEWEST} to {MOST}",
            spec.members
        );
        return Err(Refusal::bad_request(why));
    }
    match spec.flavor {
        Flavor::MariaDb => {}
        Flavor::MySql => {
            let why = format!(
                "{service} asks for MySQL, which this version does not run yet: use MariaDB"
            );
            return Err(Refusal::bad_request(why));
        }
    }
    if let Some(why) = settings::refusal(&spec.settings) {
        return Err(Refusal::bad_request(format!("{service} {why}")));
    }
    let name =
        |n| TaskName::of(service, n).map_err(|error| Refusal::bad_request(error.to_string()));
    (0..spec.members).map(name).collect()
}

pub(super) fn resources(spec: &SqlSpec) -> Resources {
    Resources {
        cpu_milli: spec.resources.cpu.0,
        memory_bytes: spec.resources.memory.0,
    }
}

pub(super) fn grace_ms() -> u64 {
    millis(GRACE)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What its decider goes by.
pub(super) fn deciding(service: &ServiceName, members: &[MemberId], spec: &SqlSpec) -> Config {
    // Where members stand is not told by the contract, so all count as equally far apart; the scheduler has spread them.
    let config = Config::mariadb(service.clone(), members.to_vec(), BTreeMap::new());
    Config {
        reads: spec.reads,
        ..config.profile(spec.profile)
    }
}

/// What every keeper of the cluster is started with: the same for all, each finds itself in it.
pub(super) fn launch(
    spec: &SqlSpec,
    members: &[MemberId],
    secrets: &Secrets,
    deciding: &Config,
) -> Result<Launch, Refusal> {
    let mut peers = BTreeMap::new();
    for (server_id, member) in (1..).zip(members) {
        let password = secrets.replication.get(member).cloned();
        let replication_password = password
            .ok_or_else(|| Refusal::internal(format!("{member} has no replication password")))?;
        peers.insert(
            member.clone(),
            Peer {
                server_id,
                replication_password,
            },
        );
    }
    let config = KeeperConfig {
        format: FORMAT,
        flavor: spec.flavor,
        members: peers,
        application: Application {
            user: USER.to_owned(),
            password: secrets.application.clone(),
            database: spec.database.clone(),
        },
        durability: spec.durability,
        buffer_pool: None,
        settings: spec.settings.clone(),
        programs: Programs::debian(),
        pulse_ms: millis(deciding.pulse),
        lease_ms: millis(deciding.lease),
    };
    let json =
        serde_json::to_string(&config).map_err(|error| Refusal::internal(error.to_string()))?;
    Ok(Launch {
        package: String::new(),
        command: Vec::new(),
        env: Default::default(),
        files: Default::default(),
        // 0: the machine picks one, and the task keeps it.
        ports: [(PORT.to_owned(), 0)].into(),
        resources: Some(resources(spec)),
        user: "cell".to_owned(),
        grace_ms: grace_ms(),
        supervision: Supervision::Keeper as i32,
        // The cell takes it for a template. It is complete already, so nothing in it may look like a variable.
        keeper_json: json.replace("${", "$${"),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use homeostat_model::{Bytes, Durability, MilliCpu, Profile, Reads, Template};

    use super::*;
    use crate::keeper::Secret;

    fn spec() -> SqlSpec {
        SqlSpec {
            members: 3,
            flavor: Flavor::MariaDb,
            database: "shop".into(),
            resources: homeostat_model::Resources {
                cpu: MilliCpu(500),
                memory: Bytes::mib(512),
            },
            profile: Profile::Steady,
            reads: Reads::Bounded,
            durability: Durability::Power,
            cold_wait: Duration::from_secs(60),
            settings: BTreeMap::from([("init_connect".into(), "SET @a = '${dir}'".into())]),
        }
    }

    #[test]
    fn what_the_keeper_reads_survives_the_cells_templates() {
        let service = ServiceName::new("shop-db").unwrap();
        let members = members(&service, &spec()).unwrap();
        let secret = |text: &str| Secret::from(text.to_owned());
        let replication = members
            .iter()
            .map(|member| (member.clone(), secret(member.as_str())))
            .collect();
        let secrets = Secrets {
            application: secret("s3cret"),
            replication,
        };
        let deciding = deciding(&service, &members, &spec());
        let launch = launch(&spec(), &members, &secrets, &deciding).unwrap();
        let template = Template::parse(&launch.keeper_json).unwrap();
        assert_eq!(template.variables().count(), 0);
        let text = template.render(|_| Err::<String, ()>(())).unwrap();
        let config: KeeperConfig = serde_json::from_str(&text).unwrap();
        assert_eq!(config.settings, spec().settings);
        let ids: Vec<u32> = config.members.values().map(|peer| peer.server_id).collect();
        assert_eq!(ids, [1, 2, 3]);
        assert_eq!(config.pulse(), deciding.pulse);
        assert_eq!(config.lease(), deciding.lease);

        // A keeper may be started with what an earlier version wrote.
        let mut earlier: serde_json::Value = serde_json::from_str(&text).unwrap();
        for field in ["pulse_ms", "lease_ms"] {
            assert!(earlier.as_object_mut().unwrap().remove(field).is_some());
        }
        let earlier: KeeperConfig = serde_json::from_value(earlier).unwrap();
        assert_eq!(earlier, config);
    }

    #[test]
    fn what_cannot_run_is_refused_at_once() {
        let service = ServiceName::new("shop-db").unwrap();
        for wrong in [
            SqlSpec {
                members: 1,
                ..spec()
            },
            SqlSpec {
                flavor: Flavor::MySql,
                ..spec()
            },
        ] {
            assert!(members(&service, &wrong).is_err(), "{wrong:?} was accepted");
        }
    }
}
