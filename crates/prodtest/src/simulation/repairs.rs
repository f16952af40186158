//! What must be true of every fix that is handed out, worked out from reports and the clock alone.

use std::collections::BTreeMap;
use std::time::Duration;

use super::world::BACK_OFF;
use crate::{CheckId, Fence, FixOutcome, FixPolicy, FixRun, Moment, Outcome, Suite};

pub(super) struct Repairs {
    most_at_once: usize,
    checks: BTreeMap<CheckId, Repairing>,
    resources: BTreeMap<String, Held>,
    highest: Fence,
}

struct Repairing {
    policy: FixPolicy,
    confirm: u32,
    applying: Option<FixRun>,
    /// Sound failures in a row, while all beneath passed.
    streak: u32,
    /// When, in the order of all that happens, the probe of the last of them started.
    last_failure_began: u64,
    /// Since the last pass.
    applied: u32,
    settles_until: Moment,
    /// Something beneath, or the prober, got in the way since the last fix.
    disturbed: bool,
}

#[derive(Default)]
struct Held {
    /// Who was fixed last, and until when that settles at the latest.
    by: Option<(CheckId, Moment)>,
    /// When the last fix ended, in the order of all that happens.
    ended: u64,
}

impl Repairs {
    pub(super) fn new(suite: &Suite, most_at_once: usize) -> Self {
        let mut checks = BTreeMap::new();
        let mut resources = BTreeMap::new();
        for id in suite.ids() {
            let check = suite.check(id);
            let Some(policy) = check.fix.clone() else {
                continue;
            };
            resources.insert(policy.resource.clone(), Held::default());
            checks.insert(
                id,
                Repairing {
                    policy,
                    confirm: check.confirm,
                    applying: None,
                    streak: 0,
                    last_failure_began: 0,
                    applied: 0,
                    settles_until: Moment::from_millis(0),
                    disturbed: false,
                },
            );
        }
        Self {
            most_at_once,
            checks,
            resources,
            highest: Fence(0),
        }
    }

    pub(super) fn is_applying(&self, run: &FixRun) -> bool {
        let check = self.checks.get(&run.check);
        check.is_some_and(|check| check.applying.as_ref() == Some(run))
    }

    /// A sound report, of a probe that began at `began`.
    pub(super) fn reported(&mut self, id: CheckId, outcome: Outcome, began: u64) {
        let Some(check) = self.checks.get_mut(&id) else {
            return;
        };
        match outcome {
            Outcome::Passed => {
                check.streak = 0;
                if check.applying.is_none()
                    && let Some(held) = self.resources.get_mut(&check.policy.resource)
                    && held.by.is_some_and(|(by, _)| by == id)
                {
                    held.by = None;
                }
            }
            Outcome::Failed => {
                check.streak += 1;
                check.last_failure_began = began;
            }
            Outcome::NotRun => self.disturbed(id),
        }
    }

    /// It is believed to pass. A look that passes is not enough: the engine drops one that began before the last fix.
    pub(super) fn passes(&mut self, id: CheckId) {
        if let Some(check) = self.checks.get_mut(&id) {
            check.applied = 0;
        }
    }

    /// Something beneath does not pass just now.
    pub(super) fn stirred(&mut self, id: CheckId) {
        if let Some(check) = self.checks.get_mut(&id) {
            check.disturbed = true;
        }
    }

    /// What was believed of it before is void.
    pub(super) fn disturbed(&mut self, id: CheckId) {
        if let Some(check) = self.checks.get_mut(&id) {
            check.streak = 0;
            check.disturbed = true;
        }
    }

    /// Whether failures do not count yet.
    pub(super) fn settles(&self, id: CheckId, now: Moment) -> bool {
        let check = self.checks.get(&id);
        check.is_some_and(|check| check.applying.is_some() || now < check.settles_until)
    }

    pub(super) fn may_give_up(&self, id: CheckId, now: Moment) -> Result<(), String> {
        let Some(check) = self.checks.get(&id) else {
            return Err(format!("{id:?} is given up and has no fix"));
        };
        if self.settles(id, now) {
            return Err(format!("{id:?} is given up before it has settled"));
        }
        if check.applied < check.policy.allowed() {
            return Err(format!(
                "{id:?} is given up after {} attempts",
                check.applied
            ));
        }
        Ok(())
    }

    pub(super) fn started(
        &mut self,
        run: &FixRun,
        quarantined: bool,
        now: Moment,
    ) -> Result<(), String> {
        let id = run.check;
        let complain = |what: String| Err(format!("{id:?} is fixed {what}"));
        let applying = self
            .checks
            .values()
            .filter(|check| check.applying.is_some());
        if applying.count() >= self.most_at_once {
            return complain("although enough fixes are under way".to_owned());
        }
        let Some(check) = self.checks.get(&id) else {
            return complain("and has no fix".to_owned());
        };
        if quarantined {
            return complain("although it is in quarantine".to_owned());
        }
        if check.streak < check.confirm {
            return complain(format!(
                "after {} failures of {}",
                check.streak, check.confirm
            ));
        }
        if check.applied >= check.policy.allowed() {
            return complain(format!("more than {} times", check.policy.allowed()));
        }
        if check.applied > 0 && now < check.settles_until {
            return complain("again before it has settled".to_owned());
        }
        let shortest = BACK_OFF * (1 << (check.applied.max(1) - 1)) / 2;
        if check.applied > 0 && !check.disturbed && now < check.settles_until.after(shortest) {
            return complain("again without a pause".to_owned());
        }
        self.may_touch(id, check, now)?;
        if run.fence <= self.highest {
            return complain(format!("with {:?}, which was used before", run.fence));
        }
        self.highest = run.fence;
        self.begin(run);
        Ok(())
    }

    fn may_touch(&self, id: CheckId, check: &Repairing, now: Moment) -> Result<(), String> {
        let resource = &check.policy.resource;
        let rival = self.checks.iter().find(|(other, rival)| {
            **other != id && rival.policy.resource == *resource && rival.applying.is_some()
        });
        if let Some((rival, _)) = rival {
            return Err(format!("{id:?} and {rival:?} are fixed at once"));
        }
        let held = &self.resources[resource];
        match held.by {
            Some((by, until)) if by != id && now < until => {
                Err(format!("{id:?} is fixed while {by:?} settles"))
            }
            Some((by, _)) if by != id && check.last_failure_began < held.ended => Err(format!(
                "{id:?} is fixed and was not looked at since {by:?} was"
            )),
            Some(_) | None if check.last_failure_began < held.ended => {
                Err(format!("{id:?} is fixed for a failure before the last fix"))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn begin(&mut self, run: &FixRun) {
        if let Some(check) = self.checks.get_mut(&run.check) {
            check.applying = Some(run.clone());
            check.applied += 1;
            check.streak = 0;
            check.disturbed = false;
        }
    }

    pub(super) fn ended(
        &mut self,
        run: &FixRun,
        outcome: FixOutcome,
        now: Moment,
        tick: u64,
    ) -> Result<(), String> {
        let check = self
            .checks
            .get_mut(&run.check)
            .filter(|check| check.applying.as_ref() == Some(run));
        let Some(check) = check else {
            return Err(format!("{run:?} ends and was not under way"));
        };
        check.applying = None;
        let settle = match outcome {
            FixOutcome::Changed | FixOutcome::Unchanged => check.policy.settle,
            FixOutcome::Failed => Duration::ZERO,
        };
        check.settles_until = now.after(settle);
        if let Some(held) = self.resources.get_mut(&check.policy.resource) {
            held.by = Some((run.check, check.settles_until));
            held.ended = tick;
        }
        Ok(())
    }
}
