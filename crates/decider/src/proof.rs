//! The two proofs that a promotion takes (failover.md section 3), as types that only this module builds.
//!
//! Nothing else in the crate can make a record `Promoting` or `Serving`: [`promote`] takes a fence for the epoch that
//! is being ended and a completeness proof for it and for every unclosed one, all for the same candidate, and [`serve`]
//! takes the acknowledged barrier. The fences of *unclosed* epochs need not be shown again: an epoch enters `unclosed`
//! only through [`promote`], with its fence, and a fence once complete stays so (its holder opens only by a later
//! record).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use homeostat_model::{Epoch, Term};

use crate::rules::{Mutation, Rules};
use crate::{
    BootId, KeeperIncarnation, LogEnd, LogOrder, MemberId, MemberReport, Phase, Record,
    ServerState, Unclosed,
};

/// The holder of `epoch` can gain no further acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceProof {
    epoch: Epoch,
    how: Fence,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Fence {
    Exited {
        holder: MemberId,
        keeper: KeeperIncarnation,
        boot: BootId,
    },
    Revoked {
        holder: MemberId,
        by: BTreeMap<MemberId, Revocation>,
    },
    Demoted {
        holder: MemberId,
    },
    NeverHeld,
    /// Only under a mutation.
    Assumed,
}

/// How a member of A came to acknowledge nothing more for the ended epoch. Its keeper persisted the next one before, so it
/// is not let receive from the old holder again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Revocation {
    /// Its IO was verified stopped. The semi-sync flag is no evidence: clearing it does not stop a running IO thread.
    IoStopped,
    /// No server runs there. It counts here; what it had received is another matter.
    Exited,
}

impl FenceProof {
    /// `Exited`: the keeper persisted the new epoch and says that no server runs (it was reaped, or died with its
    /// keeper). From then on a server starts there only closed, by an order of the new epoch.
    pub(crate) fn exited(revoking: &Record, report: &MemberReport) -> Option<Self> {
        let persisted = report
            .record
            .as_ref()
            .is_some_and(|known| known.epoch >= revoking.epoch);
        let down = matches!(report.server, ServerState::Down { .. });
        (report.member == revoking.holder && persisted && down).then(|| Self {
            epoch: revoking.ended(),
            how: Fence::Exited {
                holder: report.member.clone(),
                keeper: report.incarnation,
                boot: report.boot.clone(),
            },
        })
    }

    /// `Revoked`: of A so many were revoked that fewer than k are left (k = 1: all of A). The holder may be alive and open;
    /// nobody is left to acknowledge for it. A member that cannot be reached never counts.
    ///
    /// An acknowledgement may be on its way at this moment: that write is in the acker's log, which is read afterwards.
    pub(crate) fn revoked(
        rules: Rules,
        revoking: &Record,
        by: &BTreeMap<MemberId, Revocation>,
    ) -> Option<Self> {
        let of_a: BTreeMap<MemberId, Revocation> = by
            .iter()
            .filter(|(member, _)| revoking.ackers.contains(*member))
            .map(|(member, how)| (member.clone(), *how))
            .collect();
        let fewer = usize::from(rules.broken(Mutation::RevokedFromFewer));
        let needed = (revoking.ackers.len() + 1)
            .saturating_sub(usize::from(revoking.k) + fewer)
            .max(1);
        (of_a.len() >= needed).then(|| Self {
            epoch: revoking.ended(),
            how: Fence::Revoked {
                holder: revoking.holder.clone(),
                by: of_a,
            },
        })
    }

    /// Whether the fenced holder may still be open for reads until its lease ends.
    pub(crate) fn leaves_it_open(&self) -> bool {
        match self.how {
            Fence::Revoked { .. } | Fence::Assumed => true,
            Fence::Exited { .. } | Fence::Demoted { .. } | Fence::NeverHeld => false,
        }
    }

    /// `Demoted`: the holder's keeper answered a `Demote` order of this very record.
    pub(crate) fn demoted(revoking: &Record, demoted: &Demoted) -> Option<Self> {
        (demoted.rank == revoking.rank() && demoted.member == revoking.holder).then(|| Self {
            epoch: revoking.ended(),
            how: Fence::Demoted {
                holder: demoted.member.clone(),
            },
        })
    }

    /// `NeverHeld`: every member reported that it has never been started as part of this cluster.
    pub(crate) fn never_held(
        members: &[MemberId],
        reports: &BTreeMap<MemberId, MemberReport>,
    ) -> Option<Self> {
        let fresh = |member: &MemberId| {
            reports.get(member).is_some_and(|report| {
                report.record.is_none()
                    && matches!(
                        report.server,
                        ServerState::Down {
                            initialised: false,
                            ..
                        }
                    )
            })
        };
        members.iter().all(fresh).then_some(Self {
            epoch: Epoch(0),
            how: Fence::NeverHeld,
        })
    }

    pub(crate) fn assumed(rules: Rules, revoking: &Record) -> Option<Self> {
        rules.broken(Mutation::NoFence).then(|| Self {
            epoch: revoking.ended(),
            how: Fence::Assumed,
        })
    }
}

impl fmt::Display for FenceProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.how {
            Fence::Exited {
                holder,
                keeper,
                boot,
            } => write!(
                f,
                "epoch {}: Exited: {holder}'s keeper {:x} (boot {}) persisted the new epoch and no server runs there",
                self.epoch, keeper.0, boot.0
            ),
            Fence::Revoked { holder, by } => {
                write!(
                    f,
                    "epoch {}: Revoked: nobody acknowledges for {holder} any more (",
                    self.epoch
                )?;
                for (i, (member, how)) in by.iter().enumerate() {
                    let how = match how {
                        Revocation::IoStopped => "stopped receiving",
                        Revocation::Exited => "has no server",
                    };
                    write!(f, "{}{member} {how}", if i == 0 { "" } else { ", " })?;
                }
                write!(f, ")")
            }
            Fence::Demoted { holder } => {
                write!(
                    f,
                    "epoch {}: Demoted: {holder} is read-only and no commit waits there",
                    self.epoch
                )
            }
            Fence::NeverHeld => write!(f, "NeverHeld: no member has data of this cluster"),
            Fence::Assumed => write!(f, "epoch {}: assumed", self.epoch),
        }
    }
}

/// A keeper's answer to `Demote`, with what it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Demoted {
    pub(crate) rank: (Epoch, homeostat_model::RecordVersion),
    pub(crate) member: MemberId,
    pub(crate) position: LogEnd,
}

/// The candidate has every acknowledged write of `epoch`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompleteProof {
    epoch: Epoch,
    candidate: MemberId,
    how: Complete,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Complete {
    Ackers {
        ends: BTreeMap<MemberId, LogEnd>,
    },
    OldLog,
    Closed {
        barrier: Epoch,
    },
    Position {
        position: LogEnd,
    },
    NeverHeld,
    /// Only under a mutation.
    Assumed,
}

/// What is known of one log, gathered under the current (epoch, version) and read after that member's IO stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownLog {
    /// Up to this epoch its member may have acknowledged more than is in it.
    pub(crate) incomplete: Option<Epoch>,
    /// The end of what it received.
    pub(crate) received: LogEnd,
    /// The end of what it applied, once it was drained.
    pub(crate) drained: Option<LogEnd>,
}

impl CompleteProof {
    /// Is `candidate` proved complete for the ended or unclosed epoch `of`? The error says why not, for people.
    pub(crate) fn find(
        rules: Rules,
        of: &Unclosed,
        candidate: &MemberId,
        logs: &BTreeMap<MemberId, KnownLog>,
        demoted: Option<&Demoted>,
    ) -> Result<Self, String> {
        let proof = |how| Self {
            epoch: of.epoch,
            candidate: candidate.clone(),
            how,
        };
        let Some(own) = logs.get(candidate) else {
            return Err("its log is not known yet".to_owned());
        };
        let Some(applied) = own.drained else {
            return Err("it has not applied all it received yet".to_owned());
        };
        if rules.broken(Mutation::PromoteWithoutComplete) {
            return Ok(proof(Complete::Assumed));
        }
        if applied.barrier > of.epoch {
            return Ok(proof(Complete::Closed {
                barrier: applied.barrier,
            }));
        }
        let whole = |log: &KnownLog| log.incomplete < Some(of.epoch);
        if *candidate == of.holder && whole(own) {
            // It is that member itself: its log is a superset of whatever was acknowledged from it.
            return Ok(proof(Complete::OldLog));
        }
        if let Some(demoted) = demoted.filter(|demoted| demoted.member == of.holder) {
            return match contains(rules, &applied, &demoted.position, Premise::SameA) {
                true => Ok(proof(Complete::Position {
                    position: demoted.position,
                })),
                false => Err(format!(
                    "it has not received all that {} committed",
                    of.holder
                )),
            };
        }
        // A log of the holder itself that was read under this record, so after the fence of its epoch.
        if let Some(log) = logs
            .get(&of.holder)
            .filter(|log| log.drained.is_some() && whole(log))
            && contains(rules, &applied, &log.received, Premise::None)
        {
            return Ok(proof(Complete::OldLog));
        }
        let premise = if of.ackers.contains(candidate) {
            Premise::SameA
        } else {
            Premise::None
        };
        let mut ends = BTreeMap::new();
        for acker in &of.ackers {
            let Some(log) = logs.get(acker) else {
                if rules.broken(Mutation::DownAckerComplete) {
                    continue;
                }
                return Err(format!(
                    "{acker} may have acknowledged writes of epoch {} and its log is not known",
                    of.epoch
                ));
            };
            if !whole(log) {
                return Err(format!(
                    "{acker} lost what it had acknowledged of epoch {}",
                    of.epoch
                ));
            }
            if !contains(rules, &applied, &log.received, premise) {
                return Err(format!(
                    "{acker} is not known to have received less than it"
                ));
            }
            ends.insert(acker.clone(), log.received);
        }
        if ends.is_empty() {
            return Err(format!("epoch {} had no ackers", of.epoch));
        }
        Ok(proof(Complete::Ackers { ends }))
    }
}

/// What is known of two logs besides their ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Premise {
    None,
    /// Both are prefixes of one holder's log: they belong to the same A, or one to its holder.
    SameA,
}

/// Does the log that ends at `whole` contain the one that ends at `part`?
pub(crate) fn contains(rules: Rules, whole: &LogEnd, part: &LogEnd, premise: Premise) -> bool {
    if rules.broken(Mutation::CompareBySequenceOnly) {
        let sequence = |end: &LogEnd| end.last.map_or(0, |gtid| gtid.sequence);
        return sequence(part) <= sequence(whole);
    }
    let order = match premise {
        Premise::None => part.compare(whole),
        Premise::SameA => part.compare_prefixes(whole),
    };
    matches!(order, LogOrder::Same | LogOrder::Behind)
}

impl fmt::Display for CompleteProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}: {} ", self.epoch, self.candidate)?;
        match &self.how {
            Complete::Ackers { ends } => {
                write!(f, "has all that the ackers received (")?;
                for (i, (member, end)) in ends.iter().enumerate() {
                    let separator = if i == 0 { "" } else { ", " };
                    match end.last {
                        Some(gtid) => write!(f, "{separator}{member} to {gtid}")?,
                        None => write!(f, "{separator}{member} nothing")?,
                    }
                }
                write!(f, ")")
            }
            Complete::OldLog => write!(
                f,
                "wrote that log, or contains the end of it as read after the fence"
            ),
            Complete::Closed { barrier } => write!(f, "contains the barrier of epoch {barrier}"),
            Complete::Position { position } => match position.last {
                Some(gtid) => write!(f, "contains {gtid}, the last commit before the switchover"),
                None => write!(f, "contains the empty log before the switchover"),
            },
            Complete::NeverHeld => write!(f, "begins a new cluster"),
            Complete::Assumed => write!(f, "is assumed complete"),
        }
    }
}

/// The one place where a `Promoting` record is made: `new` holds the ended epoch's successor from here on.
///
/// Returns `None` when a proof is for another epoch or candidate than it should be, or one is missing.
pub(crate) fn promote(
    rules: Rules,
    current: &Record,
    term: Term,
    candidate: &MemberId,
    ackers: BTreeSet<MemberId>,
    fence: &FenceProof,
    complete: &[CompleteProof],
) -> Option<Record> {
    let mut unclosed = current.unclosed.clone();
    unclosed.push(current.ended_as_unclosed());
    let proved = |epoch: Epoch| {
        complete
            .iter()
            .any(|proof| proof.epoch == epoch && proof.candidate == *candidate)
    };
    let enough = ackers.len() >= usize::from(current.k) && !ackers.contains(candidate);
    let fenced = fence.epoch == current.ended();
    if current.phase != Phase::Revoking
        || !enough
        || !fenced
        || !unclosed.iter().all(|of| proved(of.epoch))
    {
        return None;
    }
    if rules.broken(Mutation::DropUnclosed) {
        unclosed.clear();
    }
    Some(Record {
        epoch: current.epoch,
        version: current.version.next(),
        term,
        phase: Phase::Promoting,
        holder: candidate.clone(),
        ackers,
        leaving: None,
        k: current.k,
        unclosed,
    })
}

/// The first record of a cluster: nobody has data, so any member is complete.
pub(crate) fn found(
    fence: &FenceProof,
    term: Term,
    holder: MemberId,
    ackers: BTreeSet<MemberId>,
    k: u8,
) -> Option<(Record, CompleteProof)> {
    let complete = CompleteProof {
        epoch: Epoch(0),
        candidate: holder.clone(),
        how: Complete::NeverHeld,
    };
    let right = fence.how == Fence::NeverHeld
        && ackers.len() >= usize::from(k)
        && !ackers.contains(&holder);
    right.then(|| {
        let record = Record {
            epoch: Epoch(1),
            version: homeostat_model::RecordVersion(1),
            term,
            phase: Phase::Promoting,
            holder,
            ackers,
            leaving: None,
            k,
            unclosed: Vec::new(),
        };
        (record, complete)
    })
}

/// The one place where a `Serving` record follows a `Promoting` one: the barrier of this epoch was acknowledged.
pub(crate) fn serve(
    rules: Rules,
    current: &Record,
    term: Term,
    barrier: Option<Epoch>,
) -> Option<Record> {
    let closed = barrier == Some(current.epoch) || rules.broken(Mutation::SkipBarrier);
    (current.phase == Phase::Promoting && closed).then(|| Record {
        version: current.version.next(),
        term,
        phase: Phase::Serving,
        unclosed: Vec::new(),
        ..current.clone()
    })
}
