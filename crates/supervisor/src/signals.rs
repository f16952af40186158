//! Signals as something to read: blocked for the process and delivered through a signalfd, so that they meet the event
//! loop where it waits and never interrupt it anywhere else.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};

/// The signals a supervisor acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// SIGTERM or SIGINT.
    Terminate,
    /// Some child changed its state; how many did is for waitpid to say.
    Child,
}

pub(crate) struct Signals(File);

impl Signals {
    /// Blocks the signals for the calling thread and from now on reads them. Must be called before any other thread
    /// is started: they would not block them.
    pub(crate) fn take() -> io::Result<Self> {
        // SAFETY: `set` is a plain integer array for which all zeros is a valid value, and it is passed to calls that
        // only read or fill it. SIG_IGN is a valid disposition; no handler of ours runs. `signalfd` returns a new
        // descriptor or -1, checked before it is owned.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGCHLD] {
                libc::sigaddset(&mut set, signal);
            }
            if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            // A terminal that goes away, a peer that goes away and a file size limit are no reasons to die here.
            for signal in [libc::SIGHUP, libc::SIGPIPE, libc::SIGXFSZ] {
                libc::signal(signal, libc::SIG_IGN);
            }
            let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(File::from_raw_fd(fd)))
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The next signal that arrived; `None` when there is none.
    pub(crate) fn next(&mut self) -> io::Result<Option<Arrived>> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        match self.0.read(&mut info) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
        // `ssi_signo` is the first field.
        let signal = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
        Ok(Some(if signal == libc::SIGCHLD as u32 {
            Arrived::Child
        } else {
            Arrived::Terminate
        }))
    }
}
