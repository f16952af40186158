//! `sql_cluster()`: a replicated SQL cluster.

use std::time::Duration;

use homeostat_model::{
    Bytes, Durability, Flavor, MilliCpu, Profile, Reads, Resources, ServiceName, SqlSpec,
};

use super::job::fits_task_names;
use super::settings::settings;
use super::{KindDraft, ServiceDraft, resources};
use crate::item::Datum;
use crate::reader::Reader;

/// The fewest members with which the loss of any one is lossless and automatic: a holder and two ackers.
const FEWEST_MEMBERS: i64 = 3;
const MOST_MEMBERS: i64 = 9;

const DEFAULT_RESOURCES: Resources = Resources {
    cpu: MilliCpu(500),
    memory: Bytes::mib(512),
};
const DEFAULT_COLD_WAIT: Duration = Duration::from_secs(60);

/// Databases that are the server's or ours.
const TAKEN: [&str; 5] = [
    "homeostat",
    "information_schema",
    "mysql",
    "performance_schema",
    "sys",
];

pub(super) fn sql_cluster(mut reader: Reader<'_, '_, '_>) -> Option<ServiceDraft> {
    let name: Option<ServiceName> = reader.required_name("name");
    let members = members(&mut reader);
    let flavor = flavor(&mut reader);
    let database = database(&mut reader, name.as_ref());
    let resources = resources(&mut reader, DEFAULT_RESOURCES);
    let profiles = [("steady", Profile::Steady), ("fast", Profile::Fast)];
    let profile = reader.word("profile", &profiles).unwrap_or(Profile::Steady);
    let kinds_of_reads = [("bounded", Reads::Bounded), ("strict", Reads::Strict)];
    let reads = reader
        .word("reads", &kinds_of_reads)
        .unwrap_or(Reads::Bounded);
    let durabilities = [
        ("power", Durability::Power),
        ("process", Durability::Process),
    ];
    let durability = reader
        .word("durability", &durabilities)
        .unwrap_or(Durability::Power);
    let cold_wait = reader
        .duration("cold_wait", Duration::ZERO)
        .unwrap_or(DEFAULT_COLD_WAIT);
    let settings = settings(&mut reader);
    let owner = reader.text("owner").map(str::to_owned);
    let (name, members) = (name?, members?);
    fits_task_names(&mut reader, &name, members);
    Some(ServiceDraft {
        name,
        owner,
        needs: Vec::new(),
        kind: KindDraft::Sql(SqlSpec {
            members,
            flavor,
            database,
            resources,
            profile,
            reads,
            durability,
            cold_wait,
            settings,
        }),
    })
}

fn members(reader: &mut Reader<'_, '_, '_>) -> Option<u32> {
    match reader.given("members") {
        None => u32::try_from(FEWEST_MEMBERS).ok(),
        Some(Datum::Int(number))
            if number % 2 == 1 && (FEWEST_MEMBERS..=MOST_MEMBERS).contains(number) =>
        {
            u32::try_from(*number).ok()
        }
        Some(Datum::Int(number)) => {
            let message = format!("'members' must be 3, 5, 7 or 9, not {number}");
            let hint = if *number < FEWEST_MEMBERS {
                "with fewer than 3 the loss of one member stops writes"
            } else {
                "an even number costs a machine more and survives no more losses"
            };
            reader.bad_with_hint("members", None, message, hint.to_owned());
            None
        }
        // Not a number; the reader says so.
        Some(_) => reader.whole("members", FEWEST_MEMBERS..=MOST_MEMBERS),
    }
}

fn flavor(reader: &mut Reader<'_, '_, '_>) -> Flavor {
    let flavors = [("mariadb", Flavor::MariaDb), ("mysql", Flavor::MySql)];
    let flavor = reader.word("flavor", &flavors).unwrap_or(Flavor::MariaDb);
    match flavor {
        Flavor::MariaDb => {}
        Flavor::MySql => {
            let message = "the flavor 'mysql' is specified, but not built yet".to_owned();
            reader.bad_with_hint("flavor", None, message, "use 'mariadb'".to_owned());
        }
    }
    flavor
}

/// By default the service's name, with the separator that SQL does not need quoted.
fn database(reader: &mut Reader<'_, '_, '_>, name: Option<&ServiceName>) -> String {
    let Some(database) = reader.text("database") else {
        return name.map_or(String::new(), |name| name.as_str().replace('-', "_"));
    };
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let plain =
        database.starts_with(|c: char| c.is_ascii_lowercase()) && database.chars().all(letter);
    if !plain || database.len() > 64 {
        let message = format!(
            "'{database}' is not the name of a database: lower-case letters, digits and '_', 64 at most"
        );
        reader.bad("database", None, message);
    } else if TAKEN.contains(&database) {
        let message = format!("the database '{database}' belongs to the server");
        reader.bad("database", None, message);
    }
    database.to_owned()
}
