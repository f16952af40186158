//! What the engine remembers of one check.

use crate::history::History;
use crate::suite::{CheckId, Suite};
use crate::time::Moment;
use crate::verdict::{Unknown, Verdict};

use super::Attempt;

#[derive(Debug)]
pub(super) struct State {
    pub(super) verdict: Verdict,
    pub(super) turn: Turn,
    /// Its key in the queue, if it is there.
    pub(super) queued: Option<Moment>,
    /// When its latest probe started.
    pub(super) started: Option<Moment>,
    /// The latest probe that passed.
    pub(super) passed: Option<Attempt>,
    pub(super) suspicion: Option<Suspicion>,
    /// Probes in a row that could not be run.
    pub(super) misses: u32,
    pub(super) history: History,
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
            queued: None,
            started: None,
            passed: None,
            suspicion: None,
            misses: 0,
            history: History::default(),
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
            Verdict::Fail(_) | Verdict::Blocked(_) => Face::Bad,
        }
    }

    /// Whether its gate is open, and whatever it waits to be verified is.
    pub(super) fn may_run(&self) -> bool {
        self.tally.all_pass()
            && self
                .suspicion
                .as_ref()
                .is_none_or(|suspicion| suspicion.unverified == 0)
    }
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
    /// Something it depends on stopped passing while it ran.
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
fn fnv1a(text: &str) -> u64 {
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
