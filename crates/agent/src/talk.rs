//! One conversation over a unix socket, a JSON value a line in both directions: with supervisors and with the
//! forwarder.

use std::path::{Path, PathBuf};
use std::time::Duration;

use homeostat_supervisor::protocol::LONGEST_LINE;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::wake::Wake;

/// How long a process that was just started may take until it listens, and how often the agent looks.
pub(crate) const LISTEN_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Requests that may wait.
const QUEUE: usize = 64;

/// Whether the other side is expected to be still on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Patience {
    JustStarted,
    ShouldListen,
}

/// Talks until the connection ends; `heard` and `gone` say what of it the agent's loop gets. Dropping the sender ends
/// the conversation.
pub(crate) fn talk<R, M>(
    socket: PathBuf,
    patience: Patience,
    wakes: mpsc::Sender<Wake>,
    heard: impl Fn(M) -> Wake + Send + 'static,
    gone: Wake,
) -> mpsc::Sender<R>
where
    R: Serialize + Send + 'static,
    M: DeserializeOwned + Send + 'static,
{
    let (requests, outgoing) = mpsc::channel::<R>(QUEUE);
    tokio::spawn(async move {
        if let Some(stream) = reach(&socket, patience).await {
            converse(stream, outgoing, &wakes, heard).await;
        }
        // The loop may be gone already when the agent ends.
        drop(wakes.send(gone).await);
    });
    requests
}

async fn converse<R: Serialize, M: DeserializeOwned>(
    stream: UnixStream,
    mut outgoing: mpsc::Receiver<R>,
    wakes: &mpsc::Sender<Wake>,
    heard: impl Fn(M) -> Wake,
) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        let mut limited = (&mut lines).take((LONGEST_LINE - line.len().min(LONGEST_LINE)) as u64);
        tokio::select! {
            request = outgoing.recv() => {
                let Some(request) = request else { return };
                let Ok(mut text) = serde_json::to_vec(&request) else { return };
                text.push(b'\n');
                if write.write_all(&text).await.is_err() {
                    return;
                }
            }
            // Cancel-safe: what was read so far stays in `line`.
            read = limited.read_until(b'\n', &mut line) => {
                match read {
                    Ok(n) if n > 0 && line.ends_with(b"\n") => {
                        // A message of a newer version is passed over: the protocols only ever add.
                        if let Ok(message) = serde_json::from_slice::<M>(&line)
                            && wakes.send(heard(message)).await.is_err()
                        {
                            return;
                        }
                        line.clear();
                    }
                    Ok(_) | Err(_) => return,
                }
            }
        }
    }
}

async fn reach(socket: &Path, patience: Patience) -> Option<UnixStream> {
    let deadline = tokio::time::Instant::now()
        + match patience {
            Patience::JustStarted => LISTEN_WITHIN,
            Patience::ShouldListen => Duration::ZERO,
        };
    loop {
        if let Ok(stream) = UnixStream::connect(socket).await {
            return Some(stream);
        }
        if tokio::time::Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
