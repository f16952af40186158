//! Carries out what the engine decides: probes and fixes, each within its time, whatever they do.

use std::time::{Duration, Instant};

use homeostat_probes::{AppliedOutcome, Fix, Prober};
use homeostat_prodtest::{Applied, FixOutcome, Observation, Outcome};

use crate::locks::LockFolder;
use crate::suite::Item;

/// Probes and fixes keep their own time limits. Who does not is ended so long after.
const GRACE: Duration = Duration::from_secs(3);

pub(crate) struct Hands {
    prober: Prober,
    locks: LockFolder,
}

impl Hands {
    pub(crate) fn new(locks: LockFolder) -> Self {
        Self {
            prober: Prober::new(),
            locks,
        }
    }

    pub(crate) async fn look(&self, item: &Item, within: Duration) -> Observation {
        let began = Instant::now();
        let looked = tokio::time::timeout(within + GRACE, self.prober.run(&item.probe, within));
        looked.await.unwrap_or_else(|_| Observation {
            outcome: Outcome::NotRun,
            expected: format!("the probe ends within {within:?}"),
            seen: "it did not, and was ended".to_owned(),
            took: began.elapsed(),
        })
    }

    /// Applies a fix while nobody else changes the same thing. If another run just did, a look may show that nothing is
    /// left to be done.
    pub(crate) async fn repair(&self, item: &Item, fix: &Fix, within: Duration) -> Applied {
        let failed = |said: String| Applied {
            outcome: FixOutcome::Failed,
            said,
        };
        let held = match self.locks.hold(&fix.resource(), within).await {
            Ok(held) => held,
            Err(error) => return failed(with_causes(&error)),
        };
        if held.waited && self.look(item, item.timeout).await.outcome == Outcome::Passed {
            return Applied {
                outcome: FixOutcome::Changed,
                said: "another run repaired it meanwhile".to_owned(),
            };
        }
        match tokio::time::timeout(within + GRACE, fix.apply(within)).await {
            Ok(applied) => Applied {
                outcome: match applied.outcome {
                    AppliedOutcome::Changed => FixOutcome::Changed,
                    AppliedOutcome::Unchanged => FixOutcome::Unchanged,
                    AppliedOutcome::Failed => FixOutcome::Failed,
                },
                said: applied.evidence,
            },
            Err(_) => failed(format!("it had not ended after {within:?}")),
        }
    }
}

/// What a command started, and what left its group, is searched for and killed on threads that probes leave behind. They
/// would end with this process before they have found everything.
pub(crate) async fn reapers_are_done() {
    const WITHIN: Duration = Duration::from_secs(3);
    const LOOK_EVERY: Duration = Duration::from_millis(5);
    let began = Instant::now();
    while began.elapsed() < WITHIN && reapers_work() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// By their name, which is what `homeostat-probes` gives them.
fn reapers_work() -> bool {
    let tasks = std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let mut names = tasks.filter_map(|task| std::fs::read(task.path().join("comm")).ok());
    names.any(|name| name == b"probe-reaper\n")
}

/// An error and what caused it, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
