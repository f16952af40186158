//! The decider: from the record, the members' reports and the proofs gathered under the record, what to do next.
//!
//! It is level-triggered. Every input only updates what is known; then the whole plan is made again from that (*look
//! again*). At most one order per member is under way, so members work in parallel and each gets its next order the
//! moment it answers. Everything gathered (proofs, half-done steps) belongs to one (epoch, version) and is void when the
//! record changes.
//!
//! A leader's first act is a compare-and-set that sets its term; each later one compares the whole record. Only then
//! does it give orders, and it stops for good when it sees a higher term.
//!
//! The plan by the record's phase: `first` (no record yet), `revoking`, `promoting`, `serving`. What members look like, and
//! when silence is a fault of the primary: `sight`. Who is promoted: `choice`. How long the primary may stay open: `lease`.
//! Members that become copies of others: `rebuild`.
//!
//! # What is not there yet
//! Where one of these would be needed the decider waits, and [`View::waits`] says for whom:
//! - rebuilding a member that alone may have what was acknowledged: the holder of a serving epoch must have a working
//!   acker besides it ([`Wait::Rebuild`]);
//! - `Override`, and adopting members that know more than the store ([`Wait::StoreBehind`], [`Wait::RecordLost`]);
//! - `durability = "process"` (`sync_relay_log=0`): ackers are taken to sync what they acknowledge;
//! - telling from two log ends in different epochs that one log contains the other, outside of one A: barrier rows
//!   would have to carry the position they were written at ([`Wait::Complete`], [`Wait::Ackers`]; two random
//!   schedules in 50,000 ended there, until one more member comes back or is rebuilt);
//! - a candidate that has to catch up from a member that must not be promoted ([`Wait::Complete`] names it);
//! - a pause between two automatic failovers: it would have to outlive a leader, so it belongs into the record;
//! - k > 1: proofs ask for the logs of *all* of A, which is right for k = 1 and more than enough for others.

mod choice;
mod first;
mod lease;
mod member;
mod observe;
mod promoting;
mod rebuild;
mod revoking;
mod serving;
mod sight;
mod words;

use std::collections::BTreeMap;
use std::time::Duration;

use homeostat_model::{Epoch, Term};

use self::member::{Gathered, Member, Outstanding};
use self::words::name_of;
use crate::rules::Rules;
use crate::{
    Config, Effect, Input, MemberId, MemberView, Note, NoteEvent, Now, Order, OrderHeader, Phase,
    Record, Verb, View, Wait,
};

/// See the module's text.
#[derive(Debug)]
pub struct Decider {
    config: Config,
    term: Term,
    rules: Rules,
    now: Now,
    standing: Standing,
    /// The record as last read or committed; `None`: there is none, or it was not read yet.
    record: Option<Record>,
    cas: Option<Cas>,
    attempts: u64,
    /// Reads and compare-and-sets begun, and the newest of them that showed `record`.
    looks_begun: u64,
    look_done: u64,
    reading: Option<u64>,
    members: BTreeMap<MemberId, Member>,
    gathered: Gathered,
    switchover: Option<Switchover>,
    /// When the first input came: what was never heard of is silent since then.
    began: Option<Now>,
    /// When the lease of an ended epoch's holder has run out for certain, by epoch; only while the next one is promoted.
    expiries: BTreeMap<Epoch, Now>,
    /// Since when the current change of epoch is under way.
    changing_since: Option<Now>,
    /// When a change of primary was last over.
    changed_at: Option<Now>,
    endpoint: Option<Option<MemberId>>,
    waits: Vec<Wait>,
    waits_noted: Vec<Wait>,
    wake: Option<Now>,
    out: Vec<Effect>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// The record was not read yet.
    Unread,
    /// Read; this leader's term does not stand in it yet.
    Read,
    /// This leader's term stands in the record.
    Leading,
    /// A higher term was seen. Final.
    Superseded { by: Term },
}

#[derive(Debug)]
struct Cas {
    attempt: u64,
    look: u64,
    new: Record,
}

/// A switchover under way; in memory only: a later leader reinstates the old holder or finishes, as the record says.
#[derive(Debug, Clone)]
struct Switchover {
    request: u64,
    to: Option<MemberId>,
    deadline: Now,
    old: MemberId,
}

impl Decider {
    pub fn new(config: Config, term: Term) -> Self {
        let members = config
            .members
            .iter()
            .map(|member| (member.clone(), Member::default()))
            .collect();
        Self {
            config,
            term,
            rules: Rules::ALL_KEPT,
            now: Now::default(),
            standing: Standing::Unread,
            record: None,
            cas: None,
            attempts: 0,
            looks_begun: 0,
            look_done: 0,
            reading: None,
            members,
            gathered: Gathered::default(),
            switchover: None,
            began: None,
            expiries: BTreeMap::new(),
            changing_since: None,
            changed_at: None,
            endpoint: None,
            waits: Vec::new(),
            waits_noted: Vec::new(),
            wake: None,
            out: Vec::new(),
        }
    }

    #[cfg(any(test, feature = "sim"))]
    pub fn breaking(mut self, rules: Rules) -> Self {
        self.rules = rules;
        self
    }

    /// Takes one input in and says what to do, in order. The first input (a `Tick` will do) makes it read the record.
    pub fn handle(&mut self, now: Now, input: Input) -> Vec<Effect> {
        self.now = self.now.max(now);
        self.began = self.began.or(Some(self.now));
        match input {
            Input::RecordRead(record) => self.record_read(record),
            Input::CasDone { attempt, outcome } => self.cas_done(attempt, outcome),
            Input::Report(report) => self.reported(report),
            Input::KeeperGone { member } => {
                if let Some(known) = self.members.get_mut(&member) {
                    known.reachable = false;
                }
            }
            Input::Alive {
                member,
                incarnation,
                pulse,
            } => self.alive(&member, incarnation, pulse),
            Input::LeaseAsked(request) => self.lease_asked(request),
            Input::Reply(reply) => self.replied(&reply),
            Input::OrderLost { member, sequence } => self.order_lost(&member, sequence),
            Input::Switchover { request, to } => self.switchover_asked(request, to),
            Input::Tick => {}
        }
        self.plan();
        std::mem::take(&mut self.out)
    }

    /// Give a `Tick` at this moment at the latest; `None`: nothing is due.
    pub fn wake_at(&self) -> Option<Now> {
        self.wake
    }

    pub fn view(&self) -> View {
        let member = |member: &Member| MemberView {
            reachable: member.reachable,
            report: member.report.clone(),
            order: member
                .order
                .as_ref()
                .map(|order| (name_of(&order.verb), order.since)),
        };
        View {
            record: self.record.clone(),
            leading: self.standing == Standing::Leading,
            open: self.endpoint.clone().flatten(),
            members: self
                .members
                .iter()
                .map(|(id, known)| (id.clone(), member(known)))
                .collect(),
            waits: self.waits.clone(),
        }
    }

    fn plan(&mut self) {
        self.waits.clear();
        self.wake = None;
        match self.standing {
            Standing::Superseded { by } => self.waits.push(Wait::Superseded { by }),
            Standing::Unread => self.read(),
            Standing::Read | Standing::Leading => self.plan_with_record(),
        }
        self.due();
        if self.waits != self.waits_noted {
            self.waits_noted = self.waits.clone();
            self.note(
                self.record.clone(),
                NoteEvent::Waiting {
                    waits: self.waits.clone(),
                },
            );
        }
    }

    fn plan_with_record(&mut self) {
        if self.cas.is_some() {
            self.waits.push(Wait::Cas);
            return;
        }
        let Some(record) = self.record.clone() else {
            self.plan_first();
            return;
        };
        if let Some((member, epoch)) = self.someone_knows_more(&record) {
            self.waits.push(Wait::StoreBehind { member, epoch });
            return;
        }
        if self.standing == Standing::Read {
            let new = Record {
                term: self.term,
                version: record.version.next(),
                ..record
            };
            self.cas(new);
            return;
        }
        self.watch_silence();
        self.grant_leases(&record);
        match record.phase {
            Phase::Serving => self.plan_serving(&record),
            Phase::Revoking => self.plan_revoking(&record),
            Phase::Promoting => self.plan_promoting(&record),
        }
    }

    /// A keeper that persisted a higher record or term than the store shows stops all action. A newer leader is the
    /// usual reason, so look first.
    fn someone_knows_more(&mut self, record: &Record) -> Option<(MemberId, Epoch)> {
        let more = self.members.iter().find_map(|(member, known)| {
            let persisted = known.persisted()?;
            let more = persisted.rank() > record.rank() || persisted.term > self.term;
            more.then(|| (member.clone(), persisted.epoch))
        })?;
        self.read();
        self.wake_after(self.config.retry);
        Some(more)
    }

    fn read(&mut self) {
        self.waits.push(Wait::RecordRead);
        self.look();
    }

    /// Reads the record without waiting for it.
    fn look(&mut self) {
        if self.reading.is_none() {
            self.looks_begun += 1;
            self.reading = Some(self.looks_begun);
            self.out.push(Effect::ReadRecord);
        }
    }

    fn cas(&mut self, new: Record) {
        self.waits.push(Wait::Cas);
        self.attempts += 1;
        self.looks_begun += 1;
        self.cas = Some(Cas {
            attempt: self.attempts,
            look: self.looks_begun,
            new: new.clone(),
        });
        self.out.push(Effect::Cas {
            attempt: self.attempts,
            expected: self.record.clone(),
            new,
        });
    }

    /// Gives a member an order when it is free; otherwise says what it is waited for.
    fn order(&mut self, record: &Record, member: &MemberId, verb: Verb) {
        let Some(known) = self.members.get_mut(member) else {
            return;
        };
        // A server that hangs would hold its order for ever; nothing of it outlives the server.
        let gives_way = |order: &Outstanding| {
            verb == Verb::Kill && !matches!(order.verb, Verb::Kill | Verb::Start { .. })
        };
        if let Some(order) = known.order.as_ref().filter(|order| !gives_way(order)) {
            let order = name_of(&order.verb);
            self.waits.push(Wait::Order {
                member: member.clone(),
                order,
            });
            return;
        }
        if let Some((at, why)) = known.retry.clone().filter(|(at, _)| *at > self.now) {
            self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
            self.waits.push(Wait::Retry {
                member: member.clone(),
                why,
            });
            return;
        }
        let Some(report) = known.report.as_ref().filter(|_| known.reachable) else {
            self.waits.push(Wait::Member {
                member: member.clone(),
            });
            return;
        };
        let copied = report.rebuild.as_ref().filter(|state| state.under_way());
        if let (Verb::Start { .. }, Some(state)) = (&verb, copied) {
            let source = state.source().clone();
            let wait = self.copying(member, source);
            self.waits.push(wait);
            return;
        }
        // A keeper that knows no record is told it first, by a look at the store begun after it reported.
        let verb = if report.record.is_none() {
            Verb::Learn
        } else {
            verb
        };
        let incarnation = report.incarnation;
        if report.record.is_none() && self.look_done < known.needs_read {
            self.read();
            return;
        }
        known.sequence = known.sequence.next();
        let sequence = known.sequence;
        known.order = Some(Outstanding {
            sequence,
            record: record.clone(),
            verb: verb.clone(),
            since: self.now,
        });
        let timeout = match &verb {
            Verb::Start { .. } | Verb::Drain | Verb::Repoint { .. } => self.config.slow_order,
            Verb::Demote { patience_ms } => {
                self.config.order_timeout + Duration::from_millis(*patience_ms)
            }
            Verb::Learn
            | Verb::Kill
            | Verb::StopReceiving
            | Verb::Receive
            | Verb::TakeOver
            | Verb::Admit { .. }
            | Verb::Expel { .. }
            | Verb::Barrier
            | Verb::Open
            | Verb::Reinstate
            | Verb::Lend { .. }
            | Verb::Rebuild { .. } => self.config.order_timeout,
        };
        let order = name_of(&verb);
        self.waits.push(Wait::Order {
            member: member.clone(),
            order: order.clone(),
        });
        self.note(
            Some(record.clone()),
            NoteEvent::OrderSent {
                member: member.clone(),
                order,
            },
        );
        let header = OrderHeader {
            sequence,
            incarnation,
            record: record.clone(),
        };
        self.out.push(Effect::Order {
            member: member.clone(),
            order: Order { header, verb },
            timeout,
        });
    }

    fn tell_endpoints(&mut self, record: &Record, target: Option<MemberId>) {
        if self.endpoint.as_ref() == Some(&target) {
            return;
        }
        self.endpoint = Some(target.clone());
        self.out.push(Effect::Endpoint {
            epoch: record.epoch,
            version: record.version,
            target,
        });
    }

    fn note(&mut self, record: Option<Record>, event: NoteEvent) {
        let (epoch, version) = record.map_or_else(Default::default, |record| record.rank());
        self.out.push(Effect::Note(Note {
            at: self.now,
            epoch,
            version,
            event,
        }));
    }

    fn wake_after(&mut self, wait: Duration) {
        let at = self.now.after(wait);
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    /// A wake-up in the past would make a busy loop: whatever was due was looked at just now.
    fn due(&mut self) {
        self.wake = self.wake.filter(|at| *at > self.now);
    }
}

#[cfg(test)]
mod tests;
