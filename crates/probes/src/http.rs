//! An HTTP server answers with the right status and, if asked for, the right text.
//!
//! The answer is read to its end, even if only the status matters: an answer without an end is none, and clients
//! would wait for it. A new connection each time, since a new client is what the check stands for.

use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use crate::deadline::{Deadline, OutOfTime};
use crate::shown;
use crate::tcp::{TcpError, connect};

/// The longest body read, in bytes.
const LONGEST_BODY: usize = 1 << 20;

/// `GET http://{addr}{path}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpProbe {
    /// host:port
    pub addr: String,
    /// With its leading slash, and the query if there is one.
    pub path: String,
    pub status: u16,
    /// A text the body must contain.
    pub contains: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error(transparent)]
    Connect(#[from] TcpError),
    #[error("'{path}' cannot be asked for")]
    BadRequest {
        path: String,
        #[source]
        source: hyper::http::Error,
    },
    #[error("no proper HTTP answer")]
    Protocol(#[source] hyper::Error),
    #[error("the answer has not ended after {LONGEST_BODY} bytes")]
    TooLong,
    #[error("status {status}: {body}")]
    Status { status: u16, body: String },
    #[error("the text is missing in: {body}")]
    Missing { body: String },
    #[error(transparent)]
    OutOfTime(#[from] OutOfTime),
}

impl HttpProbe {
    pub(crate) fn expected(&self) -> String {
        let Self {
            addr,
            path,
            status,
            contains,
        } = self;
        match contains {
            None => format!("http://{addr}{path} answers {status}"),
            Some(text) => format!(
                "http://{addr}{path} answers {status} with '{}'",
                shown::head(text.as_bytes())
            ),
        }
    }
}

pub(crate) async fn look(probe: &HttpProbe, within: Deadline) -> Result<String, HttpError> {
    let bad = |source| HttpError::BadRequest {
        path: probe.path.clone(),
        source,
    };
    let request = Request::get(&probe.path)
        .header(HOST, &probe.addr)
        .header(USER_AGENT, "homeostat")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(bad)?;
    let stream = connect(&probe.addr, within).await?;
    let (mut sender, connection) = within
        .keep("connecting", http1::handshake(TokioIo::new(stream)))
        .await?
        .map_err(HttpError::Protocol)?;
    // Dropped with this future, and the connection with it. Its errors reach the sender as well.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let answer = within
        .keep("waiting for an answer", sender.send_request(request))
        .await?;
    let answer = answer.map_err(HttpError::Protocol)?;
    let status = answer.status().as_u16();
    let body = within.keep("reading the answer", read(answer)).await??;
    judge(probe, status, &body)
}

async fn read(answer: Response<Incoming>) -> Result<Vec<u8>, HttpError> {
    let mut body = answer.into_body();
    if body.size_hint().lower() > LONGEST_BODY as u64 {
        return Err(HttpError::TooLong);
    }
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        // Trailers are none of our business.
        let Ok(data) = frame.map_err(HttpError::Protocol)?.into_data() else {
            continue;
        };
        if read.len() + data.len() > LONGEST_BODY {
            return Err(HttpError::TooLong);
        }
        read.extend_from_slice(&data);
    }
    Ok(read)
}

fn judge(probe: &HttpProbe, status: u16, body: &[u8]) -> Result<String, HttpError> {
    if status != probe.status {
        return Err(HttpError::Status {
            status,
            body: shown::head(body),
        });
    }
    match &probe.contains {
        Some(text) if !contains(body, text.as_bytes()) => Err(HttpError::Missing {
            body: shown::head(body),
        }),
        Some(_) => Ok(format!("status {status} with the text")),
        None => Ok(format!("status {status}")),
    }
}

fn contains(body: &[u8], text: &[u8]) -> bool {
    text.is_empty() || body.windows(text.len()).any(|window| window == text)
}
