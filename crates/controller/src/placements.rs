//! Which task has a place on which machine: decided by `homeostat-placement`, kept in the store, held in memory by the
//! one leader.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use homeostat_api::Refusal;
use homeostat_model::{
    Bytes, CellIdentity, Generation, MachineName, MilliCpu, Resources, ServiceName, TaskName,
    TaskState,
};
use homeostat_placement::{Apart, Assignment, Pool, PoolMachine, Readiness, Request, lint, place};
use homeostat_store::{Op, Store, Txn, convenience};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex as AsyncMutex;

use crate::ControllerError;
use crate::handle::task_state;
use crate::hub::Hub;
use crate::keys;
use crate::machines::{Machines, takes_tasks};

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

/// A place that was freed, as stored, version 1: fields are only added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Former {
    machine: MachineName,
    generation: Generation,
    service: ServiceName,
    /// Nothing of it is left there. Only the generation counts: a machine that was away may still run an older one.
    #[serde(default)]
    ended: bool,
}

pub(crate) struct Placements {
    store: Arc<dyn Store>,
    known: Mutex<BTreeMap<TaskName, Assignment>>,
    /// Tasks whose place was freed: where they were, and their generation.
    former: Mutex<BTreeMap<TaskName, Former>>,
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
    /// The place of this generation is given up for another.
    pub leaving: Option<Generation>,
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
        let mut former = BTreeMap::new();
        for item in convenience::list(&*store, keys::FORMER).await?.items {
            let garbled = |error: String| ControllerError::Garbled {
                key: item.key.clone(),
                error,
            };
            let task = TaskName::new(item.key.trim_start_matches(keys::FORMER))
                .map_err(|error| garbled(error.to_string()))?;
            let place =
                serde_json::from_slice(&item.value).map_err(|error| garbled(error.to_string()))?;
            former.insert(task, place);
        }
        Ok(Self {
            store,
            known: Mutex::new(known),
            former: Mutex::new(former),
            planning: AsyncMutex::new(()),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<TaskName, Assignment>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_former(&self) -> std::sync::MutexGuard<'_, BTreeMap<TaskName, Former>> {
        self.former.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The highest generation under which a task without a place was ever placed, as far as is known.
    pub(crate) fn last_generation(&self, task: &TaskName) -> Generation {
        let former = self.lock_former();
        former
            .get(task)
            .map_or(Generation(0), |former| former.generation)
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

    /// Places tasks; those that have a place keep it, unless it is the one that they leave. Durable when it returns. The
    /// second part: who found none, and why; one that wanted to leave still has the place it had.
    pub(crate) async fn place(
        &self,
        asks: Vec<Ask>,
        identity: &CellIdentity,
        hub: &Hub,
        machines: &Machines,
    ) -> Result<(BTreeMap<TaskName, Assignment>, Vec<(TaskName, String)>), Refusal> {
        let _one_at_a_time = self.planning.lock().await;
        let before = self.all();
        let mut pool = Pool {
            machines: pool_machines(identity, hub, machines),
            assignments: before.clone(),
        };
        let requests: Vec<Request> = asks
            .into_iter()
            .map(|ask| {
                let held = before.get(&ask.task).map(|place| place.generation);
                if held.is_some() && held == ask.leaving {
                    pool.assignments.remove(&ask.task);
                }
                Request {
                    last_generation: held.unwrap_or(self.last_generation(&ask.task)),
                    home: self.home(&ask.task),
                    task: ask.task,
                    service: ask.service,
                    resources: ask.resources,
                    fixed_ports: ask.fixed_ports,
                    apart: ask.apart,
                }
            })
            .collect();
        let mut plan = place(&requests, &pool);
        if let Some(violation) = lint(&plan, &requests, &pool).into_iter().next() {
            return Err(ControllerError::BadPlan(format!("{violation:?}")).into());
        }
        for (task, held) in &before {
            // It found nothing better than what it has: it stays, and keeps its data and its generation.
            match plan.assignments.get_mut(task) {
                Some(place) if place.machine == held.machine => *place = held.clone(),
                Some(_) => may_leave(hub, task, held)?,
                None => {}
            }
        }
        let mut txn = Txn::new();
        for (task, place) in plan
            .assignments
            .iter()
            .filter(|(task, place)| before.get(*task) != Some(*place))
        {
            txn = txn
                .then(Op::put(
                    keys::placement(task),
                    serde_json::to_vec(&write(place)).unwrap_or_default(),
                ))
                .then(Op::delete(keys::former(task)));
        }
        if !txn.then.is_empty() {
            self.store.txn(txn).await.map_err(ControllerError::from)?;
        }
        let asked: BTreeSet<&TaskName> = requests.iter().map(|request| &request.task).collect();
        let placed: BTreeMap<TaskName, Assignment> = plan
            .assignments
            .iter()
            .filter(|(task, _)| asked.contains(task))
            .map(|(task, place)| (task.clone(), place.clone()))
            .collect();
        self.lock().extend(placed.clone());
        self.lock_former()
            .retain(|task, _| !placed.contains_key(task));
        let pending = plan.pending.iter();
        Ok((
            placed,
            pending
                .map(|pending| (pending.task.clone(), pending.to_string()))
                .collect(),
        ))
    }

    /// Why a task that has a place would find no other one; `None`: it would. Changes nothing.
    pub(crate) fn stuck(
        &self,
        task: &TaskName,
        identity: &CellIdentity,
        hub: &Hub,
        machines: &Machines,
    ) -> Option<String> {
        let mut assignments = self.all();
        let held = assignments.remove(task)?;
        let pool = Pool {
            machines: pool_machines(identity, hub, machines),
            assignments,
        };
        let request = Request {
            task: task.clone(),
            service: held.service,
            resources: held.resources,
            fixed_ports: held.fixed_ports,
            apart: held.apart,
            last_generation: held.generation,
            home: None,
        };
        let pending = place(&[request], &pool).pending.into_iter().next()?;
        Some(pending.to_string().replace("\n ", ";"))
    }

    /// Where the data of a task without a place is.
    fn home(&self, task: &TaskName) -> Option<MachineName> {
        let former = self.lock_former();
        former
            .get(task)
            .filter(|former| !former.ended)
            .map(|former| former.machine.clone())
    }

    /// Frees a place and remembers where it was: its data is there.
    pub(crate) async fn free(&self, task: &TaskName) -> Result<(), ControllerError> {
        let _one_at_a_time = self.planning.lock().await;
        let Some(place) = self.of(task) else {
            return Ok(());
        };
        let former = Former {
            machine: place.machine,
            generation: place.generation,
            service: place.service,
            ended: false,
        };
        self.give_up(task, former).await
    }

    /// Ends a place for good. Its generation is remembered: a later place of the task must not have it again.
    pub(crate) async fn forget(&self, task: &TaskName) -> Result<(), ControllerError> {
        let _one_at_a_time = self.planning.lock().await;
        let former = match self.of(task) {
            Some(place) => Former {
                machine: place.machine,
                generation: place.generation,
                service: place.service,
                ended: true,
            },
            None => match self.lock_former().get(task).cloned() {
                Some(former) => Former {
                    ended: true,
                    ..former
                },
                None => return Ok(()),
            },
        };
        self.give_up(task, former).await
    }

    async fn give_up(&self, task: &TaskName, former: Former) -> Result<(), ControllerError> {
        let stored = serde_json::to_vec(&former).unwrap_or_default();
        let txn = Txn::new()
            .then(Op::delete(keys::placement(task)))
            .then(Op::put(keys::former(task), stored));
        self.store.txn(txn).await?;
        self.lock().remove(task);
        self.lock_former().insert(task.clone(), former);
        Ok(())
    }

    /// The freed places of a service.
    pub(crate) fn former_of(&self, service: &ServiceName) -> Vec<(TaskName, MachineName)> {
        self.lock_former()
            .iter()
            .filter(|(_, former)| former.service == *service && !former.ended)
            .map(|(task, former)| (task.clone(), former.machine.clone()))
            .collect()
    }
}

/// Whether a task may give up its place: its machine is lost and silent, or certainly nothing of it runs there.
///
/// # Errors
/// `NotNow` when it may run.
pub(crate) fn may_leave(hub: &Hub, task: &TaskName, place: &Assignment) -> Result<(), Refusal> {
    let agent = hub.agent(&place.machine);
    if hub.is_lost(&place.machine) {
        // Lost, and yet an agent: it is back, and what it runs is about to be told.
        return match agent {
            None => Ok(()),
            Some(_) => Err(Refusal::not_now(format!("{} is back", place.machine))),
        };
    }
    let synced = agent.is_some_and(|agent| agent.synced);
    let state = hub.task(task).as_ref().and_then(task_state);
    match state {
        Some(TaskState::Exited { .. } | TaskState::Lost | TaskState::Pending { .. }) if synced => {
            Ok(())
        }
        Some(_) | None => Err(Refusal::not_now(format!(
            "{task} may still run on {}",
            place.machine
        ))),
    }
}

fn pool_machines(
    identity: &CellIdentity,
    hub: &Hub,
    machines: &Machines,
) -> BTreeMap<MachineName, PoolMachine> {
    identity
        .machines
        .iter()
        .map(|machine| {
            let name = &machine.spec.name;
            let refuses = takes_tasks(machines.state(name)).err();
            let readiness = match hub.agent(name) {
                _ if refuses.is_some() => Readiness::NotReady {
                    why: refuses.unwrap_or_default(),
                },
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
