//! What all parts of a controller share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use homeostat_model::{
    CellIdentity, CellLayout, CellSpec, ExitCause, MachineName, OperationId, PackageName,
    RestartPolicy, ServiceKind, ServiceName, ServiceSpec, TaskState, Term,
};
use homeostat_store::{Store, convenience};
use serde::{Deserialize, Serialize};

use crate::ControllerError;
use crate::budgets::Budgets;
use crate::checks::Checks;
use crate::events::EventLog;
use crate::hub::Hub;
use crate::keys;
use crate::machines::Machines;
use crate::placements::Placements;

/// The cell as applied: what was declared, and what its packages were found to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Applied {
    pub spec: CellSpec,
    pub builds: BTreeMap<PackageName, Build>,
}

/// A package as installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Build {
    /// SHA-256 of the content, in hexadecimal.
    pub hash: String,
    /// The program or folder that tasks run.
    pub path: std::path::PathBuf,
}

pub(crate) struct Core {
    pub identity: CellIdentity,
    pub layout: CellLayout,
    pub store: Arc<dyn Store>,
    pub term: Term,
    pub hub: Hub,
    pub events: EventLog,
    pub placements: Placements,
    pub machines: Machines,
    pub budgets: Budgets,
    pub checks: Arc<Checks>,
    /// One target of an endpoint is stored at a time, so that the newest one is stored last.
    pub storing_endpoints: tokio::sync::Mutex<()>,
    /// What each operation that is under way waits for, in this process.
    waits: Mutex<BTreeMap<OperationId, String>>,
    applied: RwLock<Option<Arc<Applied>>>,
    ports: RwLock<BTreeMap<ServiceName, u16>>,
}

/// The first port of endpoints; a service keeps its own for the life of the cell.
const FIRST_ENDPOINT_PORT: u16 = 7001;

impl Core {
    pub(crate) async fn open(
        identity: CellIdentity,
        layout: CellLayout,
        store: Arc<dyn Store>,
        term: Term,
    ) -> Result<Self, ControllerError> {
        let events = EventLog::open(Arc::clone(&store)).await?;
        let placements = Placements::load(Arc::clone(&store)).await?;
        let machines = Machines::load(Arc::clone(&store)).await?;
        let budgets = Budgets::load(Arc::clone(&store)).await?;
        let applied = read_json(&*store, keys::SPEC).await?;
        let ports = read_json(&*store, keys::PORTS).await?.unwrap_or_default();
        let core = Self {
            identity,
            layout,
            store,
            term,
            hub: Hub::new(),
            events,
            placements,
            machines,
            budgets,
            checks: Arc::default(),
            storing_endpoints: tokio::sync::Mutex::new(()),
            waits: Mutex::default(),
            applied: RwLock::new(applied.map(Arc::new)),
            ports: RwLock::new(ports),
        };
        for item in convenience::list(&*core.store, keys::ENDPOINTS)
            .await?
            .items
        {
            if let Ok(target) = serde_json::from_slice::<crate::handle::StoredTarget>(&item.value) {
                // Each service has one: none is older than another.
                core.hub.set_endpoint(target.into()).unwrap_or_default();
            }
        }
        Ok(core)
    }

    /// Shows people what an operation waits for; empty: for nothing.
    pub(crate) fn tell_wait(&self, operation: &OperationId, waits_for: String) {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        if waits_for.is_empty() {
            waits.remove(operation);
        } else {
            waits.insert(operation.clone(), waits_for);
        }
    }

    pub(crate) fn waits_for(&self, operation: &OperationId) -> String {
        let waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        waits.get(operation).cloned().unwrap_or_default()
    }

    /// The machine from which the cell is looked at and reached when nobody says from where: the first one that is not lost.
    pub(crate) fn vantage(&self) -> Option<MachineName> {
        let names = || self.identity.machines.iter().map(|m| &m.spec.name);
        names()
            .find(|name| !self.hub.is_lost(name))
            .or_else(|| names().next())
            .cloned()
    }

    pub(crate) fn applied(&self) -> Option<Arc<Applied>> {
        self.applied
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn service(&self, name: &ServiceName) -> Option<ServiceSpec> {
        self.applied()?
            .spec
            .services
            .iter()
            .find(|service| service.name == *name)
            .cloned()
    }

    /// Whether a task of a plain job has done what it was there for: it ended, and its restart policy says that this is fine.
    pub(crate) fn has_finished(&self, service: &ServiceName, state: &TaskState) -> bool {
        let Some(ServiceKind::Job(job)) = self.service(service).map(|service| service.kind) else {
            return false;
        };
        match (state, job.task.restart) {
            (TaskState::Exited { .. }, RestartPolicy::Never) => true,
            (TaskState::Exited { cause }, RestartPolicy::OnFailure) => {
                matches!(cause, ExitCause::Code { code: 0 })
            }
            (
                TaskState::Exited { .. }
                | TaskState::Pending { .. }
                | TaskState::Starting
                | TaskState::Running { .. }
                | TaskState::Stopping { .. }
                | TaskState::Lost,
                RestartPolicy::Always | RestartPolicy::OnFailure | RestartPolicy::Never,
            ) => false,
        }
    }

    /// Makes `applied` the cell's specification, and gives every service an endpoint port.
    pub(crate) async fn apply(&self, applied: Applied) -> Result<(), ControllerError> {
        let mut ports = self
            .ports
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for service in &applied.spec.services {
            let free = (FIRST_ENDPOINT_PORT..u16::MAX)
                .find(|port| !ports.values().any(|used| used == port));
            if let (false, Some(port)) = (ports.contains_key(&service.name), free) {
                ports.insert(service.name.clone(), port);
            }
        }
        convenience::put(&*self.store, keys::PORTS, encode(&ports)).await?;
        convenience::put(&*self.store, keys::SPEC, encode(&applied)).await?;
        *self.ports.write().unwrap_or_else(PoisonError::into_inner) = ports;
        *self.applied.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(applied));
        self.hub.touch();
        Ok(())
    }

    pub(crate) fn endpoint_port(&self, service: &ServiceName) -> Option<u16> {
        self.ports
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(service)
            .copied()
    }
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("invariant: plain data with text keys always serializes")
}

pub(crate) async fn read_json<T: for<'de> Deserialize<'de>>(
    store: &dyn Store,
    key: &str,
) -> Result<Option<T>, ControllerError> {
    let Some(item) = convenience::get(store, key).await? else {
        return Ok(None);
    };
    serde_json::from_slice(&item.value)
        .map(Some)
        .map_err(|error| ControllerError::Garbled {
            key: key.to_owned(),
            error: error.to_string(),
        })
}
