use std::path::PathBuf;

use homeostat_store::{OpenError, StoreError};

/// Why a controller cannot start or cannot do one thing.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    #[error("cannot open the store")]
    Open(#[from] OpenError),
    #[error("the store did not do as asked")]
    Store(#[from] StoreError),
    #[error("the store's key {key} cannot be read: {error}")]
    Garbled { key: String, error: String },
    #[error("the scheduler made a plan that breaks its own rules, nothing was changed: {0}")]
    BadPlan(String),
    #[error("cannot listen at {socket}")]
    Listen {
        socket: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("another controller took over")]
    Superseded,
    #[error("{0}")]
    Package(String),
    #[error("{0}")]
    Operation(String),
    #[error("the server of the controller's socket failed")]
    Serve(#[from] tonic::transport::Error),
}

impl ControllerError {
    /// The whole chain in one line, as it goes over the wire.
    pub(crate) fn line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            line = format!("{line}: {error}");
            cause = error.source();
        }
        line
    }
}

impl From<ControllerError> for homeostat_api::Refusal {
    fn from(error: ControllerError) -> Self {
        homeostat_api::Refusal::internal(error.line())
    }
}
