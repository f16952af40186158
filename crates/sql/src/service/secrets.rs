//! The cluster's passwords: drawn once, kept by the cell.

use std::collections::BTreeMap;

use homeostat_api::Refusal;
use homeostat_decider::MemberId;
use serde::{Deserialize, Serialize};

use super::own::{Changed, Own};
use crate::keeper::Secret;

/// The account of applications.
pub(super) const USER: &str = "app";
/// Readable for services that need this one, as `${secret.SERVICE.app-password}`.
const PASSWORD: &str = "secret/app-password";
/// `${secret.SERVICE.dsn}`: the endpoint in it is filled in for the machine that asks.
const DSN: &str = "secret/dsn";
/// Not below `secret/`: who has one of these can acknowledge writes, so no application may be handed them.
const REPLICATION: &str = "private/replication";

#[derive(Debug, Clone)]
pub(super) struct Secrets {
    pub application: Secret,
    pub replication: BTreeMap<MemberId, Secret>,
}

/// Version 1: fields are only added.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Replication {
    passwords: BTreeMap<MemberId, Secret>,
}

/// Makes what is missing and returns all. Two who do this at once end up with the same.
pub(super) async fn ensure(
    own: &Own,
    database: &str,
    members: &[MemberId],
) -> Result<Secrets, Refusal> {
    let application = text(own, PASSWORD, |current| match current {
        Some(password) => Ok(password),
        None => draw().map(|secret| secret.reveal().to_owned()),
    })
    .await?;
    let dsn = dsn(&own.service.to_string(), &application, database);
    text(own, DSN, |_| Ok(dsn.clone())).await?;
    let replication = own
        .update(REPLICATION, |current: Option<Replication>| {
            let mut all = current.unwrap_or(Replication {
                passwords: BTreeMap::new(),
            });
            let missing: Vec<&MemberId> = members
                .iter()
                .filter(|member| !all.passwords.contains_key(*member))
                .collect();
            if missing.is_empty() {
                return Ok(Changed::Keep(all));
            }
            for member in missing {
                all.passwords.insert(member.clone(), draw()?);
            }
            Ok(Changed::To(all))
        })
        .await?;
    Ok(Secrets {
        application: Secret::from(application),
        replication: replication.passwords,
    })
}

fn dsn(service: &str, password: &str, database: &str) -> String {
    format!("mysql://{USER}:{password}@${{endpoint.{service}}}/{database}")
}

fn draw() -> Result<Secret, Refusal> {
    Secret::random()
        .map_err(|error| Refusal::internal(format!("the kernel gives no randomness: {error}")))
}

/// As [`Own::update`], for a value that is plain text.
async fn text(
    own: &Own,
    key: &str,
    mut wanted: impl FnMut(Option<String>) -> Result<String, Refusal>,
) -> Result<String, Refusal> {
    const TRIES: u32 = 16;
    for _ in 0..TRIES {
        let item = own.read(key).await?;
        let current = item
            .value
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let new = wanted(current.clone())?;
        if current.as_ref() == Some(&new)
            || own
                .write(key, new.clone().into_bytes(), item.revision)
                .await?
                .committed
        {
            return Ok(new);
        }
    }
    Err(Refusal::not_now(format!(
        "{key} of {} is being changed by somebody else all the time",
        own.service
    )))
}
