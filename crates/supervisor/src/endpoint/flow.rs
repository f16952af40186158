//! One open connection: bytes from a client to a target and back.
//!
//! A read goes into a buffer that all connections share and from there straight to the other side. Only what the other
//! side did not take is kept, and nothing more is read until it is gone: an idle connection costs no buffer, a slow
//! one at most [`PIECE`] bytes each way, and the pressure goes back to whoever sends.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};

/// What is read at once.
pub(super) const PIECE: usize = 32 * 1024;
/// How often one connection is read before others get their turn.
const READS: u32 = 4;

/// Both directions. The sockets stay with whoever owns the connection.
#[derive(Default)]
pub(super) struct Flow {
    up: Direction,
    down: Direction,
}

/// The two sockets of a connection.
#[derive(Clone, Copy)]
pub(super) struct Sides<'a> {
    pub client: &'a OwnedFd,
    pub server: &'a OwnedFd,
}

#[derive(Default)]
struct Direction {
    /// Read and not yet written.
    rest: Vec<u8>,
    /// Where `rest` begins.
    at: usize,
    input: Input,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Input {
    #[default]
    Open,
    /// It ended; the other side is told when all was written.
    Ended,
    Told,
}

/// What epoll said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ready {
    /// The client sent something, and nothing else happened.
    ClientReads,
    ServerReads,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    GoesOn,
    /// Both sides have ended and everything was delivered.
    Done,
}

/// What to wait for on each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interest {
    pub client: EventFlags,
    pub server: EventFlags,
}

impl Flow {
    /// Moves what can be moved.
    ///
    /// # Errors
    /// When a side broke: [`abort`] it.
    pub(super) fn pump(
        &mut self,
        sides: Sides<'_>,
        ready: Ready,
        buffer: &mut [u8],
    ) -> io::Result<Progress> {
        let Sides { client, server } = sides;
        // What became writable on one side lets the other side be read again, so both are looked at unless a side has
        // only something to say.
        match ready {
            Ready::ClientReads => self.up.pump(client, server, buffer)?,
            Ready::ServerReads => self.down.pump(server, client, buffer)?,
            Ready::Other => {
                self.up.pump(client, server, buffer)?;
                self.down.pump(server, client, buffer)?;
            }
        }
        let done = self.up.input == Input::Told && self.down.input == Input::Told;
        Ok(if done {
            Progress::Done
        } else {
            Progress::GoesOn
        })
    }

    pub(super) fn interest(&self) -> Interest {
        let side = |reads: &Direction, writes: &Direction| {
            let mut flags = EventFlags::empty();
            if reads.wants_to_read() {
                flags |= EventFlags::IN;
            }
            if !writes.is_empty() {
                flags |= EventFlags::OUT;
            }
            flags
        };
        Interest {
            client: side(&self.up, &self.down),
            server: side(&self.down, &self.up),
        }
    }
}

/// Makes the sockets end with a reset when they are closed: what was not sent goes nowhere any more, and neither side
/// takes it for an end in good order.
pub(super) fn abort(sides: Sides<'_>) {
    for fd in [sides.client, sides.server] {
        // A socket that is already broken needs no reset.
        let _ = sockopt::set_socket_linger(fd, Some(std::time::Duration::ZERO));
    }
}

impl Direction {
    fn is_empty(&self) -> bool {
        self.at == self.rest.len()
    }

    fn wants_to_read(&self) -> bool {
        self.is_empty() && self.input == Input::Open
    }

    fn pump(&mut self, from: &OwnedFd, to: &OwnedFd, buffer: &mut [u8]) -> io::Result<()> {
        self.flush(to)?;
        for _ in 0..READS {
            if !self.wants_to_read() {
                break;
            }
            match recv(from, &mut *buffer, RecvFlags::empty()) {
                Ok((0, _)) => self.input = Input::Ended,
                Ok((n, _)) => {
                    let sent = send_some(to, &buffer[..n])?;
                    if sent < n {
                        self.rest = buffer[sent..n].to_vec();
                        self.at = 0;
                    } else if n < buffer.len() {
                        break;
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.input == Input::Ended && self.is_empty() {
            match shutdown(to, Shutdown::Write) {
                Ok(()) | Err(Errno::NOTCONN) => self.input = Input::Told,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn flush(&mut self, to: &OwnedFd) -> io::Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        self.at += send_some(to, &self.rest[self.at..])?;
        if self.is_empty() {
            // Not kept for the next time: most connections never need it.
            self.rest = Vec::new();
            self.at = 0;
        }
        Ok(())
    }
}

fn send_some(to: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match send(&to, &bytes[sent..], SendFlags::NOSIGNAL) {
            Ok(n) => sent += n,
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sent)
}
