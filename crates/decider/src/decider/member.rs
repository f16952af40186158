//! What a decider knows of one member, and what it gathered under the current record.

use std::collections::{BTreeMap, BTreeSet};

use homeostat_model::{Epoch, RecordVersion, Sequence};

use crate::proof::{Demoted, FenceProof, KnownLog, Revocation};
use crate::{
    Acker, CopyOffer, KeeperIncarnation, LeaseRequest, MemberId, MemberReport, Now, OrderOutcome,
    RebuildReason, RebuildState, Receiver, Record, ServerFacts, ServerState, Verb,
};

/// An order on its way. At most one per member.
#[derive(Debug, Clone)]
pub(super) struct Outstanding {
    pub(super) sequence: Sequence,
    pub(super) record: Record,
    pub(super) verb: Verb,
    pub(super) since: Now,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Member {
    pub(super) reachable: bool,
    /// When its keeper was last heard, on the decider's clock.
    pub(super) heard_at: Option<Now>,
    /// Since when its reports come one after the other. The first ones after a gap may be what its connection held back: true
    /// once, and old.
    pub(super) steady_since: Option<Now>,
    /// The last report, with the replies since applied to it.
    pub(super) report: Option<MemberReport>,
    pub(super) order: Option<Outstanding>,
    /// The last sequence used. Counts on for the whole life of this decider, whoever the keeper's process is.
    pub(super) sequence: Sequence,
    /// It refused or failed: left alone until then, for this reason.
    pub(super) retry: Option<(Now, String)>,
    /// A keeper without a record is told it only after a read of the store begun after it reported: this one or later.
    pub(super) needs_read: u64,
    /// Since when it has not been a working replica; `None` while it is one.
    pub(super) away_since: Option<Now>,
    /// It has to be rebuilt, or is being rebuilt.
    pub(super) rebuild: Option<Rebuilding>,
    /// It asks for a lease, to be granted by this look at the record or a later one.
    pub(super) lease: Option<(LeaseRequest, u64)>,
}

/// Why a member is rebuilt, and how far that is.
#[derive(Debug, Clone)]
pub(super) struct Rebuilding {
    pub(super) reason: RebuildReason,
    /// In which it was seen to be needed.
    pub(super) epoch: Epoch,
    pub(super) since: Now,
    pub(super) step: RebuildStep,
    /// No other try before.
    pub(super) not_before: Now,
}

#[derive(Debug, Clone)]
pub(super) enum RebuildStep {
    Wanted,
    Lent {
        source: MemberId,
        offer: CopyOffer,
    },
    /// Its keeper has begun; its reports say how it goes on.
    Begun {
        source: MemberId,
    },
}

impl Member {
    pub(super) fn persisted(&self) -> Option<&Record> {
        self.report
            .as_ref()
            .and_then(|report| report.record.as_ref())
    }

    pub(super) fn facts(&self) -> Option<&ServerFacts> {
        match &self.report.as_ref()?.server {
            ServerState::Up { facts, .. } => Some(facts),
            ServerState::Down { .. } | ServerState::Starting { .. } => None,
        }
    }

    /// Open for writes as last reported: the holder, or a former one that does not know better yet.
    pub(super) fn is_open(&self) -> bool {
        self.facts().is_some_and(|facts| !facts.read_only)
    }

    pub(super) fn is_up(&self) -> bool {
        self.facts().is_some()
    }

    pub(super) fn is_down(&self) -> bool {
        self.report
            .as_ref()
            .is_some_and(|report| matches!(report.server, ServerState::Down { .. }))
    }

    pub(super) fn held(&self) -> Option<Epoch> {
        self.report.as_ref().and_then(|report| report.held)
    }

    /// The member as it is after its keeper carried `verb` out, until a newer report says so itself. Without this each
    /// step would wait for a report as well as for the reply.
    pub(super) fn apply(&mut self, record: &Record, verb: &Verb, outcome: &OrderOutcome) {
        let Some(report) = &mut self.report else {
            return;
        };
        match outcome {
            OrderOutcome::Refused(_) => return,
            // It was tried, so its record is persisted; the rest of the report is as true as before.
            OrderOutcome::Failed { .. }
            | OrderOutcome::Done
            | OrderOutcome::Started { .. }
            | OrderOutcome::Exited { .. }
            | OrderOutcome::Stopped { .. }
            | OrderOutcome::Drained { .. }
            | OrderOutcome::BarrierDone { .. }
            | OrderOutcome::Lent { .. }
            | OrderOutcome::Demoted { .. } => {}
        }
        if report
            .record
            .as_ref()
            .is_none_or(|known| known.rank() < record.rank())
        {
            report.record = Some(record.clone());
        }
        if let OrderOutcome::Exited { server } = outcome {
            report.server = ServerState::Down {
                initialised: true,
                last: server.clone(),
            };
            return;
        }
        match (verb, outcome) {
            (Verb::Lend { to, .. }, OrderOutcome::Lent { .. }) => report.lends = Some(to.clone()),
            (Verb::Rebuild { source, .. }, OrderOutcome::Done) => {
                report.held = None;
                report.rebuild = Some(RebuildState::Copying {
                    source: source.clone(),
                    bytes: 0,
                    of: None,
                    bytes_per_second: 0,
                });
            }
            (_, _) => {}
        }
        if let OrderOutcome::Started { server } = outcome {
            report.rebuild = None;
            let same = matches!(&report.server, ServerState::Up { incarnation, .. } if incarnation == server);
            if !same {
                report.server = ServerState::Starting {
                    incarnation: server.clone(),
                };
            }
            return;
        }
        let ServerState::Up { facts, .. } = &mut report.server else {
            return;
        };
        match (verb, outcome) {
            (Verb::StopReceiving, OrderOutcome::Stopped { received, drained }) => {
                if let Receiver::Running {
                    source, applying, ..
                } = &facts.receiver
                {
                    facts.receiver = Receiver::Stopped {
                        source: source.clone(),
                        applying: *applying,
                    };
                }
                facts.received = *received;
                facts.applied = drained.unwrap_or(facts.applied);
            }
            (Verb::Drain, OrderOutcome::Drained { applied }) => {
                facts.needs_salvage = false;
                facts.applied = *applied;
                facts.received = Some(*applied);
            }
            (Verb::Repoint { source, acker }, OrderOutcome::Done) => {
                facts.receiver = Receiver::Stopped {
                    source: source.clone(),
                    applying: false,
                };
                facts.acker = *acker == Acker::Counts;
                report.held = None;
            }
            (Verb::Receive, OrderOutcome::Done) => {
                report.held = None;
                if let Receiver::Stopped { source, .. } = &facts.receiver {
                    facts.receiver = Receiver::Running {
                        source: source.clone(),
                        connected: false,
                        applying: true,
                        error: None,
                    };
                }
            }
            (Verb::TakeOver, OrderOutcome::Done) => {
                facts.receiver = Receiver::None;
                facts.admitted.clear();
            }
            (Verb::Admit { member }, OrderOutcome::Done) => {
                facts.admitted.insert(member.clone());
            }
            (Verb::Expel { member }, OrderOutcome::Done) => {
                facts.admitted.remove(member);
            }
            (Verb::Barrier, OrderOutcome::BarrierDone { epoch, .. }) => {
                facts.waits_for_ackers = true;
                facts.barrier = Some(*epoch);
            }
            (Verb::Open | Verb::Reinstate, OrderOutcome::Done) => facts.read_only = false,
            (Verb::Demote { .. }, OrderOutcome::Demoted { position }) => {
                facts.read_only = true;
                facts.applied = *position;
            }
            // An answer of another verb, or one that changes nothing here.
            (_, _) => {}
        }
    }
}

/// What was gathered under one (epoch, version); void under any other.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub(super) rank: (Epoch, RecordVersion),
    pub(super) fence: Option<FenceProof>,
    pub(super) demoted: Option<Demoted>,
    /// Whose server was asked to demote itself, in vain.
    pub(super) demote_failed: BTreeSet<MemberId>,
    /// Their IO is verified stopped under this record.
    pub(super) stopped: BTreeMap<MemberId, KeeperIncarnation>,
    /// Acknowledge nothing more for the ended epoch; stays true whatever becomes of their servers.
    pub(super) revoked: BTreeMap<MemberId, Revocation>,
    pub(super) logs: BTreeMap<MemberId, KnownLog>,
    pub(super) taken_over: bool,
    /// Source named and flag set under this record.
    pub(super) repointed: BTreeSet<MemberId>,
    pub(super) admitted: BTreeSet<MemberId>,
    pub(super) received: BTreeSet<MemberId>,
    /// The barrier of this epoch was acknowledged (`Promoting`), or one after the expulsion (`Serving`).
    pub(super) barrier: Option<Epoch>,
    pub(super) expelled: Option<MemberId>,
}

impl Gathered {
    pub(super) fn under(rank: (Epoch, RecordVersion)) -> Self {
        Self {
            rank,
            ..Self::default()
        }
    }

    /// What was known of a member's server ended with that server (or with its keeper).
    pub(super) fn forget(&mut self, member: &MemberId) {
        self.demote_failed.remove(member);
        self.stopped.remove(member);
        self.logs.remove(member);
        self.repointed.remove(member);
        self.received.remove(member);
        if self
            .demoted
            .as_ref()
            .is_some_and(|demoted| demoted.member == *member)
        {
            self.demoted = None;
        }
    }
}
