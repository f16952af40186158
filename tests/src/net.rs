//! The smallest HTTP client that a test needs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);

/// GET; the status and the body, or what went wrong.
///
/// # Errors
/// When it does not answer in time, or not in HTTP.
pub fn get(at: &str, path: &str) -> Result<(u16, String), String> {
    request(at, "GET", path)
}

/// POST without a body.
///
/// # Errors
/// As [`get`].
pub fn post(at: &str, path: &str) -> Result<(u16, String), String> {
    request(at, "POST", path)
}

fn request(at: &str, method: &str, path: &str) -> Result<(u16, String), String> {
    let fail = |what: &str, error: std::io::Error| format!("{at}: {what}: {error}");
    let address: SocketAddr = at
        .parse()
        .map_err(|_| format!("'{at}' is not an address"))?;
    let mut stream =
        TcpStream::connect_timeout(&address, PATIENCE).map_err(|e| fail("connect", e))?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .map_err(|e| fail("set a limit", e))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {at}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream
        .write_all(head.as_bytes())
        .map_err(|e| fail("send", e))?;
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .map_err(|e| fail("receive", e))?;
    let (head, body) = text
        .split_once("\r\n\r\n")
        .ok_or_else(|| format!("{at}: half an answer: {text:?}"))?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    Ok((
        status.ok_or_else(|| format!("{at}: no status in {head:?}"))?,
        body.to_owned(),
    ))
}
