//! A unix socket on which agents connect: the part that supervisors and the forwarder share.
//!
//! Only the user that runs the cell, and root, are let in: the kernel says who is at the other end. Everything is
//! bounded: the number of connections, the length of a line, and what is queued for a peer that does not read (it is
//! cut off; an agent that connects again is told the present state first).

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use serde::Serialize;

use crate::line::{LineBuffer, encode_line};

/// Agents replace one another, people look: more than this at once is a mistake of somebody.
pub(crate) const MOST_PEERS: usize = 16;
/// What may wait for a peer that does not read.
const LONGEST_QUEUE: usize = 1024 * 1024;

/// Who is at the other end of a unix socket, as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// 0 when the peer is in a pid namespace that is not visible from here.
    pub pid: u32,
    pub uid: u32,
}

/// The credentials of the peer: of the process that connected or, seen from the connecting side, that listened.
///
/// # Errors
/// When the socket is not connected.
pub fn credentials(socket: impl AsFd) -> io::Result<Credentials> {
    let mut found = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the pointers are to live values of the type and size that SO_PEERCRED fills.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Credentials {
        pid: u32::try_from(found.pid).unwrap_or(0),
        uid: found.uid,
    })
}

/// Whether a peer may give orders: the same user, or root.
pub fn may_order(peer: Credentials) -> bool {
    peer.uid == 0 || peer.uid == rustix::process::geteuid().as_raw()
}

/// Listens at `path`, where a dead predecessor's socket may still be. The caller holds the lock of the folder.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A line for people on standard error, which may be a pipe that nobody reads any more: that is no reason to panic, as
/// `eprintln` does.
pub(crate) fn note(who: &str, text: &str) {
    let _ = writeln!(io::stderr(), "{who}: {text}");
}

/// One connected agent.
pub(crate) struct Peer {
    stream: UnixStream,
    input: LineBuffer,
    output: Vec<u8>,
}

/// The peer went away, broke the protocol, or does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost;

/// Whether there may be more to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum More {
    No,
    /// Lines must be taken out first.
    Maybe,
}

impl Peer {
    /// The next connection that waits; those of strangers are closed.
    pub(crate) fn accept(listener: &UnixListener) -> Option<Self> {
        loop {
            let (stream, _) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // Nobody waits, or no descriptor is free: whoever waits is met at the next turn.
                Err(_) => return None,
            };
            if !credentials(&stream).is_ok_and(may_order) {
                continue;
            }
            if stream.set_nonblocking(true).is_ok() {
                return Some(Self {
                    stream,
                    input: LineBuffer::default(),
                    output: Vec::new(),
                });
            }
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Takes in what arrived, up to the length of the longest line. After `Err` the lines that were whole are still there.
    pub(crate) fn read(&mut self) -> Result<More, Lost> {
        let mut piece = [0u8; 4096];
        while self.input.room() > 0 {
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(Lost),
                Ok(n) => self.input.push(&piece[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(More::No),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Lost),
            }
        }
        Ok(More::Maybe)
    }

    pub(crate) fn next_line(&mut self) -> Result<Option<Vec<u8>>, Lost> {
        self.input.next_line().map_err(|_| Lost)
    }

    /// Queues a message and sends what the socket takes now.
    pub(crate) fn send(&mut self, message: &impl Serialize) -> Result<(), Lost> {
        let line = encode_line(message).map_err(|_| Lost)?;
        self.output.extend_from_slice(&line);
        self.flush()?;
        if self.output.len() > LONGEST_QUEUE {
            return Err(Lost);
        }
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> Result<(), Lost> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(Lost),
                Ok(n) => drop(self.output.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Lost),
            }
        }
        Ok(())
    }

    pub(crate) fn has_unsent(&self) -> bool {
        !self.output.is_empty()
    }
}
