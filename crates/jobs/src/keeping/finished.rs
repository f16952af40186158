//! Which tasks have finished and are not to run again, kept by the cell: the machine that could say so may be lost, or be
//! empty by now.

use std::collections::BTreeMap;

use homeostat_api::Refusal;
use homeostat_api::v1::{ReadRequest, WriteRequest};
use homeostat_model::{TaskName, TaskState};
use serde::{Deserialize, Serialize};

use super::Loop;
use crate::reconcile::{Seen, Wish, rests};

/// Where that is kept, under the service's prefix.
const FINISHED: &str = "finished";

/// How a task ended for good, as stored, version 1: fields are only added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct End {
    /// What it had been started from.
    fingerprint: String,
    state: TaskState,
}

/// The tasks that have finished, as stored last.
#[derive(Debug, Clone, Default)]
pub(super) struct Ends {
    known: BTreeMap<TaskName, End>,
    revision: u64,
}

impl Ends {
    /// How a task ended, if it was started from the same thing as was seen last.
    pub(super) fn of(&self, name: &TaskName, task: &Seen) -> Option<TaskState> {
        let end = self.known.get(name)?;
        (task.fingerprint.as_ref() == Some(&end.fingerprint)).then(|| end.state.clone())
    }

    /// For a task of which nothing was heard and which has no place.
    pub(super) fn recall(&self, name: &TaskName, task: &mut Seen) {
        let unheard = task.placed.is_none() && matches!(task.state, TaskState::Pending { .. });
        if let (true, Some(end)) = (unheard, self.known.get(name)) {
            task.fingerprint = Some(end.fingerprint.clone());
            task.state = end.state.clone();
        }
    }
}

impl Loop {
    pub(super) async fn read_ends(&self) -> Result<Ends, Refusal> {
        let request = ReadRequest {
            service: self.service.to_string(),
            key: FINISHED.into(),
        };
        let read = self.cell.read(request).await?;
        Ok(Ends {
            known: serde_json::from_slice(&read.value).unwrap_or_default(),
            revision: read.mod_revision,
        })
    }

    /// Writes down who has finished since, and strikes out who runs again or is not wanted any more.
    pub(super) async fn remember_ends(&mut self) {
        let Wish::Up(wanted) = &self.wish else { return };
        let mut known = self.ends.known.clone();
        known.retain(|name, _| {
            let task = self.tasks.get(name).filter(|_| wanted.tasks.contains(name));
            task.is_some_and(|task| rests(wanted, task))
        });
        for name in &wanted.tasks {
            let Some(task) = self.tasks.get(name).filter(|task| rests(wanted, task)) else {
                continue;
            };
            if let Some(fingerprint) = task.fingerprint.clone() {
                let state = task.state.clone();
                known.insert(name.clone(), End { fingerprint, state });
            }
        }
        if known == self.ends.known {
            return;
        }
        let request = WriteRequest {
            service: self.service.to_string(),
            key: FINISHED.into(),
            value: serde_json::to_vec(&known).unwrap_or_default(),
            expected_mod_revision: self.ends.revision,
        };
        // What could not be written is tried again with the next change.
        if let Ok(reply) = self.cell.write(request).await {
            self.ends.revision = reply.mod_revision;
            if reply.committed {
                self.ends.known = known;
            }
        }
    }
}
