//! How long a holder's server may stay open: what renews its lease, and when it must be killed.

use homeostat_model::Epoch;

use super::KeeperCore;
use crate::rules::Mutation;
use crate::{BootTime, LeaseGrant, LeaseRequest, ServerState};

impl KeeperCore {
    /// The time on this machine; to be told before orders are offered.
    pub fn at(&mut self, now: BootTime) {
        self.now = self.now.max(now);
    }

    /// A renewal to be sent at once, stamped with now; `None` where this member holds nothing. To be asked for about
    /// five times in L. Also before the server is opened, so that it is not opened into a lease that has ended.
    pub fn renewal(&mut self, now: BootTime) -> Option<LeaseRequest> {
        self.at(now);
        let epoch = self.holding()?;
        let nonce = self.lease.as_mut()?.ask(epoch, now);
        Some(LeaseRequest {
            member: self.member.clone(),
            incarnation: self.incarnation,
            epoch,
            nonce,
        })
    }

    /// The leader granted a renewal. It counts from when that was sent.
    pub fn granted(&mut self, grant: &LeaseGrant, now: BootTime) {
        self.at(now);
        if grant.incarnation != self.incarnation {
            return;
        }
        let at_grant = self.rules.broken(Mutation::LeaseFromGrant);
        if let Some(lease) = &mut self.lease
            && let Some(sent) = lease.sent(grant.epoch, grant.nonce)
        {
            lease.renewed(grant.epoch, if at_grant { now } else { sent });
        }
    }

    /// Whether the keeper commits barriers of its own now: rows like the barrier's, semi-synchronously, about five times
    /// in L, on a connection apart from the orders'. It stops with the record that ends the epoch, so that a demotion has
    /// a last position.
    pub fn commits_barriers(&self, server: &ServerState) -> bool {
        let ServerState::Up { facts, .. } = server else {
            return false;
        };
        let holding = self.holding();
        self.lease.is_some() && holding.is_some() && facts.barrier == holding
    }

    /// A barrier commit of this epoch, the ordered one or one of its own, was begun then and acknowledged by an acker.
    pub fn barrier_acknowledged(&mut self, epoch: Epoch, begun: BootTime) {
        if let Some(lease) = &mut self.lease {
            lease.renewed(epoch, begun);
        }
    }

    /// When the server must be killed unless something renews its lease before; `None` while it is not open. To be
    /// obeyed by something that does no IO and waits for nothing, since what else hangs may be why it is due.
    pub fn deadline(&self) -> Option<BootTime> {
        if self.rules.broken(Mutation::NoDeadline) {
            return None;
        }
        let (epoch, lease) = (self.open?, self.lease.as_ref()?);
        Some(lease.ends(epoch).unwrap_or_default())
    }

    /// The epoch that this member holds by the record persisted here.
    fn holding(&self) -> Option<Epoch> {
        self.record()
            .filter(|record| record.holds(&self.member))
            .map(|record| record.epoch)
    }

    /// Opened now, it would be killed at once.
    pub(super) fn lease_over(&self, epoch: Epoch) -> bool {
        self.lease
            .as_ref()
            .is_some_and(|lease| lease.ends(epoch).is_none_or(|ends| ends <= self.now))
            && !self.rules.broken(Mutation::NoDeadline)
            && !self.rules.broken(Mutation::OpenBeforeServing)
            && !self.rules.broken(Mutation::SkipBarrier)
    }
}
