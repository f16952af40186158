//! The verbs of people: what the CLI asks of a controller.

use std::pin::Pin;
use std::sync::Arc;

use homeostat_api::Refusal;
use homeostat_api::v1::cell_server::Cell;
use homeostat_api::v1::{
    ActReply, ActRequest, ApplyReply, ApplyRequest, CellEvent, ChaosReply, ChaosRequest, DownReply,
    DownRequest, DrainReply, DrainRequest, EventsRequest, SecretReply, SecretRequest, StatusReply,
    StatusRequest, TurnReply, TurnRequest, UndrainReply, UndrainRequest, WhyReply, WhyRequest,
};
use homeostat_model::{CellKind, CellSpec, MachineName, ServiceName};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::events;
use crate::leader::Leader;
use crate::status::status;
use crate::values::secret;
use crate::why::why;

const QUEUE: usize = 256;

pub(crate) struct People(pub Arc<Leader>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Cell for People {
    async fn apply(&self, request: Request<ApplyRequest>) -> Answer<ApplyReply> {
        let request = request.into_inner();
        let spec: CellSpec = serde_json::from_str(&request.spec_json).map_err(|error| {
            Status::invalid_argument(format!("the specification cannot be read: {error}"))
        })?;
        let operation = self
            .0
            .turnup(spec, request.by)
            .await
            .map_err(Refusal::from)?;
        Ok(Response::new(ApplyReply { operation }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusReply> {
        let leader = &self.0;
        let status = status(leader).await;
        let json =
            serde_json::to_string(&status).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(StatusReply { json }))
    }

    async fn why(&self, request: Request<WhyRequest>) -> Answer<WhyReply> {
        let name = request.into_inner().name;
        Ok(Response::new(why(&self.0, &name).await?))
    }

    type EventsStream = Pin<Box<dyn Stream<Item = Result<CellEvent, Status>> + Send>>;

    async fn events(&self, request: Request<EventsRequest>) -> Answer<Self::EventsStream> {
        let request = request.into_inner();
        // Subscribed before the list is read: nothing falls in between; what is in both is sent once.
        let live = self.0.core.events.follow();
        let mut kept = events::read(&*self.0.core.store, request.after)
            .await
            .map_err(Refusal::from)?;
        let last = usize::try_from(request.last).unwrap_or(usize::MAX);
        if last > 0 && kept.len() > last {
            kept.drain(..kept.len() - last);
        }
        let (sender, reader) = mpsc::channel(QUEUE);
        tokio::spawn(async move { follow(kept, live, request.follow, &sender).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(reader))))
    }

    async fn act(&self, request: Request<ActRequest>) -> Answer<ActReply> {
        Ok(Response::new(self.0.act(request.into_inner()).await?))
    }

    async fn secret(&self, request: Request<SecretRequest>) -> Answer<SecretReply> {
        let request = request.into_inner();
        let service = service(&request.service)?;
        if self.0.core.service(&service).is_none() {
            return Err(unknown(&service));
        }
        let first = self.0.core.vantage();
        let machine = match request.machine.as_str() {
            "" => first.ok_or_else(|| Status::failed_precondition("the cell has no machine"))?,
            name => self::machine(name)?,
        };
        let value = secret(&self.0.core, &service, &request.name, &machine).await?;
        Ok(Response::new(SecretReply { value }))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Answer<DrainReply> {
        let request = request.into_inner();
        let operation = self
            .0
            .drain(&machine(&request.machine)?, request.by)
            .await?;
        Ok(Response::new(DrainReply {
            operation: operation.to_string(),
        }))
    }

    async fn undrain(&self, request: Request<UndrainRequest>) -> Answer<UndrainReply> {
        let request = request.into_inner();
        let text = self
            .0
            .undrain(&machine(&request.machine)?, request.by)
            .await?;
        Ok(Response::new(UndrainReply { text }))
    }

    async fn turn(&self, request: Request<TurnRequest>) -> Answer<TurnReply> {
        let operation = self.0.turn(request.into_inner()).await?;
        Ok(Response::new(TurnReply {
            operation: operation.to_string(),
        }))
    }

    async fn chaos(&self, request: Request<ChaosRequest>) -> Answer<ChaosReply> {
        let request = request.into_inner();
        let core = &self.0.core;
        let kind = core.applied().map(|applied| applied.spec.kind);
        match kind {
            Some(CellKind::Sandbox) => {}
            Some(CellKind::Production) | None => {
                return Err(Status::failed_precondition(format!(
                    "{} is not a sandbox: nothing is broken there on purpose (declare it with cell(kind = \"sandbox\"))",
                    core.identity.name
                )));
            }
        }
        let text = format!("{} ({})", request.what, request.by);
        core.events.add("chaos", "cell", text);
        Ok(Response::new(ChaosReply {}))
    }

    async fn down(&self, request: Request<DownRequest>) -> Answer<DownReply> {
        let operation = self
            .0
            .turndown(request.into_inner().by)
            .await
            .map_err(Refusal::from)?;
        Ok(Response::new(DownReply { operation }))
    }
}

fn service(text: &str) -> Result<ServiceName, Status> {
    ServiceName::new(text).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn machine(text: &str) -> Result<MachineName, Status> {
    MachineName::new(text).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn unknown(service: &ServiceName) -> Status {
    Status::not_found(format!("{service} is not a service of this cell"))
}

async fn follow(
    kept: Vec<CellEvent>,
    mut live: broadcast::Receiver<CellEvent>,
    follow: bool,
    sender: &mpsc::Sender<Result<CellEvent, Status>>,
) {
    let mut last = 0;
    for event in kept {
        last = event.number;
        if sender.send(Ok(event)).await.is_err() {
            return;
        }
    }
    if !follow {
        return;
    }
    loop {
        match live.recv().await {
            Ok(event) if event.number <= last => {}
            Ok(event) => {
                if sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                let note = Status::data_loss(format!(
                    "{missed} events came too fast; start again from the last one"
                ));
                drop(sender.send(Err(note)).await);
                return;
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}
