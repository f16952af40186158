//! The checkers, apart from the world: they see everything at once, which nobody in the world does.

use std::collections::{BTreeMap, BTreeSet};

use homeostat_model::{Epoch, Reads, RecordVersion, Sequence, Term};

use super::server::{Disk, Event, What};
use super::sleep::Sleep;
use super::{KILL_TIME, LEASE};
use crate::{MemberId, Phase, Record};

#[derive(Debug, Default)]
pub(super) struct Checker {
    /// What clients were told is committed, or could read; by identity, with the epoch whose rules it stands under.
    promised: BTreeMap<u64, (Event, Epoch)>,
    /// The highest epoch opened so far, and where.
    opened: Option<(Epoch, usize)>,
    ranks: BTreeMap<usize, (Epoch, RecordVersion)>,
    obeyed: BTreeMap<(usize, u64), (Term, Sequence)>,
    /// Epochs whose holder was fenced at its ackers and may be open, and until when clients may read there.
    revoked: BTreeMap<Epoch, u64>,
    /// When each member's server, keeper or machine last stood still: from, and until.
    stood_still: BTreeMap<usize, (u64, Option<u64>)>,
    /// Their keepers could not keep a deadline by true time.
    late_keepers: BTreeSet<usize>,
    quiet: bool,
    /// What was on a disk that is lost. It counts as kept until nobody counts on that member any more: one loss is allowed.
    lost: BTreeMap<usize, BTreeSet<u64>>,
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
            && !self.had(disks, holder, event)
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

    /// Whether it is on a member's disk, or was on one that is lost.
    fn had(&self, disks: &[&Disk], member: usize, event: Event) -> bool {
        let lost = self.lost.get(&member);
        disks[member].has(event.id) || lost.is_some_and(|ids| ids.contains(&event.id))
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
        let has = |member: &MemberId| index(member).is_some_and(|i| self.had(disks, i, event));
        let problem = match of_epoch {
            Some((holder, ackers)) => {
                let copies = ackers.iter().filter(|member| has(member)).count();
                let kept = has(holder);
                (!kept || copies < usize::from(record.k)).then(|| {
                    format!(
                        "I1: {} of epoch {epoch}: {} by its holder {holder}, received by {copies} of A",
                        event.gtid,
                        if kept { "kept" } else { "not kept" }
                    )
                })
            }
            None if record.phase == Phase::Serving && !has(&record.holder) => Some(format!(
                "{} of closed epoch {epoch} is not at the holder {}",
                event.gtid, record.holder
            )),
            None => None,
        };
        if let Some(problem) = problem {
            self.fail(problem);
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
        if let Some(record) = record
            && record.phase == Phase::Serving
            && record.unclosed.is_empty()
        {
            let counts = |member: &usize| {
                let name = &names[*member];
                record.ackers.contains(name) || record.holder == *name
            };
            self.lost.retain(|member, _| counts(member));
        }
        let newest: Vec<(Event, Epoch)> = self.promised.values().rev().take(30).copied().collect();
        for (event, epoch) in newest {
            self.i1(event, epoch, disks, names, record);
        }
    }

    pub(super) fn all_disks_are_there(&self) -> bool {
        self.lost.is_empty()
    }

    pub(super) fn disk_lost(&mut self, member: usize, disk: &Disk) {
        let events = disk.binlog.iter().chain(&disk.relay);
        self.lost
            .insert(member, events.map(|event| event.id).collect());
    }

    /// A server is opened for clients.
    pub(super) fn opens(
        &mut self,
        member: usize,
        epoch: Epoch,
        disk: &Disk,
        others_open: &[(usize, Epoch)],
        (reads, now): (Reads, u64),
    ) {
        // A late order opens a former holder that was fenced at its ackers: for no longer than its lease, and it says
        // nothing about what a later epoch may do.
        if self.opened.is_some_and(|(highest, _)| highest > epoch)
            && let Some(ends) = self.revoked.get(&epoch)
        {
            let in_time = now <= *ends && reads == Reads::Bounded;
            if !in_time && !self.late_keepers.contains(&member) {
                self.fail(format!("{member} opened after its lease had ended"));
            }
            return;
        }
        for (other, of) in others_open {
            let fenced = *of < epoch && self.revoked.contains_key(of);
            if !fenced {
                self.fail(format!("servers {member} and {other} are open at once"));
            }
            if reads == Reads::Strict && !self.late_keepers.contains(other) {
                self.fail(format!(
                    "strict: {member} opens while clients can read at {other}"
                ));
            }
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

    /// A proof `Revoked` was made: from now on its holder gains no acknowledgement.
    pub(super) fn revoked(&mut self, epoch: Epoch, now: u64) {
        let ends = (LEASE + LEASE / 100 + KILL_TIME).as_micros();
        let ends = now + u64::try_from(ends).unwrap_or(u64::MAX);
        self.revoked.entry(epoch).or_insert(ends);
    }

    /// A client reads at an open server.
    pub(super) fn read(&mut self, member: usize, epoch: Epoch, now: u64) {
        let over = self.revoked.get(&epoch).is_some_and(|ends| now > *ends);
        if over && !self.late_keepers.contains(&member) {
            self.fail(format!(
                "a client read at {member}, the holder of epoch {epoch}, after its lease had ended for certain"
            ));
        }
    }

    /// Its machine's clock or its keeper stood still: it may serve for as much longer.
    pub(super) fn falls_asleep(&mut self, member: usize, who: Sleep, now: u64) {
        match who {
            Sleep::Server => {}
            Sleep::Keeper | Sleep::Machine => {
                self.late_keepers.insert(member);
            }
        }
        self.stood_still.insert(member, (now, None));
    }

    pub(super) fn wakes(&mut self, member: usize, now: u64) {
        if let Some((_, until)) = self.stood_still.get_mut(&member) {
            until.get_or_insert(now);
        }
    }

    /// Did it stand still for `long`, now or until at most `late` ago?
    pub(super) fn stood_still(&self, member: usize, long: u64, late: u64, now: u64) -> bool {
        self.stood_still.get(&member).is_some_and(|(from, until)| {
            let end = until.unwrap_or(now);
            end.saturating_sub(*from) >= long && now.saturating_sub(end) <= late
        })
    }

    pub(super) fn promoted_against_its_rule(&mut self, member: usize) {
        self.fail(format!("{member} opens, and must not be promoted"));
    }

    pub(super) fn false_failover(&mut self, what: String) {
        self.fail(format!("a false failover: {what}"));
    }

    /// A keeper ended its server because its lease had run out.
    pub(super) fn killed_by_lease(&mut self, member: usize, renewed: Option<u64>, now: u64) {
        let least = u64::try_from((LEASE - LEASE / 100).as_micros()).unwrap_or(u64::MAX);
        if renewed.is_some_and(|at| now.saturating_sub(at) < least) {
            self.fail(format!("{member} was killed while its lease was renewed"));
        }
        if self.quiet {
            self.fail(format!(
                "{member} was killed though only controllers are lost"
            ));
        }
    }

    /// Only controllers are lost: nothing may follow from that.
    pub(super) fn nothing_may_happen(&mut self, quiet: bool) {
        self.quiet = quiet;
    }

    pub(super) fn evidence(&mut self, kind: &str) {
        if self.quiet {
            self.fail(format!(
                "{kind}: an epoch ends though only controllers are lost"
            ));
        }
    }

    /// An acker received something of a source that is alive. Once a later epoch has a holder, an earlier one gains
    /// receipts only of what that holder has.
    pub(super) fn receipt(
        &mut self,
        event: Event,
        source: (usize, Epoch),
        acker: usize,
        disks: &[&Disk],
        names: &[MemberId],
        record: Option<&Record>,
    ) {
        let Some(record) = record else { return };
        let begun = match record.phase {
            Phase::Promoting | Phase::Serving => record.epoch > source.1,
            Phase::Revoking => false,
        };
        let Some(holder) = names.iter().position(|name| *name == record.holder) else {
            return;
        };
        if begun && holder != source.0 && !self.had(disks, holder, event) {
            self.fail(format!(
                "{acker} received {} of epoch {} from {} while epoch {} has a holder",
                event.gtid, source.1, source.0, record.epoch
            ));
        }
    }

    pub(super) fn liveness(&mut self, what: String) {
        self.fail(format!("liveness: {what}"));
    }
}
