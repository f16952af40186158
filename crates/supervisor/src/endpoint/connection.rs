//! One client: held until a target takes it, then forwarded, then gone.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventFlags};
use rustix::io::{Errno, ioctl_fionread};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};

use super::flow::{Flow, Interest, Progress, Ready, Sides, abort};
use super::forwarder::{Forwarder, Room, Source};
use super::listening::prepared;
use super::protocol::ServiceTarget;
use super::slab::Key;
use super::table::Cut;

/// How long a target that does not answer is waited for before the next one is tried.
const CONNECT: Duration = Duration::from_millis(1_000);
/// Between two attempts while targets refuse: a server that is being opened accepts within milliseconds.
/// Connections that are led at once when a target appears, and the pause before twice as many.
const FIRST_WAVE: u32 = 4;
const BETWEEN_WAVES: Duration = Duration::from_millis(2);
const FIRST_RETRY: Duration = Duration::from_millis(2);
const LONGEST_RETRY: Duration = Duration::from_millis(50);

pub(super) struct Connection {
    service: Key,
    client: OwnedFd,
    stage: Stage,
    /// Until when a target must have taken it.
    until: Instant,
    /// Its entry in the timers.
    wake_at: Option<Instant>,
    retry: Duration,
    /// What epoll waits for on each side; `None`: nothing.
    watched: [Option<EventFlags>; 2],
}

enum Stage {
    /// Accepted and unread.
    Held,
    Connecting {
        server: OwnedFd,
        target: SocketAddr,
        /// How many targets refused before, in this round.
        tried: usize,
    },
    Open {
        server: OwnedFd,
        target: SocketAddr,
        flow: Flow,
    },
}

impl Connection {
    /// Lets go of the server, if there was one on the way.
    fn hold(&mut self) {
        self.stage = Stage::Held;
        self.watched[1] = None;
    }
}

/// How a connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Both sides said goodbye, or there never was a server.
    Orderly,
    Abort,
}

impl Forwarder {
    /// A new client.
    pub(super) fn hold(&mut self, service: Key, client: OwnedFd) {
        let Some(hold_ms) = self.services.get_mut(service).map(|s| s.target.hold_ms) else {
            return;
        };
        let now = Instant::now();
        let until = now
            .checked_add(Duration::from_millis(hold_ms))
            .unwrap_or(now + Duration::from_secs(3600));
        let key = self.connections.insert(Connection {
            service,
            client,
            stage: Stage::Held,
            until,
            wake_at: None,
            retry: FIRST_RETRY,
            watched: [None, None],
        });
        // A client that goes away while it is held must not be led to a server.
        self.watch_client(key, Some(EventFlags::RDHUP));
        self.attempt(key, 0, now);
    }

    /// Connects to the next target in turn, having been refused by `tried` of them in this round.
    fn attempt(&mut self, key: Key, mut tried: usize, now: Instant) {
        loop {
            let Some(connection) = self.connections.get_mut(key) else {
                return;
            };
            let Some(service) = self.services.get_mut(connection.service) else {
                return self.close(key, Ending::Orderly);
            };
            let targets = &service.target.targets;
            connection.hold();
            if targets.is_empty() {
                // A newer record wakes it.
                let until = connection.until;
                return self.wake(key, until);
            }
            if tried >= targets.len() {
                let at = (now + connection.retry).min(connection.until);
                connection.retry = (connection.retry * 2).min(LONGEST_RETRY);
                return self.wake(key, at);
            }
            let target = targets[service.next % targets.len()];
            service.next = service.next.wrapping_add(1);
            match begin_connect(target) {
                Ok(server) => {
                    connection.stage = Stage::Connecting {
                        server,
                        target,
                        tried,
                    };
                    let at = (now + CONNECT).min(connection.until);
                    self.wake(key, at);
                    return self.watch_sides(key, None, Some(EventFlags::OUT));
                }
                Err(_) => {
                    service.counters.refused_by_target += 1;
                    tried += 1;
                }
            }
        }
    }

    pub(super) fn on_timer(&mut self, key: Key, now: Instant) {
        let Some(connection) = self.connections.get_mut(key) else {
            // Cannot be: closing removes the timer. Dropping it here keeps the loop from spinning if it is.
            self.timers.retain(|(_, other)| *other != key);
            return;
        };
        if now >= connection.until {
            if let Some(service) = self.services.get_mut(connection.service) {
                service.counters.expired += 1;
            }
            return self.close(key, Ending::Orderly);
        }
        let tried = match &connection.stage {
            Stage::Held => 0,
            // It did not answer in time, which counts as a refusal.
            Stage::Connecting { tried, .. } => {
                if let Some(service) = self.services.get_mut(connection.service) {
                    service.counters.refused_by_target += 1;
                }
                tried + 1
            }
            Stage::Open { .. } => return self.sleep(key),
        };
        self.attempt(key, tried, now);
    }

    pub(super) fn on_connection(&mut self, key: Key, source: Source, flags: EventFlags) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        match &mut connection.stage {
            Stage::Held => self.on_held_client(key, flags),
            Stage::Connecting { .. } if source == Source::Client => self.on_held_client(key, flags),
            Stage::Connecting { server, tried, .. } => {
                let tried = *tried;
                match sockopt::socket_error(&*server) {
                    Ok(Ok(())) => self.open(key),
                    Ok(Err(_)) | Err(_) => {
                        if let Some(service) = self.services.get_mut(connection.service) {
                            service.counters.refused_by_target += 1;
                        }
                        self.attempt(key, tried + 1, Instant::now());
                    }
                }
            }
            Stage::Open { server, flow, .. } => {
                let ready = match source {
                    Source::Client if flags == EventFlags::IN => Ready::ClientReads,
                    Source::Server if flags == EventFlags::IN => Ready::ServerReads,
                    _ => Ready::Other,
                };
                let sides = Sides {
                    client: &connection.client,
                    server: &*server,
                };
                match flow.pump(sides, ready, &mut self.buffer) {
                    Ok(Progress::GoesOn) => {
                        let Interest { client, server } = flow.interest();
                        self.watch_sides(key, Some(client), Some(server));
                    }
                    Ok(Progress::Done) => self.close(key, Ending::Orderly),
                    Err(_) => self.close(key, Ending::Abort),
                }
            }
        }
    }

    /// The client ended while it was held. One that sent something first may still want an answer.
    fn on_held_client(&mut self, key: Key, flags: EventFlags) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let unread = ioctl_fionread(&connection.client).unwrap_or(0);
        if flags.intersects(EventFlags::ERR | EventFlags::HUP) || unread == 0 {
            return self.close(key, Ending::Orderly);
        }
        self.watch_client(key, None);
    }

    fn open(&mut self, key: Key) {
        self.sleep(key);
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let stage = std::mem::replace(&mut connection.stage, Stage::Held);
        connection.stage = match stage {
            Stage::Connecting { server, target, .. } => {
                let flow = Flow::default();
                Stage::Open {
                    server,
                    target,
                    flow,
                }
            }
            stage @ (Stage::Held | Stage::Open { .. }) => stage,
        };
        self.watch_sides(key, Some(EventFlags::IN), Some(EventFlags::IN));
    }

    /// What a newer record ends. Those that were on their way to where the service no longer is wait again.
    pub(super) fn end_cut(&mut self, service: Key, new: &ServiceTarget, cut: Cut) {
        for key in self.keys_of(service) {
            let Some(connection) = self.connections.get_mut(key) else {
                continue;
            };
            let named = |target: &SocketAddr| new.targets.contains(target);
            match &connection.stage {
                Stage::Held => {}
                Stage::Connecting { target, .. } => {
                    if cut == Cut::All || !named(target) {
                        connection.hold();
                    }
                }
                Stage::Open { target, .. } => {
                    let ends = match cut {
                        Cut::None => false,
                        Cut::All => true,
                        Cut::Departed => !named(target),
                    };
                    if ends {
                        if let Some(service) = self.services.get_mut(service) {
                            service.counters.closed_on_change += 1;
                        }
                        self.close(key, Ending::Abort);
                    }
                }
            }
        }
    }

    /// Leads those that wait to where the service is now: a few at once, and each wave twice as large as the one before. All
    /// together they would greet a server at the same moment, and each would wait for the greetings of all.
    pub(super) fn lead_waiting(&mut self, service: Key) {
        let now = Instant::now();
        let mut led = 0;
        for key in self.keys_of(service) {
            if let Some(connection) = self.connections.get_mut(key)
                && matches!(connection.stage, Stage::Held)
            {
                connection.retry = FIRST_RETRY;
                let until = connection.until;
                match wave(led) {
                    0 => self.attempt(key, 0, now),
                    wave => self.wake(key, (now + BETWEEN_WAVES * wave).min(until)),
                }
                led += 1;
            }
        }
    }

    fn keys_of(&self, service: Key) -> Vec<Key> {
        let mine = self
            .connections
            .iter()
            .filter(|(_, c)| c.service == service);
        mine.map(|(key, _)| key).collect()
    }

    /// Ends every connection of a service that is no more.
    pub(super) fn close_all(&mut self, service: Key) {
        for key in self.keys_of(service) {
            self.close(key, Ending::Abort);
        }
    }

    /// Open and waiting connections of a service.
    pub(super) fn count(&self, service: Key) -> (u64, u64) {
        let mine = self
            .connections
            .iter()
            .filter(|(_, c)| c.service == service);
        mine.fold((0, 0), |(open, held), (_, connection)| {
            match connection.stage {
                Stage::Open { .. } => (open + 1, held),
                Stage::Held | Stage::Connecting { .. } => (open, held + 1),
            }
        })
    }

    fn close(&mut self, key: Key, ending: Ending) {
        self.sleep(key);
        let Some(connection) = self.connections.remove(key) else {
            return;
        };
        if let (Stage::Open { server, .. }, Ending::Abort) = (&connection.stage, ending) {
            let client = &connection.client;
            abort(Sides { client, server });
        }
        // Its sockets leave epoll as they are closed.
        drop(connection);
        if self.room == Room::Full {
            self.make_room();
        }
    }

    /// Looks at it again at that moment.
    fn wake(&mut self, key: Key, at: Instant) {
        self.sleep(key);
        if let Some(connection) = self.connections.get_mut(key) {
            connection.wake_at = Some(at);
            self.timers.insert((at, key));
        }
    }

    fn sleep(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(key)
            && let Some(at) = connection.wake_at.take()
        {
            self.timers.remove(&(at, key));
        }
    }

    fn watch_client(&mut self, key: Key, flags: Option<EventFlags>) {
        if let Some(connection) = self.connections.get_mut(key) {
            let [watched, _] = &mut connection.watched;
            let data = Source::Client.data(key);
            rewatch(&self.epoll, &connection.client, data, watched, flags);
        }
    }

    /// What to wait for on both sides. `None` for the client leaves it as it is.
    fn watch_sides(&mut self, key: Key, client: Option<EventFlags>, server: Option<EventFlags>) {
        if client.is_some() {
            self.watch_client(key, client);
        }
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let fd = match &connection.stage {
            Stage::Held => return,
            Stage::Connecting { server, .. } | Stage::Open { server, .. } => server,
        };
        let [_, watched] = &mut connection.watched;
        rewatch(&self.epoll, fd, Source::Server.data(key), watched, server);
    }
}

/// Tells epoll what changed. A side of which nothing is wanted is taken out: its end would otherwise be reported again
/// and again while the other side is slow.
fn rewatch(
    epoll: &OwnedFd,
    fd: &OwnedFd,
    data: epoll::EventData,
    watched: &mut Option<EventFlags>,
    wanted: Option<EventFlags>,
) {
    let wanted = wanted.filter(|flags| !flags.is_empty());
    if *watched == wanted {
        return;
    }
    // These fail only without memory in the kernel; the connection then ends by its other side or by its timer.
    let _ = match (*watched, wanted) {
        (None, Some(flags)) => epoll::add(epoll, fd, data, flags),
        (Some(_), Some(flags)) => epoll::modify(epoll, fd, data, flags),
        (Some(_) | None, None) => epoll::delete(epoll, fd),
    };
    *watched = wanted;
}

/// In which wave the connection after `before` others is led: 4 in wave 0, 8 in wave 1, 16 in wave 2.
fn wave(before: u32) -> u32 {
    (before / FIRST_WAVE + 1).ilog2()
}

fn begin_connect(target: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = match target {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let server = prepared(socket_with(family, SocketType::STREAM, flags, None)?);
    match connect(&server, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(server),
        Err(error) => Err(error),
    }
}
