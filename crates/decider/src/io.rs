//! What goes into a decider and what comes out: the words of its loop.
//!
//! Every effect and its completion carry the attempt or sequence they belong to; stale ones are dropped.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use homeostat_model::{Epoch, RecordVersion, Sequence, Term};
use serde::{Deserialize, Serialize};

use crate::{
    KeeperIncarnation, LeaseGrant, LeaseRequest, LogEnd, MemberId, MemberReport, Now, Order,
    OrderReply, Phase, Pulse, Record,
};

#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "few exist at a time, and a box would hide the shape"
)]
pub enum Input {
    /// A linearizable read of the record, begun after the last `ReadRecord` effect. The first input of a leader.
    RecordRead(Option<Record>),
    CasDone {
        attempt: u64,
        outcome: CasOutcome,
    },
    Report(MemberReport),
    /// The keeper of the last report lives, and this is what it hears. Nothing else is known anew: replies to orders since
    /// that report stand.
    Alive {
        member: MemberId,
        incarnation: KeeperIncarnation,
        pulse: Pulse,
    },
    /// The keeper of a holder asks to stay open. A request that was on its way for long does no harm: the lease counts
    /// from when it was sent.
    LeaseAsked(LeaseRequest),
    /// Its keeper cannot be reached now. No conclusion is drawn from that alone: how long nothing was heard counts.
    KeeperGone {
        member: MemberId,
    },
    Reply(OrderReply),
    /// Outcome unknown: it may be carried out later, or twice.
    OrderLost {
        member: MemberId,
        sequence: Sequence,
    },
    /// A person or an operation asks for another holder; `None`: any acker.
    Switchover {
        request: u64,
        to: Option<MemberId>,
    },
    Tick,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CasOutcome {
    Committed,
    Lost {
        current: Option<Record>,
    },
    /// It may have been committed, or may be later.
    Unknown,
}

/// To be carried out in the order given; those for different members may run at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Read the record, linearizably; answer with `RecordRead`. Retry for as long as the store does not answer.
    ReadRecord,
    /// Replace the whole record; exactly one `CasDone` with this attempt must follow.
    Cas {
        attempt: u64,
        expected: Option<Record>,
        new: Record,
    },
    /// Send to the member's keeper; exactly one `Reply` or `OrderLost` must follow (after `timeout` at the latest).
    Order {
        member: MemberId,
        order: Order,
        timeout: Duration,
    },
    /// Tell the endpoints. Lower (epoch, version) are to be ignored by them.
    Endpoint {
        epoch: Epoch,
        version: RecordVersion,
        target: Option<MemberId>,
    },
    /// Send to the member's keeper ([`crate::KeeperCore::granted`]); no answer. One that is lost is asked for again.
    GrantLease { member: MemberId, grant: LeaseGrant },
    /// For the events and for `why`; nothing hangs on it.
    Note(Note),
    SwitchoverDone {
        request: u64,
        result: Result<MemberId, SwitchoverRefused>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SwitchoverRefused {
    #[error("the cluster has no open primary now ({state})")]
    NotServing { state: String },
    #[error("another switchover is under way")]
    UnderWay,
    #[error("{member} is not a member of the cluster")]
    NotAMember { member: MemberId },
    #[error("{member} is the primary already")]
    AlreadyHolder { member: MemberId },
    #[error("{member} cannot take over now: {why}")]
    NotReady { member: MemberId, why: String },
    #[error("no member can take over now")]
    NobodyReady,
    #[error("it was not finished within its bound; {holder} holds the primary role")]
    OutOfTime { holder: MemberId },
    #[error("another leader took over; ask again")]
    LeaderChanged,
}

/// The story of what was done and why, one entry each; `at` is on the decider's own clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub at: Now,
    pub epoch: Epoch,
    pub version: RecordVersion,
    pub event: NoteEvent,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum NoteEvent {
    /// This leader's term stands in the record.
    Leading {
        term: Term,
    },
    /// What set a change of epoch off.
    Evidence {
        evidence: Evidence,
    },
    /// A record was committed.
    Record {
        record: Record,
    },
    Fence {
        proof: String,
    },
    /// Who becomes holder, by which proofs, and why not the others.
    Choice {
        chosen: MemberId,
        complete: Vec<String>,
        others: BTreeMap<MemberId, String>,
    },
    OrderSent {
        member: MemberId,
        order: String,
    },
    OrderDone {
        member: MemberId,
        order: String,
        took: Duration,
        outcome: String,
    },
    /// Endpoints lead to `holder`; `took` since the change of epoch began.
    Opened {
        holder: MemberId,
        took: Duration,
    },
    /// What the decider cannot go on without.
    Waiting {
        waits: Vec<Wait>,
    },
    /// A member that becomes a copy of a peer.
    Rebuild {
        member: MemberId,
        what: RebuildNote,
    },
    /// Another leader's term was seen: nothing is done any more.
    Superseded {
        by: Term,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub enum RebuildNote {
    Needed { reason: RebuildReason },
    Done { source: MemberId, took: Duration },
    Failed { why: String },
}

/// Why a member has to be rebuilt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reason")]
pub enum RebuildReason {
    /// It cannot follow the primary: its log differs, or the primary no longer has what it would need next.
    Diverged { error: String },
    /// It has no data of this cluster, which has more than would be quickly replicated.
    Empty,
    /// An earlier copy was not finished.
    Unfinished,
}

impl fmt::Display for RebuildReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RebuildReason::Diverged { error } => write!(f, "it cannot follow the primary: {error}"),
            RebuildReason::Empty => f.write_str("it has no data"),
            RebuildReason::Unfinished => f.write_str("an earlier copy was not finished"),
        }
    }
}

/// What a rebuilding waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "stage")]
pub enum RebuildStage {
    /// What it received may still be needed.
    LeavesAckers,
    /// One at a time.
    Turn,
    Source,
    /// After a failure.
    Pause,
    Copy {
        source: MemberId,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Evidence {
    /// Its keeper reports that no server runs.
    ServerExited {
        holder: MemberId,
    },
    /// Its server runs, and is not the one that committed the barrier of this epoch.
    ServerReplaced {
        holder: MemberId,
    },
    /// Its server answered no read for H, and nothing came from it to the ackers that can be asked.
    Hung {
        holder: MemberId,
        no_answer_ms: u64,
        witnesses: Vec<MemberId>,
    },
    /// Nothing was heard of its keeper for H, and nothing came from it to any acker; all of them can be reached.
    CutOff {
        holder: MemberId,
        silent_ms: u64,
        witnesses: Vec<MemberId>,
    },
    SwitchoverAsked {
        holder: MemberId,
        to: Option<MemberId>,
    },
    FirstStart,
    /// A change of epoch that an earlier leader began.
    Resumed {
        phase: Phase,
    },
}

/// Something the decider waits for; what people are told instead of silence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "for")]
pub enum Wait {
    RecordRead,
    Cas,
    /// A newer leader acts; this one does nothing.
    Superseded {
        by: Term,
    },
    /// The members know more than the store does: ask a person.
    StoreBehind {
        member: MemberId,
        epoch: Epoch,
    },
    /// A first start needs to hear from every member.
    FirstReports {
        missing: Vec<MemberId>,
    },
    /// No record, yet somebody has data: ask a person.
    RecordLost {
        member: MemberId,
    },
    /// The holder is not proved fenced: its keeper is silent, and so are some members of A, each of which might
    /// acknowledge for it.
    Fence {
        holder: MemberId,
        epoch: Epoch,
        #[serde(default)]
        missing: Vec<MemberId>,
    },
    /// It is at fault, and automatic failover is off.
    AutomaticOff {
        holder: MemberId,
    },
    /// `reads = "strict"`: clients may read at the former holder until its lease has ended.
    Expiry {
        holder: MemberId,
        epoch: Epoch,
    },
    /// Nobody is proved to have every acknowledged write of `epoch`.
    Complete {
        epoch: Epoch,
        why: BTreeMap<MemberId, String>,
    },
    /// A holder needs at least one acker that has persisted the epoch and is contained in it.
    Ackers {
        holder: MemberId,
        why: BTreeMap<MemberId, String>,
    },
    /// An order is under way.
    Order {
        member: MemberId,
        order: String,
    },
    /// It may be tried again later.
    Retry {
        member: MemberId,
        why: String,
    },
    /// Its keeper is silent.
    Member {
        member: MemberId,
    },
    /// It becomes a copy of a peer.
    Rebuild {
        member: MemberId,
        reason: RebuildReason,
        stage: RebuildStage,
    },
    /// Replication does not work for a reason that a copy may not mend.
    Diverged {
        member: MemberId,
        end: LogEnd,
        error: String,
    },
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list(f: &mut fmt::Formatter<'_>, why: &BTreeMap<MemberId, String>) -> fmt::Result {
            for (i, (member, reason)) in why.iter().enumerate() {
                write!(f, "{}{member}: {reason}", if i == 0 { "" } else { "; " })?;
            }
            Ok(())
        }
        fn names(f: &mut fmt::Formatter<'_>, members: &[MemberId]) -> fmt::Result {
            for (i, member) in members.iter().enumerate() {
                write!(f, "{}{member}", if i == 0 { "" } else { ", " })?;
            }
            Ok(())
        }
        match self {
            Wait::RecordRead => write!(f, "the record to be read from the store"),
            Wait::Cas => write!(f, "the store to commit the record"),
            Wait::Superseded { by } => write!(f, "nothing: a newer leader (term {by}) acts"),
            Wait::StoreBehind { member, epoch } => {
                write!(
                    f,
                    "a person: {member} knows epoch {epoch}, which is newer than the store"
                )
            }
            Wait::FirstReports { missing } => {
                write!(f, "a first report from ")?;
                names(f, missing)
            }
            Wait::RecordLost { member } => {
                write!(
                    f,
                    "a person: there is no record of this cluster, yet {member} has data"
                )
            }
            Wait::Fence {
                holder,
                epoch,
                missing,
            } if missing.is_empty() => {
                write!(
                    f,
                    "{holder}'s keeper: nothing else proves that {holder} acknowledges no more writes of epoch {epoch}"
                )
            }
            Wait::Fence {
                holder,
                epoch,
                missing,
            } => {
                write!(f, "{holder}'s keeper, or ")?;
                names(f, missing)?;
                write!(
                    f,
                    ": only they can prove that {holder} acknowledges no more writes of epoch {epoch}"
                )
            }
            Wait::AutomaticOff { holder } => {
                write!(
                    f,
                    "a person: {holder} is hung or cut off, and automatic failover is off"
                )
            }
            Wait::Expiry { holder, epoch } => {
                write!(
                    f,
                    "the lease of {holder} to end: until then clients may read there as of epoch {epoch}"
                )
            }
            Wait::Complete { epoch, why } => {
                write!(
                    f,
                    "a member proved to have every acknowledged write of epoch {epoch} ("
                )?;
                list(f, why)?;
                write!(f, ")")
            }
            Wait::Ackers { holder, why } => {
                write!(f, "a replica that can acknowledge for {holder} (")?;
                list(f, why)?;
                write!(f, ")")
            }
            Wait::Order { member, order } => write!(f, "{member} to carry out {order}"),
            Wait::Retry { member, why } => write!(f, "another try at {member}: {why}"),
            Wait::Member { member } => write!(f, "{member}'s keeper to be reachable"),
            Wait::Rebuild {
                member,
                reason,
                stage,
            } => {
                write!(f, "{member} to be rebuilt ({reason}): ")?;
                match stage {
                    RebuildStage::LeavesAckers => {
                        f.write_str("first it must no longer count as an acker")
                    }
                    RebuildStage::Turn => f.write_str("another member is rebuilt first"),
                    RebuildStage::Source => f.write_str("no member can spare a copy now"),
                    RebuildStage::Pause => f.write_str("the last try failed, another one follows"),
                    RebuildStage::Copy { source } => write!(f, "it is copied from {source}"),
                }
            }
            Wait::Diverged { member, end, error } => {
                write!(
                    f,
                    "{member} to be rebuilt: its log (to epoch {}, ",
                    end.barrier
                )?;
                match end.last {
                    Some(gtid) => write!(f, "{gtid}")?,
                    None => write!(f, "empty")?,
                }
                write!(f, ") is not in the primary's: {error}")
            }
        }
    }
}

/// What `status` and `why` show: a copy, with nothing to act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    pub record: Option<Record>,
    /// This leader's term stands in the record, and no newer one was seen.
    pub leading: bool,
    /// The member that is open for writes, as far as this leader knows.
    pub open: Option<MemberId>,
    pub members: BTreeMap<MemberId, MemberView>,
    pub waits: Vec<Wait>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberView {
    /// `false` while its keeper cannot be reached; then the report is the last one.
    pub reachable: bool,
    pub report: Option<MemberReport>,
    /// The order it carries out now, and since when.
    pub order: Option<(String, Now)>,
}
