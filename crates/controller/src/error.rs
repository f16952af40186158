use std::path::PathBuf;

use homeostat_api::Refusal;
use homeostat_model::ServiceName;
use homeostat_store::{OpenError, StoreError};

/// Why a controller cannot start or cannot do one thing.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    #[error("cannot open the store")]
    Open(#[from] OpenError),
    #[error("cannot keep others from reading {path}")]
    Private {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
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
    #[error(
        "{} not in the cell file any more, but should still be up; nothing was changed: put {} back, or take the cell \
         down first (homeostat down) and then up without {}",
        are(.0), them(.0), them(.0)
    )]
    StillWanted(Vec<ServiceName>),
    #[error(
        "{0} was a service of another kind; nothing was changed: give the new one another name"
    )]
    OtherKind(ServiceName),
    #[error(
        "{} not in the cell file any more, and not seen to be down yet; nothing was changed: try again when it is",
        are(.0)
    )]
    NotDown(Vec<ServiceName>),
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

impl From<ControllerError> for Refusal {
    fn from(error: ControllerError) -> Self {
        let line = error.line();
        match error {
            ControllerError::Package(_)
            | ControllerError::StillWanted(_)
            | ControllerError::NotDown(_)
            | ControllerError::OtherKind(_) => Refusal::bad_request(line),
            ControllerError::Open(_)
            | ControllerError::Private { .. }
            | ControllerError::Store(_)
            | ControllerError::Garbled { .. }
            | ControllerError::BadPlan(_)
            | ControllerError::Listen { .. }
            | ControllerError::Superseded
            | ControllerError::Operation(_)
            | ControllerError::Serve(_) => Refusal::internal(line),
        }
    }
}

fn are(services: &[ServiceName]) -> String {
    let names: Vec<&str> = services.iter().map(ServiceName::as_str).collect();
    format!(
        "{} {}",
        names.join(", "),
        if services.len() == 1 { "is" } else { "are" }
    )
}

fn them(services: &[ServiceName]) -> &'static str {
    if services.len() == 1 { "it" } else { "them" }
}
