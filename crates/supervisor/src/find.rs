//! The agent's side: who, if anybody, runs the task of this run folder?
//!
//! A supervisor is believed only if everything fits: the kernel says that the process which listens on the socket is
//! the one that its [`Hello`] names, /proc says that it started when it claims, and task and generation are those
//! of the launch file. A socket alone, or a pid alone, proves nothing.

use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use homeostat_model::{Generation, TaskName};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control::credentials;
use crate::launch::LaunchFile;
use crate::line::{LineBuffer, LineError, decode_line, encode_line};
use crate::process;
use crate::protocol::{Hello, Message, Process, Request, Verb};
use crate::run::{ExitFile, RunError, RunLock, SOCKET};

/// What is in a run folder.
#[derive(Debug)]
pub enum Found {
    /// No launch file: no task was prepared here.
    Nothing,
    /// Its supervisor lives and is the right one.
    Alive {
        hello: Hello,
        connection: Connection,
    },
    /// Its supervisor saw it end and is gone.
    Ended(ExitFile),
    /// No supervisor lives, and how the task ended (or whether it ever began) is not known: call `kill_leftovers`.
    Gone { why: String },
    /// A supervisor lives (it holds the lock) and does not answer: it is starting, stopped, or stuck.
    Silent { why: String },
    /// Somebody answers who is not the supervisor of this task.
    Stranger(NotOurs),
}

/// What does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotOurs {
    #[error("it supervises task {found}, not {wanted}")]
    Task { found: TaskName, wanted: TaskName },
    #[error("it supervises generation {found} of the task, not {wanted}")]
    Generation {
        found: Generation,
        wanted: Generation,
    },
    #[error("it says that its pid is {said}, but pid {is} holds the socket")]
    Pid { said: u32, is: u32 },
    #[error(
        "pid {pid} is used again: the one meant started at tick {said}, the one there now {is}"
    )]
    Reused { pid: u32, said: u64, is: Ticks },
    #[error("the socket belongs to user {uid}")]
    User { uid: u32 },
}

/// A start time, or that there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticks(pub Option<u64>);

impl fmt::Display for Ticks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(ticks) => write!(f, "started at tick {ticks}"),
            None => f.write_str("is gone"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("cannot connect to its socket")]
    Connect(#[source] io::Error),
    #[error("cannot look at a process")]
    Process(#[source] io::Error),
}

/// Looks. Waits up to `within` for a supervisor that holds the lock and has not answered yet.
///
/// # Errors
/// When the folder or /proc cannot be read; never because of what a supervisor does.
pub fn identify(run_dir: &Path, within: Duration) -> Result<Found, FindError> {
    let until = Instant::now() + within;
    let Some(launch) = LaunchFile::load(run_dir)? else {
        return Ok(Found::Nothing);
    };
    loop {
        // Looked at before the connection: one that ends in between has left its exit file by then.
        let held = RunLock::is_held(run_dir)?;
        let why = match UnixStream::connect(run_dir.join(SOCKET)) {
            Ok(stream) => match greet(stream, until) {
                Ok((hello, connection)) => {
                    let peer = credentials(connection.wire.stream()).map_err(FindError::Connect)?;
                    // Whoever may write this folder may run its supervisor, and root may.
                    let owner = fs::metadata(run_dir).map_err(FindError::Connect)?.uid();
                    return Ok(match fits(&hello, &launch, peer.pid)? {
                        None if peer.uid != owner && peer.uid != 0 => {
                            Found::Stranger(NotOurs::User { uid: peer.uid })
                        }
                        None => Found::Alive { hello, connection },
                        Some(misfit) => Found::Stranger(misfit),
                    });
                }
                Err(error) => format!("its socket is there, but: {error}"),
            },
            Err(error) if is_unused(&error) => format!("nobody listens on its socket: {error}"),
            Err(error) => return Err(FindError::Connect(error)),
        };
        if !held {
            return after_the_end(run_dir, &launch, why);
        }
        if Instant::now() >= until {
            return Ok(Found::Silent { why });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for a supervisor that was just started: until it answers, has ended, or its process is gone.
///
/// # Errors
/// As [`identify`].
pub fn await_supervisor(
    run_dir: &Path,
    started: Process,
    within: Duration,
) -> Result<Found, FindError> {
    let until = Instant::now() + within;
    loop {
        let lives = process::alive(started);
        let left = until.saturating_duration_since(Instant::now());
        match identify(run_dir, left)? {
            Found::Gone { .. } if lives && !left.is_zero() => {
                std::thread::sleep(Duration::from_millis(1));
            }
            found => return Ok(found),
        }
    }
}

/// Whether a [`Hello`] comes from the supervisor of this launch file; `peer_pid` is what the kernel says about the
/// socket (0: not visible from here). For agents that connect by themselves, and on every new connection.
///
/// # Errors
/// When /proc cannot be read.
pub fn fits(
    hello: &Hello,
    launch: &LaunchFile,
    peer_pid: u32,
) -> Result<Option<NotOurs>, FindError> {
    if let Some(misfit) = is_process(hello.supervisor, peer_pid)? {
        return Ok(Some(misfit));
    }
    if hello.task != launch.task {
        let (found, wanted) = (hello.task.clone(), launch.task.clone());
        return Ok(Some(NotOurs::Task { found, wanted }));
    }
    if hello.generation != launch.generation {
        let (found, wanted) = (hello.generation, launch.generation);
        return Ok(Some(NotOurs::Generation { found, wanted }));
    }
    Ok(None)
}

/// Whether somebody is the process that he says he is.
pub(crate) fn is_process(said: Process, peer_pid: u32) -> Result<Option<NotOurs>, FindError> {
    if peer_pid != 0 && peer_pid != said.pid {
        let (said, is) = (said.pid, peer_pid);
        return Ok(Some(NotOurs::Pid { said, is }));
    }
    let is = process::start_ticks(said.pid).map_err(FindError::Process)?;
    if is != Some(said.start_ticks) {
        return Ok(Some(NotOurs::Reused {
            pid: said.pid,
            said: said.start_ticks,
            is: Ticks(is),
        }));
    }
    Ok(None)
}

fn after_the_end(run_dir: &Path, launch: &LaunchFile, why: String) -> Result<Found, FindError> {
    Ok(match ExitFile::load(run_dir)? {
        Some(exit) if exit.task == launch.task && exit.generation == launch.generation => {
            Found::Ended(exit)
        }
        Some(exit) => Found::Gone {
            why: format!(
                "{why}; the exit file is of generation {}, not {}",
                exit.generation, launch.generation
            ),
        },
        None => Found::Gone {
            why: format!("{why}; it left no exit file"),
        },
    })
}

pub(crate) fn is_unused(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// A connection to a supervisor, for callers without an async runtime.
#[derive(Debug)]
pub struct Connection {
    wire: Wire,
    next_id: u64,
}

impl Connection {
    /// Sends an order and says under which id it will be answered.
    ///
    /// # Errors
    /// When it cannot be sent whole.
    pub fn send(&mut self, verb: Verb) -> Result<u64, ConnectionError> {
        let id = self.next_id;
        self.next_id += 1;
        self.wire.send(&Request { id, verb })?;
        Ok(id)
    }

    /// The next message.
    ///
    /// # Errors
    /// [`ConnectionError::TimedOut`] when none came within that time.
    pub fn receive(&mut self, within: Duration) -> Result<Message, ConnectionError> {
        self.wire.receive(within)
    }

    /// As [`Wire::into_parts`].
    pub fn into_parts(self) -> (UnixStream, Vec<u8>) {
        self.wire.into_parts()
    }
}

/// Lines of JSON over a unix socket, for callers without an async runtime.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
    input: LineBuffer,
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("the connection ended")]
    Closed,
    #[error("no message came in time")]
    TimedOut,
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    #[error(transparent)]
    Line(#[from] LineError),
    #[error("it did not begin with a hello")]
    NoHello,
}

impl Wire {
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            input: LineBuffer::default(),
        }
    }

    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// # Errors
    /// When it cannot be sent whole.
    pub fn send<T: Serialize>(&mut self, message: &T) -> Result<(), ConnectionError> {
        let line = encode_line(message)?;
        self.stream
            .write_all(&line)
            .map_err(ConnectionError::Broken)
    }

    /// The next message.
    ///
    /// # Errors
    /// [`ConnectionError::TimedOut`] when none came within that time.
    pub fn receive<T: DeserializeOwned>(&mut self, within: Duration) -> Result<T, ConnectionError> {
        let until = Instant::now() + within;
        loop {
            if let Some(line) = self.input.next_line()? {
                return Ok(decode_line(&line)?);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ConnectionError::TimedOut);
            }
            self.stream
                .set_read_timeout(Some(left))
                .map_err(ConnectionError::Broken)?;
            let mut piece = [0u8; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(ConnectionError::Closed),
                Ok(n) => self.input.push(&piece[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ConnectionError::Broken(error)),
            }
        }
    }

    /// For an async runtime: the stream (blocking; set it to non-blocking) and what was read of it beyond the messages
    /// that were received, to be put before what comes next.
    pub fn into_parts(self) -> (UnixStream, Vec<u8>) {
        (self.stream, self.input.into_rest())
    }
}

fn greet(stream: UnixStream, until: Instant) -> Result<(Hello, Connection), ConnectionError> {
    let mut wire = Wire::new(stream);
    let left = until.saturating_duration_since(Instant::now());
    match wire.receive(left.max(Duration::from_millis(10)))? {
        Message::Hello(hello) => Ok((hello, Connection { wire, next_id: 1 })),
        Message::Reply { .. } | Message::Event(_) => Err(ConnectionError::NoHello),
    }
}
