//! Which task has a place on which machine: decided by `homeostat-placement`, kept in the store, held in memory by the
//! one leader.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use homeostat_model::{
    Bytes, CellIdentity, Generation, MachineName, MilliCpu, Resources, ServiceName, TaskName,
};
use homeostat_placement::{Apart, Assignment, Pool, PoolMachine, Readiness, Request, lint, place};
use homeostat_store::{Op, Store, Txn, convenience};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex as AsyncMutex;

use crate::ControllerError;
use crate::hub::Hub;
use crate::keys;

/// The stored form, version 1: fields are only added.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    machine: MachineName,
    generation: Generation,
    service: ServiceName,
    cpu: MilliCpu,
    memory: Bytes,
    ports: BTreeSet<u16>,
    never_together: u8,
}

pub(crate) struct Placements {
    store: Arc<dyn Store>,
    known: Mutex<BTreeMap<TaskName, Assignment>>,
    /// One planning at a time: a plan is made from what the one before it decided.
    planning: AsyncMutex<()>,
}

/// What is asked for one task.
pub(crate) struct Ask {
    pub task: TaskName,
    pub service: ServiceName,
    pub resources: Resources,
    pub fixed_ports: BTreeSet<u16>,
    pub apart: Apart,
}

impl Placements {
    pub(crate) async fn load(store: Arc<dyn Store>) -> Result<Self, ControllerError> {
        let mut known = BTreeMap::new();
        for item in convenience::list(&*store, keys::PLACEMENTS).await?.items {
            let garbled = |error: String| ControllerError::Garbled {
                key: item.key.clone(),
                error,
            };
            let name = item.key.trim_start_matches(keys::PLACEMENTS);
            let task = TaskName::new(name).map_err(|error| garbled(error.to_string()))?;
            let stored: Stored =
                serde_json::from_slice(&item.value).map_err(|error| garbled(error.to_string()))?;
            known.insert(task, read(stored));
        }
        Ok(Self {
            store,
            known: Mutex::new(known),
            planning: AsyncMutex::new(()),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<TaskName, Assignment>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn of(&self, task: &TaskName) -> Option<Assignment> {
        self.lock().get(task).cloned()
    }

    pub(crate) fn all(&self) -> BTreeMap<TaskName, Assignment> {
        self.lock().clone()
    }

    /// The tasks placed on a machine, with service and generation.
    pub(crate) fn on(&self, machine: &MachineName) -> Vec<(TaskName, String, u64)> {
        self.lock()
            .iter()
            .filter(|(_, place)| place.machine == *machine)
            .map(|(task, place)| (task.clone(), place.service.to_string(), place.generation.0))
            .collect()
    }

    pub(crate) fn of_service(&self, service: &ServiceName) -> Vec<(TaskName, MachineName, u64)> {
        self.lock()
            .iter()
            .filter(|(_, place)| place.service == *service)
            .map(|(task, place)| (task.clone(), place.machine.clone(), place.generation.0))
            .collect()
    }

    /// Places tasks; those that have a place keep it. Durable when it returns. The second part: who found none, and
    /// why.
    pub(crate) async fn place(
        &self,
        asks: Vec<Ask>,
        identity: &CellIdentity,
        hub: &Hub,
    ) -> Result<(BTreeMap<TaskName, Assignment>, Vec<(TaskName, String)>), ControllerError> {
        let _one_at_a_time = self.planning.lock().await;
        let before = self.all();
        let requests: Vec<Request> = asks
            .into_iter()
            .map(|ask| Request {
                last_generation: before
                    .get(&ask.task)
                    .map_or(Generation(0), |place| place.generation),
                task: ask.task,
                service: ask.service,
                resources: ask.resources,
                fixed_ports: ask.fixed_ports,
                apart: ask.apart,
            })
            .collect();
        let pool = Pool {
            machines: machines(identity, hub),
            assignments: before.clone(),
        };
        let plan = place(&requests, &pool);
        if let Some(violation) = lint(&plan, &requests, &pool).into_iter().next() {
            return Err(ControllerError::BadPlan(format!("{violation:?}")));
        }
        let asked: BTreeSet<&TaskName> = requests.iter().map(|request| &request.task).collect();
        let mut txn = Txn::new();
        for (task, place) in plan
            .assignments
            .iter()
            .filter(|(task, _)| !before.contains_key(*task))
        {
            txn = txn.then(Op::put(
                keys::placement(task),
                serde_json::to_vec(&write(place)).unwrap_or_default(),
            ));
        }
        if !txn.then.is_empty() {
            self.store.txn(txn).await?;
        }
        let placed: BTreeMap<TaskName, Assignment> = plan
            .assignments
            .iter()
            .filter(|(task, _)| asked.contains(task))
            .map(|(task, place)| (task.clone(), place.clone()))
            .collect();
        self.lock().extend(placed.clone());
        Ok((
            placed,
            plan.pending
                .iter()
                .map(|pending| (pending.task.clone(), pending.to_string()))
                .collect(),
        ))
    }

    pub(crate) async fn forget(&self, task: &TaskName) -> Result<(), ControllerError> {
        let _one_at_a_time = self.planning.lock().await;
        self.store
            .txn(Txn::new().then(Op::delete(keys::placement(task))))
            .await?;
        self.lock().remove(task);
        Ok(())
    }
}

fn machines(identity: &CellIdentity, hub: &Hub) -> BTreeMap<MachineName, PoolMachine> {
    identity
        .machines
        .iter()
        .map(|machine| {
            let readiness = match hub.agent(&machine.spec.name) {
                Some(agent) if agent.synced => Readiness::Ready,
                Some(_) => Readiness::NotReady {
                    why: "its agent has not told yet what it runs".into(),
                },
                None => Readiness::NotReady {
                    why: "its agent is not connected".into(),
                },
            };
            let entry = PoolMachine {
                rack: machine.spec.rack.clone(),
                capacity: machine.spec.capacity,
                readiness,
            };
            (machine.spec.name.clone(), entry)
        })
        .collect()
}

fn read(stored: Stored) -> Assignment {
    Assignment {
        machine: stored.machine,
        generation: stored.generation,
        service: stored.service,
        resources: Resources {
            cpu: stored.cpu,
            memory: stored.memory,
        },
        fixed_ports: stored.ports,
        apart: if stored.never_together == 1 {
            Apart::Always
        } else {
            Apart::Preferably
        },
    }
}

fn write(place: &Assignment) -> Stored {
    Stored {
        machine: place.machine.clone(),
        generation: place.generation,
        service: place.service.clone(),
        cpu: place.resources.cpu,
        memory: place.resources.memory,
        ports: place.fixed_ports.clone(),
        never_together: match place.apart {
            Apart::Always => 1,
            Apart::Preferably => 0,
        },
    }
}
