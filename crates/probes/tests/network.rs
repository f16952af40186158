//! tcp and http probes against real sockets that misbehave on purpose.
#![allow(clippy::unwrap_used)]

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use homeostat_probes::{HttpProbe, Probe, Prober, TcpProbe};
use homeostat_prodtest::{Observation, Outcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Long enough for an honest answer on a busy machine.
const PATIENT: Duration = Duration::from_secs(20);
/// For what is known to run out.
const SHORT: Duration = Duration::from_millis(300);

/// What a server does with each connection, after it has read something.
#[derive(Clone, Copy)]
enum Manner {
    Says(&'static [u8]),
    /// Says this, and then nothing more, with the connection open.
    Hangs(&'static [u8]),
    /// Says the first once and the second for ever.
    Endless(&'static [u8], &'static [u8]),
}

async fn server(manner: Manner) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, manner));
        }
    });
    addr
}

async fn serve(mut stream: TcpStream, manner: Manner) -> std::io::Result<()> {
    let mut request = [0; 1024];
    let _ = stream.read(&mut request).await?;
    match manner {
        Manner::Says(text) => stream.write_all(text).await,
        Manner::Hangs(text) => {
            stream.write_all(text).await?;
            // Until the other side gives up.
            while stream.read(&mut request).await? > 0 {}
            Ok(())
        }
        Manner::Endless(first, rest) => {
            stream.write_all(first).await?;
            loop {
                stream.write_all(rest).await?;
            }
        }
    }
}

fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

async fn http(addr: SocketAddr, contains: Option<&str>, deadline: Duration) -> Observation {
    let path = "/healthz?deep=1";
    let probe = Probe::Http(HttpProbe::get(
        addr.to_string(),
        path,
        200,
        contains.map(Into::into),
    ));
    let started = Instant::now();
    let observation = Prober::new().run(&probe, deadline).await;
    assert!(
        started.elapsed() < deadline + Duration::from_secs(5),
        "{observation:?}"
    );
    observation
}

#[track_caller]
fn passed(observation: &Observation, seen: &str) {
    assert!(
        observation.outcome == Outcome::Passed && observation.seen.contains(seen),
        "{observation:?}"
    );
}

#[track_caller]
fn failed(observation: &Observation, seen: &str) {
    assert!(
        observation.outcome == Outcome::Failed && observation.seen.contains(seen),
        "{observation:?}"
    );
}

#[tokio::test]
async fn tcp() {
    let open = server(Manner::Says(b"")).await;
    let probe = |addr: String| Probe::Tcp(TcpProbe::new(addr));
    let prober = Prober::new();
    passed(
        &prober.run(&probe(open.to_string()), PATIENT).await,
        "connected",
    );
    passed(
        &prober
            .run(&probe(format!("localhost:{}", open.port())), PATIENT)
            .await,
        "connected",
    );
    let refused = prober.run(&probe(nobody().to_string()), PATIENT).await;
    failed(&refused, "refused");
    assert!(
        refused.expected.ends_with("accepts a connection"),
        "{refused:?}"
    );
    failed(
        &prober.run(&probe("not an address".into()), PATIENT).await,
        "cannot connect to not an address",
    );
}

#[tokio::test]
async fn http_answers_that_are_right_and_wrong() {
    let good = server(Manner::Says(
        b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nall ok\n",
    ))
    .await;
    passed(&http(good, None, PATIENT).await, "status 200");
    passed(&http(good, Some("all ok"), PATIENT).await, "status 200");
    failed(
        &http(good, Some("splendid"), PATIENT).await,
        r#"body "all ok\n"; the answer: all ok"#,
    );

    let chunks =
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nspl\r\n5\r\nendid\r\n0\r\n\r\n";
    passed(
        &http(
            server(Manner::Says(chunks)).await,
            Some("splendid"),
            PATIENT,
        )
        .await,
        "status 200",
    );

    let sick = b"HTTP/1.1 503 Sick\r\ncontent-length: 15\r\n\r\nno \x1b[31mdatabase";
    failed(
        &http(server(Manner::Says(sick)).await, None, PATIENT).await,
        "status 503; the answer: no \u{fffd}[31mdatabas",
    );
    failed(&http(nobody(), None, PATIENT).await, "refused");
}

#[tokio::test]
async fn http_answers_that_are_no_answers() {
    let none = "no proper HTTP answer";
    failed(
        &http(server(Manner::Says(b"")).await, None, PATIENT).await,
        none,
    );
    failed(
        &http(
            server(Manner::Says(b"\0\xff\x01 5.5.5-10.11-MariaDB")).await,
            None,
            PATIENT,
        )
        .await,
        none,
    );
    failed(
        &http(
            server(Manner::Says(b"HTTP/1.1 200 OK\r\ncontent-le")).await,
            None,
            PATIENT,
        )
        .await,
        none,
    );
    let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nall ok";
    failed(
        &http(server(Manner::Says(cut)).await, Some("all ok"), PATIENT).await,
        none,
    );
}

#[tokio::test]
async fn http_answers_without_an_end() {
    let header = Manner::Endless(b"HTTP/1.1 200 OK\r\n", b"x-more: and more of the same\r\n");
    failed(
        &http(server(header).await, None, PATIENT).await,
        "no proper HTTP answer",
    );
    let body = Manner::Endless(b"HTTP/1.1 200 OK\r\n\r\n", &[b'x'; 4096]);
    failed(
        &http(server(body).await, None, PATIENT).await,
        "has not ended after 1048576 bytes",
    );
    let announced = Manner::Hangs(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n");
    failed(
        &http(server(announced).await, None, PATIENT).await,
        "has not ended after 1048576 bytes",
    );
}

#[tokio::test]
async fn http_servers_that_hang() {
    let silent = server(Manner::Hangs(b"")).await;
    failed(
        &http(silent, None, SHORT).await,
        "still waiting for an answer after 300ms",
    );
    let halfway = server(Manner::Hangs(
        b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nall",
    ))
    .await;
    failed(
        &http(halfway, None, SHORT).await,
        "still reading the answer after 300ms",
    );
    // A full backlog: the kernel does not even answer.
    let full = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    rustix::net::bind(&full, &any).unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let addr = TcpListener::from(full);
    let at = addr.local_addr().unwrap();
    let _first = std::net::TcpStream::connect(at).unwrap();
    let second = TcpStream::connect(at);
    tokio::pin!(second);
    // Whether the second still finds a place differs between kernels; after it there is none.
    let _ = tokio::time::timeout(SHORT, &mut second).await;
    failed(&http(at, None, SHORT).await, "after 300ms");
}
