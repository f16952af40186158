//! Probes that speak a protocol: http, dns, ntp, metrics and gRPC health, against servers that answer and misbehave.
#![allow(clippy::unwrap_used)]

mod common;

use std::convert::Infallible;
use std::future::Ready;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use common::{PATIENT, apply, failed, fix, look, look_within, passed};
use homeostat_probes::AppliedOutcome;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

const SHORT: Duration = Duration::from_millis(300);

/// Answers by path, and says what it was asked in a header line of its own.
async fn web() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = Vec::new();
                let mut buffer = [0; 4096];
                let read_all = |request: &[u8]| {
                    let text = String::from_utf8_lossy(request).into_owned();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else {
                        return false;
                    };
                    let length = head
                        .lines()
                        .find_map(|line| line.strip_prefix("content-length: "));
                    length.is_none_or(|length| body.len() >= length.parse().unwrap())
                };
                while !read_all(&request) {
                    let count = stream.read(&mut buffer).await.unwrap();
                    assert!(count > 0);
                    request.extend_from_slice(&buffer[..count]);
                }
                let request = String::from_utf8(request).unwrap();
                let answer = answer(&request);
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    addr
}

fn answer(request: &str) -> String {
    let path = request.split(' ').nth(1).unwrap();
    let with = |status: &str, headers: &str, body: &str| {
        format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}",
            body.len()
        )
    };
    match path {
        "/echo" => with("200 OK", "X-Served-By: test\r\n", request),
        "/json" => with(
            "200 OK",
            "content-type: application/json\r\n",
            r#"{"items":[{"name":"a"},{"name":"b"}]}"#,
        ),
        "/moved" => with("302 Found", "location: /json\r\n", ""),
        "/circle" => with("301 Moved", "location: /circle\r\n", ""),
        "/away" => with("301 Moved", "location: https://example.org/\r\n", ""),
        "/metrics" => with("200 OK", "", METRICS),
        "/fails" => with("500 Sick", "", "no disk"),
        _ => with("404 None", "", ""),
    }
}

const METRICS: &str = "# HELP queue_depth Waiting.\n# TYPE queue_depth gauge\n\
    queue_depth{queue=\"in\"} 3\nqueue_depth{queue=\"out\"} 40\nup 1\nodd NaN\n";

#[tokio::test]
async fn http_with_all_its_arguments() {
    let web = web().await;
    let url = |path: &str| format!("http://{web}{path}");
    let echo = json!({
        "url": url("/echo"), "method": "PUT", "request_headers": {"X-Mine": "yes"}, "request_body": "{}",
        "username": "kim", "password": "secret", "headers": {"lines": ["X-Served-By: test"]},
        "body": {"lines": ["/^PUT /", "x-mine: yes", "Basic a2ltOnNlY3JldA==", "!X-Other"]}
    });
    let seen = look("http", echo).await;
    passed(&seen, "status 200");
    assert!(!seen.expected.contains("secret"), "{seen:?}");
    let items =
        |name: &str| json!({"url": url("/json"), "json": {"items.#": 2, "items.1.name": name}});
    passed(&look("http", items("b")).await, "status 200");
    failed(&look("http", items("c")).await, "'items.1.name' \"b\"");
    passed(
        &look("http", json!({"url": url("/moved")})).await,
        "status 200",
    );
    passed(
        &look(
            "http",
            json!({"url": url("/moved"), "redirects": false, "status": 302}),
        )
        .await,
        "status 302",
    );
    failed(
        &look("http", json!({"url": url("/circle")})).await,
        "redirected more than 10 times",
    );
    failed(
        &look("http", json!({"url": url("/away")})).await,
        "redirected to 'https://example.org/': TLS is not built in",
    );
    failed(
        &look("http", json!({"url": url("/none")})).await,
        "status 404",
    );
    passed(
        &look(
            "http",
            json!({"url": url("/none"), "status": {"less": 500}}),
        )
        .await,
        "status 404",
    );
}

#[tokio::test]
async fn a_call_is_a_fix() {
    let web = web().await;
    let good = fix(
        "http_call",
        json!({"url": format!("http://{web}/echo"), "password": "secret", "username": "kim"}),
    );
    let plan = good.plan(PATIENT).await.unwrap();
    assert_eq!(plan, [format!("POST http://{web}/echo")]);
    let applied = apply(&good).await;
    assert_eq!(applied.outcome, AppliedOutcome::Changed);
    assert_eq!(
        applied.evidence,
        format!("POST http://{web}/echo: status 200")
    );
    let bad = fix("http_call", json!({"url": format!("http://{web}/fails")}));
    common::refused(&apply(&bad).await, "status 500; the answer: no disk");
}

#[tokio::test]
async fn metrics() {
    let web = web().await;
    let metric = |rest: serde_json::Value| {
        let mut args = json!({"url": format!("http://{web}/metrics")});
        args.as_object_mut()
            .unwrap()
            .extend(rest.as_object().unwrap().clone());
        args
    };
    passed(
        &look("metric", metric(json!({"name": "up", "value": 1}))).await,
        "up 1",
    );
    failed(
        &look(
            "metric",
            metric(json!({"name": "queue_depth", "value": {"less": 10}})),
        )
        .await,
        "queue_depth{queue=\"out\"} 40",
    );
    passed(
        &look(
            "metric",
            metric(
                json!({"name": "queue_depth", "labels": {"queue": "in"}, "value": {"less": 10}}),
            ),
        )
        .await,
        "queue=\"in\"} 3",
    );
    failed(
        &look("metric", metric(json!({"name": "none"}))).await,
        "no such series among 4",
    );
    failed(
        &look(
            "metric",
            metric(json!({"name": "odd", "value": {"at_least": 0}})),
        )
        .await,
        "odd NaN",
    );
    failed(
        &look(
            "metric",
            json!({"url": format!("http://{web}/fails"), "name": "up"}),
        )
        .await,
        "status 500",
    );
}

/// A name as labels, without compression.
fn labels(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// Answers a question; `None`: says nothing.
fn dns_answer(question: &[u8], by_tcp: bool) -> Option<Vec<u8>> {
    let end = 12 + question[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
    let name = String::from_utf8_lossy(&question[13..end - 5]).into_owned();
    let kind = u16::from_be_bytes([question[end - 4], question[end - 3]]);
    let first: String = name.chars().take_while(char::is_ascii_lowercase).collect();
    let mut code = 0;
    let mut truncated = 0;
    let mx = [&[0, 10][..], &labels("mail.test")].concat();
    let srv = [&[0, 1, 0, 2, 0x14, 0xe9][..], &labels("s.test")].concat();
    let records: Vec<(u16, Vec<u8>)> = match (first.as_str(), kind) {
        ("a", 1) => vec![(1, vec![127, 77, 1, 1]), (1, vec![127, 77, 1, 2])],
        ("a", 28) => vec![],
        // Its address comes along, as resolvers do it.
        ("alias", 5 | 1) => vec![(5, labels("a.test")), (1, vec![127, 77, 1, 1])],
        ("mail", 15) => vec![(15, mx)],
        ("service", 33) => vec![(33, srv)],
        ("text", 16) => vec![(16, b"\x05hello\x06 world".to_vec())],
        ("large", 1) if !by_tcp => {
            truncated = 2;
            vec![]
        }
        ("large", 1) => vec![(1, vec![10, 0, 0, 1])],
        ("1", 12) | ("", 12) => vec![(12, labels("back.test"))],
        ("silent", _) => return None,
        ("garbage", _) => {
            return Some(vec![
                question[0],
                question[1],
                0x81,
                0x80,
                0,
                1,
                0,
                9,
                0,
                0,
                0,
                0,
                9,
            ]);
        }
        ("refused", _) => {
            code = 5;
            vec![]
        }
        _ => {
            code = 3;
            vec![]
        }
    };
    let mut bytes = question[..2].to_vec();
    bytes.extend([
        0x81 | truncated,
        0x80 | code,
        0,
        1,
        0,
        u8::try_from(records.len()).unwrap(),
        0,
        0,
        0,
        0,
    ]);
    bytes.extend(&question[12..end]);
    for (kind, data) in records {
        bytes.extend([0xc0, 12]);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1, 0, 0, 0, 60]);
        bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend(data);
    }
    Some(bytes)
}

async fn dns_server() -> SocketAddr {
    // The same port for both protocols; another one if somebody has it.
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let addr = udp.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((count, from)) = udp.recv_from(&mut buffer).await {
            if let Some(answer) = dns_answer(&buffer[..count], false) {
                udp.send_to(&answer, from).await.unwrap();
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let length = stream.read_u16().await.unwrap();
            let mut question = vec![0; usize::from(length)];
            stream.read_exact(&mut question).await.unwrap();
            let answer = dns_answer(&question, true).unwrap();
            stream
                .write_u16(u16::try_from(answer.len()).unwrap())
                .await
                .unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    });
    addr
}

#[tokio::test]
async fn dns() {
    let server = dns_server().await.to_string();
    let ask = async |rest: serde_json::Value| {
        let mut args = json!({ "server": server });
        args.as_object_mut()
            .unwrap()
            .extend(rest.as_object().unwrap().clone());
        look_within("dns", args, Duration::from_secs(3)).await
    };
    passed(
        &ask(json!({"name": "a.test"})).await,
        "127.77.1.1, 127.77.1.2",
    );
    passed(
        &ask(json!({"name": "a.test.", "want": ["127.77.1.2", "127.77.1.1"]})).await,
        "127.77.1.1",
    );
    failed(
        &ask(json!({"name": "a.test", "want": ["127.77.1.1"]})).await,
        "127.77.1.1, 127.77.1.2",
    );
    passed(
        &ask(json!({"name": "a.test", "want": {"has": ["127.77.1.1"]}})).await,
        "127.77.1.1",
    );
    passed(
        &ask(json!({"name": "alias.test", "type": "CNAME", "want": ["a.test."]})).await,
        "a.test.",
    );
    passed(
        &ask(json!({"name": "alias.test", "type": "A"})).await,
        "127.77.1.1",
    );
    passed(
        &ask(json!({"name": "mail.test", "type": "MX", "want": ["10 mail.test."]})).await,
        "10 mail.test.",
    );
    passed(
        &ask(json!({"name": "service.test", "type": "SRV", "want": ["1 2 5353 s.test."]})).await,
        "5353",
    );
    passed(
        &ask(json!({"name": "text.test", "type": "TXT", "want": ["hello world"]})).await,
        "hello world",
    );
    passed(
        &ask(json!({"name": "127.77.1.1", "type": "PTR", "want": ["back.test."]})).await,
        "back.test.",
    );
    passed(
        &ask(json!({"name": "large.test", "type": "A"})).await,
        "10.0.0.1",
    );
    failed(&ask(json!({"name": "none.test"})).await, "no answer");
    passed(
        &ask(json!({"name": "none.test", "resolves": false})).await,
        "no answer",
    );
    failed(
        &ask(json!({"name": "a.test", "resolves": false})).await,
        "127.77.1.1",
    );
    failed(
        &ask(json!({"name": "garbage.test"})).await,
        "the answer makes no sense: it ends too early",
    );
    failed(
        &ask(json!({"name": "refused.test"})).await,
        "the server answers with REFUSED",
    );
    failed(
        &ask(json!({"name": "silent.test"})).await,
        "still waiting for the name server after 3s",
    );
    // A name that cannot resolve is told from a server that is not there.
    let closed = json!({"name": "a.test", "server": "127.0.0.1:1", "resolves": false});
    failed(&look("dns", closed).await, "refused");
    passed(
        &look(
            "dns",
            json!({"name": "localhost", "want": {"has": ["127.0.0.1"]}}),
        )
        .await,
        "127.0.0.1",
    );
}

/// Ahead of us by so much; stratum 0 means that it does not know the time either.
async fn ntp(ahead: i64, stratum: u8) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((_, from)) = socket.recv_from(&mut buffer).await {
            let now = SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap();
            let seconds = now
                .as_secs()
                .checked_add_signed(ahead + 2_208_988_800)
                .unwrap();
            let stamp = (seconds << 32) | ((u64::from(now.subsec_nanos()) << 32) / 1_000_000_000);
            let mut answer = [0; 48];
            answer[0] = 0x24;
            answer[1] = stratum;
            answer[24..32].copy_from_slice(&buffer[40..48]);
            answer[32..40].copy_from_slice(&stamp.to_be_bytes());
            answer[40..48].copy_from_slice(&stamp.to_be_bytes());
            socket.send_to(&answer, from).await.unwrap();
        }
    });
    addr
}

#[tokio::test]
async fn clocks() {
    let compare = async |server: SocketAddr| {
        let args = json!({"within": "1s", "server": server.to_string()});
        look_within("clock", args, Duration::from_secs(5)).await
    };
    passed(&compare(ntp(0, 2).await).await, " ms ");
    let behind = compare(ntp(5, 2).await).await;
    failed(&behind, "ms behind");
    assert!(
        behind.seen.starts_with("the clock is 4") || behind.seen.starts_with("the clock is 5"),
        "{behind:?}"
    );
    failed(&compare(ntp(-5, 2).await).await, "ms ahead");
    failed(
        &compare(ntp(0, 0).await).await,
        "the server itself is not synchronised",
    );
    // Whatever the kernel says of this machine, it is said in time.
    let kernel = look("clock", json!({"within": "24h"})).await;
    assert!(
        kernel.seen.contains("ms ") || kernel.seen.contains("nothing synchronises"),
        "{kernel:?}"
    );
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let args = json!({"within": "1s", "server": silent.local_addr().unwrap().to_string()});
    failed(
        &look_within("clock", args, SHORT).await,
        "still waiting for the time after 300ms",
    );
}

#[derive(Clone, PartialEq, prost::Message)]
struct Question {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `grpc.health.v1.Health` without generated code: one method.
#[derive(Clone)]
struct Health;

impl tonic::server::NamedService for Health {
    const NAME: &'static str = "grpc.health.v1.Health";
}

struct Check;

impl tonic::server::UnaryService<Question> for Check {
    type Response = Status;
    type Future = Ready<Result<tonic::Response<Status>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<Question>) -> Self::Future {
        let answer = match request.get_ref().service.as_str() {
            "" | "good" => Ok(Status { status: 1 }),
            "sick" => Ok(Status { status: 2 }),
            _ => Err(tonic::Status::not_found("no such service")),
        };
        std::future::ready(answer.map(tonic::Response::new))
    }
}

impl tower::Service<hyper::Request<tonic::body::Body>> for Health {
    type Response = hyper::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: hyper::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::<Status, Question>::default();
            Ok(tonic::server::Grpc::new(codec).unary(Check, request).await)
        })
    }
}

#[tokio::test]
async fn grpc_health() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(Health)
            .serve_with_incoming(incoming),
    );
    passed(&look("grpc_health", json!({"at": at})).await, "SERVING");
    passed(
        &look("grpc_health", json!({"at": at, "service": "good"})).await,
        "SERVING",
    );
    failed(
        &look("grpc_health", json!({"at": at, "service": "sick"})).await,
        "NOT_SERVING",
    );
    failed(
        &look("grpc_health", json!({"at": at, "service": "none"})).await,
        "it answers NotFound: no such service",
    );
    let web = web().await.to_string();
    let no_grpc = look_within("grpc_health", json!({"at": web}), Duration::from_secs(5)).await;
    assert_eq!(
        no_grpc.outcome,
        homeostat_prodtest::Outcome::Failed,
        "{no_grpc:?}"
    );
    failed(
        &look("grpc_health", json!({"at": "127.0.0.1:1"})).await,
        "refused",
    );
}

#[tokio::test]
async fn tcp_with_its_arguments() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    passed(
        &look("tcp", json!({"at": at, "local_address": "127.0.0.2"})).await,
        "connected",
    );
    failed(
        &look("tcp", json!({"at": at, "local_address": "::1"})).await,
        "no address of the same family",
    );
    failed(
        &look("tcp", json!({"at": at, "reachable": false})).await,
        "it accepts a connection",
    );
    drop(listener);
    passed(
        &look("tcp", json!({"at": at, "reachable": false})).await,
        "refused",
    );
    failed(&look("tcp", json!({"at": at})).await, "refused");
}
