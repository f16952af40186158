//! A small HTTP client: one keep-alive connection, opened again after any error.

use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longer than the web service's own deadline, so that it is the service that says why.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

const ANSWER_BYTES_MAX: usize = 1 << 20;

pub struct Client {
    address: String,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    pub fn new(address: String) -> Self {
        Self {
            address,
            connection: None,
        }
    }

    pub async fn get<A: DeserializeOwned>(&mut self, path: &str) -> anyhow::Result<A> {
        let answer = self.ask(Method::GET, path, Bytes::new()).await?;
        serde_json::from_slice(&answer).with_context(|| format!("read the answer to GET {path}"))
    }

    pub async fn post<A: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<A> {
        let body = serde_json::to_vec(body).context("encode the request")?;
        let answer = self.ask(Method::POST, path, body.into()).await?;
        serde_json::from_slice(&answer).with_context(|| format!("read the answer to POST {path}"))
    }

    /// The body of a 2xx answer; every other answer is an error with the answer's text.
    async fn ask(&mut self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
        let what = format!("{method} http://{}{path}", self.address);
        timeout(ANSWER_WITHIN, self.exchange(method, path, body))
            .await
            .with_context(|| format!("no answer within {ANSWER_WITHIN:?}"))
            .flatten()
            .context(what)
    }

    async fn exchange(&mut self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
        // Taken out, and put back only at the end: a connection in an unknown state is not reused.
        let mut connection = match self.connection.take() {
            Some(connection) if !connection.is_closed() => connection,
            Some(_) | None => connect(&self.address).await?,
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.address)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .context("build the request")?;
        connection.ready().await?;
        let response = connection.send_request(request).await?;
        let status = response.status();
        let answer = match Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
        {
            Ok(answer) => answer.to_bytes(),
            Err(error) => bail!("read the answer: {error}"),
        };
        self.connection = Some(connection);
        if status.is_success() {
            Ok(answer)
        } else {
            bail!("{status}: {}", String::from_utf8_lossy(&answer).trim())
        }
    }
}

async fn connect(address: &str) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(address).await.context("connect")?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the sender or the stream; its error comes to the sender as well.
    tokio::spawn(connection);
    Ok(sender)
}
