//! The agent's side: is there a forwarder of this machine in this folder? The same rules as for supervisors.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::protocol::{Hello, Message};
use super::{EndpointFile, SOCKET};
use crate::control::credentials;
use crate::find::{FindError, NotOurs, Wire, is_process, is_unused};
use crate::run::RunLock;

#[derive(Debug)]
pub enum FoundForwarder {
    /// Nothing was prepared here.
    Nothing,
    Alive {
        hello: Hello,
        wire: Wire,
    },
    /// None lives: start one, it goes on with the targets its predecessor knew.
    Gone {
        why: String,
    },
    /// One lives (it holds the lock) and does not answer.
    Silent {
        why: String,
    },
    /// Somebody answers who is not the forwarder of this machine.
    Stranger {
        why: String,
    },
}

/// Looks. Waits up to `within` for a forwarder that holds the lock and has not answered yet.
///
/// # Errors
/// When the folder or /proc cannot be read.
pub fn identify(run_dir: &Path, within: Duration) -> Result<FoundForwarder, FindError> {
    let until = Instant::now() + within;
    let Some(file) = EndpointFile::load(run_dir)? else {
        return Ok(FoundForwarder::Nothing);
    };
    loop {
        let held = RunLock::is_held(run_dir)?;
        let why = match UnixStream::connect(run_dir.join(SOCKET)) {
            Ok(stream) => {
                let mut wire = Wire::new(stream);
                let left = until.saturating_duration_since(Instant::now());
                match wire.receive(left.max(Duration::from_millis(10))) {
                    Ok(Message::Hello(hello)) => return recognise(&file, hello, wire),
                    Ok(Message::Reply { .. } | Message::Event(_)) => {
                        "it did not begin with a hello".to_owned()
                    }
                    Err(error) => format!("its socket is there, but: {error}"),
                }
            }
            Err(error) if is_unused(&error) => format!("nobody listens on its socket: {error}"),
            Err(error) => return Err(FindError::Connect(error)),
        };
        if !held {
            return Ok(FoundForwarder::Gone { why });
        }
        if Instant::now() >= until {
            return Ok(FoundForwarder::Silent { why });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn recognise(file: &EndpointFile, hello: Hello, wire: Wire) -> Result<FoundForwarder, FindError> {
    let peer = credentials(wire.stream()).map_err(FindError::Connect)?;
    let misfit: Option<NotOurs> = is_process(hello.forwarder, peer.pid)?;
    if let Some(misfit) = misfit {
        let why = misfit.to_string();
        return Ok(FoundForwarder::Stranger { why });
    }
    if hello.machine != file.machine {
        let why = format!(
            "it forwards for machine {}, not {}",
            hello.machine, file.machine
        );
        return Ok(FoundForwarder::Stranger { why });
    }
    Ok(FoundForwarder::Alive { hello, wire })
}
