//! Leases as the writer holds them in memory: who is due when, and which keys go with whom.
//!
//! Time is monotonic and starts anew, in full, when the store is opened: a restart can lengthen a lease, never shorten
//! one. So it is enough to keep ids and time limits on disk, and a keep-alive writes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::LeaseId;

#[derive(Debug, Default)]
pub(super) struct Leases {
    leases: BTreeMap<LeaseId, Held>,
    /// The same leases by when they are due.
    due: BTreeSet<(Instant, LeaseId)>,
}

#[derive(Debug)]
struct Held {
    ttl: Duration,
    due: Instant,
    keys: BTreeSet<String>,
}

impl Leases {
    pub(super) fn insert(&mut self, id: LeaseId, ttl: Duration, now: Instant) {
        let due = now + ttl;
        self.leases.insert(
            id,
            Held {
                ttl,
                due,
                keys: BTreeSet::new(),
            },
        );
        self.due.insert((due, id));
    }

    pub(super) fn contains(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id)
    }

    /// Starts the lease's time anew; `None` when there is no such lease.
    pub(super) fn keep_alive(&mut self, id: LeaseId, now: Instant) -> Option<Duration> {
        let held = self.leases.get_mut(&id)?;
        self.due.remove(&(held.due, id));
        held.due = now + held.ttl;
        self.due.insert((held.due, id));
        Some(held.ttl)
    }

    /// Forgets a lease and returns its keys, in order.
    pub(super) fn remove(&mut self, id: LeaseId) -> Option<BTreeSet<String>> {
        let held = self.leases.remove(&id)?;
        self.due.remove(&(held.due, id));
        Some(held.keys)
    }

    /// Moves a key from one lease to another.
    pub(super) fn reassign(&mut self, key: &str, from: Option<LeaseId>, to: Option<LeaseId>) {
        if let Some(held) = from.and_then(|id| self.leases.get_mut(&id)) {
            held.keys.remove(key);
        }
        if let Some(held) = to.and_then(|id| self.leases.get_mut(&id)) {
            held.keys.insert(key.to_owned());
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// A lease that is due.
    pub(super) fn expired(&self, now: Instant) -> Option<LeaseId> {
        self.due
            .first()
            .filter(|(due, _)| *due <= now)
            .map(|(_, id)| *id)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn due_in_order_and_kept_alive() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut leases = Leases::default();
        leases.insert(LeaseId(1), Duration::from_secs(5), now);
        leases.insert(LeaseId(2), Duration::from_secs(3), now);
        assert_eq!(leases.next_due(), Some(at(3)));
        assert_eq!(leases.expired(at(2)), None);
        assert_eq!(leases.expired(at(3)), Some(LeaseId(2)));
        assert_eq!(
            leases.keep_alive(LeaseId(2), at(3)),
            Some(Duration::from_secs(3))
        );
        assert_eq!(leases.expired(at(5)), Some(LeaseId(1)));
        leases.reassign("k", None, Some(LeaseId(1)));
        leases.reassign("k", Some(LeaseId(1)), Some(LeaseId(2)));
        assert!(leases.remove(LeaseId(1)).unwrap().is_empty());
        assert_eq!(leases.remove(LeaseId(2)).unwrap().len(), 1);
        assert_eq!(leases.next_due(), None);
        assert_eq!(leases.keep_alive(LeaseId(2), now), None);
    }
}
