//! What a keeper does regularly: it looks at its server, says what it saw, and keeps the lease of a holder. And the server's
//! own heartbeats to its replicas.

use super::cut::{Place, site_of};
use super::server::What;
use super::{Happening, LEASE, Sim};
use crate::rules::Mutation;
use crate::{BootTime, LeaseGrant};

/// Between two looks, and between two heartbeats: six in H.
pub(super) const PULSE: u64 = 25_000;

/// A barrier commit that the keeper began by itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnBarrier {
    pub(super) upto: usize,
    pub(super) begun: BootTime,
    pub(super) begun_truly: u64,
}

impl Sim {
    pub(super) fn heartbeat(&mut self, member: usize) {
        let next = PULSE + self.net.below(2_000);
        self.after(next, Happening::Heartbeat { member });
        if !self.answers(member) {
            return;
        }
        let replicas: Vec<(usize, u64)> = self.members[member]
            .process
            .iter()
            .flat_map(|process| &process.dumps)
            .map(|(replica, dump)| (*replica, dump.connection))
            .collect();
        for (replica, connection) in replicas {
            if self
                .cuts
                .free(Place::Machine(member), Place::Machine(replica))
            {
                self.heard(replica, connection);
            }
        }
    }

    /// Something came by replication.
    pub(super) fn heard(&mut self, replica: usize, connection: u64) {
        let now = self.now;
        let own = &mut self.members[replica];
        let at = own.clock.boot_time(now);
        if let Some(process) = &mut own.process
            && process.io == (super::server::Io::Connected { connection })
        {
            process.heard = Some(at);
            process.heard_truly.come(now);
        }
    }

    pub(super) fn pulse(&mut self, member: usize) {
        let next = PULSE + self.net.below(2_000);
        self.after(next, Happening::Pulse { member });
        let now = self.members[member].clock.boot_time(self.now);
        let write_probe = self.plan.rules.broken(Mutation::HangByWriteProbe);
        let answers = self.answers(member);
        if let Some(process) = &mut self.members[member].process {
            if answers && (!write_probe || process.waiting.is_empty()) {
                process.unanswered = None;
            } else {
                process.unanswered = process.unanswered.or(Some(now));
            }
            if answers {
                process.source_age = process.heard.map(|heard| now.0.saturating_sub(heard.0));
            }
        }
        self.commit_own_barrier(member, now);
        self.ask_for_lease(member, now);
        self.report(member);
    }

    fn commit_own_barrier(&mut self, member: usize, begun: BootTime) {
        let server = self.server_state(member);
        let begun_truly = self.now;
        let answers = self.answers(member);
        let own = &mut self.members[member];
        let (Some(keeper), Some(process)) = (&mut own.keeper, &own.process) else {
            return;
        };
        let due = keeper
            .barriers_begun
            .is_none_or(|at| begun.0.saturating_sub(at.0) >= LEASE / 5);
        if !answers
            || !due
            || keeper.own_barrier.is_some()
            || !keeper.core.commits_barriers(&server)
        {
            return;
        }
        let epoch = process.epoch;
        keeper.barriers_begun = Some(begun);
        keeper.own_barrier = Some(OwnBarrier {
            upto: own.disk.binlog.len() + 1,
            begun,
            begun_truly,
        });
        self.commit(member, What::Barrier(epoch));
    }

    /// Commits up to here were acknowledged.
    pub(super) fn own_barrier_over(&mut self, member: usize, upto: usize) {
        let own = &mut self.members[member];
        let Some(epoch) = own.process.as_ref().map(|process| process.epoch) else {
            return;
        };
        let Some(keeper) = &mut own.keeper else {
            return;
        };
        if let Some(barrier) = keeper.own_barrier.take_if(|barrier| barrier.upto <= upto) {
            keeper.core.barrier_acknowledged(epoch, barrier.begun);
            keeper.renewed_truly = keeper.renewed_truly.max(Some(barrier.begun_truly));
            self.watch_deadline(member);
        }
    }

    fn ask_for_lease(&mut self, member: usize, now: BootTime) {
        let truly = self.now;
        let Some(keeper) = &mut self.members[member].keeper else {
            return;
        };
        let Some(request) = keeper.core.renewal(now) else {
            return;
        };
        keeper.asked.insert(request.nonce, truly);
        for controller in 0..self.controllers.len() {
            let up = self.controllers[controller].links[member].up;
            if self.controllers[controller].alive && up {
                let request = request.clone();
                self.on_link(controller, member, |link| Happening::LeaseArrives {
                    controller,
                    member,
                    link,
                    request,
                });
            }
        }
    }

    pub(super) fn send_grant(&mut self, controller: usize, member: usize, grant: LeaseGrant) {
        let (from, to) = (site_of(controller), Place::Machine(member));
        let arrives = Happening::GrantArrives {
            member,
            keeper: grant.incarnation.0,
            grant,
        };
        let delay = self.delay();
        match self.cuts.free(from, to) {
            true => self.after(delay, arrives),
            false => self.cuts.hold(from, to, arrives),
        }
    }

    pub(super) fn grant_arrives(&mut self, member: usize, number: u64, grant: &LeaseGrant) {
        let own = &mut self.members[member];
        let now = own.clock.boot_time(self.now);
        let Some(keeper) = own.keeper.as_mut().filter(|keeper| keeper.number == number) else {
            return;
        };
        keeper.core.granted(grant, now);
        let sent = keeper.asked.get(&grant.nonce).copied();
        keeper.renewed_truly = keeper.renewed_truly.max(sent);
        self.tally.count("leases");
        self.watch_deadline(member);
    }

    pub(super) fn watch_deadline(&mut self, member: usize) {
        let own = &self.members[member];
        let Some(keeper) = &own.keeper else { return };
        if let Some(deadline) = keeper.core.deadline() {
            let left = own.clock.until(deadline.0, self.now);
            let keeper = keeper.number;
            self.after(left, Happening::Deadline { member, keeper });
        }
    }

    pub(super) fn deadline(&mut self, member: usize, number: u64) {
        let own = &self.members[member];
        let now = own.clock.boot_time(self.now);
        let Some(keeper) = own.keeper.as_ref().filter(|keeper| keeper.number == number) else {
            return;
        };
        if keeper.core.deadline().is_none_or(|deadline| deadline > now) || own.process.is_none() {
            return;
        }
        self.say(|| format!("keeper {member}: the lease has ended"));
        self.tally.count("self-fenced");
        self.checker
            .killed_by_lease(member, keeper.renewed_truly, self.now);
        self.kill_server(member);
        self.report(member);
    }
}
