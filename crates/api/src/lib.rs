//! The contract between a cell and its services, and the cell's inner wire.
//!
//! `proto/contract.proto` is the public contract; its types are the arguments of the two traits here from the first
//! day, so that an admin server in this process, in another process or in another language is driven alike:
//! - [`AdminServer`]: cell → service;
//! - [`CellHandle`]: service → cell, scoped to that service.
//!
//! [`grpc`] carries both over a unix socket. Nothing here decides anything.

pub mod grpc;
mod refusal;
mod traits;
pub mod uds;

pub use refusal::{Refusal, RefusalKind};
pub use traits::{AdminServer, CellHandle, TaskEvents};

/// Generated from `proto/`.
#[allow(clippy::all, clippy::unwrap_used)]
pub mod v1 {
    tonic::include_proto!("homeostat.v1");
}

/// Version of the agent's and the CLI's protocol; another one is refused with both numbers named.
pub const PROTOCOL: u32 = 1;
