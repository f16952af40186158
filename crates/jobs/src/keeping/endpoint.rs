//! Where clients are led: to every task that runs.

use std::time::Duration;

use homeostat_api::v1::{EndpointTarget, OnChange, SetEndpointRequest};
use tokio::time::Instant;

use super::{AGAIN, Loop};

/// How long a connection to the endpoint is held while no task runs.
const HOLD: Duration = Duration::from_secs(5);

impl Loop {
    pub(super) async fn set_endpoint(&mut self) {
        let Some(port) = self.spec.as_ref().and_then(|spec| spec.endpoint.clone()) else {
            return;
        };
        let targets: Vec<String> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.runs())
            .filter_map(|(name, _)| self.addresses.get(name))
            .filter_map(|(address, ports)| Some(format!("{address}:{}", ports.get(port.as_str())?)))
            .collect();
        self.endpoint_again = None;
        if self.endpoint.as_ref() == Some(&targets) {
            return;
        }
        self.version += 1;
        let target = EndpointTarget {
            service: self.service.to_string(),
            epoch: self.term,
            version: self.version,
            targets: targets.clone(),
            hold_ms: u64::try_from(HOLD.as_millis()).unwrap_or(u64::MAX),
            on_change: OnChange::Keep as i32,
            port: 0,
        };
        let request = SetEndpointRequest {
            service: self.service.to_string(),
            target: Some(target),
        };
        match self.cell.set_endpoint(request).await {
            Ok(_) => self.endpoint = Some(targets),
            Err(_) => self.endpoint_again = Some(Instant::now() + AGAIN),
        }
    }
}
