//! The event loop: what can arrive and who handles it. Connections, listening and orders are in their own files, each
//! an `impl` of the one [`Forwarder`]: they share its tables, and one thread.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Instant;

use homeostat_model::MachineName;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, setsid, umask};

use super::connection::Connection;
use super::disk::{Disk, Remembered};
use super::flow::PIECE;
use super::listening::Service;
use super::orders::{Drain, WaitingReply};
use super::protocol::Event;
use super::slab::{Key, Slab};
use super::table::Table;
use super::{ForwardError, SOCKET, system};
use crate::control::{self, Peer};
use crate::process;
use crate::protocol::Process;
use crate::run::{RunLock, remove_if_there};
use crate::signals::{Arrived, Signals};

/// The most connections at once; fewer where the limit on descriptors is lower. Beyond it clients wait in the kernel's
/// queue of the listening socket.
const MOST_CONNECTIONS: usize = 4_000;
/// Descriptors that are not connections.
const OTHER_DESCRIPTORS: u64 = 64 + super::protocol::MOST_SERVICES as u64;
const EVENTS_A_TURN: usize = 256;

/// What an event is about: the upper eight bits of what epoll keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Source {
    Control = 1,
    Signals,
    Disk,
    Peer,
    Listener,
    Client,
    Server,
}

impl Source {
    const ALL: [Source; 7] = [
        Source::Control,
        Source::Signals,
        Source::Disk,
        Source::Peer,
        Source::Listener,
        Source::Client,
        Source::Server,
    ];

    pub(super) fn data(self, key: Key) -> EventData {
        EventData::new_u64(key.pack(self as u8))
    }

    /// For those of which there is one.
    fn alone(self) -> EventData {
        EventData::new_u64(u64::from(self as u8) << 56)
    }

    fn unpack(data: EventData) -> Option<(Source, Key)> {
        let (kind, key) = Key::unpack(data.u64());
        let source = Source::ALL.into_iter().find(|s| *s as u8 == kind)?;
        Some((source, key))
    }
}

/// Whether new connections are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Open,
    /// The most there may be.
    Full,
    /// Descriptors or memory ran out; looked at again then.
    Short {
        until: Instant,
    },
}

pub(super) struct Forwarder {
    pub(super) run_dir: PathBuf,
    pub(super) machine: MachineName,
    pub(super) me: Process,
    pub(super) epoll: OwnedFd,
    signals: Signals,
    pub(super) disk: Disk,
    /// Both are given up when it drains.
    pub(super) lock: Option<RunLock>,
    pub(super) control: Option<UnixListener>,
    pub(super) table: Table,
    pub(super) services: Slab<Service>,
    pub(super) connections: Slab<Connection>,
    pub(super) most_connections: usize,
    pub(super) room: Room,
    /// When a connection that waits must be looked at; each that waits has exactly one entry.
    pub(super) timers: BTreeSet<(Instant, Key)>,
    pub(super) peers: Slab<Peer>,
    pub(super) waiting: Vec<WaitingReply>,
    pub(super) drain: Option<Drain>,
    /// What all connections are read into.
    pub(super) buffer: Vec<u8>,
}

/// Why the loop ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Next,
    Leave,
}

impl Forwarder {
    pub(super) fn begin(run_dir: PathBuf, machine: MachineName) -> Result<Self, ForwardError> {
        let lock = RunLock::take(&run_dir)?;
        // Fails when the agent made it the leader already, which is as good.
        let _ = setsid();
        umask(Mode::from_raw_mode(0o077));
        std::env::set_current_dir("/").map_err(system("enter /"))?;
        let signals = Signals::take().map_err(system("block signals"))?;
        let disk = Disk::open(&run_dir).map_err(system("start the sync thread"))?;
        let table = match disk.load()? {
            Remembered::Table(table) => table,
            Remembered::Lost(why) => {
                control::note(
                    "endpoint forwarder",
                    &format!("{why}: it begins without targets"),
                );
                Table::new()
            }
        };
        let path = run_dir.join(SOCKET);
        let control =
            control::listen(&path).map_err(|source| ForwardError::Listen { path, source })?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)
            .map_err(|e| system("make an epoll instance")(e.into()))?;
        let this = Self {
            run_dir,
            machine,
            me: process::current().map_err(system("read /proc"))?,
            epoll,
            signals,
            disk,
            lock: Some(lock),
            control: Some(control),
            table,
            services: Slab::new(),
            connections: Slab::new(),
            most_connections: most_connections(),
            room: Room::Open,
            timers: BTreeSet::new(),
            peers: Slab::new(),
            waiting: Vec::new(),
            drain: None,
            buffer: vec![0; PIECE],
        };
        if let Some(control) = &this.control {
            this.watch(control, Source::Control.alone(), EventFlags::IN)?;
        }
        this.watch(this.signals.fd(), Source::Signals.alone(), EventFlags::IN)?;
        this.watch(this.disk.fd(), Source::Disk.alone(), EventFlags::IN)?;
        Ok(this)
    }

    pub(super) fn run(mut self) -> Result<(), ForwardError> {
        for target in self.table.services().to_vec() {
            self.serve(&target);
        }
        let mut events = Vec::with_capacity(EVENTS_A_TURN);
        let result = loop {
            let timeout = self.deadline().map(|at| timespec(at, Instant::now()));
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => break Err(system("wait for events")(error.into())),
            }
            let mut turn = Turn::Next;
            for event in &events {
                let (data, flags) = (event.data, event.flags);
                if let Some((source, key)) = Source::unpack(data) {
                    turn = self.handle(source, key, flags);
                    if turn == Turn::Leave {
                        break;
                    }
                }
            }
            if turn == Turn::Leave || self.on_time(Instant::now()) == Turn::Leave {
                break Ok(());
            }
        };
        if self.lock.is_some() {
            // Only while it is still ours: a successor may have made its own by now.
            remove_if_there(&self.run_dir.join(SOCKET))?;
        }
        result
    }

    fn handle(&mut self, source: Source, key: Key, flags: EventFlags) -> Turn {
        match source {
            Source::Control => self.accept_peers(),
            Source::Signals => {
                while let Ok(Some(arrived)) = self.signals.next() {
                    match arrived {
                        Arrived::Terminate => return Turn::Leave,
                        // It has none.
                        Arrived::Child => {}
                    }
                }
            }
            Source::Disk => self.on_synced(),
            Source::Peer => self.on_peer(key),
            Source::Listener => self.accept(key),
            Source::Client | Source::Server => self.on_connection(key, source, flags),
        }
        Turn::Next
    }

    /// The next moment at which something must be done even if nothing happens.
    fn deadline(&self) -> Option<Instant> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let room = match self.room {
            Room::Short { until } => Some(until),
            Room::Open | Room::Full => None,
        };
        let drain = self.drain.as_ref().map(|drain| drain.until);
        let listening = self.services.iter().filter_map(|(_, s)| s.retry_at());
        timer
            .into_iter()
            .chain(room)
            .chain(drain)
            .chain(listening)
            .min()
    }

    fn on_time(&mut self, now: Instant) -> Turn {
        while let Some((at, key)) = self.timers.first().copied() {
            if at > now {
                break;
            }
            self.on_timer(key, now);
        }
        if matches!(self.room, Room::Short { until } if until <= now) {
            self.make_room();
        }
        self.listen_again(now);
        let Some(drain) = &self.drain else {
            return Turn::Next;
        };
        if self.connections.len() > 0 && now < drain.until {
            return Turn::Next;
        }
        let cut_off = self.connections.len() as u64;
        self.tell(&Event::Drained { cut_off });
        Turn::Leave
    }

    /// Adds something to what is waited for.
    pub(super) fn watch(
        &self,
        fd: impl AsFd,
        data: EventData,
        flags: EventFlags,
    ) -> Result<(), ForwardError> {
        epoll::add(&self.epoll, fd, data, flags).map_err(|e| system("wait for a socket")(e.into()))
    }
}

/// Each takes two descriptors. Raises the soft limit as far as it goes first.
fn most_connections() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // Where it cannot be raised the present one holds.
    let _ = setrlimit(Resource::Nofile, wanted);
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let pairs = descriptors.saturating_sub(OTHER_DESCRIPTORS) / 2;
    usize::try_from(pairs)
        .unwrap_or(usize::MAX)
        .clamp(1, MOST_CONNECTIONS)
}

fn timespec(at: Instant, now: Instant) -> Timespec {
    let left = at.saturating_duration_since(now);
    Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    }
}
