//! A program of a copy: it cannot outlive its keeper (parent-death signal, cgroup, mark), it ends when its value is dropped,
//! and what it said last is kept for the error.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use homeostat_model::ExitCause;
use homeostat_supervisor::spawn::{self, Plan, Streams};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{CopyError, Place, system};

/// How much of what a program said is repeated in an error.
const LAST_LINES: usize = 6;
const LONGEST_LINE: usize = 400;
/// The most that the kernel gives to everybody. Fewer, larger pieces: half the time of a copy is spent handing them on.
const PIPE: usize = 1 << 20;

pub(super) struct Program {
    name: String,
    pidfd: OwnedFd,
    exit: watch::Receiver<Option<ExitCause>>,
    said: Rc<RefCell<LastWords>>,
    listening: JoinHandle<()>,
}

/// Both ends of a large pipe: ours, and one for a program.
pub(super) fn pipe() -> Result<(OwnedFd, OwnedFd), CopyError> {
    let ends =
        pipe_with(PipeFlags::CLOEXEC).map_err(|error| system("make a pipe")(error.into()))?;
    // The kernel may have given out all it will: a small pipe works too.
    let _ = fcntl_setpipe_size(&ends.0, PIPE);
    Ok(ends)
}

impl Program {
    /// Starts it in `folder`. Must be called from the keeper's own thread.
    ///
    /// # Errors
    /// [`CopyError::NotStarted`], [`CopyError::System`]: then nothing runs.
    pub(super) fn start(
        argv: &[String],
        folder: &Path,
        place: &Place,
        stdin: Stdio,
        stdout: Stdio,
    ) -> Result<Self, CopyError> {
        let (stderr, complaints) = pipe()?;
        let doors = place.group.doors().map_err(system("open the cgroup"))?;
        let plan = Plan {
            argv,
            env: &BTreeMap::from([("LC_ALL".to_owned(), "C".to_owned())]),
            folder,
            user: place.user,
            run_dir: &place.run,
            doors: &doors,
        };
        let streams = Streams {
            stdin,
            stdout,
            stderr: complaints.into(),
        };
        let (process, _) = spawn::start_with(&plan, streams)
            .map_err(|error| CopyError::NotStarted(error.to_string()))?;
        let what = "watch the program";
        let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| system(what)(io::Error::other("its pid is no pid")))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| system(what)(e.into()))?;
        let (told, exit) = watch::channel(None);
        let copy = pidfd.try_clone().map_err(system(what))?;
        // SAFETY: an `OwnedFd` is one descriptor, the same for as long as it lives, and open until it is dropped.
        let end = unsafe { AsyncFd::register_with_interest(copy, Interest::READABLE) };
        let end = end.map_err(|error| system(what)(error.into()))?;
        tokio::task::spawn_local(async move {
            // A pidfd is readable when its process has ended. If it cannot be waited for, waiting blocks, and is exact.
            let _ = end.readable().await.map(|mut ready| ready.clear_ready());
            let _ = told.send(Some(reap(pid)));
        });
        let said = Rc::new(RefCell::new(LastWords::default()));
        let stderr = pipe::Receiver::from_owned_fd(stderr).map_err(system(what))?;
        let listening = tokio::task::spawn_local(listen(stderr, said.clone()));
        let name = argv.first().map(Path::new).and_then(Path::file_name);
        Ok(Self {
            name: name.unwrap_or_default().to_string_lossy().into_owned(),
            pidfd,
            exit,
            said,
            listening,
        })
    }

    /// Waits for its end; anything but exit code 0 is an error that repeats its last words.
    ///
    /// # Errors
    /// [`CopyError::Program`], and [`CopyError::Stalled`] when it does not end within `limit`.
    pub(super) async fn succeed(
        mut self,
        what: &'static str,
        limit: Duration,
    ) -> Result<(), CopyError> {
        let mut exit = self.exit.clone();
        let ended = timeout(limit, exit.wait_for(Option::is_some)).await;
        let how = match ended {
            Ok(Ok(cause)) => cause.clone(),
            // The task that reaps holds the sender until it has told.
            Ok(Err(_)) => None,
            Err(_) => {
                let limit_s = limit.as_secs();
                return Err(CopyError::Stalled { what, limit_s });
            }
        };
        let unknown = || ExitCause::NotStarted {
            why: "nobody waits for it".to_owned(),
        };
        match how.unwrap_or_else(unknown) {
            ExitCause::Code { code: 0 } => Ok(()),
            how => Err(self.failed(how).await),
        }
    }

    /// What to say of a program whose pipe broke: its own reason, if it ended, is better than ours.
    pub(super) async fn or_its_own(self, error: CopyError, limit: Duration) -> CopyError {
        match self.succeed("the program does not end", limit).await {
            Err(own @ CopyError::Program { .. }) => own,
            Ok(()) | Err(_) => error,
        }
    }

    async fn failed(&mut self, how: ExitCause) -> CopyError {
        // It is gone, so the pipe ends; if something holds it open, what was read so far must do.
        let _ = timeout(Duration::from_secs(1), &mut self.listening).await;
        CopyError::Program {
            program: self.name.clone(),
            how,
            said: self.said.borrow().to_string(),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // That it has ended already is as good.
        let _ = pidfd_send_signal(self.pidfd.as_fd(), Signal::KILL);
    }
}

fn reap(pid: Pid) -> ExitCause {
    loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                if let Some(code) = status.exit_status() {
                    return ExitCause::Code { code };
                }
                if let Some(signal) = status.terminating_signal() {
                    return ExitCause::Signal { signal };
                }
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                let why = format!("it cannot be waited for: {error}");
                return ExitCause::NotStarted { why };
            }
        }
    }
}

async fn listen(mut stderr: pipe::Receiver, said: Rc<RefCell<LastWords>>) {
    let mut piece = vec![0; 4096];
    loop {
        match stderr.read(&mut piece).await {
            Ok(0) | Err(_) => return,
            Ok(length) => said.borrow_mut().take(&piece[..length]),
        }
    }
}

/// The last lines of an output.
#[derive(Debug, Default)]
struct LastWords {
    lines: VecDeque<String>,
    open: Vec<u8>,
}

impl LastWords {
    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => self.close(),
                _ if self.open.len() < LONGEST_LINE => self.open.push(*byte),
                _ => {}
            }
        }
    }

    fn close(&mut self) {
        let line = String::from_utf8_lossy(&self.open).trim().to_owned();
        self.open.clear();
        if line.is_empty() {
            return;
        }
        if self.lines.len() == LAST_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}

impl std::fmt::Display for LastWords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let open = String::from_utf8_lossy(&self.open);
        let open = Some(open.trim()).filter(|open| !open.is_empty());
        let lines = self.lines.iter().map(String::as_str).chain(open);
        for (i, line) in lines.enumerate() {
            write!(f, "{}{line}", if i == 0 { "" } else { " / " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_words_are_kept() {
        let mut said = LastWords::default();
        for n in 0..100 {
            said.take(format!("line {n}\n\n").as_bytes());
        }
        said.take(&[b'x'; 5000]);
        let text = said.to_string();
        assert!(text.starts_with("line 94 / line 95 / "), "{text}");
        assert!(text.ends_with(&"x".repeat(LONGEST_LINE)), "{text}");
        assert!(text.len() < 500);
    }
}
