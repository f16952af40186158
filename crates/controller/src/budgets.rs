//! The budgets of the cell's services: the placement room decides, here is what it decides by, and where it is kept.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use homeostat_model::{CheckTarget, ServiceName, TaskName, TaskState};
use homeostat_placement::budget::{
    Answer, Ask, AtOnce, Budget, CheckSeen, Health, Moment, Phase, Slot,
};
use homeostat_store::{Store, convenience};
use serde::{Deserialize, Serialize};

use crate::ControllerError;
use crate::core::{Core, encode};
use crate::handle::task_state;
use crate::keys;

/// The stored form, version 1: task to who has it out of service. Fields are only added.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored(BTreeMap<TaskName, StoredSlot>);

#[derive(Debug, Serialize, Deserialize)]
struct StoredSlot {
    by: String,
}

pub(crate) struct Budgets {
    store: Arc<dyn Store>,
    began: Instant,
    known: Mutex<BTreeMap<ServiceName, Budget>>,
    /// One is stored at a time, so that the newest is stored last.
    storing: tokio::sync::Mutex<()>,
}

impl Budgets {
    /// What a leader before this one had granted is taken for settling: whoever still needs it asks again, by the same name.
    pub(crate) async fn load(store: Arc<dyn Store>) -> Result<Self, ControllerError> {
        let began = Instant::now();
        let mut known = BTreeMap::new();
        for item in convenience::list(&*store, keys::DISTURBED).await?.items {
            let garbled = |error: String| ControllerError::Garbled {
                key: item.key.clone(),
                error,
            };
            let service = ServiceName::new(item.key.trim_start_matches(keys::DISTURBED))
                .map_err(|error| garbled(error.to_string()))?;
            let Stored(slots) =
                serde_json::from_slice(&item.value).map_err(|error| garbled(error.to_string()))?;
            let since = Moment(Duration::ZERO);
            let slots = slots.into_iter().map(|(task, slot)| {
                let phase = Phase::Settling { since };
                (task, Slot { by: slot.by, phase })
            });
            known.insert(service, Budget::new(slots.collect()));
        }
        Ok(Self {
            store,
            began,
            known: Mutex::new(known),
            storing: tokio::sync::Mutex::new(()),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Budget>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a task to be out of service. `Some`: what that waits for.
    pub(crate) async fn ask(
        &self,
        core: &Core,
        service: &ServiceName,
        ask: &Ask,
    ) -> Result<Option<String>, ControllerError> {
        let health = self.health(core, service);
        let (answer, changed) =
            self.change(service, |budget| budget.ask(ask, AtOnce::ONE, &health));
        if changed {
            self.store(service).await?;
        }
        Ok(match answer {
            Answer::Granted => None,
            Answer::Wait(why) => Some(why.to_string()),
        })
    }

    /// The task is back.
    pub(crate) async fn settle(
        &self,
        service: &ServiceName,
        ask: &Ask,
    ) -> Result<(), ControllerError> {
        let now = Moment(self.began.elapsed());
        let ((), changed) = self.change(service, |budget| budget.settle(ask, now));
        if changed {
            self.store(service).await?;
        }
        Ok(())
    }

    /// It was not made use of: nothing of the service was disturbed.
    pub(crate) async fn release(
        &self,
        service: &ServiceName,
        ask: &Ask,
    ) -> Result<(), ControllerError> {
        let ((), changed) = self.change(service, |budget| budget.release(ask));
        if changed {
            self.store(service).await?;
        }
        Ok(())
    }

    fn change<T>(&self, service: &ServiceName, change: impl FnOnce(&mut Budget) -> T) -> (T, bool) {
        let mut known = self.lock();
        let budget = known.entry(service.clone()).or_default();
        let before = budget.clone();
        let answer = change(budget);
        (answer, before != *budget)
    }

    async fn store(&self, service: &ServiceName) -> Result<(), ControllerError> {
        let _one_at_a_time = self.storing.lock().await;
        let slots = self.lock().get(service).map(|budget| {
            let slots = budget.slots().iter();
            slots
                .map(|(task, slot)| {
                    (
                        task.clone(),
                        StoredSlot {
                            by: slot.by.clone(),
                        },
                    )
                })
                .collect()
        });
        let stored = Stored(slots.unwrap_or_default());
        convenience::put(&*self.store, &keys::disturbed(service), encode(&stored)).await?;
        Ok(())
    }

    fn health(&self, core: &Core, service: &ServiceName) -> Health {
        let placed = core.placements.of_service(service);
        let tasks = placed
            .into_iter()
            .map(|(task, machine, _)| {
                let why = if core.hub.is_lost(&machine) {
                    Some(format!("{machine} is lost"))
                } else {
                    match core.hub.task(&task).as_ref().and_then(task_state) {
                        Some(TaskState::Running { .. }) => None,
                        Some(state) if core.has_finished(service, &state) => None,
                        Some(state) => Some(format!("it is {}", state.word())),
                        None => Some(format!("{machine} has not reported it")),
                    }
                };
                (task, why)
            })
            .collect();
        let begun = core.checks.begun();
        let views = core.checks.views();
        let applied = core.applied();
        let about = applied
            .iter()
            .flat_map(|applied| &applied.spec.checks)
            .filter(|spec| matches!(&spec.about, CheckTarget::Service(name) if name == service));
        let checks = about
            .map(|spec| {
                let view = views.iter().find(|view| view.name == spec.name);
                let seen = match view.map(|view| (view.verdict, view)) {
                    Some(("pass" | "flaky", view)) => CheckSeen::Passes {
                        began: Moment(begun.get(&view.name).map_or(Duration::ZERO, |began| {
                            began.saturating_duration_since(self.began)
                        })),
                    },
                    Some(("fail", view)) => CheckSeen::Fails {
                        why: format!("expected {}, seen {}", view.expected, view.seen),
                    },
                    Some((word, _)) => CheckSeen::NotKnown {
                        why: word.to_owned(),
                    },
                    None => CheckSeen::NotKnown {
                        why: "not looked at yet".to_owned(),
                    },
                };
                (spec.name.clone(), seen)
            })
            .collect();
        Health { tasks, checks }
    }
}
