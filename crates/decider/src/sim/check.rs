//! The checkers, apart from the world: they see everything at once, which nobody in the world does.

use std::collections::{BTreeMap, BTreeSet};

use homeostat_model::{Epoch, RecordVersion, Sequence, Term};

use super::server::{Disk, Event, What};
use crate::{MemberId, Phase, Record};

#[derive(Debug, Default)]
pub(super) struct Checker {
    /// What clients were told is committed, or could read; by identity, with the epoch whose rules it stands under.
    promised: BTreeMap<u64, (Event, Epoch)>,
    /// The highest epoch opened so far, and where.
    opened: Option<(Epoch, usize)>,
    ranks: BTreeMap<usize, (Epoch, RecordVersion)>,
    obeyed: BTreeMap<(usize, u64), (Term, Sequence)>,
    pub(super) broken: Option<String>,
}

impl Checker {
    fn fail(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    pub(super) fn promised(&self) -> usize {
        self.promised.len()
    }

    /// A client was told that this commit succeeded.
    pub(super) fn acknowledged(
        &mut self,
        event: Event,
        disks: &[&Disk],
        names: &[MemberId],
        record: Option<&Record>,
    ) {
        if let Some((epoch, holder)) = self.opened
            && epoch > event.epoch
            && !disks[holder].has(event.id)
        {
            self.fail(format!(
                "{} of epoch {} was acknowledged after epoch {epoch} opened without it",
                event.gtid, event.epoch
            ));
        }
        if event.what == What::Write {
            self.promised.insert(event.id, (event, event.epoch));
        }
        self.i1(event, event.epoch, disks, names, record);
    }

    /// I1: in the holder's binlog, and in the received log of at least k members of A.
    fn i1(
        &mut self,
        event: Event,
        epoch: Epoch,
        disks: &[&Disk],
        names: &[MemberId],
        record: Option<&Record>,
    ) {
        let Some(record) = record else { return };
        let current = match record.phase {
            Phase::Revoking => record.ended(),
            Phase::Serving | Phase::Promoting => record.epoch,
        };
        let of_epoch = if current == epoch {
            Some((&record.holder, &record.ackers))
        } else {
            record
                .unclosed
                .iter()
                .find(|of| of.epoch == epoch)
                .map(|of| (&of.holder, &of.ackers))
        };
        let index = |member: &MemberId| names.iter().position(|name| name == member);
        let has = |member: &MemberId| index(member).is_some_and(|i| disks[i].has(event.id));
        match of_epoch {
            Some((holder, ackers)) => {
                let copies = ackers.iter().filter(|member| has(member)).count();
                if !has(holder) || copies < usize::from(record.k) {
                    self.fail(format!(
                        "I1: {} of epoch {epoch}: {} by its holder {holder}, received by {copies} of A",
                        event.gtid,
                        if has(holder) { "kept" } else { "not kept" }
                    ));
                }
            }
            None if record.phase == Phase::Serving && !has(&record.holder) => {
                self.fail(format!(
                    "{} of closed epoch {epoch} is not at the holder {}",
                    event.gtid, record.holder
                ));
            }
            None => {}
        }
    }

    /// Events left a member's log or relay log.
    pub(super) fn removed(
        &mut self,
        events: &[Event],
        disks: &[&Disk],
        names: &[MemberId],
        record: Option<&Record>,
    ) {
        for event in events {
            if let Some((event, epoch)) = self.promised.get(&event.id).copied() {
                self.i1(event, epoch, disks, names, record);
            }
        }
    }

    /// The record changed: A may be another set now.
    pub(super) fn record_changed(
        &mut self,
        disks: &[&Disk],
        names: &[MemberId],
        record: Option<&Record>,
    ) {
        let newest: Vec<(Event, Epoch)> = self.promised.values().rev().take(30).copied().collect();
        for (event, epoch) in newest {
            self.i1(event, epoch, disks, names, record);
        }
    }

    /// A server is opened for clients.
    pub(super) fn opens(
        &mut self,
        member: usize,
        epoch: Epoch,
        disk: &Disk,
        others_open: &[usize],
    ) {
        if let Some(other) = others_open.first() {
            self.fail(format!("servers {member} and {other} are open at once"));
        }
        if self
            .opened
            .is_some_and(|(highest, at)| highest > epoch || (highest == epoch && at != member))
        {
            self.fail(format!(
                "epoch {epoch} opened at {member} after {:?}",
                self.opened
            ));
        }
        self.opened = Some((epoch, member));
        self.contains_all(
            &format!("the log that epoch {epoch} opened with at {member}"),
            disk,
        );
        // Whatever is in an open server's log can be read, acknowledged or not.
        for event in disk.binlog.iter().filter(|event| event.what == What::Write) {
            self.promised.entry(event.id).or_insert((*event, epoch));
        }
    }

    pub(super) fn contains_all(&mut self, log: &str, disk: &Disk) {
        let have: BTreeSet<u64> = disk.binlog.iter().map(|event| event.id).collect();
        if let Some((event, epoch)) = self
            .promised
            .values()
            .find(|(event, _)| !have.contains(&event.id))
        {
            let text = format!(
                "{log} lacks {} of epoch {epoch}, which a client was promised",
                event.gtid
            );
            self.fail(text);
        }
    }

    /// A keeper persisted a record.
    pub(super) fn persisted(&mut self, member: usize, rank: (Epoch, RecordVersion)) {
        if let Some(before) = self.ranks.insert(member, rank)
            && before > rank
        {
            self.fail(format!(
                "the record persisted at {member} fell from {before:?} to {rank:?}"
            ));
        }
    }

    /// A keeper obeys an order: made for this very process, and later than every one it obeyed before. Against orders
    /// that arrive late or twice the record's (epoch, version) is the first line, and this the second: what would go
    /// wrong without it needs orders of one record in another order than they were given in.
    pub(super) fn obeyed(
        &mut self,
        member: usize,
        keeper: u64,
        meant_for: u64,
        order: (Term, Sequence),
    ) {
        if keeper != meant_for {
            self.fail(format!(
                "keeper {member} obeyed an order for an earlier process of it"
            ));
        }
        if self
            .obeyed
            .insert((member, keeper), order)
            .is_some_and(|before| before >= order)
        {
            self.fail(format!("keeper {member} obeyed an old order"));
        }
    }

    /// A leader acts only under a record that it wrote itself: what another gathered under it would not be void.
    pub(super) fn led(&mut self, leader: Term, record: Term) {
        if leader != record {
            self.fail(format!(
                "the leader of term {leader} acted under a record of term {record}"
            ));
        }
    }

    pub(super) fn liveness(&mut self, what: String) {
        self.fail(format!("liveness: {what}"));
    }
}
