//! What is believed of a check, and on what evidence.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::history::FlakeRate;
use crate::suite::CheckId;
use crate::time::Moment;

/// What came of one probe, as the prober reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    pub outcome: Outcome,
    /// What would have been right, for people.
    pub expected: String,
    /// What was found instead, or as expected.
    pub seen: String,
    pub took: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
    /// The prober could not look, for a reason of its own (out of file descriptors, an address that cannot be
    /// resolved yet). That says nothing about what is tested, in neither direction.
    NotRun,
}

/// What a verdict stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    pub expected: String,
    pub seen: String,
    /// When the probe reported.
    pub at: Moment,
    pub took: Duration,
}

impl Evidence {
    /// Longest text kept of either kind, in bytes; there may be 100,000 checks.
    pub const LONGEST: usize = 512;

    pub(crate) fn new(observation: Observation, at: Moment) -> Self {
        Self {
            expected: clipped(observation.expected),
            seen: clipped(observation.seen),
            at,
            took: observation.took,
        }
    }
}

/// What is believed of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is believed, and why not.
    Unknown(Unknown),
    Pass(Evidence),
    /// Passes, but fails too often for no reason that anybody found; what depends on it still runs.
    Flaky {
        rate: FlakeRate,
        evidence: Evidence,
    },
    /// Failed, confirmed, and all it depends on passes.
    Fail(Evidence),
    /// Failed, and its fix is under way.
    Fixing(Repair),
    /// Fails still, after its fix was applied as often as it may be. Only a pass gives it new attempts: a person's turn.
    GaveUp(Repair),
    /// Not run, because something it depends on fails.
    Blocked(Roots),
}

impl Verdict {
    /// One word for tables.
    pub fn word(&self) -> &'static str {
        match self {
            Verdict::Unknown(_) => "unknown",
            Verdict::Pass(_) => "pass",
            Verdict::Flaky { .. } => "flaky",
            Verdict::Fail(_) => "fail",
            Verdict::Fixing(_) => "fixing",
            Verdict::GaveUp(_) => "gave-up",
            Verdict::Blocked(_) => "blocked",
        }
    }

    pub fn passes(&self) -> bool {
        match self {
            Verdict::Pass(_) | Verdict::Flaky { .. } => true,
            Verdict::Unknown(_)
            | Verdict::Fail(_)
            | Verdict::Fixing(_)
            | Verdict::GaveUp(_)
            | Verdict::Blocked(_) => false,
        }
    }

    /// Whether it fails by itself, so that it may be the root cause of others being blocked.
    pub fn is_root(&self) -> bool {
        match self {
            Verdict::Fail(_) | Verdict::Fixing(_) | Verdict::GaveUp(_) => true,
            Verdict::Unknown(_)
            | Verdict::Pass(_)
            | Verdict::Flaky { .. }
            | Verdict::Blocked(_) => false,
        }
    }

    pub fn evidence(&self) -> Option<&Evidence> {
        match self {
            Verdict::Pass(evidence) | Verdict::Flaky { evidence, .. } | Verdict::Fail(evidence) => {
                Some(evidence)
            }
            Verdict::Fixing(repair) | Verdict::GaveUp(repair) => Some(&repair.evidence),
            Verdict::Unknown(_) | Verdict::Blocked(_) => None,
        }
    }

    /// Whether going from this one to `next` is news; fresh evidence for the same belief is not.
    pub(crate) fn is_news(&self, next: &Verdict) -> bool {
        match (self, next) {
            (Verdict::Pass(_), Verdict::Pass(_))
            | (Verdict::Flaky { .. }, Verdict::Flaky { .. })
            | (Verdict::Fail(_), Verdict::Fail(_))
            | (Verdict::GaveUp(_), Verdict::GaveUp(_)) => false,
            (Verdict::Fixing(before), Verdict::Fixing(after)) => {
                (before.stage, before.applied) != (after.stage, after.applied)
            }
            (Verdict::Blocked(before), Verdict::Blocked(after)) => before != after,
            (Verdict::Unknown(before), Verdict::Unknown(after)) => {
                std::mem::discriminant(before) != std::mem::discriminant(after)
            }
            (
                Verdict::Unknown(_)
                | Verdict::Pass(_)
                | Verdict::Flaky { .. }
                | Verdict::Fail(_)
                | Verdict::Fixing(_)
                | Verdict::GaveUp(_)
                | Verdict::Blocked(_),
                _,
            ) => true,
        }
    }
}

/// How the repair of a check stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// Of the latest failure.
    pub evidence: Evidence,
    /// How often the fix was applied since the check passed last; includes the one under way.
    pub applied: u32,
    pub stage: Stage,
    /// What the latest fix reported, for people; empty before it did.
    pub said: String,
}

/// Where a repair is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The fix waits for what it changes to be free, or for room.
    Queued,
    /// What it changes was just changed by another check's fix, or something beneath it stirred: first it is looked
    /// at again.
    LookingAgain,
    Applying,
    /// Applied; failures do not count until then.
    Settling {
        until: Moment,
    },
    /// Applied without success; not again before then.
    BackingOff {
        until: Moment,
    },
    /// Was applied as often as it may be.
    Over,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Queued => "its fix waits for its turn",
            Stage::LookingAgain => "is looked at again before it is fixed",
            Stage::Applying => "its fix is being applied",
            Stage::Settling { until: _ } => "was fixed and settles",
            Stage::BackingOff { until: _ } => "its fix did not help and is tried again later",
            Stage::Over => "its fix did not help and is not tried again",
        })
    }
}

/// What came of applying a fix, as the one who applied it reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    pub outcome: FixOutcome,
    /// What was done, or what went wrong, for people.
    pub said: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FixOutcome {
    Changed,
    /// All was already as it should be.
    Unchanged,
    /// It could not do what it should; some of it may be done.
    Failed,
}

/// Why nothing is believed of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unknown {
    /// Its turn has come and it has not reported yet.
    Due,
    /// Something it depends on is unknown; [`crate::Engine::waits_for`] says what.
    Waiting,
    /// The prober could not look.
    NotRun { why: String, at: Moment },
    /// It was handed out, and its prober never reported, not even that it ran out of time.
    Lost { at: Moment },
}

/// The failing checks that block another one: those at the origin, each of which has only passing ones beneath it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// Ascending, one more than may be named at most. The smallest ids of a union are among the smallest ids of
    /// its parts, so this can be spread along the graph without ever knowing the whole set.
    ids: Vec<CheckId>,
}

impl Roots {
    /// The most that are named. Who has 17 root causes has one cause that no check knows.
    pub const MOST_NAMED: usize = 16;

    /// The failing checks, ascending; all of them unless there [are more](Self::and_more).
    pub fn named(&self) -> &[CheckId] {
        &self.ids[..self.ids.len().min(Self::MOST_NAMED)]
    }

    /// Whether there are more than can be named.
    pub fn and_more(&self) -> bool {
        self.ids.len() > Self::MOST_NAMED
    }

    /// Collects the smallest ones of many.
    pub(crate) fn of(ids: impl Iterator<Item = CheckId>) -> Self {
        let mut smallest = BTreeSet::new();
        for id in ids {
            smallest.insert(id);
            if smallest.len() > Self::MOST_NAMED + 1 {
                smallest.pop_last();
            }
        }
        Self {
            ids: smallest.into_iter().collect(),
        }
    }

    /// What it hands on to those that depend on what it blocks.
    pub(crate) fn to_spread(&self) -> &[CheckId] {
        &self.ids
    }
}

/// News: a check is believed to be something else than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub check: CheckId,
    pub was: Verdict,
    pub is: Verdict,
    pub at: Moment,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unknown::Due => f.write_str("not run yet"),
            Unknown::Waiting => f.write_str("waits for what it depends on"),
            Unknown::NotRun { why, at: _ } => write!(f, "could not be run: {why}"),
            Unknown::Lost { at: _ } => f.write_str("was run, and nobody reported what came of it"),
        }
    }
}

pub(crate) fn clipped(mut text: String) -> String {
    const MARK: &str = "…";
    if text.len() > Evidence::LONGEST {
        let mut end = Evidence::LONGEST - MARK.len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(MARK);
    }
    text.shrink_to_fit();
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_clipped_between_characters() {
        assert_eq!(clipped("short".into()), "short");
        let long = clipped("ä".repeat(5000));
        assert!(
            long.len() <= Evidence::LONGEST && long.ends_with("ä…"),
            "{long}"
        );
    }
}
