//! The cluster's record in the store: read, and replaced as a whole.
//!
//! A decider compares whole records, the store compares revisions. The two meet here: the revision at which a record was
//! read or written stands for exactly that record. When the decider expects another record than the one held here, it is
//! read again, and only if it is the expected one its revision is used.

use std::time::Duration;

use homeostat_api::Refusal;
use homeostat_decider::{CasOutcome, Record};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::sleep;

use super::own::{Item, Own};

const KEY: &str = "record";
const FORMAT: u32 = 1;
/// Before a store that refused is asked again. Never on the way of a failover that goes well.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    format: u32,
    record: Record,
}

/// The record as last seen, and its revision.
#[derive(Debug, Clone)]
struct Held {
    record: Option<Record>,
    revision: u64,
}

/// One at a time, in the order asked for.
pub(super) struct RecordCell {
    own: Own,
    held: Mutex<Option<Held>>,
}

impl RecordCell {
    pub(super) fn new(own: Own) -> Self {
        Self {
            own,
            held: Mutex::new(None),
        }
    }

    /// Reads until the store answers. `trouble` hears why it does not.
    pub(super) async fn read(&self, mut trouble: impl FnMut(Refusal)) -> Option<Record> {
        loop {
            let mut held = self.held.lock().await;
            match look(&self.own).await {
                Ok(seen) => return held.insert(seen).record.clone(),
                Err(refusal) => {
                    *held = None;
                    drop(held);
                    trouble(refusal);
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Replaces the record if it is still the expected one.
    pub(super) async fn replace(&self, expected: Option<&Record>, new: Record) -> CasOutcome {
        let mut held = self.held.lock().await;
        match self.try_replace(&mut held, expected, new).await {
            Ok(outcome) => outcome,
            Err(_) => {
                // Also where it was certainly not done: the decider reads and decides again, which is right for both. The
                // pause keeps a store that refuses every write from being asked in a tight loop.
                *held = None;
                sleep(PAUSE).await;
                CasOutcome::Unknown
            }
        }
    }

    async fn try_replace(
        &self,
        held: &mut Option<Held>,
        expected: Option<&Record>,
        new: Record,
    ) -> Result<CasOutcome, Refusal> {
        let seen = match held.take() {
            Some(seen) if seen.record.as_ref() == expected => seen,
            Some(_) | None => look(&self.own).await?,
        };
        if seen.record.as_ref() != expected {
            let current = seen.record.clone();
            *held = Some(seen);
            return Ok(CasOutcome::Lost { current });
        }
        let value = serde_json::to_vec(&Stored {
            format: FORMAT,
            record: new.clone(),
        })
        .map_err(|error| Refusal::internal(error.to_string()))?;
        let reply = self.own.write(KEY, value, seen.revision).await?;
        if reply.committed {
            *held = Some(Held {
                record: Some(new),
                revision: reply.mod_revision,
            });
            return Ok(CasOutcome::Committed);
        }
        let value = (reply.mod_revision != 0).then_some(reply.current);
        let seen = parse(
            &self.own,
            &Item {
                value,
                revision: reply.mod_revision,
            },
        )?;
        let current = seen.record.clone();
        *held = Some(seen);
        Ok(CasOutcome::Lost { current })
    }
}

/// The record as it is now.
pub(super) async fn current(own: &Own) -> Result<Option<Record>, Refusal> {
    Ok(look(own).await?.record)
}

async fn look(own: &Own) -> Result<Held, Refusal> {
    parse(own, &own.read(KEY).await?)
}

fn parse(own: &Own, item: &Item) -> Result<Held, Refusal> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let Some(bytes) = &item.value else {
        return Ok(Held {
            record: None,
            revision: item.revision,
        });
    };
    let version: Version = own.parse(KEY, bytes)?;
    if version.format > FORMAT {
        let why = format!(
            "the record of {} has format {}; this program reads up to {FORMAT}: use a newer one",
            own.service, version.format
        );
        return Err(Refusal::internal(why));
    }
    let stored: Stored = own.parse(KEY, bytes)?;
    Ok(Held {
        record: Some(stored.record),
        revision: item.revision,
    })
}
