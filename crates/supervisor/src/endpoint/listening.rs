//! Where clients connect: one listening socket a service.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use homeostat_model::ServiceName;
use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, sockopt};

use super::forwarder::{Forwarder, Room, Source};
use super::protocol::{Counters, Event, Listening, ServiceStatus, ServiceTarget};
use super::slab::Key;

/// An occupied port is tried again: whoever has it may be a predecessor that is about to go.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_secs(2);
/// How many connections are taken at one event before others get their turn.
const ACCEPTS: u32 = 64;
/// How long nothing is accepted after descriptors ran out.
const SHORT: Duration = Duration::from_millis(100);

/// A service as this forwarder serves it.
pub(super) struct Service {
    pub target: ServiceTarget,
    pub counters: Counters,
    /// Which target is next in turn.
    pub next: usize,
    socket: Socket,
}

enum Socket {
    Listens(TcpListener),
    Not {
        why: String,
        again_at: Instant,
        pause: Duration,
    },
    /// On purpose: it drains.
    Closed,
}

impl Service {
    pub(super) fn retry_at(&self) -> Option<Instant> {
        match &self.socket {
            Socket::Listens(_) | Socket::Closed => None,
            Socket::Not { again_at, .. } => Some(*again_at),
        }
    }
}

impl Forwarder {
    /// Begins to serve, or goes on with, what the table now says of a service.
    pub(super) fn serve(&mut self, target: &ServiceTarget) {
        let found = self.service_named(&target.service);
        let known = found.and_then(|key| self.services.get_mut(key));
        let (key, moved) = match (found, known) {
            (Some(key), Some(service)) => {
                let moved = service.target.listen != target.listen;
                service.target = target.clone();
                (key, moved)
            }
            (None, _) | (Some(_), None) => {
                let key = self.services.insert(Service {
                    target: target.clone(),
                    counters: Counters::default(),
                    next: 0,
                    socket: Socket::Not {
                        why: "not tried yet".to_owned(),
                        again_at: Instant::now(),
                        pause: Duration::ZERO,
                    },
                });
                (key, true)
            }
        };
        if moved {
            self.listen(key, Duration::ZERO);
        }
    }

    pub(super) fn service_named(&self, name: &ServiceName) -> Option<Key> {
        self.services
            .iter()
            .find(|(_, service)| service.target.service == *name)
            .map(|(key, _)| key)
    }

    /// Tries again where it could not listen.
    pub(super) fn listen_again(&mut self, now: Instant) {
        let due: Vec<(Key, Duration)> = self
            .services
            .iter()
            .filter_map(|(key, service)| match &service.socket {
                Socket::Not {
                    again_at, pause, ..
                } if *again_at <= now => Some((key, *pause)),
                Socket::Not { .. } | Socket::Listens(_) | Socket::Closed => None,
            })
            .collect();
        for (key, pause) in due {
            self.listen(key, pause);
        }
    }

    /// `pause` is how long it waited for this attempt: zero for the first one.
    fn listen(&mut self, key: Key, pause: Duration) {
        let Some(service) = self.services.get_mut(key) else {
            return;
        };
        let (name, address) = (service.target.service.clone(), service.target.listen);
        // The old one first: it may be the same port on another address.
        service.socket = Socket::Not {
            why: String::new(),
            again_at: Instant::now(),
            pause,
        };
        let event = match bind(address) {
            Ok(listener) => {
                service.socket = Socket::Listens(listener);
                if self.room == Room::Open {
                    self.watch_listener(key);
                }
                (!pause.is_zero()).then_some(Event::Listening {
                    service: name,
                    listen: address,
                })
            }
            Err(error) => {
                let why = explain(address, &error);
                let pause = (pause * 2).clamp(FIRST_RETRY, LONGEST_RETRY);
                let first = pause == FIRST_RETRY;
                service.socket = Socket::Not {
                    why: why.clone(),
                    again_at: Instant::now() + pause,
                    pause,
                };
                first.then_some(Event::ListenFailed {
                    service: name,
                    listen: address,
                    why,
                })
            }
        };
        if let Some(event) = event {
            self.tell(&event);
        }
    }

    fn watch_listener(&mut self, key: Key) {
        let Some(service) = self.services.get_mut(key) else {
            return;
        };
        if let Socket::Listens(listener) = &service.socket {
            let data = Source::Listener.data(key);
            // It fails only for a socket that is watched already, or without memory: then it is a retry's turn.
            let _ = epoll::add(&self.epoll, listener, data, EventFlags::IN);
        }
    }

    pub(super) fn accept(&mut self, key: Key) {
        for _ in 0..ACCEPTS {
            if self.connections.len() >= self.most_connections {
                self.close_room(Room::Full);
                return;
            }
            let Some(service) = self.services.get_mut(key) else {
                return;
            };
            let Socket::Listens(listener) = &service.socket else {
                return;
            };
            match accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(client) => {
                    service.counters.accepted += 1;
                    self.hold(key, prepared(client));
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    let until = Instant::now() + SHORT;
                    self.close_room(Room::Short { until });
                    return;
                }
                // A client that went away while it waited, or a signal.
                Err(_) => {}
            }
        }
    }

    /// Stops accepting. Clients wait in the kernel's queue.
    fn close_room(&mut self, room: Room) {
        self.room = room;
        for (_, service) in self.services.iter() {
            if let Socket::Listens(listener) = &service.socket {
                // Not watched is what is wanted.
                let _ = epoll::delete(&self.epoll, listener);
            }
        }
    }

    /// Accepts again.
    pub(super) fn make_room(&mut self) {
        if self.drain.is_some() || self.room == Room::Open {
            return;
        }
        self.room = Room::Open;
        let keys: Vec<Key> = self.services.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.watch_listener(key);
        }
    }

    /// For good.
    pub(super) fn stop_listening(&mut self) {
        for service in self.services.values_mut() {
            service.socket = Socket::Closed;
        }
    }

    pub(super) fn statuses(&self) -> Vec<ServiceStatus> {
        let status = |(key, service): (Key, &Service)| {
            let (open, held) = self.count(key);
            ServiceStatus {
                target: service.target.clone(),
                listening: match &service.socket {
                    Socket::Listens(_) => Listening::Yes,
                    Socket::Not { why, .. } => Listening::No { why: why.clone() },
                    Socket::Closed => Listening::No {
                        why: "this forwarder drains".to_owned(),
                    },
                },
                open,
                held,
                counters: service.counters,
            }
        };
        self.services.iter().map(status).collect()
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn explain(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!("{address} is occupied by another process"),
        io::ErrorKind::AddrNotAvailable => {
            format!("{} is not an address of this machine", address.ip())
        }
        io::ErrorKind::PermissionDenied => {
            format!("this user may not listen on {address} (ports below 1024 are root's)")
        }
        _ => format!("cannot listen on {address}: {error}"),
    }
}

/// Messages go out at once, and a peer whose machine vanished is found out some day.
pub(super) fn prepared(socket: OwnedFd) -> OwnedFd {
    // A socket that refuses an option is one that is closing: that is met when it is used.
    let _ = sockopt::set_tcp_nodelay(&socket, true);
    let _ = sockopt::set_socket_keepalive(&socket, true);
    socket
}
