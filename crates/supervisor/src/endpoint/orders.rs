//! Agents: who connects, what they order, what they are told.

use std::time::{Duration, Instant};

use homeostat_model::{Epoch, RecordVersion, ServiceName};
use rustix::event::epoll::{self, EventFlags};

use super::SOCKET;
use super::forwarder::{Forwarder, Source};
use super::protocol::{
    Answer, Durability, Event, Hello, Message, Request, ServiceTarget, Taken, VERSION, Verb,
    Verdict,
};
use super::slab::Key;
use crate::control::{Lost, MOST_PEERS, More, Peer};
use crate::line::decode_line;
use crate::run::remove_if_there;

/// Longest time a drain may take.
const LONGEST_DRAIN: Duration = Duration::from_secs(24 * 3600);

/// An order that was obeyed and is answered when the disk has it.
pub(super) struct WaitingReply {
    peer: Key,
    id: u64,
    services: Vec<Taken>,
    /// The store that must be synced.
    number: u64,
}

pub(super) struct Drain {
    pub until: Instant,
}

/// What is answered when.
enum Outcome {
    Now(Answer),
    WhenSynced { services: Vec<Taken>, number: u64 },
}

impl Forwarder {
    pub(super) fn accept_peers(&mut self) {
        loop {
            let Some(mut peer) = self.control.as_ref().and_then(Peer::accept) else {
                return;
            };
            if self.peers.len() >= MOST_PEERS {
                continue;
            }
            let hello = Message::Hello(Hello {
                version: VERSION,
                machine: self.machine.clone(),
                forwarder: self.me,
                services: self.statuses(),
            });
            if peer.send(&hello).is_err() {
                continue;
            }
            let key = self.peers.insert(peer);
            if let Some(peer) = self.peers.get_mut(key) {
                let data = Source::Peer.data(key);
                let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
                if epoll::add(&self.epoll, peer.fd(), data, flags).is_err() {
                    self.peers.remove(key);
                }
            }
        }
    }

    pub(super) fn on_peer(&mut self, key: Key) {
        if self.talk(key).is_err() {
            self.peers.remove(key);
        }
    }

    fn talk(&mut self, key: Key) -> Result<(), Lost> {
        let peer = self.peers.get_mut(key).ok_or(Lost)?;
        peer.flush()?;
        // Orders that came before the connection ended count.
        let mut state = peer.read();
        loop {
            let peer = self.peers.get_mut(key).ok_or(Lost)?;
            let Some(line) = peer.next_line()? else {
                match state {
                    // It stopped at the longest line, and lines were taken out since.
                    Ok(More::Maybe) => {
                        state = peer.read();
                        continue;
                    }
                    Ok(More::No) => return Ok(()),
                    Err(lost) => return Err(lost),
                }
            };
            self.order(key, &line)?;
        }
    }

    fn order(&mut self, key: Key, line: &[u8]) -> Result<(), Lost> {
        #[derive(serde::Deserialize)]
        struct OnlyId {
            id: u64,
        }
        let (id, outcome) = match decode_line::<Request>(line) {
            Ok(Request { id, verb }) => (id, self.obey(verb)),
            Err(error) => {
                let OnlyId { id } = decode_line(line).map_err(|_| Lost)?;
                let why = format!(
                    "a forwarder of protocol version {VERSION} does not know this: {error}"
                );
                (id, Outcome::Now(Answer::Refused { why }))
            }
        };
        match outcome {
            Outcome::Now(answer) => self
                .peers
                .get_mut(key)
                .ok_or(Lost)?
                .send(&Message::Reply { id, answer }),
            Outcome::WhenSynced { services, number } => {
                self.waiting.push(WaitingReply {
                    peer: key,
                    id,
                    services,
                    number,
                });
                Ok(())
            }
        }
    }

    fn obey(&mut self, verb: Verb) -> Outcome {
        match verb {
            Verb::Set { targets } => self.set(&targets),
            Verb::Remove {
                service,
                epoch,
                version,
            } => self.forget(&service, (epoch, version)),
            Verb::Status => Outcome::Now(Answer::Status {
                services: self.statuses(),
            }),
            Verb::Drain { within_ms } => Outcome::Now(self.begin_drain(within_ms)),
        }
    }

    /// Ends what a newer record ends, remembers it, and only then leads anybody to the new target: should this process
    /// die in between, its successor does not lead anybody back.
    fn set(&mut self, targets: &[ServiceTarget]) -> Outcome {
        if self.drain.is_some() {
            let why = "it drains: order its successor".to_owned();
            return Outcome::Now(Answer::Refused { why });
        }
        let mut services = Vec::with_capacity(targets.len());
        let mut newer = Vec::new();
        for target in targets {
            let outcome = self.table.offer(target);
            if outcome.verdict == Verdict::Newer {
                newer.push((target, outcome.cut));
            }
            services.push(Taken {
                service: target.service.clone(),
                verdict: outcome.verdict,
            });
        }
        for (target, cut) in &newer {
            if let Some(key) = self.service_named(&target.service) {
                self.end_cut(key, target, *cut);
            }
        }
        // Stored even if nothing is newer: what was ordered before may not have reached the disk then.
        let stored = self.disk.store(&self.table);
        for (target, _) in &newer {
            self.serve(target);
            if let Some(key) = self.service_named(&target.service) {
                self.lead_waiting(key);
            }
        }
        match stored {
            Ok(number) => Outcome::WhenSynced { services, number },
            Err(error) => Outcome::Now(Answer::Taken {
                services,
                durability: Durability::Failed {
                    why: error.to_string(),
                },
            }),
        }
    }

    fn forget(&mut self, service: &ServiceName, order: (Epoch, RecordVersion)) -> Outcome {
        if let Err((epoch, version)) = self.table.remove(service, order) {
            let why =
                format!("a higher record of {service} holds: epoch {epoch} version {version}");
            return Outcome::Now(Answer::Refused { why });
        }
        if let Some(key) = self.service_named(service) {
            self.close_all(key);
            self.services.remove(key);
        }
        Outcome::Now(match self.disk.store(&self.table) {
            Ok(_) => Answer::Accepted,
            Err(error) => Answer::Refused {
                why: format!("it is forgotten, but a restart will remember it: {error}"),
            },
        })
    }

    fn begin_drain(&mut self, within_ms: u64) -> Answer {
        // Before the lock is given up: afterwards the name may be a successor's.
        if self.lock.is_some()
            && let Err(error) = remove_if_there(&self.run_dir.join(SOCKET))
        {
            let why = error.to_string();
            return Answer::Refused { why };
        }
        self.control = None;
        self.stop_listening();
        self.lock = None;
        self.drain = Some(Drain {
            until: Instant::now() + Duration::from_millis(within_ms).min(LONGEST_DRAIN),
        });
        Answer::Accepted
    }

    /// Answers the orders that are on the disk now.
    pub(super) fn on_synced(&mut self) {
        let Some(synced) = self.disk.ended() else {
            return;
        };
        let waiting = std::mem::take(&mut self.waiting);
        let (done, still) = waiting
            .into_iter()
            .partition(|reply| reply.number <= synced.upto);
        self.waiting = still;
        let done: Vec<WaitingReply> = done;
        for reply in done {
            let message = Message::Reply {
                id: reply.id,
                answer: Answer::Taken {
                    services: reply.services,
                    durability: synced.durability.clone(),
                },
            };
            self.send(reply.peer, &message);
        }
    }

    /// Tells every agent.
    pub(super) fn tell(&mut self, event: &Event) {
        let message = Message::Event(event.clone());
        let keys: Vec<Key> = self.peers.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.send(key, &message);
        }
    }

    fn send(&mut self, key: Key, message: &Message) {
        if let Some(peer) = self.peers.get_mut(key)
            && peer.send(message).is_err()
        {
            self.peers.remove(key);
        }
    }
}
