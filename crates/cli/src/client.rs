//! Talking to the controller.

use homeostat_api::uds;
use homeostat_api::v1::cell_client::CellClient;
use homeostat_api::v1::{EventsRequest, StatusRequest};
use homeostat_model::CellLayout;
use tonic::transport::Channel;

use crate::failure::Failure;
use crate::view::Status;

#[derive(Clone)]
pub(crate) struct Client(pub CellClient<Channel>);

impl Client {
    /// Does not connect yet.
    pub(crate) fn new(layout: &CellLayout) -> Self {
        Self(CellClient::new(uds::channel(&layout.socket())))
    }

    pub(crate) async fn status_json(&self) -> Result<String, tonic::Status> {
        Ok(self
            .0
            .clone()
            .status(StatusRequest {})
            .await?
            .into_inner()
            .json)
    }

    pub(crate) async fn status(&self) -> Result<Status, Failure> {
        let json = self.status_json().await?;
        serde_json::from_str(&json).map_err(|error| {
            Failure::bug(anyhow::anyhow!(error).context("the controller's status cannot be read"))
        })
    }

    pub(crate) async fn events(
        &self,
        request: EventsRequest,
    ) -> Result<tonic::Streaming<homeostat_api::v1::CellEvent>, Failure> {
        Ok(self.0.clone().events(request).await?.into_inner())
    }
}

/// Who asks, for the records.
pub(crate) fn me() -> String {
    std::env::var("SUDO_USER")
        .or_else(|_| std::env::var("USER"))
        .unwrap_or_else(|_| format!("uid {}", rustix::process::geteuid().as_raw()))
}
