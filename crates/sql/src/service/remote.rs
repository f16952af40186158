//! The SQL service in a process of its own.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use homeostat_api::grpc::{RemoteCell, ServeAdmin};
use homeostat_api::uds;
use homeostat_api::v1::admin_server_server::AdminServerServer;
use homeostat_model::ServiceName;

use super::SqlServer;

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen at {socket}")]
    Listen {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("serving {service} ended")]
    Serve {
        service: ServiceName,
        #[source]
        source: tonic::transport::Error,
    },
}

/// Serves the admin server of `service` at `admin_socket`, over a cell that serves its handle at `cell_socket`. Goes on
/// through restarts of the cell's controller; ends with an error only.
///
/// # Errors
/// [`ServeError`].
pub async fn serve_service(
    cell_socket: &Path,
    admin_socket: &Path,
    service: ServiceName,
) -> Result<(), ServeError> {
    let listen = |source| ServeError::Listen {
        socket: admin_socket.to_owned(),
        source,
    };
    let incoming = uds::listen(admin_socket).map_err(listen)?;
    let cell = Arc::new(RemoteCell::new(uds::channel(cell_socket)));
    let server = Arc::new(SqlServer::new(service.clone(), cell));
    tonic::transport::Server::builder()
        .add_service(AdminServerServer::new(ServeAdmin(server)))
        .serve_with_incoming(incoming)
        .await
        .map_err(|source| ServeError::Serve { service, source })
}
