//! A controller's life: open the store, take the next term, serve until the cell is down.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use homeostat_api::uds;
use homeostat_api::v1::agents_server::AgentsServer;
use homeostat_api::v1::cell_server::CellServer;
use homeostat_model::{CellIdentity, CellLayout, Revision, Term};
use homeostat_ops::{Executor, SystemClock};
use homeostat_store::{EmbeddedConfig, EmbeddedStore, Store, convenience};

use crate::agents::AgentLinks;
use crate::core::Core;
use crate::leader::Leader;
use crate::people::People;
use crate::services::{ExternalAdmin, Services};
use crate::{ControllerError, keys};

pub struct ControllerOptions {
    pub identity: CellIdentity,
    pub layout: CellLayout,
    pub external: Vec<ExternalAdmin>,
}

/// Runs until the cell was taken down.
///
/// # Errors
/// When the store cannot be opened or another controller takes over.
pub async fn run(options: ControllerOptions) -> Result<(), ControllerError> {
    let store: Arc<dyn Store> = Arc::new(
        EmbeddedStore::open(
            &options.layout.store(),
            EmbeddedConfig {
                keep_revisions: EmbeddedConfig::KEEP_REVISIONS,
            },
        )
        .await?,
    );
    keep_private(&options.layout.store())?;
    let term = next_term(&*store).await?;
    let executor = Executor::open(Arc::clone(&store), term, Arc::new(SystemClock))
        .await
        .map_err(|error| ControllerError::Operation(error.to_string()))?;
    let socket = options.layout.socket();
    let core = Arc::new(Core::open(options.identity, options.layout, store, term).await?);
    core.events
        .add("cell", "cell", format!("controller leads with term {term}"));
    let services = Arc::new(Services::new(Arc::clone(&core), options.external));
    services.serve_external()?;
    let leader = Arc::new(Leader::new(Arc::clone(&core), services, executor));
    let mut ended = leader.ended.subscribe();

    let incoming = uds::listen(&socket).map_err(|source| ControllerError::Listen {
        socket: socket.clone(),
        source,
    })?;
    let server = tonic::transport::Server::builder()
        .add_service(AgentsServer::new(AgentLinks(Arc::clone(&core))))
        .add_service(CellServer::new(People(Arc::clone(&leader))))
        .serve_with_incoming(incoming);
    let serving = tokio::spawn(server);
    tokio::spawn(crate::machines::watch(Arc::clone(&core)));
    tokio::spawn(crate::purge::watch(Arc::clone(&leader)));
    leader.resume().await?;
    tokio::select! {
        served = serving => match served {
            Ok(result) => result?,
            Err(panic) => return Err(ControllerError::Operation(panic.to_string())),
        },
        _ = ended.wait_for(|ended| *ended) => {}
    }
    drop(std::fs::remove_file(&socket));
    Ok(())
}

/// The store holds secrets, in a folder that tasks' users may enter. It is empty until here when it was just made.
fn keep_private(path: &Path) -> Result<(), ControllerError> {
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(|source| {
        ControllerError::Private {
            path: path.to_owned(),
            source,
        }
    })
}

/// Each leader takes the term after the last one, durably, before it does anything.
async fn next_term(store: &dyn Store) -> Result<Term, ControllerError> {
    let item = convenience::get(store, keys::TERM).await?;
    let seen = item.as_ref().map_or(Revision(0), |item| item.mod_revision);
    let last = match &item {
        Some(item) => std::str::from_utf8(&item.value)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| ControllerError::Garbled {
                key: keys::TERM.into(),
                error: "it is not a number".into(),
            })?,
        None => 0,
    };
    let term = Term(last).next();
    let reply = convenience::put_if(store, keys::TERM, seen, term.to_string()).await?;
    reply
        .committed()
        .map(|_| term)
        .ok_or(ControllerError::Superseded)
}
