//! The event loop: what can arrive, and what is done about it.

use std::time::{Duration, Instant};

use homeostat_model::ExitCause;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, WaitOptions, WaitStatus, kill_process_group, wait};

use super::life::Life;
use super::{SuperviseError, Supervisor, raw, system};
use crate::control::{Lost, MOST_PEERS, Peer};
use crate::line::decode_line;
use crate::process;
use crate::protocol::{Answer, Event, Hello, Message, Request, VERSION, Verb};
use crate::signals::Arrived;

/// How much of the output is taken before somebody else gets a turn.
const READS_A_TURN: u32 = 8;
const READ: usize = 16 * 1024;
/// Bounds of the pause between two attempts to kill what is left.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// What `poll` found.
struct Ready {
    signals: bool,
    listener: bool,
    output: bool,
    peers: Vec<PollFlags>,
}

/// Whether this process has children, dead ones that were not reaped included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Children {
    Some,
    None,
}

impl Supervisor {
    /// Until the end of the task has been told, or nobody came to hear it.
    pub(super) fn turns(&mut self) -> Result<(), SuperviseError> {
        let mut buffer = vec![0u8; READ];
        loop {
            if self.may_leave() {
                return Ok(());
            }
            let ready = self.wait()?;
            if ready.output {
                self.take_output(&mut buffer, READS_A_TURN);
            }
            self.serve_peers(&ready.peers);
            if ready.listener {
                self.accept();
            }
            if ready.signals {
                self.take_signals(&mut buffer)?;
            }
            self.on_deadline(Instant::now(), &mut buffer)?;
            self.tell();
        }
    }

    fn wait(&self) -> Result<Ready, SuperviseError> {
        let mut fds = Vec::with_capacity(3 + self.peers.len());
        let signals = self.signals.fd();
        fds.push(PollFd::from_borrowed_fd(signals, PollFlags::IN));
        fds.push(PollFd::new(&self.listener, PollFlags::IN));
        for peer in &self.peers {
            let write = match peer.has_unsent() {
                true => PollFlags::OUT,
                false => PollFlags::empty(),
            };
            fds.push(PollFd::from_borrowed_fd(peer.fd(), PollFlags::IN | write));
        }
        if let Some(output) = &self.output {
            fds.push(PollFd::new(output, PollFlags::IN));
        }
        let timeout = self.life.deadline().map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(system("wait for events")(error.into())),
        }
        let peers = 2..2 + self.peers.len();
        Ok(Ready {
            signals: !fds[0].revents().is_empty(),
            listener: !fds[1].revents().is_empty(),
            output: fds[peers.end..].iter().any(|fd| !fd.revents().is_empty()),
            peers: fds[peers].iter().map(PollFd::revents).collect(),
        })
    }

    fn may_leave(&self) -> bool {
        match &self.life {
            Life::Ended { until, .. } => {
                let told = self.peers.iter().any(|peer| !peer.has_unsent());
                told || Instant::now() >= *until
            }
            Life::Starting
            | Life::Running { .. }
            | Life::Asked { .. }
            | Life::Killed { .. }
            | Life::Clearing { .. } => false,
        }
    }

    fn take_output(&mut self, buffer: &mut [u8], most_reads: u32) {
        for _ in 0..most_reads {
            let Some(output) = &self.output else { return };
            match rustix::io::read(output, &mut *buffer) {
                Ok(0) => self.output = None,
                Ok(n) => self.log.write(&buffer[..n]),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.note(&format!("its output broke: {error}"));
                    self.output = None;
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Some(mut peer) = Peer::accept(&self.listener) {
            if self.peers.len() >= MOST_PEERS {
                continue;
            }
            let hello = Message::Hello(Hello {
                version: VERSION,
                task: self.task.clone(),
                generation: self.generation,
                supervisor: self.me,
                phase: self.life.phase(),
            });
            if peer.send(&hello).is_ok() {
                self.peers.push(peer);
            }
        }
    }

    fn serve_peers(&mut self, ready: &[PollFlags]) {
        let mut peers = std::mem::take(&mut self.peers);
        let mut index = 0;
        peers.retain_mut(|peer| {
            let flags = ready.get(index).copied().unwrap_or(PollFlags::empty());
            index += 1;
            flags.is_empty() || self.serve(peer).is_ok()
        });
        self.peers = peers;
    }

    fn serve(&mut self, peer: &mut Peer) -> Result<(), Lost> {
        peer.flush()?;
        // Orders that came before the connection ended count.
        let state = peer.read();
        while let Some(line) = peer.next_line()? {
            #[derive(serde::Deserialize)]
            struct OnlyId {
                id: u64,
            }
            let (id, answer) = match decode_line::<Request>(&line) {
                Ok(request) => (request.id, self.obey(request.verb)),
                Err(error) => {
                    let OnlyId { id } = decode_line(&line).map_err(|_| Lost)?;
                    let why = format!(
                        "a supervisor of protocol version {VERSION} does not know this: {error}"
                    );
                    (id, Answer::Refused { why })
                }
            };
            peer.send(&Message::Reply { id, answer })?;
        }
        // What is still to be read is reported again.
        state.map(|_| ())
    }

    fn obey(&mut self, verb: Verb) -> Answer {
        match verb {
            Verb::Stop { grace_ms } => self.stop(Duration::from_millis(grace_ms)),
            Verb::Kill => self.kill(),
            Verb::Call { .. } => {
                let why = "this is a plain supervisor: it takes no calls".to_owned();
                return Answer::Refused { why };
            }
        }
        Answer::Accepted
    }

    /// Asks the task to end. Asked again, the earlier of the two deadlines holds.
    fn stop(&mut self, grace: Duration) {
        let now = Instant::now();
        // A grace beyond what a clock can count never ends.
        let kill_at = now
            .checked_add(grace)
            .unwrap_or(now + Duration::from_secs(u64::from(u32::MAX)));
        match self.life.clone() {
            Life::Running { child } => {
                if let Some(pid) = raw(child) {
                    // Gone already: then SIGCHLD is on its way.
                    let _ = kill_process_group(pid, Signal::TERM);
                }
                self.life = Life::Asked { child, kill_at };
            }
            Life::Asked {
                child,
                kill_at: before,
            } => {
                self.life = Life::Asked {
                    child,
                    kill_at: kill_at.min(before),
                };
            }
            Life::Starting | Life::Killed { .. } | Life::Clearing { .. } | Life::Ended { .. } => {}
        }
    }

    fn kill(&mut self) {
        match self.life.clone() {
            Life::Running { child } | Life::Asked { child, .. } => {
                self.kill_everything();
                self.life = Life::Killed { child };
            }
            Life::Starting | Life::Killed { .. } | Life::Clearing { .. } | Life::Ended { .. } => {}
        }
    }

    fn kill_everything(&self) {
        self.group.kill();
        // The cgroup may not be there, or a process may have been let out of it.
        let all = process::all().unwrap_or_default();
        for stat in process::descendants(&all, self.me.pid) {
            if let Err(error) = process::kill(stat.process) {
                let pid = stat.process.pid;
                self.note(&format!("cannot kill pid {pid}: {error}"));
            }
        }
    }

    fn take_signals(&mut self, buffer: &mut [u8]) -> Result<(), SuperviseError> {
        let mut children = false;
        while let Some(arrived) = self.signals.next().map_err(system("read signals"))? {
            match arrived {
                Arrived::Terminate => self.stop(self.grace),
                Arrived::Child => children = true,
            }
        }
        if children {
            self.reap(buffer)?;
            if let Life::Clearing { again_at, .. } = &mut self.life {
                *again_at = Instant::now();
            }
        }
        Ok(())
    }

    /// Collects every child that ended, orphans of the task among them, and goes on if it was the task's own process.
    fn reap(&mut self, buffer: &mut [u8]) -> Result<Children, SuperviseError> {
        loop {
            let (pid, status) = match wait(WaitOptions::NOHANG) {
                Ok(Some(ended)) => ended,
                Ok(None) => return Ok(Children::Some),
                Err(Errno::CHILD) => return Ok(Children::None),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(system("wait for a child")(error.into())),
            };
            let own = match &self.life {
                Life::Running { child } | Life::Asked { child, .. } | Life::Killed { child } => {
                    (raw(*child) == Some(pid)).then_some(*child)
                }
                Life::Starting | Life::Clearing { .. } | Life::Ended { .. } => None,
            };
            if let (Some(child), Some(cause)) = (own, cause_of(status)) {
                let cause = self.explained(cause);
                self.life = Life::Clearing {
                    child,
                    cause,
                    again_at: Instant::now(),
                    pause: FIRST_PAUSE,
                };
                self.clear(buffer)?;
            }
        }
    }

    /// Of all that sends SIGKILL, the kernel's own hand is worth a name. Asked before the group is removed.
    fn explained(&self, cause: ExitCause) -> ExitCause {
        match cause {
            ExitCause::Signal { signal }
                if signal == Signal::KILL.as_raw() && self.group.out_of_memory_kills() > 0 =>
            {
                ExitCause::OutOfMemory
            }
            ExitCause::Signal { .. }
            | ExitCause::Code { .. }
            | ExitCause::OutOfMemory
            | ExitCause::NotStarted { .. } => cause,
        }
    }

    /// Kills what is left of an ended task, and ends its life when there is nothing. Usually at the first attempt.
    fn clear(&mut self, buffer: &mut [u8]) -> Result<(), SuperviseError> {
        let Life::Clearing {
            child,
            cause,
            pause,
            ..
        } = self.life.clone()
        else {
            return Ok(());
        };
        let children = self.reap(buffer)?;
        // What cannot be looked at is not empty.
        let empty = self.group.is_empty().unwrap_or(false);
        if children == Children::None && empty {
            // All that had it open are dead: what is in the pipe is all there will ever be, and it is bounded.
            self.take_output(buffer, u32::MAX);
            self.output = None;
            self.end(cause);
            return Ok(());
        }
        self.kill_everything();
        self.life = Life::Clearing {
            child,
            cause,
            again_at: Instant::now() + pause,
            pause: (pause * 2).min(LONGEST_PAUSE),
        };
        Ok(())
    }

    fn on_deadline(&mut self, now: Instant, buffer: &mut [u8]) -> Result<(), SuperviseError> {
        match &self.life {
            Life::Asked { kill_at, .. } if now >= *kill_at => self.kill(),
            Life::Clearing { again_at, .. } if now >= *again_at => self.clear(buffer)?,
            Life::Starting
            | Life::Running { .. }
            | Life::Asked { .. }
            | Life::Killed { .. }
            | Life::Clearing { .. }
            | Life::Ended { .. } => {}
        }
        Ok(())
    }

    /// Tells every agent the present phase, if it is news. Once in a turn, after everything was done: a reply goes out
    /// before the event that it causes.
    fn tell(&mut self) {
        let phase = self.life.phase();
        if phase == self.told {
            return;
        }
        let event = Message::Event(Event::Phase {
            phase: phase.clone(),
        });
        self.peers.retain_mut(|peer| peer.send(&event).is_ok());
        self.told = phase;
    }
}

/// `None` for a stop or a continuation, which are no ends.
fn cause_of(status: WaitStatus) -> Option<ExitCause> {
    if let Some(code) = status.exit_status() {
        return Some(ExitCause::Code { code });
    }
    status
        .terminating_signal()
        .map(|signal| ExitCause::Signal { signal })
}
