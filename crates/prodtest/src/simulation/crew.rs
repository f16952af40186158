//! Those who apply fixes: some of them well, some slowly, some not at all, some twice what may be done once.

use std::collections::BTreeMap;
use std::time::Duration;

use super::world::{FIX_TIMEOUT_MS, Pcg64Stream};
use crate::{Applied, CheckId, Fence, FixOutcome, FixRun, Repeatable, Suite};

/// What a fix really does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nature {
    Works,
    /// Works, and what it mends takes most of the time to settle until it shows.
    Slow,
    /// Shows only after that time.
    TooSlow,
    /// Helps when it is applied again.
    SecondTime,
    Fails,
    /// Claims success.
    Lies,
}

#[derive(Debug, Clone)]
pub(super) struct Landing {
    pub(super) run: FixRun,
    /// All fixes that set out, in their order: what the fencing numbers ought to say.
    number: u64,
}

/// What will come of a fix, and when; `None`: never.
pub(super) struct Plan {
    pub(super) landing: Landing,
    pub(super) lands_in_ms: Option<u64>,
    pub(super) reported_in_ms: Option<u64>,
}

struct Member {
    nature: Nature,
    resource: String,
    /// Whether as often as it may be applied it would help.
    mends: bool,
    outcome: FixOutcome,
}

pub(super) struct Crew {
    random: Pcg64Stream,
    members: BTreeMap<CheckId, Member>,
    number: u64,
    /// Of each resource: the highest fencing number it was shown, and the latest fix that set out for it.
    shown: BTreeMap<String, (Fence, u64)>,
}

impl Crew {
    pub(super) fn new(seed: u64, suite: &Suite) -> Self {
        let mut random = Pcg64Stream::new(seed, 4);
        let mut members = BTreeMap::new();
        for id in suite.ids() {
            let Some(policy) = &suite.check(id).fix else {
                continue;
            };
            let nature = match random.upto(7) {
                0 | 1 => Nature::Works,
                2 | 3 => Nature::Slow,
                4 => Nature::TooSlow,
                5 => Nature::SecondTime,
                6 => Nature::Fails,
                _ => Nature::Lies,
            };
            let twice = policy.attempts >= 2 && policy.repeatable == Repeatable::Proved;
            let mends = match nature {
                Nature::Works | Nature::Slow => true,
                Nature::SecondTime => twice,
                Nature::TooSlow | Nature::Fails | Nature::Lies => false,
            };
            members.insert(
                id,
                Member {
                    nature,
                    resource: policy.resource.clone(),
                    mends,
                    outcome: FixOutcome::Failed,
                },
            );
        }
        Self {
            random,
            members,
            number: 0,
            shown: BTreeMap::new(),
        }
    }

    pub(super) fn has(&self, id: CheckId) -> bool {
        self.members.contains_key(&id)
    }

    pub(super) fn mends(&self, id: CheckId) -> bool {
        self.members.get(&id).is_some_and(|member| member.mends)
    }

    pub(super) fn set_out(&mut self, run: FixRun, settle: Duration, lost: f64) -> Plan {
        self.number += 1;
        let settle_ms = settle.as_millis() as u64;
        let took = self.random.upto(FIX_TIMEOUT_MS);
        let nature = self.members.get(&run.check).map(|member| member.nature);
        let shows_after = match nature {
            Some(Nature::Slow) => settle_ms * 3 / 4,
            Some(Nature::TooSlow) => settle_ms + 3_000,
            Some(Nature::Works | Nature::SecondTime | Nature::Fails | Nature::Lies) | None => 0,
        };
        let landing = Landing {
            run,
            number: self.number,
        };
        if self.random.chance(lost) {
            // Half of them come to light much later, when another one may be at work.
            let late = 8_000 + self.random.upto(20_000);
            let comes = self.random.chance(0.5).then_some(late);
            return Plan {
                landing,
                lands_in_ms: comes,
                reported_in_ms: comes,
            };
        }
        let resource = self.resource_of(&landing.run);
        let (fence, number) = (landing.run.fence, landing.number);
        self.shown.insert(resource, (fence, number));
        Plan {
            landing,
            lands_in_ms: Some(took + shows_after),
            reported_in_ms: Some(took),
        }
    }

    /// Whether the fix mends what its check is about.
    pub(super) fn land(&mut self, landing: &Landing, broken: bool) -> Result<bool, String> {
        let resource = self.resource_of(&landing.run);
        let (highest, latest) = *self
            .shown
            .entry(resource)
            .or_insert((landing.run.fence, landing.number));
        if landing.run.fence < highest {
            return Ok(false);
        }
        if landing.number < latest {
            return Err(format!(
                "a fix that was given up came through after a newer one: {landing:?}"
            ));
        }
        let Some(member) = self.members.get_mut(&landing.run.check) else {
            return Ok(false);
        };
        if !broken {
            member.outcome = FixOutcome::Unchanged;
            return Ok(false);
        }
        let helps = match member.nature {
            Nature::Works | Nature::Slow | Nature::TooSlow => true,
            Nature::SecondTime => landing.run.attempt >= 2,
            Nature::Fails | Nature::Lies => false,
        };
        member.outcome = match member.nature {
            Nature::Fails => FixOutcome::Failed,
            Nature::Works | Nature::Slow | Nature::TooSlow | Nature::SecondTime | Nature::Lies => {
                FixOutcome::Changed
            }
        };
        Ok(helps)
    }

    pub(super) fn report(&self, landing: &Landing) -> Applied {
        let member = self.members.get(&landing.run.check);
        let outcome = match member.map(|member| member.nature) {
            // What shows later was done by then all the same.
            Some(Nature::Slow | Nature::TooSlow) => FixOutcome::Changed,
            Some(Nature::Works | Nature::SecondTime | Nature::Fails | Nature::Lies) | None => {
                member.map_or(FixOutcome::Failed, |member| member.outcome)
            }
        };
        Applied {
            outcome,
            said: String::new(),
        }
    }

    fn resource_of(&self, run: &FixRun) -> String {
        let member = self.members.get(&run.check);
        member
            .map(|member| member.resource.clone())
            .unwrap_or_default()
    }
}
