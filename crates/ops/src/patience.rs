//! Requests to a store that may be away, or full, for a moment: tried again, a bounded number of times.

use std::time::Duration;

use homeostat_store::{Keys, RangeReply, Store, StoreError};

use crate::error::OpsError;
use crate::limits;

/// Tries of one request while the store is away, bounded.
pub(crate) struct Tries {
    left: u32,
    pause: Duration,
}

impl Tries {
    pub(crate) fn new() -> Self {
        Self {
            left: limits::STORE_TRIES - 1,
            pause: limits::STORE_PAUSE,
        }
    }

    /// Pauses, or says that it is over.
    pub(crate) async fn again(
        &mut self,
        error: StoreError,
        doing: &'static str,
    ) -> Result<(), OpsError> {
        if self.left == 0 || !passes(&error) {
            return Err(OpsError::Store {
                doing,
                source: error,
            });
        }
        self.left -= 1;
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(limits::STORE_LONGEST_PAUSE);
        Ok(())
    }
}

/// Whether the same request may succeed later.
fn passes(error: &StoreError) -> bool {
    match error {
        StoreError::Unavailable { .. }
        | StoreError::DiskFull { .. }
        | StoreError::WriteFailed { .. }
        | StoreError::OutcomeUnknown { .. } => true,
        StoreError::Limit(_)
        | StoreError::Compacted { .. }
        | StoreError::FutureRevision { .. }
        | StoreError::LeaseNotFound(_)
        | StoreError::ReadFailed { .. }
        | StoreError::Protocol { .. }
        | StoreError::Closed => false,
    }
}

pub(crate) async fn read(
    store: &dyn Store,
    keys: Keys,
    doing: &'static str,
) -> Result<RangeReply, OpsError> {
    let mut tries = Tries::new();
    loop {
        match store.range(keys.clone(), None).await {
            Ok(reply) => return Ok(reply),
            Err(error) => tries.again(error, doing).await?,
        }
    }
}
