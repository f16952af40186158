//! Kills the server when its serving lease is over, whatever else hangs: a thread that does no IO and waits for nothing
//! but the time. Everything else of a keeper may be stuck in a disk or behind an order just when this is due.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, park_timeout};
use std::time::Duration;

use homeostat_decider::BootTime;
use rustix::process::{Signal, pidfd_send_signal};
use rustix::time::{ClockId, clock_gettime};

/// The longest nap: a machine that was suspended wakes with a deadline passed, and naps do not notice that.
const NAP: Duration = Duration::from_millis(100);
/// Nothing to do until told.
const IDLE: Duration = Duration::from_secs(3600);
const NEVER: u64 = u64::MAX;

/// `CLOCK_BOOTTIME`, which goes on while the machine is suspended.
pub(crate) fn boot_now() -> BootTime {
    let time = clock_gettime(ClockId::Boottime);
    let s = u64::try_from(time.tv_sec).unwrap_or_default();
    let ns = u32::try_from(time.tv_nsec).unwrap_or_default();
    BootTime(Duration::new(s, ns))
}

/// The thread, and what it is told. It ends with this value.
pub(crate) struct Fuse {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    deadline: AtomicU64,
    server: Mutex<Option<OwnedFd>>,
    /// It has killed the present server, or would have.
    blown: AtomicBool,
    ended: AtomicBool,
}

impl Fuse {
    pub(crate) fn light() -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            deadline: AtomicU64::new(NEVER),
            server: Mutex::new(None),
            blown: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let told = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("fuse".into())
            .spawn(move || told.burn())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// When the server must be dead; `None`: it is not open.
    pub(crate) fn set(&self, deadline: Option<BootTime>) {
        let new = deadline.map_or(NEVER, |at| {
            u64::try_from(at.0.as_nanos()).unwrap_or(NEVER - 1)
        });
        // It looks again by itself for as long as there was a deadline.
        if self.shared.deadline.swap(new, Ordering::SeqCst) == NEVER && new != NEVER {
            self.unpark();
        }
    }

    /// The server that is meant, by its pidfd; `None`: it has ended.
    pub(crate) fn watches(&self, server: Option<OwnedFd>) {
        *self.shared.lock() = server;
        self.shared.blown.store(false, Ordering::SeqCst);
    }

    pub(crate) fn has_blown(&self) -> bool {
        self.shared.blown.load(Ordering::SeqCst)
    }

    fn unpark(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.unpark();
        if let Some(thread) = self.thread.take() {
            // It cannot panic, and if it did it is gone.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        // Plain data, as good as before.
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn burn(&self) {
        while !self.ended.load(Ordering::SeqCst) {
            let nap = match self.deadline.load(Ordering::SeqCst) {
                NEVER => IDLE,
                deadline => match Duration::from_nanos(deadline).checked_sub(boot_now().0) {
                    Some(left) if !left.is_zero() => left.min(NAP),
                    Some(_) | None => {
                        self.kill();
                        NAP
                    }
                },
            };
            park_timeout(nap);
        }
    }

    fn kill(&self) {
        if let Some(server) = &*self.lock() {
            self.blown.store(true, Ordering::SeqCst);
            // That it has ended already is as good.
            let _ = pidfd_send_signal(server.as_fd(), Signal::KILL);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::{Child, Command};

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    fn victim(fuse: &Fuse) -> Child {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        fuse.watches(Some(pidfd_open(pid, PidfdFlags::empty()).unwrap()));
        child
    }

    fn after(time: Duration) -> Option<BootTime> {
        Some(BootTime(boot_now().0 + time))
    }

    #[test]
    fn it_kills_at_the_deadline_and_not_before() {
        let fuse = Fuse::light().unwrap();
        let mut child = victim(&fuse);
        let deadline = after(Duration::from_millis(300));
        fuse.set(deadline);
        child.wait().unwrap();
        assert!(Some(boot_now()) >= deadline);
        assert!(fuse.has_blown());
    }

    #[test]
    fn a_deadline_that_moves_on_or_goes_away_kills_nobody() {
        let fuse = Fuse::light().unwrap();
        let mut child = victim(&fuse);
        for _ in 0..30 {
            fuse.set(after(Duration::from_millis(200)));
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(child.try_wait().unwrap().is_none());
        fuse.set(None);
        std::thread::sleep(Duration::from_millis(400));
        assert!(child.try_wait().unwrap().is_none());
        assert!(!fuse.has_blown());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
