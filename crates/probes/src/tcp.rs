//! A connection is accepted. By the kernel, that is: a stopped process still accepts, so this proves less than a probe
//! that gets an answer.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::net::{TcpSocket, TcpStream, lookup_host};

use crate::call::{Args, CallError};
use crate::deadline::{Deadline, OutOfTime};
use crate::local::Presence;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpProbe {
    /// host:port
    pub addr: String,
    pub(crate) presence: Presence,
    /// Where to connect from.
    pub(crate) from: Option<IpAddr>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum TcpError {
    #[error("cannot connect to {addr}")]
    Connect {
        addr: String,
        #[source]
        source: io::Error,
    },
    #[error("it accepts a connection")]
    Accepted,
    #[error(transparent)]
    OutOfTime(#[from] OutOfTime),
}

impl TcpProbe {
    /// `addr` (host:port) accepts a connection.
    pub fn new(addr: impl Into<String>) -> Self {
        Self {
            addr: addr.into(),
            presence: Presence::There,
            from: None,
        }
    }

    pub(crate) fn from_args(args: &Args<'_>) -> Result<Self, CallError> {
        let from = match args.text("local_address") {
            None => None,
            Some(text) => match text.parse() {
                Ok(address) => Some(address),
                Err(_) => return args.refuse("local_address", format!("'{text}' is no address")),
            },
        };
        Ok(Self {
            addr: host_and_port(args, "at")?,
            presence: match args.bool("reachable") {
                Some(false) => Presence::NotThere,
                Some(true) | None => Presence::There,
            },
            from,
        })
    }

    pub(crate) fn expected(&self) -> String {
        match self.presence {
            Presence::There => format!("{} accepts a connection", self.addr),
            Presence::NotThere => format!("{} accepts no connection", self.addr),
        }
    }
}

/// A required argument of the form host:port.
pub(crate) fn host_and_port(args: &Args<'_>, arg: &str) -> Result<String, CallError> {
    let text = args.need(arg)?;
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(1..)) => Ok(text),
        Some(Ok(0) | Err(_)) | None => args
            .refuse(arg, format!("'{text}' is not host:port"))
            .map_err(|error| error.with_hint("for example 127.0.0.1:80 or [::1]:80")),
    }
}

pub(crate) async fn look(probe: &TcpProbe, within: Deadline) -> Result<String, TcpError> {
    let connected = match probe.from {
        None => connect(&probe.addr, within).await,
        Some(from) => connect_from(&probe.addr, from, within).await,
    };
    match (connected, probe.presence) {
        (Ok(_), Presence::There) => Ok("connected".to_owned()),
        (Ok(_), Presence::NotThere) => Err(TcpError::Accepted),
        (Err(error), Presence::There) => Err(error),
        (Err(TcpError::OutOfTime(_)), Presence::NotThere) => Ok("no answer".to_owned()),
        (Err(error), Presence::NotThere) => {
            // Our own want of a descriptor or a route says nothing about the other side.
            if crate::is_our_own_trouble(&error) {
                return Err(error);
            }
            Ok(crate::shown::error(&error))
        }
    }
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

async fn connect_from(addr: &str, from: IpAddr, within: Deadline) -> Result<TcpStream, TcpError> {
    let connecting = async {
        let mut last = io::Error::other("it has no address of the same family");
        for to in lookup_host(addr)
            .await?
            .filter(|to| to.is_ipv4() == from.is_ipv4())
        {
            let socket = if from.is_ipv4() {
                TcpSocket::new_v4()
            } else {
                TcpSocket::new_v6()
            }?;
            socket.bind(SocketAddr::new(from, 0))?;
            match socket.connect(to).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    let connected = within.keep("connecting", connecting).await?;
    connected.map_err(|source| TcpError::Connect {
        addr: format!("{addr} from {from}"),
        source,
    })
}
