//! A web server answers as it should.
//!
//! The answer is read to its end, even if only the status matters: an answer without an end is none, and clients
//! would wait for it. A new connection each time, since a new client is what the check stands for.

use std::collections::BTreeMap;

use base64::Engine;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONNECTION, HOST, LOCATION, USER_AGENT};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use crate::call::{Args, CallError};
use crate::deadline::{Deadline, OutOfTime};
use crate::matcher::Matcher;
use crate::shown;
use crate::tcp::{TcpError, connect};
use crate::wants::{Facts, Unmet, Wants};

/// The longest body read, in bytes.
const LONGEST_BODY: usize = 1 << 20;

/// As many redirects are followed as browsers and goss do.
const MOST_REDIRECTS: u32 = 10;

#[derive(Debug, Clone, PartialEq)]
pub struct HttpProbe {
    pub(crate) request: HttpRequest,
    /// Of `status`, `headers` and `body`.
    pub(crate) wants: Wants,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpRequest {
    /// host:port
    addr: String,
    /// As the URL names it, with the port if the URL has one.
    host: String,
    /// With its leading slash, and the query if there is one.
    path: String,
    method: Method,
    headers: BTreeMap<String, String>,
    body: String,
    redirects: Redirects,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Redirects {
    Follow,
    Show,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
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
    #[error("redirected more than {MOST_REDIRECTS} times")]
    TooManyRedirects,
    #[error("redirected to '{to}': {why}")]
    BadRedirect { to: String, why: String },
    #[error("{unmet}; the answer: {body}")]
    Wrong { unmet: Unmet, body: String },
    #[error(transparent)]
    OutOfTime(#[from] OutOfTime),
}

impl HttpProbe {
    /// `GET http://{addr}{path}` answers with this status and, if wanted, with this text somewhere in it.
    pub fn get(
        addr: impl Into<String>,
        path: impl Into<String>,
        status: u16,
        contains: Option<String>,
    ) -> Self {
        let addr = addr.into();
        let mut wants = Wants::default().and("status", Matcher::equals(status));
        if let Some(text) = contains {
            wants.push("body", Matcher::contains(text));
        }
        Self {
            request: HttpRequest::get(addr, path.into()),
            wants,
        }
    }

    pub(crate) fn from_args(args: &Args<'_>) -> Result<Self, CallError> {
        let request = HttpRequest::from_args(args, Method::GET, Redirects::Follow)?;
        let mut wants = Wants::default();
        let status = args.matcher("status")?;
        wants.push("status", status.unwrap_or_else(|| Matcher::equals(200)));
        for fact in ["headers", "body"] {
            if let Some(matcher) = args.matcher(fact)? {
                wants.push(fact, matcher);
            }
        }
        if let Some(places) = args.value("json") {
            let json = serde_json::json!({ "json": places });
            match Matcher::parse(&json) {
                Ok(matcher) => wants.push("body", matcher),
                Err(error) => return args.refuse("json", error.to_string()),
            }
        }
        Ok(Self { request, wants })
    }

    pub(crate) fn expected(&self) -> String {
        format!("{}: {}", self.request.shown(), self.wants)
    }
}

impl HttpRequest {
    pub(crate) fn get(addr: String, path: String) -> Self {
        Self {
            host: addr.clone(),
            addr,
            path,
            method: Method::GET,
            headers: BTreeMap::new(),
            body: String::new(),
            redirects: Redirects::Show,
        }
    }

    pub(crate) fn from_args(
        args: &Args<'_>,
        method: Method,
        redirects: Redirects,
    ) -> Result<Self, CallError> {
        let method = match args.text("method") {
            None => method,
            Some(text) => match Method::from_bytes(text.as_bytes()) {
                Ok(method) => method,
                Err(_) => return args.refuse("method", format!("'{text}' is no method")),
            },
        };
        let mut headers = args.strings("request_headers")?;
        for (name, value) in &headers {
            let good = hyper::header::HeaderName::from_bytes(name.as_bytes()).is_ok()
                && hyper::header::HeaderValue::from_str(value).is_ok();
            if !good {
                return args.refuse("request_headers", format!("'{name}' is no proper header"));
            }
        }
        match (args.text("username"), args.text("password")) {
            (None, None) => {}
            (None, Some(_)) => return args.refuse("password", "there is no username"),
            (Some(user), password) => {
                let both = format!("{user}:{}", password.unwrap_or_default());
                let coded = base64::engine::general_purpose::STANDARD.encode(both);
                headers.insert(AUTHORIZATION.to_string(), format!("Basic {coded}"));
            }
        }
        Ok(Self {
            method,
            headers,
            body: args.text("request_body").unwrap_or_default().to_owned(),
            redirects: match args.bool("redirects") {
                Some(true) => Redirects::Follow,
                Some(false) => Redirects::Show,
                None => redirects,
            },
            ..Self::from_url(args, "url")?
        })
    }

    pub(crate) fn from_url(args: &Args<'_>, arg: &str) -> Result<Self, CallError> {
        let url = args.need(arg)?;
        Self::parse(&url).or_else(|why| args.refuse(arg, format!("'{}': {why}", shown::url(&url))))
    }

    fn parse(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|_| "it is no URL".to_owned())?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err("TLS is not built in".to_owned()),
            Some(_) | None => return Err("it does not begin with http://".to_owned()),
        }
        let authority = uri.authority().ok_or("it names no host")?;
        if authority.as_str().contains('@') {
            return Err("write the user as username and password".to_owned());
        }
        let port = authority.port_u16().unwrap_or(80);
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            host: authority.as_str().to_owned(),
            ..Self::get(format!("{}:{port}", authority.host()), path.to_owned())
        })
    }

    /// For people, without what is secret.
    pub(crate) fn shown(&self) -> String {
        let Self { host, path, .. } = self;
        if self.method == Method::GET {
            format!("http://{host}{path}")
        } else {
            format!("{} http://{host}{path}", self.method)
        }
    }

    pub(crate) fn addr(&self) -> &str {
        &self.addr
    }

    /// Where an answer sends us, if it does.
    fn redirected(&self, answer: &Answer) -> Result<Option<Self>, HttpError> {
        let to = match answer.status.as_u16() {
            301 | 302 | 303 | 307 | 308 => answer.headers.get(LOCATION),
            _ => None,
        };
        let Some(to) = to else {
            return Ok(None);
        };
        let to = String::from_utf8_lossy(to.as_bytes()).into_owned();
        let url = if to.starts_with('/') && !to.starts_with("//") {
            format!("http://{}{to}", self.host)
        } else {
            to.clone()
        };
        let next = Self::parse(&url).map_err(|why| HttpError::BadRedirect { to, why })?;
        // 307 and 308 keep the method; after the others a browser goes on with GET.
        let keeps = matches!(answer.status.as_u16(), 307 | 308) || self.method == Method::HEAD;
        let mut headers = self.headers.clone();
        if next.addr != self.addr {
            // Another server must not learn the password.
            headers.retain(|name, _| !name.eq_ignore_ascii_case(AUTHORIZATION.as_str()));
        }
        Ok(Some(Self {
            method: if keeps {
                self.method.clone()
            } else {
                Method::GET
            },
            body: if keeps {
                self.body.clone()
            } else {
                String::new()
            },
            headers,
            redirects: self.redirects,
            ..next
        }))
    }
}

pub(crate) async fn look(probe: &HttpProbe, within: Deadline) -> Result<String, HttpError> {
    let answer = fetch(&probe.request, within).await?;
    let facts = Facts::from([
        ("status", answer.status.as_u16().into()),
        ("headers", lines(&answer.headers).into()),
        (
            "body",
            String::from_utf8_lossy(&answer.body).into_owned().into(),
        ),
    ]);
    probe.wants.judge(&facts).map_err(|unmet| HttpError::Wrong {
        unmet,
        body: shown::head(&answer.body),
    })
}

/// `Content-Type: text/html`, each on a line, the names as most documents write them.
fn lines(headers: &HeaderMap) -> String {
    let mut text = String::new();
    for (name, value) in headers {
        let parts = name.as_str().split('-').map(|part| {
            let (first, rest) = part.split_at(part.len().min(1));
            format!("{}{rest}", first.to_ascii_uppercase())
        });
        let name = parts.collect::<Vec<_>>().join("-");
        text.push_str(&format!(
            "{name}: {}\n",
            String::from_utf8_lossy(value.as_bytes())
        ));
    }
    text
}

/// Asks, and follows redirects if wanted.
pub(crate) async fn fetch(request: &HttpRequest, within: Deadline) -> Result<Answer, HttpError> {
    let mut request = request.clone();
    for _ in 0..=MOST_REDIRECTS {
        let answer = fetch_once(&request, within).await?;
        match request.redirects {
            Redirects::Show => return Ok(answer),
            Redirects::Follow => match request.redirected(&answer)? {
                None => return Ok(answer),
                Some(next) => request = next,
            },
        }
    }
    Err(HttpError::TooManyRedirects)
}

async fn fetch_once(request: &HttpRequest, within: Deadline) -> Result<Answer, HttpError> {
    let bad = |source| HttpError::BadRequest {
        path: request.path.clone(),
        source,
    };
    let mut asked = Request::builder()
        .method(&request.method)
        .uri(&request.path)
        .header(USER_AGENT, "homeostat")
        .header(CONNECTION, "close");
    if !request
        .headers
        .keys()
        .any(|name| name.eq_ignore_ascii_case("host"))
    {
        asked = asked.header(HOST, &request.host);
    }
    for (name, value) in &request.headers {
        asked = asked.header(name, value);
    }
    let asked = asked
        .body(Full::new(Bytes::from(request.body.clone())))
        .map_err(bad)?;
    let stream = connect(&request.addr, within).await?;
    let (mut sender, connection) = within
        .keep("connecting", http1::handshake(TokioIo::new(stream)))
        .await?
        .map_err(HttpError::Protocol)?;
    // Dropped with this future, and the connection with it. Its errors reach the sender as well.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let answer = within
        .keep("waiting for an answer", sender.send_request(asked))
        .await?;
    let answer = answer.map_err(HttpError::Protocol)?;
    let (status, headers) = (answer.status(), answer.headers().clone());
    let body = within.keep("reading the answer", read(answer)).await??;
    Ok(Answer {
        status,
        headers,
        body,
    })
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
