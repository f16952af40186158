//! The two sides of the contract as traits. See `proto/contract.proto` for what each call promises.

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::Refusal;
use crate::v1::{
    ActReply, ActRequest, ChecksReply, ChecksRequest, DescribeReply, DescribeRequest, DisturbReply,
    DisturbRequest, EvictReply, EvictRequest, ForgetReply, ForgetRequest, HelloReply, HelloRequest,
    InspectReply, InspectRequest, KillReply, KillRequest, LocalCallReply, LocalCallRequest,
    NoteReply, NoteRequest, PlaceReply, PlaceRequest, PrepareEvictionReply, PrepareEvictionRequest,
    ReadReply, ReadRequest, RolloutReply, RolloutRequest, SetEndpointReply, SetEndpointRequest,
    SettleReply, SettleRequest, StartReply, StartRequest, StopReply, StopRequest, TaskEvent,
    TurndownReply, TurndownRequest, TurnupReply, TurnupRequest, WatchRequest, WriteReply,
    WriteRequest,
};

type Answer<T> = Result<T, Refusal>;

/// A stream of a service's task events. It ends when the cell goes away; the reader then watches anew.
pub type TaskEvents = mpsc::Receiver<TaskEvent>;

/// Cell → service. Every call is idempotent.
#[async_trait]
pub trait AdminServer: Send + Sync + 'static {
    async fn describe(&self, request: DescribeRequest) -> Answer<DescribeReply>;
    async fn turnup(&self, request: TurnupRequest) -> Answer<TurnupReply>;
    async fn turndown(&self, request: TurndownRequest) -> Answer<TurndownReply>;
    async fn checks(&self, request: ChecksRequest) -> Answer<ChecksReply>;
    async fn prepare_eviction(
        &self,
        request: PrepareEvictionRequest,
    ) -> Answer<PrepareEvictionReply>;
    /// A service that does not know this keeps its tasks where they are; whoever empties a machine waits, and says so.
    async fn evict(&self, request: EvictRequest) -> Answer<EvictReply> {
        Err(Refusal::not_now(format!(
            "{} cannot be moved to another machine yet",
            request.task
        )))
    }
    async fn rollout(&self, request: RolloutRequest) -> Answer<RolloutReply>;
    async fn inspect(&self, request: InspectRequest) -> Answer<InspectReply>;
    async fn act(&self, request: ActRequest) -> Answer<ActReply>;
}

/// Service → cell. The implementation is scoped: a request that names another service is refused.
#[async_trait]
pub trait CellHandle: Send + Sync + 'static {
    async fn hello(&self, request: HelloRequest) -> Answer<HelloReply>;
    async fn watch(&self, request: WatchRequest) -> Answer<TaskEvents>;
    async fn place(&self, request: PlaceRequest) -> Answer<PlaceReply>;
    async fn start(&self, request: StartRequest) -> Answer<StartReply>;
    async fn stop(&self, request: StopRequest) -> Answer<StopReply>;
    async fn kill(&self, request: KillRequest) -> Answer<KillReply>;
    async fn forget(&self, request: ForgetRequest) -> Answer<ForgetReply>;
    async fn read(&self, request: ReadRequest) -> Answer<ReadReply>;
    async fn write(&self, request: WriteRequest) -> Answer<WriteReply>;
    async fn set_endpoint(&self, request: SetEndpointRequest) -> Answer<SetEndpointReply>;
    async fn local_call(&self, request: LocalCallRequest) -> Answer<LocalCallReply>;
    /// Everything waits in a cell that keeps no budgets.
    async fn disturb(&self, _: DisturbRequest) -> Answer<DisturbReply> {
        Err(Refusal::not_now("this cell keeps no budgets"))
    }
    async fn settle(&self, _: SettleRequest) -> Answer<SettleReply> {
        Ok(SettleReply {})
    }
    async fn note(&self, request: NoteRequest) -> Answer<NoteReply>;
}
