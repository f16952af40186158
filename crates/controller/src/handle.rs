//! The cell as one service sees it: its own tasks, its own keys, its own endpoint, and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use homeostat_api::grpc::EVENT_QUEUE;
use homeostat_api::v1::{
    Apart as WireApart, CallTask, DisturbReply, DisturbRequest, EndpointTarget, Folder,
    ForgetReply, ForgetRequest, ForgetTask, HelloReply, HelloRequest, KillReply, KillRequest,
    KillTask, LocalCallReply, LocalCallRequest, NoteReply, NoteRequest, PlaceReply, PlaceRequest,
    Placement, ReadReply, ReadRequest, SetEndpointReply, SetEndpointRequest, SettleReply,
    SettleRequest, StartReply, StartRequest, StartTask, StopReply, StopRequest, StopTask,
    TaskEvent, Unplaced, WatchRequest, WriteReply, WriteRequest, to_agent,
};
use homeostat_api::{CellHandle, Refusal, RefusalKind, TaskEvents};
use homeostat_model::{
    Bytes, Generation, MachineName, MilliCpu, PackageName, Resources, Revision, ServiceName,
    TaskName, TaskState, Template, Variable,
};
use homeostat_placement::budget;
use homeostat_placement::{Apart, Assignment};
use homeostat_store::convenience;
use serde::{Deserialize, Serialize};

use crate::core::{Core, encode};
use crate::keys;
use crate::machines::stray;
use crate::placements::{Ask, may_leave};
use crate::values::resolve;

/// How long an agent may take to accept an order (not: to finish what it starts).
const ACCEPT_WITHIN: Duration = Duration::from_secs(10);
/// How long a new watcher waits for agents that are on their way, so that it does not take a late inventory for
/// missing tasks.
const INVENTORY_WITHIN: Duration = Duration::from_secs(2);

/// A [`CellHandle`] for one service.
pub(crate) struct ScopedCell {
    core: Arc<Core>,
    service: ServiceName,
}

/// Whether a text of a launch may contain secrets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Secrets {
    Allowed,
    Refused,
}

/// An endpoint's target as stored, version 1: fields are only added.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StoredTarget {
    service: ServiceName,
    epoch: u64,
    version: u64,
    targets: Vec<String>,
    hold_ms: u64,
    on_change: i32,
    port: u32,
}

impl StoredTarget {
    fn from(target: EndpointTarget, service: ServiceName) -> Self {
        Self {
            service,
            epoch: target.epoch,
            version: target.version,
            targets: target.targets,
            hold_ms: target.hold_ms,
            on_change: target.on_change,
            port: target.port,
        }
    }
}

impl From<StoredTarget> for EndpointTarget {
    fn from(stored: StoredTarget) -> Self {
        Self {
            service: stored.service.to_string(),
            epoch: stored.epoch,
            version: stored.version,
            targets: stored.targets,
            hold_ms: stored.hold_ms,
            on_change: stored.on_change,
            port: stored.port,
        }
    }
}

impl ScopedCell {
    pub(crate) fn new(core: Arc<Core>, service: ServiceName) -> Self {
        Self { core, service }
    }

    /// A service speaks for itself only.
    fn own(&self, service: &str) -> Result<(), Refusal> {
        if service == self.service.as_str() {
            Ok(())
        } else {
            Err(Refusal::bad_request(format!(
                "{} may not act for '{service}'",
                self.service
            )))
        }
    }

    fn own_task(&self, service: &str, task: &str) -> Result<(TaskName, Assignment), Refusal> {
        self.own(service)?;
        let task = TaskName::new(task).map_err(|error| Refusal::bad_request(error.to_string()))?;
        match self.core.placements.of(&task) {
            Some(place) if place.service == self.service => Ok((task, place)),
            Some(_) => Err(Refusal::bad_request(format!(
                "{task} is not a task of {}",
                self.service
            ))),
            None => Err(Refusal::not_found(format!(
                "{task} has no place; ask for one first"
            ))),
        }
    }

    fn key(&self, service: &str, key: &str) -> Result<String, Refusal> {
        self.own(service)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        if key.is_empty() || !key.chars().all(plain) || key.contains("..") {
            return Err(Refusal::bad_request(format!("'{key}' is not a key")));
        }
        Ok(keys::own(&self.service, key))
    }

    /// What the variables of a launch stand for, as far as only the controller knows it.
    async fn values(
        &self,
        machine: &MachineName,
        start: &StartRequest,
    ) -> Result<BTreeMap<String, String>, Refusal> {
        let launch = start
            .launch
            .as_ref()
            .ok_or_else(|| Refusal::bad_request("nothing to launch"))?;
        let mut values = BTreeMap::new();
        // Anybody on the machine can read a command line and much can read an environment: no secrets in them.
        for text in launch.command.iter().chain(launch.env.values()) {
            self.add_values(machine, text, Secrets::Refused, &mut values)
                .await?;
        }
        for text in launch
            .files
            .values()
            .chain(std::iter::once(&launch.keeper_json))
        {
            self.add_values(machine, text, Secrets::Allowed, &mut values)
                .await?;
        }
        Ok(values)
    }

    async fn add_values(
        &self,
        machine: &MachineName,
        text: &str,
        secrets: Secrets,
        values: &mut BTreeMap<String, String>,
    ) -> Result<(), Refusal> {
        let template =
            Template::parse(text).map_err(|error| Refusal::bad_request(error.to_string()))?;
        for variable in template.variables() {
            if matches!(variable, Variable::Secret { .. }) && secrets == Secrets::Refused {
                return Err(Refusal::bad_request(format!(
                    "{variable} may stand in a file only"
                )));
            }
            if let Some(value) = resolve(&self.core, &self.service, machine, variable).await? {
                values.insert(variable.to_string(), value);
            }
        }
        Ok(())
    }

    fn package_path(&self, package: &str) -> Result<String, Refusal> {
        if package.is_empty() {
            return Ok(String::new());
        }
        let name =
            PackageName::new(package).map_err(|error| Refusal::bad_request(error.to_string()))?;
        self.core
            .applied()
            .and_then(|applied| {
                applied
                    .builds
                    .get(&name)
                    .map(|build| build.path.display().to_string())
            })
            .ok_or_else(|| Refusal::not_now(format!("package {name} is not installed yet")))
    }

    /// Puts what a task had at a place that it left out of the way. Should that fail, it is done when its agent speaks next.
    fn clear_old_place(&self, task: TaskName, place: Assignment) {
        let last = self.core.hub.take(&task, place.generation.0);
        // Its agent may have come back in this very moment and told that the task runs: then it is ended first.
        if let Some(event) = last.filter(|event| task_state(event).is_some_and(|s| runs(&s))) {
            stray(&self.core, &place.machine, &event);
            return;
        }
        let forget = to_agent::Message::Forget(ForgetTask {
            task: task.to_string(),
            generation: place.generation.0,
            folder: Folder::Aside as i32,
        });
        let core = Arc::clone(&self.core);
        tokio::spawn(async move {
            let cleared = core.hub.order(&place.machine, forget, ACCEPT_WITHIN).await;
            if let Err(refusal) = cleared {
                eprintln!("the old place of {task} is not cleared yet: {refusal}");
            }
        });
    }

    fn budget_ask(
        &self,
        service: &str,
        task: &str,
        purpose: String,
    ) -> Result<budget::Ask, Refusal> {
        let (task, _) = self.own_task(service, task)?;
        Ok(budget::Ask { task, by: purpose })
    }

    /// Waits until the agents that hold tasks of this service have told what they run.
    async fn inventory(&self) {
        let waits = async {
            let mut changes = self.core.hub.changes();
            loop {
                let placed = self.core.placements.of_service(&self.service);
                let hub = &self.core.hub;
                if placed.iter().all(|(_, machine, _)| {
                    hub.is_lost(machine) || hub.agent(machine).is_some_and(|agent| agent.synced)
                }) {
                    return;
                }
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        // An agent that stays away is reported as such by its tasks' events.
        drop(tokio::time::timeout(INVENTORY_WITHIN, waits).await);
    }
}

#[async_trait]
impl CellHandle for ScopedCell {
    async fn hello(&self, request: HelloRequest) -> Result<HelloReply, Refusal> {
        self.own(&request.service)?;
        let endpoint = self.core.hub.endpoints().remove(self.service.as_str());
        let (endpoint_epoch, endpoint_version) =
            endpoint.map_or((0, 0), |target| (target.epoch, target.version));
        Ok(HelloReply {
            term: self.core.term.0,
            cell: self.core.identity.name.to_string(),
            endpoint_epoch,
            endpoint_version,
        })
    }

    async fn watch(&self, request: WatchRequest) -> Result<TaskEvents, Refusal> {
        self.own(&request.service)?;
        self.inventory().await;
        let placed = self.core.placements.of_service(&self.service);
        Ok(self
            .core
            .hub
            .watch(self.service.as_str(), &placed, EVENT_QUEUE))
    }

    async fn place(&self, request: PlaceRequest) -> Result<PlaceReply, Refusal> {
        self.own(&request.service)?;
        let mut asks = Vec::new();
        let mut leaves = Vec::new();
        for task in request.tasks {
            let name = TaskName::new(task.task)
                .map_err(|error| Refusal::bad_request(error.to_string()))?;
            if self
                .core
                .placements
                .of(&name)
                .is_some_and(|place| place.service != self.service)
            {
                return Err(Refusal::bad_request(format!(
                    "{name} belongs to another service"
                )));
            }
            let leaving = (task.leaving != 0).then_some(Generation(task.leaving));
            if let Some(place) = self.core.placements.of(&name)
                && Some(place.generation) == leaving
            {
                may_leave(&self.core.hub, &name, &place)?;
                leaves.push((name.clone(), place));
            }
            let wanted = task.resources.unwrap_or_default();
            asks.push(Ask {
                task: name,
                service: self.service.clone(),
                resources: Resources {
                    cpu: MilliCpu(wanted.cpu_milli),
                    memory: Bytes(wanted.memory_bytes),
                },
                fixed_ports: task
                    .fixed_ports
                    .iter()
                    .filter_map(|port| u16::try_from(*port).ok())
                    .collect(),
                apart: if task.apart == WireApart::NeverTogether as i32 {
                    Apart::Always
                } else {
                    Apart::Preferably
                },
                leaving,
            });
        }
        let (placed, pending) = self
            .core
            .placements
            .place(
                asks,
                &self.core.identity,
                &self.core.hub,
                &self.core.machines,
            )
            .await?;
        for (task, old) in leaves {
            if let Some(new) = placed.get(&task).filter(|new| **new != old) {
                let text = format!("moves from {} to {}", old.machine, new.machine);
                self.core.events.add("task", task.as_str(), text);
                self.clear_old_place(task, old);
            }
        }
        Ok(PlaceReply {
            placed: placed
                .into_iter()
                .map(|(task, place)| Placement {
                    task: task.to_string(),
                    address: self
                        .core
                        .identity
                        .machine(&place.machine)
                        .map(|m| m.address.clone())
                        .unwrap_or_default(),
                    machine: place.machine.to_string(),
                    generation: place.generation.0,
                })
                .collect(),
            pending: pending
                .into_iter()
                .map(|(task, why)| Unplaced {
                    task: task.to_string(),
                    why,
                })
                .collect(),
        })
    }

    async fn start(&self, request: StartRequest) -> Result<StartReply, Refusal> {
        let (task, place) = self.own_task(&request.service, &request.task)?;
        if request.generation != place.generation.0 {
            return Err(Refusal::new(
                RefusalKind::Stale,
                format!(
                    "{task} is placed with generation {}, not {}",
                    place.generation, request.generation
                ),
            ));
        }
        let values = self.values(&place.machine, &request).await?;
        let launch = request
            .launch
            .ok_or_else(|| Refusal::bad_request("nothing to launch"))?;
        let start = StartTask {
            task: request.task,
            service: request.service,
            generation: request.generation,
            package_path: self.package_path(&launch.package)?,
            launch: Some(launch),
            values: values.into_iter().collect(),
        };
        self.core
            .hub
            .order(
                &place.machine,
                to_agent::Message::Start(start),
                ACCEPT_WITHIN,
            )
            .await?;
        Ok(StartReply {})
    }

    async fn stop(&self, request: StopRequest) -> Result<StopReply, Refusal> {
        let (_, place) = self.own_task(&request.service, &request.task)?;
        let stop = StopTask {
            task: request.task,
            generation: request.generation,
            grace_ms: request.grace_ms,
        };
        self.core
            .hub
            .order(&place.machine, to_agent::Message::Stop(stop), ACCEPT_WITHIN)
            .await?;
        Ok(StopReply {})
    }

    async fn kill(&self, request: KillRequest) -> Result<KillReply, Refusal> {
        let (_, place) = self.own_task(&request.service, &request.task)?;
        let kill = KillTask {
            task: request.task,
            generation: request.generation,
        };
        self.core
            .hub
            .order(&place.machine, to_agent::Message::Kill(kill), ACCEPT_WITHIN)
            .await?;
        Ok(KillReply {})
    }

    async fn forget(&self, request: ForgetRequest) -> Result<ForgetReply, Refusal> {
        let (task, place) = self.own_task(&request.service, &request.task)?;
        let forget = ForgetTask {
            task: request.task,
            generation: place.generation.0,
            folder: Folder::Keep as i32,
        };
        self.core
            .hub
            .order(
                &place.machine,
                to_agent::Message::Forget(forget),
                ACCEPT_WITHIN,
            )
            .await?;
        self.core.placements.forget(&task).await?;
        self.core.hub.forget(&task);
        Ok(ForgetReply {})
    }

    async fn read(&self, request: ReadRequest) -> Result<ReadReply, Refusal> {
        let key = self.key(&request.service, &request.key)?;
        let item = convenience::get(&*self.core.store, &key)
            .await
            .map_err(|error| Refusal::unknown(error.to_string()))?;
        Ok(item.map_or_else(ReadReply::default, |item| ReadReply {
            found: true,
            value: item.value,
            mod_revision: item.mod_revision.0,
        }))
    }

    async fn write(&self, request: WriteRequest) -> Result<WriteReply, Refusal> {
        let key = self.key(&request.service, &request.key)?;
        let seen = Revision(request.expected_mod_revision);
        let reply = convenience::put_if(&*self.core.store, &key, seen, request.value)
            .await
            .map_err(|error| Refusal::unknown(error.to_string()))?;
        if let Some(revision) = reply.committed() {
            return Ok(WriteReply {
                committed: true,
                mod_revision: revision.0,
                current: Vec::new(),
            });
        }
        let current = self
            .read(ReadRequest {
                service: request.service,
                key: request.key,
            })
            .await?;
        Ok(WriteReply {
            committed: false,
            mod_revision: current.mod_revision,
            current: current.value,
        })
    }

    async fn set_endpoint(&self, request: SetEndpointRequest) -> Result<SetEndpointReply, Refusal> {
        self.own(&request.service)?;
        let mut target = request
            .target
            .ok_or_else(|| Refusal::bad_request("no target"))?;
        self.own(&target.service)?;
        let port = self
            .core
            .endpoint_port(&self.service)
            .ok_or_else(|| Refusal::not_found(format!("{} has no endpoint port", self.service)))?;
        target.port = u32::from(port);
        // Clients first: the agents are told before the disk is waited for. What is lost with a crash in between is
        // told again by the service, and forwarders keep the newest they saw.
        self.core
            .hub
            .set_endpoint(target.clone())
            .map_err(|(epoch, version)| {
                let message = format!(
                    "the endpoint of {} is at epoch {epoch}, version {version} already",
                    self.service
                );
                Refusal::new(RefusalKind::Stale, message)
            })?;
        let _one_at_a_time = self.core.storing_endpoints.lock().await;
        // Another call may have set a newer one meanwhile.
        let Some(newest) = self.core.hub.endpoints().remove(self.service.as_str()) else {
            return Err(Refusal::internal(format!(
                "the endpoint of {} was set and is not there",
                self.service
            )));
        };
        let stored = StoredTarget::from(newest, self.service.clone());
        convenience::put(
            &*self.core.store,
            &keys::endpoint(&self.service),
            encode(&stored),
        )
        .await
        .map_err(|error| Refusal::unknown(error.to_string()))?;
        Ok(SetEndpointReply {})
    }

    async fn local_call(&self, request: LocalCallRequest) -> Result<LocalCallReply, Refusal> {
        let (_, place) = self.own_task(&request.service, &request.task)?;
        let call = CallTask {
            task: request.task,
            body: request.body,
            deadline_ms: request.deadline_ms,
        };
        let patience = Duration::from_millis(request.deadline_ms);
        let body = self
            .core
            .hub
            .order(&place.machine, to_agent::Message::Call(call), patience)
            .await?;
        Ok(LocalCallReply { body })
    }

    async fn disturb(&self, request: DisturbRequest) -> Result<DisturbReply, Refusal> {
        let ask = self.budget_ask(&request.service, &request.task, request.purpose)?;
        let waits = self
            .core
            .budgets
            .ask(&self.core, &self.service, &ask)
            .await?;
        Ok(DisturbReply {
            granted: waits.is_none(),
            waits_for: waits.unwrap_or_default(),
        })
    }

    async fn settle(&self, request: SettleRequest) -> Result<SettleReply, Refusal> {
        let ask = self.budget_ask(&request.service, &request.task, request.purpose)?;
        self.core.budgets.settle(&self.service, &ask).await?;
        Ok(SettleReply {})
    }

    async fn note(&self, request: NoteRequest) -> Result<NoteReply, Refusal> {
        self.own(&request.service)?;
        self.core.events.add_detailed(
            &request.kind,
            request.about,
            request.text,
            request.detail_json,
        );
        Ok(NoteReply {})
    }
}

/// Whether something of a task may run.
pub(crate) fn runs(state: &TaskState) -> bool {
    match state {
        TaskState::Starting | TaskState::Running { .. } | TaskState::Stopping { .. } => true,
        TaskState::Pending { .. } | TaskState::Exited { .. } | TaskState::Lost => false,
    }
}

/// The state of a task event, for those who look at tasks of every service.
pub(crate) fn task_state(event: &TaskEvent) -> Option<homeostat_model::TaskState> {
    serde_json::from_str(&event.state_json).ok()
}
