//! What lies in the store, and how it is read back. Anything not understood is an error and is left as it is.

use homeostat_journal::{Operation, Plan, Record, Touched};
use homeostat_model::{OperationId, Term};
use homeostat_store::Item;
use serde::{Deserialize, Serialize};

use crate::error::{LoadError, OpsError};
use crate::keys;

/// An operation with the log that it was folded from.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub(crate) operation: Operation,
    pub(crate) log: Vec<Record>,
}

/// The value of the fence.
#[derive(Serialize, Deserialize)]
pub(crate) struct Fence {
    pub(crate) format: u32,
    pub(crate) term: Term,
}

pub(crate) const FENCE_FORMAT: u32 = 1;

/// The items of one operation, in the order of their keys: the log comes before the plan.
pub(crate) fn fold(items: &[Item]) -> Result<Loaded, LoadError> {
    let mut plan = None;
    let mut log = Vec::new();
    for item in items {
        match keys::split(&item.key) {
            Some((_, "plan")) => plan = Some(Plan::decode(&item.value)?),
            Some(_) | None => log.push(Record::decode(&item.value)?),
        }
    }
    let operation = Operation::replay(plan.ok_or(LoadError::NoPlan)?, &log)?;
    Ok(Loaded { operation, log })
}

pub(crate) fn fence_term(item: &Item) -> Result<Term, OpsError> {
    let garbled = |why: String| OpsError::Garbled {
        what: keys::FENCE.to_owned(),
        why,
    };
    let fence: Fence =
        serde_json::from_slice(&item.value).map_err(|error| garbled(error.to_string()))?;
    if fence.format > FENCE_FORMAT {
        return Err(garbled(format!(
            "format {} is newer than {FENCE_FORMAT}",
            fence.format
        )));
    }
    Ok(fence.term)
}

pub(crate) fn number_of(item: &Item) -> Result<u64, OpsError> {
    let text = String::from_utf8_lossy(&item.value);
    text.parse().map_err(|_| OpsError::Garbled {
        what: item.key.clone(),
        why: format!("'{text}' is not a number"),
    })
}

pub(crate) fn holder(touched: &Touched, item: &Item) -> Result<OperationId, OpsError> {
    OperationId::new(String::from_utf8_lossy(&item.value)).map_err(|error| OpsError::Garbled {
        what: keys::lock(touched),
        why: error.to_string(),
    })
}
