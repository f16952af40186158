//! A program and all that it starts, as one thing that can be ended.
//!
//! The child is watched through a pidfd and reaped by us, last: until then its number cannot be given to another
//! process, so that killing its group never hits a stranger. A library that reaps on its own leaves that race open.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use crate::strays::{self, Mark};

/// How long to wait for killed processes to be gone. One that hangs in the kernel (a dead network filesystem) cannot be
/// waited for; a thread does that, and the probe reports.
const KILL_WITHIN: Duration = Duration::from_secs(2);

/// A command and all that it starts. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Family {
    /// Not reaped yet; `None` once it is, or somebody else will do it.
    leader: Option<Child>,
    mark: Mark,
}

impl Family {
    /// Starts a command as the leader of a group of its own, with a mark that all its children inherit.
    pub(crate) fn start(mut command: std::process::Command) -> io::Result<Self> {
        let mark = Mark::new();
        let child = command
            .env(strays::VARIABLE, mark.as_str())
            .process_group(0)
            .spawn()?;
        Ok(Self {
            leader: Some(child),
            mark,
        })
    }

    /// Becomes readable when the leader has ended.
    pub(crate) fn exit(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let leader = self
            .leader
            .as_ref()
            .and_then(group_of)
            .ok_or(io::ErrorKind::NotFound)?;
        let process = pidfd_open(leader, PidfdFlags::NONBLOCK)?;
        // SAFETY: an OwnedFd is the same open descriptor for as long as it lives, and nobody can reach into the
        // AsyncFd to replace it.
        Ok(unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) }?)
    }

    /// After the leader ended by itself: kills what it left in its group, and takes its status.
    pub(crate) fn reap(mut self) -> io::Result<ExitStatus> {
        let mut leader = self.leader.take().ok_or(io::ErrorKind::NotFound)?;
        kill_group(&leader);
        leader.wait()
    }

    /// Kills everything and waits until it is gone, within limits.
    pub(crate) async fn destroy(mut self) {
        if let Some(gone) = self.begin_to_destroy() {
            // Either way there is nothing more to do: gone, or out of reach.
            let _ = tokio::time::timeout(KILL_WITHIN, gone).await;
        }
    }

    /// Kills the group at once, and the rest on a thread: searching `/proc` and waiting for a process both block.
    fn begin_to_destroy(&mut self) -> Option<oneshot::Receiver<()>> {
        let mut leader = self.leader.take()?;
        kill_group(&leader);
        let (done, gone) = oneshot::channel();
        let mark = self.mark.clone();
        let work = move || {
            mark.kill_all();
            // Fails only if it was reaped already, which nobody else does.
            let _ = leader.wait();
            let _ = done.send(());
        };
        // Without a thread to be had the group is dead all the same; its leader stays a zombie.
        std::thread::Builder::new()
            .name("probe-reaper".to_owned())
            .spawn(work)
            .ok()?;
        Some(gone)
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        self.begin_to_destroy();
    }
}

/// The leader must not be reaped yet (see the module).
fn kill_group(leader: &Child) {
    if let Some(group) = group_of(leader) {
        // Fails only when nobody is left in it.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

fn group_of(leader: &Child) -> Option<Pid> {
    i32::try_from(leader.id()).ok().and_then(Pid::from_raw)
}
