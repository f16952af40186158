//! A connection is accepted. By the kernel, that is: a stopped process still accepts, so this proves less than a probe
//! that gets an answer.

use std::io;

use tokio::net::TcpStream;

use crate::deadline::{Deadline, OutOfTime};

#[derive(Debug, thiserror::Error)]
pub(crate) enum TcpError {
    #[error("cannot connect to {addr}")]
    Connect {
        addr: String,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    OutOfTime(#[from] OutOfTime),
}

pub(crate) async fn look(addr: &str, within: Deadline) -> Result<String, TcpError> {
    connect(addr, within).await.map(|_| "connected".to_owned())
}

/// A host name is resolved by the C library on a thread of its own, which may outlast the deadline, but not for ever:
/// the library has a limit itself.
pub(crate) async fn connect(addr: &str, within: Deadline) -> Result<TcpStream, TcpError> {
    let connected = within.keep("connecting", TcpStream::connect(addr)).await?;
    connected.map_err(|source| TcpError::Connect {
        addr: addr.to_owned(),
        source,
    })
}
