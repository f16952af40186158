//! The one time limit of a probe, and at which step it ran out: a server that cannot be reached and one that accepts
//! and then says nothing have different causes, so the evidence should tell them apart.

use std::time::Duration;

use tokio::time::Instant;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    pub(crate) all: Duration,
}

#[derive(Debug, thiserror::Error)]
#[error("still {doing} after {all:?}")]
pub(crate) struct OutOfTime {
    doing: &'static str,
    all: Duration,
}

impl Deadline {
    pub(crate) fn starting_now(all: Duration) -> Self {
        Self {
            at: Instant::now() + all,
            all,
        }
    }

    /// Nothing when it is over.
    pub(crate) fn left(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    pub(crate) async fn keep<F: Future>(
        self,
        doing: &'static str,
        step: F,
    ) -> Result<F::Output, OutOfTime> {
        tokio::time::timeout_at(self.at, step)
            .await
            .map_err(|_| self.out_of_time(doing))
    }

    pub(crate) fn out_of_time(self, doing: &'static str) -> OutOfTime {
        OutOfTime {
            doing,
            all: self.all,
        }
    }
}
