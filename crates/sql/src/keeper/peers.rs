//! The agents that are connected: lines in, lines out, nothing else.
//!
//! Each gets every event. One that does not read is cut off when its queue is full: when it connects again it is told
//! the present state first, so nothing is missed.

use std::collections::BTreeMap;
use std::rc::Rc;

use homeostat_supervisor::line::{LineBuffer, decode_line, encode_line};
use homeostat_supervisor::protocol::{Answer, Message, Request};
use homeostat_supervisor::{credentials, may_order};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// Agents replace one another, people look: more than this at once is a mistake of somebody.
const MOST: usize = 16;
/// Messages that may wait for a peer that does not read.
const QUEUE: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PeerId(u64);

/// What a peer did.
#[derive(Debug)]
pub(crate) enum PeerEvent {
    Asked(PeerId, Request),
    /// A request with an id and nothing else that this keeper understands.
    Unknown(PeerId, u64),
    Left(PeerId),
}

type Line = Rc<Vec<u8>>;

#[derive(Debug)]
pub(crate) struct Peers {
    next: u64,
    connected: BTreeMap<PeerId, mpsc::Sender<Line>>,
    events: mpsc::UnboundedSender<PeerEvent>,
}

impl Peers {
    /// `events` is unbounded in type only: a peer has at most one request of its own under way before it is read again.
    pub(crate) fn new(events: mpsc::UnboundedSender<PeerEvent>) -> Self {
        Self {
            next: 0,
            connected: BTreeMap::new(),
            events,
        }
    }

    /// Takes a connection, unless it is a stranger's or one too many.
    pub(crate) fn welcome(&mut self, stream: UnixStream, first: &[Message]) {
        if self.connected.len() >= MOST || !credentials(&stream).is_ok_and(may_order) {
            return;
        }
        let id = PeerId(self.next);
        self.next += 1;
        let (sender, receiver) = mpsc::channel(QUEUE);
        self.connected.insert(id, sender);
        tokio::task::spawn_local(serve(id, stream, receiver, self.events.clone()));
        for message in first {
            self.send(id, message);
        }
    }

    pub(crate) fn send(&mut self, id: PeerId, message: &Message) {
        if let Ok(line) = encode_line(message) {
            self.queue(id, Rc::new(line));
        }
    }

    pub(crate) fn answer(&mut self, (peer, id): (PeerId, u64), answer: Answer) {
        self.send(peer, &Message::Reply { id, answer });
    }

    /// To those that keep up: what is worth something only now is no reason to cut anybody off.
    pub(crate) fn pass(&mut self, message: &Message) {
        let Ok(line) = encode_line(message).map(Rc::new) else {
            return;
        };
        for sender in self.connected.values() {
            if sender.capacity() > QUEUE / 2 {
                // One that is gone is forgotten with its next message.
                let _ = sender.try_send(line.clone());
            }
        }
    }

    pub(crate) fn tell_all(&mut self, message: &Message) {
        let Ok(line) = encode_line(message).map(Rc::new) else {
            return;
        };
        let ids: Vec<PeerId> = self.connected.keys().copied().collect();
        for id in ids {
            self.queue(id, line.clone());
        }
    }

    fn queue(&mut self, id: PeerId, line: Line) {
        if self
            .connected
            .get(&id)
            .is_some_and(|sender| sender.try_send(line).is_err())
        {
            self.left(id);
        }
    }

    /// Forgets a peer; its connection is closed when what was queued is sent or cannot be.
    pub(crate) fn left(&mut self, id: PeerId) {
        self.connected.remove(&id);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.connected.is_empty()
    }
}

async fn serve(
    id: PeerId,
    stream: UnixStream,
    mut queue: mpsc::Receiver<Line>,
    events: mpsc::UnboundedSender<PeerEvent>,
) {
    let (mut input, mut output) = stream.into_split();
    let reading = async {
        let mut lines = LineBuffer::default();
        let mut piece = vec![0; 4096];
        loop {
            match input.read(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(length) => lines.push(&piece[..length]),
            }
            loop {
                let event = match lines.next_line() {
                    Ok(Some(line)) => read_request(id, &line),
                    Ok(None) => break,
                    Err(_too_long) => return,
                };
                // What has no id cannot be answered: the connection is of no use.
                let Some(event) = event else { return };
                if events.send(event).is_err() {
                    return;
                }
            }
        }
    };
    let writing = async {
        while let Some(line) = queue.recv().await {
            if output.write_all(&line).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
    // The guard may be gone: then nobody has to know.
    let _ = events.send(PeerEvent::Left(id));
}

fn read_request(peer: PeerId, line: &[u8]) -> Option<PeerEvent> {
    #[derive(serde::Deserialize)]
    struct Numbered {
        id: u64,
    }
    match decode_line::<Request>(line) {
        Ok(request) => Some(PeerEvent::Asked(peer, request)),
        Err(_) => decode_line::<Numbered>(line)
            .ok()
            .map(|numbered| PeerEvent::Unknown(peer, numbered.id)),
    }
}
