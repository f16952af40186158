//! The admin servers of the cell's services: in this process, or in one that speaks the contract over a socket.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use homeostat_api::grpc::{RemoteAdmin, ServeCell};
use homeostat_api::v1::TurnupRequest;
use homeostat_api::v1::cell_handle_server::CellHandleServer;
use homeostat_api::{AdminServer, Refusal, uds};
use homeostat_jobs::JobServer;
use homeostat_model::{CellSpec, ServiceKind, ServiceName, ServiceSpec};
use homeostat_sql::SqlServer;
use homeostat_store::{Op, Txn, convenience};

use crate::ControllerError;
use crate::core::{Applied, Core};
use crate::handle::ScopedCell;
use crate::keys;

/// A service whose admin server is another process.
#[derive(Debug, Clone)]
pub struct ExternalAdmin {
    pub service: ServiceName,
    /// Where that process serves the contract's `AdminServer`.
    pub admin: PathBuf,
    /// Where this one serves it the `CellHandle`, scoped to the service.
    pub cell: PathBuf,
}

pub(crate) struct Services {
    core: Arc<Core>,
    external: Vec<ExternalAdmin>,
    servers: Mutex<BTreeMap<ServiceName, Arc<dyn AdminServer>>>,
}

impl Services {
    pub(crate) fn new(core: Arc<Core>, external: Vec<ExternalAdmin>) -> Self {
        Self {
            core,
            external,
            servers: Mutex::default(),
        }
    }

    /// Serves the cell's side of the contract to every external admin server.
    pub(crate) fn serve_external(&self) -> Result<(), ControllerError> {
        for external in &self.external {
            let handle = Arc::new(ScopedCell::new(
                Arc::clone(&self.core),
                external.service.clone(),
            ));
            let incoming =
                uds::listen(&external.cell).map_err(|source| ControllerError::Listen {
                    socket: external.cell.clone(),
                    source,
                })?;
            let server = tonic::transport::Server::builder()
                .add_service(CellHandleServer::new(ServeCell(handle)));
            tokio::spawn(async move { server.serve_with_incoming(incoming).await });
        }
        Ok(())
    }

    /// The admin server of a declared service; made when it is first asked for.
    pub(crate) fn admin(&self, name: &ServiceName) -> Option<Arc<dyn AdminServer>> {
        let spec = self.core.service(name)?;
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let server = servers
            .entry(name.clone())
            .or_insert_with(|| self.make(&spec));
        Some(Arc::clone(server))
    }

    /// Lets the admin servers of services go that are not declared any more: declared again they begin anew.
    pub(crate) fn keep_declared(&self, spec: &CellSpec) {
        let declared = |name: &ServiceName| spec.services.iter().any(|s| s.name == *name);
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.retain(|name, _| declared(name));
    }

    fn make(&self, spec: &ServiceSpec) -> Arc<dyn AdminServer> {
        if let Some(external) = self
            .external
            .iter()
            .find(|external| external.service == spec.name)
        {
            return Arc::new(RemoteAdmin::new(uds::channel(&external.admin)));
        }
        let cell = Arc::new(ScopedCell::new(Arc::clone(&self.core), spec.name.clone()));
        match &spec.kind {
            ServiceKind::Job(_) => Arc::new(JobServer::new(spec.name.clone(), cell)),
            ServiceKind::Sql(_) => Arc::new(SqlServer::new(spec.name.clone(), cell)),
        }
    }

    /// What a service's admin server is turned up with: its declaration, and for a job the build of its package.
    pub(crate) fn turnup_request(
        &self,
        applied: &Applied,
        name: &ServiceName,
    ) -> Result<TurnupRequest, Refusal> {
        let spec = applied
            .spec
            .services
            .iter()
            .find(|service| service.name == *name)
            .ok_or_else(|| Refusal::not_found(format!("{name} is not a service of this cell")))?;
        let mut value =
            serde_json::to_value(spec).map_err(|error| Refusal::internal(error.to_string()))?;
        if let (ServiceKind::Job(job), Some(object)) = (&spec.kind, value.as_object_mut()) {
            let hash = applied
                .builds
                .get(&job.task.package)
                .map(|build| build.hash.clone())
                .unwrap_or_default();
            object.insert("package_hash".into(), hash.into());
        }
        Ok(TurnupRequest {
            service: name.to_string(),
            spec_json: value.to_string(),
            term: self.core.term.0,
        })
    }

    // ---- which services should be up

    pub(crate) async fn want(&self, name: &ServiceName) -> Result<(), ControllerError> {
        convenience::put(&*self.core.store, &keys::wanted(name), "up").await?;
        Ok(())
    }

    pub(crate) async fn is_wanted(&self, name: &ServiceName) -> Result<bool, ControllerError> {
        let item = convenience::get(&*self.core.store, &keys::wanted(name)).await?;
        Ok(item.is_some())
    }

    pub(crate) async fn unwant(&self, name: &ServiceName) -> Result<(), ControllerError> {
        self.core
            .store
            .txn(Txn::new().then(Op::delete(keys::wanted(name))))
            .await?;
        Ok(())
    }

    /// Whether `spec` may replace what was applied before: it may not drop a service that should be up, which would then
    /// run on with nobody who knows of it. (A service that was taken down may be dropped: its place is freed, its data stays.)
    pub(crate) async fn may_become(&self, spec: &CellSpec) -> Result<(), ControllerError> {
        let new = |name: &ServiceName| spec.services.iter().find(|service| service.name == *name);
        let wanted = convenience::list(&*self.core.store, keys::WANTED)
            .await?
            .items;
        let dropped: Vec<ServiceName> = wanted
            .iter()
            .filter_map(|item| ServiceName::new(item.key.trim_start_matches(keys::WANTED)).ok())
            .filter(|name| new(name).is_none())
            .collect();
        if !dropped.is_empty() {
            return Err(ControllerError::StillWanted(dropped));
        }
        let before = self.core.applied();
        for service in before.iter().flat_map(|applied| &applied.spec.services) {
            let other = new(&service.name).is_some_and(|new| {
                std::mem::discriminant(&new.kind) != std::mem::discriminant(&service.kind)
            });
            if other {
                return Err(ControllerError::OtherKind(service.name.clone()));
            }
        }
        Ok(())
    }

    /// A new leader brings back what should be up; the calls are idempotent and nobody waits for them here.
    pub(crate) async fn resume(&self) -> Result<(), ControllerError> {
        let Some(applied) = self.core.applied() else {
            return Ok(());
        };
        for item in convenience::list(&*self.core.store, keys::WANTED)
            .await?
            .items
        {
            let Ok(name) = ServiceName::new(item.key.trim_start_matches(keys::WANTED)) else {
                continue;
            };
            let (Some(admin), Ok(request)) =
                (self.admin(&name), self.turnup_request(&applied, &name))
            else {
                continue;
            };
            tokio::spawn(async move { admin.turnup(request).await });
        }
        Ok(())
    }
}
