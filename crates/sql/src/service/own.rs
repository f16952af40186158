//! The service's own keys in the cell's store.

use std::sync::Arc;
use std::time::Duration;

use homeostat_api::v1::{ReadRequest, WriteReply, WriteRequest};
use homeostat_api::{CellHandle, Refusal};
use homeostat_model::ServiceName;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long the store may take for one answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How often a change is tried against others who change the same key.
const TRIES: u32 = 16;

/// A value and the revision that a compare-and-set of it must name; 0: there is none.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub value: Option<Vec<u8>>,
    pub revision: u64,
}

#[derive(Clone)]
pub(super) struct Own {
    pub service: ServiceName,
    pub cell: Arc<dyn CellHandle>,
}

impl Own {
    pub(super) async fn read(&self, key: &str) -> Result<Item, Refusal> {
        let request = ReadRequest {
            service: self.service.to_string(),
            key: key.to_owned(),
        };
        let reply = within(self.cell.read(request)).await?;
        Ok(Item {
            value: reply.found.then_some(reply.value),
            revision: reply.mod_revision,
        })
    }

    /// The outcome of a write that is refused as `Unknown` is unknown: it may be carried out later.
    pub(super) async fn write(
        &self,
        key: &str,
        value: Vec<u8>,
        expected: u64,
    ) -> Result<WriteReply, Refusal> {
        let request = WriteRequest {
            service: self.service.to_string(),
            key: key.to_owned(),
            value,
            expected_mod_revision: expected,
        };
        within(self.cell.write(request)).await
    }

    /// Reads, lets `change` say what should be there instead (`None`: it is right), and writes that unless somebody else
    /// was quicker; then it looks again. Returns what is there in the end.
    pub(super) async fn update<T: DeserializeOwned + Serialize>(
        &self,
        key: &str,
        mut change: impl FnMut(Option<T>) -> Result<Changed<T>, Refusal>,
    ) -> Result<T, Refusal> {
        for _ in 0..TRIES {
            let item = self.read(key).await?;
            let current = item
                .value
                .as_deref()
                .map(|bytes| self.parse(key, bytes))
                .transpose()?;
            let new = match change(current)? {
                Changed::Keep(value) => return Ok(value),
                Changed::To(new) => new,
            };
            let bytes =
                serde_json::to_vec(&new).map_err(|error| Refusal::internal(error.to_string()))?;
            if self.write(key, bytes, item.revision).await?.committed {
                return Ok(new);
            }
        }
        Err(Refusal::not_now(format!(
            "{key} of {} is being changed by somebody else all the time",
            self.service
        )))
    }

    pub(super) fn parse<T: DeserializeOwned>(&self, key: &str, bytes: &[u8]) -> Result<T, Refusal> {
        serde_json::from_slice(bytes).map_err(|error| {
            Refusal::internal(format!(
                "{key} of {} in the store is unreadable: {error}",
                self.service
            ))
        })
    }
}

/// What becomes of a value.
pub(super) enum Changed<T> {
    Keep(T),
    To(T),
}

async fn within<T>(call: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    match tokio::time::timeout(ANSWER, call).await {
        Ok(answer) => answer,
        Err(_) => Err(Refusal::unknown(format!(
            "the store did not answer within {} s",
            ANSWER.as_secs()
        ))),
    }
}
