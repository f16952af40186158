//! The two traits over gRPC, in both directions. Thin on purpose: one line per call, so that a service in another
//! process meets exactly what one in this process meets.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::v1::admin_server_client::AdminServerClient;
use crate::v1::admin_server_server::AdminServer as AdminService;
use crate::v1::cell_handle_client::CellHandleClient;
use crate::v1::cell_handle_server::CellHandle as CellService;
use crate::v1::*;
use crate::{AdminServer, CellHandle, Refusal, TaskEvents};

/// Events that may wait for a slow reader before its stream is ended (it watches anew and gets a fresh snapshot).
pub const EVENT_QUEUE: usize = 1024;

/// Serves an [`AdminServer`] to a cell.
pub struct ServeAdmin(pub Arc<dyn AdminServer>);
/// Serves a [`CellHandle`] to a service.
pub struct ServeCell(pub Arc<dyn CellHandle>);
/// An [`AdminServer`] in another process.
pub struct RemoteAdmin(AdminServerClient<Channel>);
/// A [`CellHandle`] in another process.
pub struct RemoteCell(CellHandleClient<Channel>);

impl RemoteAdmin {
    pub fn new(channel: Channel) -> Self {
        Self(AdminServerClient::new(channel))
    }
}

impl RemoteCell {
    pub fn new(channel: Channel) -> Self {
        Self(CellHandleClient::new(channel))
    }
}

macro_rules! carry {
    ($service:ident, $trait:ident, $serve:ident, $remote:ident, [$($call:ident: $request:ty => $reply:ty),* $(,)?], { $($served:tt)* }, { $($called:tt)* }) => {
        #[tonic::async_trait]
        impl $service for $serve {
            $(async fn $call(&self, request: Request<$request>) -> Result<Response<$reply>, Status> {
                Ok(Response::new(self.0.$call(request.into_inner()).await?))
            })*
            $($served)*
        }

        #[async_trait]
        impl $trait for $remote {
            $(async fn $call(&self, request: $request) -> Result<$reply, Refusal> {
                Ok(self.0.clone().$call(request).await?.into_inner())
            })*
            $($called)*
        }
    };
}

carry!(AdminService, AdminServer, ServeAdmin, RemoteAdmin, [
    describe: DescribeRequest => DescribeReply,
    turnup: TurnupRequest => TurnupReply,
    turndown: TurndownRequest => TurndownReply,
    checks: ChecksRequest => ChecksReply,
    prepare_eviction: PrepareEvictionRequest => PrepareEvictionReply,
    evict: EvictRequest => EvictReply,
    rollout: RolloutRequest => RolloutReply,
    inspect: InspectRequest => InspectReply,
    act: ActRequest => ActReply,
], {}, {});

carry!(CellService, CellHandle, ServeCell, RemoteCell, [
    hello: HelloRequest => HelloReply,
    place: PlaceRequest => PlaceReply,
    start: StartRequest => StartReply,
    stop: StopRequest => StopReply,
    kill: KillRequest => KillReply,
    forget: ForgetRequest => ForgetReply,
    read: ReadRequest => ReadReply,
    write: WriteRequest => WriteReply,
    set_endpoint: SetEndpointRequest => SetEndpointReply,
    local_call: LocalCallRequest => LocalCallReply,
    disturb: DisturbRequest => DisturbReply,
    settle: SettleRequest => SettleReply,
    note: NoteRequest => NoteReply,
], {
    type WatchStream = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<TaskEvent, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let events = self.0.watch(request.into_inner()).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(events).map(Ok))))
    }
}, {
    async fn watch(&self, request: WatchRequest) -> Result<TaskEvents, Refusal> {
        let mut stream = self.0.clone().watch(request).await?.into_inner();
        let (events, reader) = mpsc::channel(EVENT_QUEUE);
        tokio::spawn(async move {
            while let Ok(Some(event)) = stream.message().await {
                if events.send(event).await.is_err() {
                    return;
                }
            }
        });
        Ok(reader)
    }
});
