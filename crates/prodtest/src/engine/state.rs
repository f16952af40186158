//! What the engine remembers of one check.

use crate::history::History;
use crate::suite::{CheckId, Suite};
use crate::time::Moment;
use crate::verdict::{Unknown, Verdict};

use super::{Attempt, Fence};

#[derive(Debug)]
pub(super) struct State {
    pub(super) verdict: Verdict,
    pub(super) turn: Turn,
    /// Where its turn is kept, and under which moment; `None`: it may not be run.
    pub(super) spot: Option<(Spot, Moment)>,
    /// When its latest probe started.
    pub(super) started: Option<Moment>,
    /// The latest probe that passed.
    pub(super) passed: Option<Attempt>,
    pub(super) suspicion: Option<Suspicion>,
    /// Probes in a row that could not be run.
    pub(super) misses: u32,
    pub(super) history: History,
    /// It passed when another engine looked last.
    pub(super) passed_elsewhere: bool,
    /// Of checks that have a fix.
    pub(super) fix: Option<Box<FixState>>,
    /// What the dependents were told last.
    pub(super) face: Face,
    /// What the dependencies told.
    pub(super) tally: Tally,
    /// Shifts its regular turns against those of others.
    pub(super) phase: u64,
}

impl State {
    pub(super) fn new(suite: &Suite, id: CheckId, now: Moment) -> Self {
        let unknown = suite.needs(id).len() as u32;
        let why = if unknown == 0 {
            Unknown::Due
        } else {
            Unknown::Waiting
        };
        Self {
            verdict: Verdict::Unknown(why),
            turn: Turn::Waiting { at: now },
            spot: None,
            started: None,
            passed: None,
            suspicion: None,
            misses: 0,
            history: History::default(),
            passed_elsewhere: false,
            fix: suite.check(id).fix.as_ref().map(|_| Box::default()),
            face: Face::Unknown,
            tally: Tally {
                suspect: 0,
                unknown,
                bad: 0,
            },
            phase: fnv1a(suite.name(id).as_str()),
        }
    }

    /// How it looks to its dependents now.
    pub(super) fn face_now(&self) -> Face {
        match &self.verdict {
            Verdict::Pass(_) | Verdict::Flaky { .. } => match self.suspicion {
                None => Face::Passes,
                Some(_) => Face::Suspect,
            },
            Verdict::Unknown(_) => Face::Unknown,
            Verdict::Fail(_) | Verdict::Fixing(_) | Verdict::GaveUp(_) | Verdict::Blocked(_) => {
                Face::Bad
            }
        }
    }

    /// Whether its gate is open, and whatever it waits to be verified is.
    pub(super) fn may_run(&self) -> bool {
        self.tally.all_pass()
            && !self.is_being_changed()
            && self
                .suspicion
                .as_ref()
                .is_none_or(|suspicion| suspicion.unverified == 0)
    }

    /// Whether its fix is being applied: what a probe sees meanwhile is neither before nor after.
    pub(super) fn is_being_changed(&self) -> bool {
        self.fix_phase()
            .is_some_and(|phase| matches!(phase, Phase::Applying { .. }))
    }

    /// `None` for a check without a fix.
    pub(super) fn fix_phase(&self) -> Option<Phase> {
        self.fix.as_ref().map(|fix| fix.phase)
    }
}

/// What the engine remembers of a check's fix.
#[derive(Debug)]
pub(super) struct FixState {
    pub(super) phase: Phase,
    /// How often it was applied since the check passed last.
    pub(super) applied: u32,
    /// Before then it is not applied again.
    pub(super) not_before: Moment,
    /// Probes since it was applied last; each waits longer than the one before.
    pub(super) looks: u32,
    /// The latest one found nothing to do.
    pub(super) needless: bool,
    /// What the latest one reported.
    pub(super) said: String,
}

impl Default for FixState {
    fn default() -> Self {
        Self {
            phase: Phase::Idle,
            applied: 0,
            not_before: Moment::from_millis(0),
            looks: 0,
            needless: false,
            said: String::new(),
        }
    }
}

/// Where a fix is. Whoever is applying or settling holds the resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Idle,
    /// Its failure is confirmed; it waits for its resource.
    Ready,
    /// Even if the check is blocked meanwhile: what has begun is let finish.
    Applying {
        fence: Fence,
        overdue_at: Moment,
    },
    Settling {
        until: Moment,
    },
}

/// Where a check that may be run is kept until it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spot {
    Queue,
    /// With its target, which has no room.
    Parked,
}

/// Where a check is in its round.
#[derive(Debug)]
pub(super) enum Turn {
    /// To be run at `at`, or as soon after as its gate is open and there is room.
    Waiting {
        at: Moment,
    },
    Running(Running),
}

#[derive(Debug, Clone)]
pub(super) struct Running {
    pub(super) attempt: Attempt,
    pub(super) overdue_at: Moment,
    pub(super) soundness: Soundness,
    /// When it was asked to be run again meanwhile.
    pub(super) again: Option<Moment>,
}

/// Whether the report of a running probe will tell anything about its check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Soundness {
    Sound,
    /// Something it depends on stopped passing while it ran, or its fix began.
    Spoiled,
}

/// Failures that are not a verdict yet.
#[derive(Debug, Clone)]
pub(super) struct Suspicion {
    /// In a row.
    pub(super) failures: u32,
    /// The latest probe of any check that had started when the first failure was reported.
    pub(super) since: Attempt,
    /// Direct dependencies that have not passed a probe started after that one.
    pub(super) unverified: u32,
}

/// What a check looks like to those that depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Face {
    Passes,
    /// Passed, but its latest probe failed: wait until it is settled.
    Suspect,
    Unknown,
    /// Fails or is blocked.
    Bad,
}

/// How many of a check's dependencies show which face; the rest passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) suspect: u32,
    pub(super) unknown: u32,
    pub(super) bad: u32,
}

impl Tally {
    pub(super) fn all_pass(self) -> bool {
        self.suspect == 0 && self.unknown == 0 && self.bad == 0
    }

    pub(super) fn replace(&mut self, before: Face, after: Face) {
        if let Some(count) = self.count(before) {
            *count -= 1;
        }
        if let Some(count) = self.count(after) {
            *count += 1;
        }
    }

    fn count(&mut self, face: Face) -> Option<&mut u32> {
        match face {
            Face::Passes => None,
            Face::Suspect => Some(&mut self.suspect),
            Face::Unknown => Some(&mut self.unknown),
            Face::Bad => Some(&mut self.bad),
        }
    }
}

/// The 64-bit FNV-1a hash (Fowler, Noll, Vo): the same in each process and version, which the hashes of the standard
/// library do not promise.
pub(super) fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn hash_agrees_with_published_values() {
        // Test vectors of the FNV authors.
        assert_eq!(super::fnv1a(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(super::fnv1a("foobar"), 0x8594_4171_f739_67e8);
    }
}
