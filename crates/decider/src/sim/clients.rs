//! Clients: they write and read through the endpoint, and at servers directly, as connections from before do.

use homeostat_model::Epoch;

use super::server::{Event, What};
use super::{Happening, Member, Sim};
use crate::Gtid;

impl Sim {
    pub(super) fn write(&mut self) {
        let pause = self.clients.between(1_000, 12_000);
        if !self.done {
            self.after(pause, Happening::Write);
        }
        // Through the endpoint, or straight to a server, as a connection from before would.
        let member = match self.endpoint.2 {
            Some(target) if self.clients.chance(600) => target,
            Some(_) | None => {
                usize::try_from(self.clients.below(self.members.len() as u64)).unwrap_or(0)
            }
        };
        if self.answers(member)
            && self.members[member]
                .process
                .as_ref()
                .is_some_and(|process| !process.read_only)
        {
            self.commit(member, What::Write);
        }
    }

    /// A commit reaches the binlog, synced, and is sent to whoever replicates.
    pub(super) fn commit(&mut self, member: usize, what: What) {
        let id = self.id();
        let Member { disk, process, .. } = &mut self.members[member];
        let Some(process) = process else { return };
        let server = u32::try_from(member).unwrap_or(u32::MAX);
        let gtid = Gtid {
            domain: 0,
            server,
            sequence: disk.next_sequence(),
        };
        let under = match what {
            What::Barrier(epoch) => epoch,
            What::Write => disk.binlog.last().map_or(Epoch(0), |event| event.under),
        };
        let event = Event {
            id,
            gtid,
            epoch: process.epoch,
            under,
            what,
        };
        disk.binlog.push(event);
        let upto = disk.binlog.len();
        process.waiting.push(upto);
        if !process.semi_sync_master {
            // Nobody is asked: the client is told at once.
            self.acknowledged(member, upto);
        }
        self.send_to_replicas(member);
    }

    /// A client reads at a server that is open, whoever holds the epoch by now.
    pub(super) fn read(&mut self) {
        let pause = self.clients.between(1_000, 8_000);
        self.after(pause, Happening::Read);
        let member = usize::try_from(self.clients.below(self.members.len() as u64)).unwrap_or(0);
        if self.answers(member)
            && let Some(process) = self.members[member]
                .process
                .as_ref()
                .filter(|process| !process.read_only)
        {
            self.checker.read(member, process.epoch, self.now);
        }
    }
}
