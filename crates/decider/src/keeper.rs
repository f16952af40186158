//! The pure part of a keeper: which orders it obeys. The real keeper and the simulated one drive the same state machine.
//!
//! A SQL server checks no epochs, so its keeper is the place where they are checked (failover.md section 1). For each
//! order that arrives:
//!
//! 1. [`KeeperCore::offer`] says *refuse* (send that reply) or *obey*.
//! 2. To obey, first write `persist`, when there is one, to the keeper's file and **sync it**, then call
//!    [`KeeperCore::persisted`]. Acting first and remembering later would let a crash in between undo a fence.
//! 3. Carry out the verb, then call [`KeeperCore::completed`] for the reply to send. An order whose time ran out is not
//!    over: its statement must be ended and verified to have ended before `completed` is called.
//!
//! While an order is in progress every other one is refused as `Busy`, except a `Kill`: a server that hangs would hold its
//! order for ever, and nothing of it outlives the server. A keeper that dies with an order in progress comes back as
//! another incarnation, with its server gone.
//!
//! A keeper also ends its server by itself, when the lease of a holder has run out: see [`KeeperCore::deadline`].

mod open;

use std::collections::BTreeSet;
use std::time::Duration;

use homeostat_model::{Epoch, Sequence, Term};
use serde::{Deserialize, Serialize};

use crate::lease::Lease;
use crate::rules::{Mutation, Rules};
use crate::{
    Acker, BootId, BootTime, KeeperIncarnation, MemberId, Order, OrderOutcome, OrderReply, Phase,
    Receiver, Record, Recovery, Refusal, ServerState, Verb,
};

/// What a keeper keeps in its file. Losing it is safe (it then obeys nothing until it is given the record again), and
/// writing an old one back is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The highest record seen.
    pub record: Record,
    /// The highest term seen.
    pub term: Term,
    /// The boot in which this was written.
    pub boot: BootId,
    /// The newest epoch this member held and whose unacknowledged tail its log may still carry. Cleared when it is
    /// pointed at another holder or receives from one: from then on it is a replica, and is restarted as one.
    pub held: Option<Epoch>,
    /// Up to this epoch the member may have acknowledged, or written, what it no longer has: its data folder was made anew
    /// while it counted. It counts as complete for none of them until it was removed from A and added again (failover.md section 2).
    #[serde(default)]
    pub incomplete: Option<Epoch>,
}

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeeperCore {
    member: MemberId,
    incarnation: KeeperIncarnation,
    boot: BootId,
    kept: Option<Kept>,
    /// The last order obeyed, by the term of the leader that numbered it: each leader numbers anew.
    last: (Term, Sequence),
    in_progress: Option<InProgress>,
    /// The server was opened by an order that was obeyed, and is not known to be closed or gone since.
    open: Option<Epoch>,
    /// `None`: leases are not kept here, nothing is killed.
    lease: Option<Lease>,
    now: BootTime,
    rules: Rules,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct InProgress {
    sequence: Sequence,
    /// `Start` and `Kill` end by themselves, and cutting a `Start` short could leave a server that nobody knows.
    gives_way: GivesWay,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GivesWay {
    ToKill,
    ToNothing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Send this; nothing changes.
    Refuse(OrderReply),
    /// Persist (synced) what is to be persisted, then carry out the verb.
    Obey { persist: Option<Kept>, verb: Verb },
}

impl KeeperCore {
    /// `kept` is what the file holds; `None` on a fresh member and on one that lost its file.
    pub fn new(
        member: MemberId,
        incarnation: KeeperIncarnation,
        boot: BootId,
        kept: Option<Kept>,
    ) -> Self {
        let last = (kept.as_ref().map_or(Term(0), |kept| kept.term), Sequence(0));
        Self {
            member,
            incarnation,
            boot,
            kept,
            last,
            in_progress: None,
            open: None,
            lease: None,
            now: BootTime::default(),
            rules: Rules::ALL_KEPT,
        }
    }

    /// Keeps leases of this length ([`crate::LEASE`], or what the cluster's decider was given).
    #[must_use]
    pub fn with_lease(mut self, length: Duration) -> Self {
        self.lease = Some(Lease::of(length));
        self
    }

    #[cfg(any(test, feature = "sim"))]
    pub fn breaking(mut self, rules: Rules) -> Self {
        self.rules = rules;
        self
    }

    pub fn incarnation(&self) -> KeeperIncarnation {
        self.incarnation
    }

    /// The highest record persisted, for reports.
    pub fn record(&self) -> Option<&Record> {
        self.kept.as_ref().map(|kept| &kept.record)
    }

    /// For reports: [`Kept::held`].
    pub fn held(&self) -> Option<Epoch> {
        self.kept.as_ref().and_then(|kept| kept.held)
    }

    /// For reports: [`Kept::incomplete`].
    pub fn incomplete(&self) -> Option<Epoch> {
        self.kept.as_ref().and_then(|kept| kept.incomplete)
    }

    pub fn in_progress(&self) -> Option<Sequence> {
        self.in_progress.map(|order| order.sequence)
    }

    /// May this order be obeyed? `server` must have been read after the last order completed.
    pub fn offer(&mut self, order: &Order, server: &ServerState) -> Decision {
        match self.refusal(order, server) {
            Some(refusal) => {
                Decision::Refuse(self.reply(order.header.sequence, OrderOutcome::Refused(refusal)))
            }
            None => {
                self.last = (order.header.record.term, order.header.sequence);
                let gives_way = match order.verb {
                    Verb::Start { .. } | Verb::Kill => GivesWay::ToNothing,
                    Verb::Learn
                    | Verb::StopReceiving
                    | Verb::Drain
                    | Verb::Repoint { .. }
                    | Verb::Receive
                    | Verb::TakeOver
                    | Verb::Admit { .. }
                    | Verb::Expel { .. }
                    | Verb::Barrier
                    | Verb::Open
                    | Verb::Demote { .. }
                    | Verb::Reinstate
                    | Verb::Lend { .. }
                    | Verb::Rebuild { .. } => GivesWay::ToKill,
                };
                self.in_progress = Some(InProgress {
                    sequence: order.header.sequence,
                    gives_way,
                });
                match order.verb {
                    Verb::Open | Verb::Reinstate => self.open = Some(order.header.record.epoch),
                    // Every server starts closed.
                    Verb::Start { .. } => self.open = None,
                    Verb::Learn
                    | Verb::Kill
                    | Verb::StopReceiving
                    | Verb::Drain
                    | Verb::Repoint { .. }
                    | Verb::Receive
                    | Verb::TakeOver
                    | Verb::Admit { .. }
                    | Verb::Expel { .. }
                    | Verb::Barrier
                    | Verb::Demote { .. }
                    | Verb::Lend { .. }
                    | Verb::Rebuild { .. } => {}
                }
                let after = self.kept_after(order, server);
                let persist = (self.kept.as_ref() != Some(&after)).then_some(after);
                Decision::Obey {
                    persist,
                    verb: order.verb.clone(),
                }
            }
        }
    }

    /// What `offer` asked to persist is on disk, synced.
    pub fn persisted(&mut self, kept: Kept) {
        self.kept = Some(kept);
    }

    /// The order in progress is over, however it went: nothing of it runs any more. Not to be called for an order that
    /// gave way to a `Kill`.
    pub fn completed(&mut self, outcome: OrderOutcome) -> Option<OrderReply> {
        match &outcome {
            // Read-only, and no connection of an application is left.
            OrderOutcome::Exited { .. } | OrderOutcome::Demoted { .. } => self.open = None,
            OrderOutcome::Done
            | OrderOutcome::Started { .. }
            | OrderOutcome::Stopped { .. }
            | OrderOutcome::Drained { .. }
            | OrderOutcome::BarrierDone { .. }
            | OrderOutcome::Lent { .. }
            | OrderOutcome::Refused(_)
            | OrderOutcome::Failed { .. } => {}
        }
        let InProgress { sequence, .. } = self.in_progress.take()?;
        Some(self.reply(sequence, outcome))
    }

    /// The server is gone, by itself or by an order.
    pub fn server_ended(&mut self) {
        self.open = None;
    }

    fn reply(&self, sequence: Sequence, outcome: OrderOutcome) -> OrderReply {
        OrderReply {
            member: self.member.clone(),
            sequence,
            incarnation: self.incarnation,
            outcome,
        }
    }

    fn refusal(&self, order: &Order, server: &ServerState) -> Option<Refusal> {
        let header = &order.header;
        if header.incarnation != self.incarnation && !self.rules.broken(Mutation::NoIncarnation) {
            return Some(Refusal::OtherIncarnation {
                own: self.incarnation,
            });
        }
        if let Some(InProgress {
            sequence,
            gives_way,
        }) = self.in_progress
            && (order.verb != Verb::Kill || gives_way == GivesWay::ToNothing)
        {
            return Some(Refusal::Busy { sequence });
        }
        match &self.kept {
            // Fresh, or its file is lost: it cannot tell an old order from a new one. The decider sends `Learn` to such
            // a keeper only with a record read (linearizably) after this incarnation reported.
            None if order.verb != Verb::Learn => {
                return Some(not_legal(
                    "this keeper knows no record: it must be told the record first",
                ));
            }
            None => {}
            Some(kept) => {
                let lower =
                    header.record.rank() < kept.record.rank() || header.record.term < kept.term;
                if lower && !self.rules.broken(Mutation::AcceptLowerVersion) {
                    return Some(Refusal::Stale {
                        persisted: Box::new(kept.record.clone()),
                    });
                }
                if header.record.rank() == kept.record.rank() && header.record != kept.record {
                    return Some(not_legal(
                        "another record of the same epoch and version is persisted here",
                    ));
                }
            }
        }
        // Leaders number their orders each for themselves; those of an earlier term were refused above.
        let (term, sequence) = self.last;
        if header.record.term == term
            && header.sequence <= sequence
            && !self.rules.broken(Mutation::NoOrderSequence)
        {
            return Some(Refusal::OldSequence { last: sequence });
        }
        self.illegal(&header.record, &order.verb)
            .or_else(|| self.wrong_server(&header.record, &order.verb, server))
    }

    /// Is the verb legal for this member under the record?
    fn illegal(&self, record: &Record, verb: &Verb) -> Option<Refusal> {
        let holds = record.holds(&self.member);
        let serving = record.phase == Phase::Serving;
        let lax = self.rules.broken(Mutation::EnableAckerBeforeCas);
        match verb {
            Verb::Learn | Verb::StopReceiving => None,
            Verb::Start { recovery: Recovery::KeepTail } => (holds && serving)
                .then(|| not_legal("a holder is restarted under a new epoch only: its tail must be acknowledged first")),
            Verb::Start { recovery: Recovery::DropTail } => self.illegal_drop(record),
            Verb::Kill => (holds && serving).then(|| not_legal("the holder of a serving epoch is not killed")),
            Verb::Drain => (holds && serving).then(|| not_legal("the holder of a serving epoch receives nothing")),
            Verb::Repoint { source, acker } => {
                if holds || record.phase == Phase::Revoking || source.member != record.holder {
                    return Some(not_legal("a member is pointed only at the holder of the record's epoch"));
                }
                let counts = match acker {
                    Acker::Counts => true,
                    Acker::Asynchronous => false,
                };
                (counts && !record.ackers.contains(&self.member) && !lax)
                    .then(|| not_legal("only a member of A acknowledges"))
            }
            // Under `Revoking` the holder named is the demoted one, from which a candidate may still catch up.
            Verb::Receive => holds.then(|| not_legal("the holder does not receive")),
            Verb::TakeOver => (!holds || record.phase != Phase::Promoting)
                .then(|| not_legal("only the holder of a promoting epoch takes over")),
            Verb::Admit { member } => {
                (!holds || *member == self.member).then(|| not_legal("only the holder admits, and only others"))
            }
            Verb::Expel { member } => {
                let counts = record.ackers.contains(member) && record.leaving.as_ref() != Some(member);
                (!holds || counts)
                    .then(|| not_legal("only the holder expels, and a member of A only once it is marked as leaving"))
            }
            Verb::Barrier => (!holds).then(|| not_legal("only the holder commits a barrier")),
            Verb::Open | Verb::Reinstate => (!holds || !(serving || self.rules.broken(Mutation::OpenBeforeServing)))
                .then(|| not_legal("only the holder of a serving epoch is opened")),
            Verb::Demote { .. } => (record.holder != self.member || record.phase != Phase::Revoking)
                .then(|| not_legal("only the holder of the epoch that is being ended is demoted")),
            Verb::Lend { to, .. } => (!serving || *to == self.member)
                .then(|| not_legal("a copy is lent to others, and only while a holder serves")),
            Verb::Rebuild { .. } => self.illegal_rebuild(record),
        }
    }

    /// Dropping a tail loses acknowledged commits unless the successor has them, which only a `Serving` record of a
    /// higher epoch with nothing unclosed says (failover.md section 6).
    fn illegal_drop(&self, record: &Record) -> Option<Refusal> {
        if self.rules.broken(Mutation::HolderRestartedWithWrongRole) {
            return None;
        }
        let newer = match self.held() {
            Some(held) => record.epoch > held,
            None => {
                return Some(not_legal(
                    "this member held no epoch: a replica keeps what it acknowledged",
                ));
            }
        };
        let closed = record.phase == Phase::Serving
            && record.unclosed.is_empty()
            && record.holder != self.member;
        (!newer || !closed).then(|| {
            not_legal("no other member serves at a higher, closed epoch: the tail may be needed")
        })
    }

    /// A rebuilt member gives up what it received. Whoever is in the A of an epoch that may still need it keeps that
    /// (failover.md section 2).
    fn illegal_rebuild(&self, record: &Record) -> Option<Refusal> {
        let counts = record.ackers.contains(&self.member);
        let free = record.phase == Phase::Serving && record.unclosed.is_empty() && !counts;
        (!free || record.holder == self.member)
            .then(|| not_legal("what this member received may still be needed"))
    }

    /// Does the verb fit what the server is doing now?
    fn wrong_server(&self, record: &Record, verb: &Verb, server: &ServerState) -> Option<Refusal> {
        let wrong = |why: &str| {
            Some(Refusal::WrongServerState {
                why: why.to_owned(),
            })
        };
        let facts = match (verb, server) {
            (Verb::Learn | Verb::Kill, _) => return None,
            (Verb::Start { .. }, ServerState::Down { .. }) => return None,
            (Verb::Start { .. }, ServerState::Starting { .. } | ServerState::Up { .. }) => {
                return wrong("the server runs already");
            }
            (Verb::Rebuild { .. }, ServerState::Down { .. }) => return None,
            (Verb::Rebuild { .. }, ServerState::Starting { .. } | ServerState::Up { .. }) => {
                return wrong("the server runs: it is killed first");
            }
            (_, ServerState::Down { .. } | ServerState::Starting { .. }) => {
                return wrong("the server is not up");
            }
            (_, ServerState::Up { facts, .. }) => facts,
        };
        match verb {
            Verb::Learn | Verb::Kill | Verb::Start { .. } | Verb::Rebuild { .. } => None,
            // It would be made a replica with clients connected and commits waiting.
            Verb::Receive | Verb::Drain | Verb::Repoint { .. } | Verb::StopReceiving
                if !facts.read_only =>
            {
                wrong("it is open for writes: a former holder is killed")
            }
            Verb::Receive => match &facts.receiver {
                Receiver::None => wrong("no source is named"),
                Receiver::Running { source, .. } | Receiver::Stopped { source, .. }
                    if source.member != record.holder =>
                {
                    wrong("its source is not the holder of the record")
                }
                Receiver::Running { .. } | Receiver::Stopped { .. } if facts.needs_salvage => {
                    if self.rules.broken(Mutation::StartWithoutSalvage) {
                        None
                    } else {
                        wrong("a start would purge received events: drain first")
                    }
                }
                Receiver::Running { .. } | Receiver::Stopped { .. } => None,
            },
            Verb::Drain => match &facts.receiver {
                Receiver::Running { .. } => wrong("it still receives: stop it first"),
                Receiver::None | Receiver::Stopped { .. } => None,
            },
            // The barrier shows that this very server, not one restarted since, wrote the epoch's first commit.
            Verb::Open | Verb::Reinstate
                if facts.barrier != Some(record.epoch)
                    && !self.rules.broken(Mutation::OpenBeforeServing)
                    && !self.rules.broken(Mutation::SkipBarrier) =>
            {
                wrong("this server has not committed the barrier of this epoch")
            }
            Verb::Open | Verb::Reinstate if self.lease_over(record.epoch) => wrong(
                "its lease has ended: a barrier must be acknowledged or a renewal granted first",
            ),
            Verb::StopReceiving
            | Verb::Repoint { .. }
            | Verb::TakeOver
            | Verb::Admit { .. }
            | Verb::Expel { .. }
            | Verb::Barrier
            | Verb::Open
            | Verb::Reinstate
            | Verb::Demote { .. }
            | Verb::Lend { .. } => None,
        }
    }

    /// What must be on disk before the order is carried out.
    fn kept_after(&self, order: &Order, server: &ServerState) -> Kept {
        let record = &order.header.record;
        // A keeper whose file was lost restarts as a replica does, which keeps everything: at worst its log then
        // differs from the primary's, and it is rebuilt.
        let mut held = self.held();
        if record.holder == self.member {
            held = held.max(Some(if record.holds(&self.member) {
                record.epoch
            } else {
                record.ended()
            }));
        }
        // By `Receive` as well: a holder that died before it forgot its source is not pointed anew when that source
        // holds the next epoch, and what it then acknowledges must not be dropped as a tail.
        // By `Rebuild`, because its log is to be another one.
        if matches!(
            order.verb,
            Verb::Repoint { .. } | Verb::Receive | Verb::Rebuild { .. }
        ) {
            held = None;
        }
        let term = self
            .kept
            .as_ref()
            .map_or(record.term, |kept| kept.term.max(record.term));
        Kept {
            record: record.clone(),
            term,
            boot: self.boot.clone(),
            held,
            incomplete: self.incomplete_after(order, server),
        }
    }

    fn incomplete_after(&self, order: &Order, server: &ServerState) -> Option<Epoch> {
        let record = &order.header.record;
        let counted = |holder: &MemberId, ackers: &BTreeSet<MemberId>| {
            *holder == self.member || ackers.contains(&self.member)
        };
        let unclosed = record.unclosed.iter();
        let unclosed = unclosed.filter(|of| counted(&of.holder, &of.ackers));
        let unclosed = unclosed.map(|of| of.epoch).max();
        let now = match record.phase {
            Phase::Serving => Some(record.epoch),
            Phase::Revoking => Some(record.ended()),
            // It has acknowledged nothing of this epoch before it was started in it.
            Phase::Promoting => None,
        };
        let lost = unclosed.max(now.filter(|_| counted(&record.holder, &record.ackers)));
        let made_anew = matches!(order.verb, Verb::Start { .. })
            && matches!(
                server,
                ServerState::Down {
                    initialised: false,
                    ..
                }
            )
            && !self.rules.broken(Mutation::EmptyAckerComplete);
        let before = self.incomplete();
        let still = unclosed.is_some() || counted(&record.holder, &record.ackers);
        before.filter(|_| still).max(lost.filter(|_| made_anew))
    }
}

fn not_legal(why: &str) -> Refusal {
    Refusal::NotLegal {
        why: why.to_owned(),
    }
}

#[cfg(test)]
mod tests;
