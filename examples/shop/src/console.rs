//! What the shop prints, and how it is asked to stop.
//!
//! `println!` and `eprintln!` panic when nobody reads the pipe any more. The reader of a task's
//! output may be killed while the task lives on, so lines that cannot be written are dropped.

use std::fmt::Display;
use std::io::{Write, stderr, stdout};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

/// A line of data, on stdout.
pub fn data(line: impl Display) {
    let _ = writeln!(stdout(), "{line}");
}

/// A remark for people, on stderr.
pub fn note(remark: impl Display) {
    let _ = writeln!(stderr(), "{remark}");
}

/// A future that completes at SIGTERM or SIGINT. The handlers are installed by the call itself, so
/// that no signal between the start and the first poll ends the process the hard way.
pub fn stop_requested() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        }
    })
}
