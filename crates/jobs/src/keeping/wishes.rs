//! What a job is told: what is wanted of it, and which of its tasks have to leave their machine.

use homeostat_api::Refusal;
use homeostat_model::{ServiceKind, TaskName};

use super::{Loop, Wanting};
use crate::launch::fingerprint;
use crate::reconcile::{Ground, Seen, Wanted, Wish};

impl Loop {
    /// Idempotent: a task that is not there any more has left.
    pub(super) fn evict(&mut self, name: &TaskName, machine: &str) -> Result<(), Refusal> {
        if self.wish == Wish::Unknown {
            return Err(Refusal::not_now("it is not known yet what is wanted"));
        }
        let task = self
            .tasks
            .get_mut(name)
            .ok_or_else(|| Refusal::not_found(format!("{name} is not known here")))?;
        let is_there = task.placed.as_ref().is_some_and(|p| p.machine == machine);
        if !is_there {
            return Ok(());
        }
        if task.ground == Ground::Firm {
            task.ground = Ground::Leaving;
        }
        Ok(())
    }

    pub(super) fn want(&mut self, wanting: Wanting) {
        match wanting {
            Wanting::Up(spec, package_hash) => {
                let ServiceKind::Job(job) = spec.kind else {
                    return;
                };
                let tasks: Vec<TaskName> = (0..job.tasks)
                    .filter_map(|n| TaskName::of(&self.service, n).ok())
                    .collect();
                for task in &tasks {
                    let seen = self.tasks.entry(task.clone()).or_insert_with(Seen::new);
                    self.ends.recall(task, seen);
                }
                self.wish = Wish::Up(Wanted {
                    tasks,
                    fingerprint: fingerprint(&job, &package_hash),
                    restart: job.task.restart,
                });
                self.spec = Some(job);
                self.held.clear();
            }
            Wanting::Down => self.wish = Wish::Down,
        }
    }
}
