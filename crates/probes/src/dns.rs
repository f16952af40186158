//! A name resolves to what it should.
//!
//! Without a server the question goes the way of every program on this machine (`getaddrinfo`, with `/etc/hosts` and
//! whatever else nsswitch names). With one it goes to that server and nobody else: by UDP, again if nothing comes, and
//! by TCP when the answer did not fit. That is a few lines over the wire format of RFC 1035 (`wire`), where a resolver
//! library would bring caches, searches and retries of its own, which a check must not have.

mod wire;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket, lookup_host};

use crate::call::{Args, CallError};
use crate::deadline::{Deadline, OutOfTime};
use crate::local::Presence;
use crate::matcher::Matcher;
use wire::{Malformed, Reply, TYPES, Type};

/// After this long without an answer the question is sent again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The largest answer by UDP: what the question says that we accept (RFC 6891 and the flag day of 2020).
const LARGEST_UDP: usize = 4096;

#[derive(Debug, Clone, PartialEq)]
pub struct DnsProbe {
    name: String,
    server: Option<SocketAddr>,
    /// `None`: addresses of either family.
    kind: Option<Type>,
    presence: Presence,
    want: Option<Matcher>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum DnsError {
    #[error("cannot {doing}")]
    Io {
        doing: String,
        #[source]
        source: io::Error,
    },
    #[error("there is no nameserver in /etc/resolv.conf")]
    NoServer,
    #[error("the answer makes no sense")]
    Malformed(#[from] Malformed),
    #[error("the server answers with {0}")]
    Refused(&'static str),
    #[error("{0}")]
    Wrong(String),
    #[error(transparent)]
    OutOfTime(#[from] OutOfTime),
}

fn trouble(doing: impl Into<String>) -> impl FnOnce(io::Error) -> DnsError {
    let doing = doing.into();
    |source| DnsError::Io { doing, source }
}

impl DnsProbe {
    pub(crate) fn from_args(args: &Args<'_>) -> Result<Self, CallError> {
        let kind = args.word("type", &TYPES)?;
        let mut name = args.need("name")?;
        if let (Some(Type::Ptr), Ok(address)) = (kind, name.parse::<IpAddr>()) {
            name = wire::reverse(address);
        }
        if let Err(error) = wire::question(0, &name, Type::A) {
            return args.refuse("name", format!("'{name}' {error}"));
        }
        let presence = match args.bool("resolves") {
            Some(false) => Presence::NotThere,
            Some(true) | None => Presence::There,
        };
        let want = args.set_matcher("want")?;
        if presence == Presence::NotThere && want.is_some() {
            return args.refuse("resolves", "False, and yet there is something to want");
        }
        let server = match args.text("server") {
            None => None,
            Some(text) => match server(text) {
                Some(server) => Some(server),
                None => {
                    return args
                        .refuse("server", format!("'{text}' is no address"))
                        .map_err(|error| error.with_hint("write 10.0.0.2 or 10.0.0.2:5353"));
                }
            },
        };
        Ok(Self {
            name,
            server,
            kind,
            presence,
            want,
        })
    }

    pub(crate) fn expected(&self) -> String {
        let kind = self.kind.map_or("", Type::word);
        let whom = self
            .server
            .map_or(String::new(), |server| format!(" by {server}"));
        let question = format!("{} {kind}", self.name);
        let question = question.trim_end();
        match (&self.want, self.presence) {
            (_, Presence::NotThere) => format!("{question} does not resolve{whom}"),
            (None, Presence::There) => format!("{question} resolves{whom}"),
            (Some(want), Presence::There) => format!("{question} resolves to {want}{whom}"),
        }
    }
}

/// An address with or without a port.
fn server(text: &str) -> Option<SocketAddr> {
    const PORT: u16 = 53;
    match text.parse::<IpAddr>() {
        Ok(address) => Some(SocketAddr::new(address, PORT)),
        Err(_) => text.parse().ok(),
    }
}

pub(crate) async fn look(probe: &DnsProbe, within: Deadline) -> Result<String, DnsError> {
    let answers = answers(probe, within).await?;
    let shown = match answers.is_empty() {
        true => "no answer".to_owned(),
        false => crate::shown::head(answers.join(", ").as_bytes()),
    };
    match (&probe.want, probe.presence) {
        (None, Presence::There) if answers.is_empty() => Err(DnsError::Wrong(shown)),
        (_, Presence::NotThere) if !answers.is_empty() => Err(DnsError::Wrong(shown)),
        (None, Presence::There) | (_, Presence::NotThere) => Ok(shown),
        (Some(want), Presence::There) => match want.test(&answers.into()) {
            Ok(()) => Ok(shown),
            Err(_) => Err(DnsError::Wrong(shown)),
        },
    }
}

/// Sorted, each once.
async fn answers(probe: &DnsProbe, within: Deadline) -> Result<Vec<String>, DnsError> {
    let types: &[Type] = match probe.kind {
        Some(Type::A) => &[Type::A],
        Some(Type::Aaaa) => &[Type::Aaaa],
        Some(Type::Cname) => &[Type::Cname],
        Some(Type::Mx) => &[Type::Mx],
        Some(Type::Ns) => &[Type::Ns],
        Some(Type::Ptr) => &[Type::Ptr],
        Some(Type::Srv) => &[Type::Srv],
        Some(Type::Txt) => &[Type::Txt],
        None => &[Type::A, Type::Aaaa],
    };
    let by_address = matches!(probe.kind, None | Some(Type::A | Type::Aaaa));
    let mut found = Vec::new();
    if let (None, true) = (probe.server, by_address) {
        found = system(&probe.name, probe.kind, within).await?;
    } else {
        let server = match probe.server {
            Some(server) => server,
            None => configured().await?,
        };
        for kind in types {
            found.extend(ask(server, &probe.name, *kind, within).await?);
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

async fn system(name: &str, kind: Option<Type>, within: Deadline) -> Result<Vec<String>, DnsError> {
    match within.keep("resolving", lookup_host((name, 0))).await? {
        Ok(found) => Ok(found
            .map(|found| found.ip())
            .filter(|ip| match kind {
                Some(Type::A) => ip.is_ipv4(),
                Some(Type::Aaaa) => ip.is_ipv6(),
                _ => true,
            })
            .map(|ip| ip.to_string())
            .collect()),
        // The C library tells names that are not there from servers that are not there only in words.
        Err(error) if error.raw_os_error().is_none() && error.to_string().contains("not known") => {
            Ok(Vec::new())
        }
        Err(error) => Err(trouble(format!("resolve {name}"))(error)),
    }
}

/// The first nameserver of the machine.
async fn configured() -> Result<SocketAddr, DnsError> {
    let text = tokio::fs::read_to_string("/etc/resolv.conf")
        .await
        .map_err(trouble("read /etc/resolv.conf"))?;
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver"))
            .then(|| server(words.next()?))
            .flatten()
    });
    servers.into_iter().next().ok_or(DnsError::NoServer)
}

async fn ask(
    server: SocketAddr,
    name: &str,
    kind: Type,
    within: Deadline,
) -> Result<Vec<String>, DnsError> {
    let mut id = [0; 2];
    // Without chance to be had the question is as easy to answer for a stranger as the clock to guess; it is asked.
    let _ = getrandom::fill(&mut id);
    let id = u16::from_be_bytes(id);
    let question = wire::question(id, name, kind)?;
    let reply = within
        .keep("waiting for the name server", by_udp(server, &question, id))
        .await??;
    let reply = if reply.truncated {
        within
            .keep("waiting for the name server", by_tcp(server, &question, id))
            .await??
    } else {
        reply
    };
    match reply.code {
        // 3: no such name. That is an answer.
        0 | 3 => Ok(reply.answers(kind)),
        1 => Err(DnsError::Refused("FORMERR")),
        2 => Err(DnsError::Refused("SERVFAIL")),
        4 => Err(DnsError::Refused("NOTIMP")),
        5 => Err(DnsError::Refused("REFUSED")),
        _ => Err(DnsError::Refused("an unknown code")),
    }
}

async fn by_udp(server: SocketAddr, question: &[u8], id: u16) -> Result<Reply, DnsError> {
    let any: SocketAddr = if server.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let asking = || format!("ask {server}");
    let socket = UdpSocket::bind(any).await.map_err(trouble(asking()))?;
    // Connected, so that the kernel drops what others send, and tells us of a closed port.
    socket.connect(server).await.map_err(trouble(asking()))?;
    let mut buffer = vec![0; LARGEST_UDP];
    loop {
        socket.send(question).await.map_err(trouble(asking()))?;
        let waited = tokio::time::timeout(AGAIN_AFTER, async {
            loop {
                let count = socket.recv(&mut buffer).await.map_err(trouble(asking()))?;
                // An answer to somebody else's question is none; garbage from the right address is.
                match Reply::parse(&buffer[..count], question) {
                    Ok(reply) if reply.id == id => return Ok(reply),
                    Ok(_) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        });
        if let Ok(reply) = waited.await {
            return reply;
        }
    }
}

async fn by_tcp(server: SocketAddr, question: &[u8], id: u16) -> Result<Reply, DnsError> {
    let asking = || format!("ask {server} by TCP");
    let mut stream = TcpStream::connect(server)
        .await
        .map_err(trouble(asking()))?;
    let length = u16::try_from(question.len()).unwrap_or(u16::MAX);
    let framed = [&length.to_be_bytes(), question].concat();
    stream.write_all(&framed).await.map_err(trouble(asking()))?;
    let length = stream.read_u16().await.map_err(trouble(asking()))?;
    let mut answer = vec![0; usize::from(length)];
    stream
        .read_exact(&mut answer)
        .await
        .map_err(trouble(asking()))?;
    let reply = Reply::parse(&answer, question)?;
    if reply.id == id {
        Ok(reply)
    } else {
        Err(Malformed("is to another question").into())
    }
}
