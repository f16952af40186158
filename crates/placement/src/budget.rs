//! The one budget of a service: how much of it may be out of service at once, whoever wants it so.
//!
//! Drains, rollouts, rebuilds, repairs and people all ask here before they take a task away, and none of them knows of the
//! others. A slot is taken by task; it is free again when its holder has said that the task is back *and* every task of
//! the service runs *and* every check about it has passed with a probe that began after that word. So a change that
//! breaks a service stops itself: nobody gets the next slot.
//!
//! Pure: what is observed of the service, and the time, come in as arguments.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use homeostat_model::{CheckName, TaskName};

/// Elapsed time on one clock of the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub Duration);

/// How many tasks of a service may be out of service at once. At least one: a budget of nothing could never be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtOnce(pub std::num::NonZeroUsize);

impl AtOnce {
    pub const ONE: Self = AtOnce(std::num::NonZeroUsize::MIN);
}

/// Who wants to disturb which task, and what for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    pub task: TaskName,
    /// For people, and to tell one asker from another: `drain-3`, `rollout`.
    pub by: String,
}

/// What is observed of the service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// All of its tasks, and of each that does not run why.
    pub tasks: BTreeMap<TaskName, Option<String>>,
    /// Every check about it.
    pub checks: BTreeMap<CheckName, CheckSeen>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckSeen {
    /// The probe of the last verdict began then.
    Passes {
        began: Moment,
    },
    Fails {
        why: String,
    },
    /// Not looked at yet, or blocked.
    NotKnown {
        why: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Granted,
    Wait(Why),
}

/// What a slot waits for: the first thing that stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Another task is out of service on purpose.
    Taken {
        task: TaskName,
        by: String,
    },
    /// A task that was out of service is back, and this is still to be seen.
    Settling {
        task: TaskName,
        by: String,
        missing: String,
    },
    /// Another task is out of service by itself.
    Missing {
        task: TaskName,
        why: String,
    },
    Check {
        check: CheckName,
        why: String,
    },
}

/// A task that is out of service on purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    pub by: String,
    pub phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Away,
    /// Its holder said at that moment that it is back.
    Settling {
        since: Moment,
    },
}

/// The slots of one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Budget {
    slots: BTreeMap<TaskName, Slot>,
}

impl Budget {
    pub fn new(slots: BTreeMap<TaskName, Slot>) -> Self {
        Self { slots }
    }

    pub fn slots(&self) -> &BTreeMap<TaskName, Slot> {
        &self.slots
    }

    /// Asks for a slot. Whoever holds it already gets it again.
    pub fn ask(&mut self, ask: &Ask, limit: AtOnce, health: &Health) -> Answer {
        self.free(health);
        if let Some(slot) = self.slots.get_mut(&ask.task) {
            if slot.by != ask.by {
                return Answer::Wait(self.held_by(&ask.task, health));
            }
            slot.phase = Phase::Away;
            return Answer::Granted;
        }
        // A task that does not run is not disturbed by being moved.
        let runs = health.tasks.get(&ask.task).is_none_or(Option::is_none);
        match self.in_the_way(&ask.task, limit, health) {
            Some(why) => Answer::Wait(why),
            None if !runs => self.grant(ask),
            None => match not_passing(health) {
                Some((check, why)) => Answer::Wait(Why::Check { check, why }),
                None => self.grant(ask),
            },
        }
    }

    /// The task is back, says its holder. Of others and without a slot it changes nothing.
    pub fn settle(&mut self, ask: &Ask, now: Moment) {
        if let Some(slot) = self
            .slots
            .get_mut(&ask.task)
            .filter(|slot| slot.by == ask.by)
        {
            match slot.phase {
                Phase::Away => slot.phase = Phase::Settling { since: now },
                // Said twice: it is back since it was said first.
                Phase::Settling { .. } => {}
            }
        }
    }

    /// Gives a slot back that was not made use of. Of others and without a slot it changes nothing.
    pub fn release(&mut self, ask: &Ask) {
        let unused = |slot: &Slot| slot.by == ask.by && slot.phase == Phase::Away;
        if self.slots.get(&ask.task).is_some_and(unused) {
            self.slots.remove(&ask.task);
        }
    }

    /// Frees what has settled, and what is held for tasks that are no tasks of the service any more.
    pub fn free(&mut self, health: &Health) {
        self.slots.retain(|task, slot| {
            let needed = match slot.phase {
                Phase::Away => true,
                Phase::Settling { since } => unsettled(since, health).is_some(),
            };
            needed && health.tasks.contains_key(task)
        });
    }

    fn grant(&mut self, ask: &Ask) -> Answer {
        let slot = Slot {
            by: ask.by.clone(),
            phase: Phase::Away,
        };
        self.slots.insert(ask.task.clone(), slot);
        Answer::Granted
    }

    fn held_by(&self, task: &TaskName, health: &Health) -> Why {
        let slot = &self.slots[task];
        let (task, by) = (task.clone(), slot.by.clone());
        match slot.phase {
            Phase::Away => Why::Taken { task, by },
            Phase::Settling { since } => Why::Settling {
                task,
                by,
                missing: unsettled(since, health).unwrap_or_default(),
            },
        }
    }

    /// What uses the budget up, the asked task not counted.
    fn in_the_way(&self, asked: &TaskName, limit: AtOnce, health: &Health) -> Option<Why> {
        let missing = health
            .tasks
            .iter()
            .filter_map(|(task, why)| Some((task, why.as_ref()?)))
            .filter(|(task, _)| *task != asked && !self.slots.contains_key(*task));
        let out: Vec<Why> = self
            .slots
            .keys()
            .map(|task| self.held_by(task, health))
            .chain(missing.map(|(task, why)| Why::Missing {
                task: task.clone(),
                why: why.clone(),
            }))
            .collect();
        if out.len() < limit.0.get() {
            return None;
        }
        out.into_iter().next()
    }
}

/// What is still to be seen of a service before a slot is free, since the task came back.
fn unsettled(since: Moment, health: &Health) -> Option<String> {
    let down = health
        .tasks
        .iter()
        .find_map(|(task, why)| Some(format!("{task}: {}", why.as_ref()?)));
    down.or_else(|| {
        health.checks.iter().find_map(|(check, seen)| match seen {
            CheckSeen::Passes { began } if *began >= since => None,
            CheckSeen::Passes { .. } => Some(format!("check {check} to pass again")),
            CheckSeen::Fails { why } => Some(format!("check {check} fails: {why}")),
            CheckSeen::NotKnown { why } => Some(format!("check {check}: {why}")),
        })
    })
}

fn not_passing(health: &Health) -> Option<(CheckName, String)> {
    health.checks.iter().find_map(|(check, seen)| match seen {
        CheckSeen::Passes { .. } => None,
        CheckSeen::Fails { why } => Some((check.clone(), format!("fails: {why}"))),
        CheckSeen::NotKnown { why } => Some((check.clone(), format!("is not known: {why}"))),
    })
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Taken { task, by } => write!(f, "{task} is out of service ({by})"),
            Why::Settling { task, by, missing } => {
                write!(f, "{task} is back ({by}) and waits for {missing}")
            }
            Why::Missing { task, why } => write!(f, "{task} does not run: {why}"),
            Why::Check { check, why } => write!(f, "check {check} {why}"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn name(text: &str) -> TaskName {
        TaskName::new(text).unwrap()
    }

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    fn ask(task: &str, by: &str) -> Ask {
        Ask {
            task: name(task),
            by: by.to_owned(),
        }
    }

    /// Three tasks that run, and a check that passed at that second.
    fn well(second: u64) -> Health {
        let check = CheckName::new("web/answers").unwrap();
        Health {
            tasks: ["web-0", "web-1", "web-2"]
                .map(|task| (name(task), None))
                .into(),
            checks: [(check, CheckSeen::Passes { began: at(second) })].into(),
        }
    }

    fn without(task: &str, mut health: Health) -> Health {
        health.tasks.insert(name(task), Some("exit code 1".into()));
        health
    }

    fn failing() -> Health {
        let mut health = well(0);
        for seen in health.checks.values_mut() {
            *seen = CheckSeen::Fails {
                why: "status 500".into(),
            };
        }
        health
    }

    fn waits(answer: Answer) -> String {
        match answer {
            Answer::Granted => "nothing".to_owned(),
            Answer::Wait(why) => why.to_string(),
        }
    }

    #[test]
    fn a_drain_and_a_rebuild_compete_for_one_slot() {
        let mut budget = Budget::default();
        let drain = ask("web-0", "drain-1");
        let rebuild = ask("web-1", "rebuild");
        let one = AtOnce::ONE;
        assert_eq!(budget.ask(&drain, one, &well(1)), Answer::Granted);
        assert_eq!(
            budget.ask(&drain, one, &well(1)),
            Answer::Granted,
            "its own"
        );
        assert_eq!(
            waits(budget.ask(&rebuild, one, &well(2))),
            "web-0 is out of service (drain-1)"
        );
        budget.settle(&ask("web-0", "rebuild"), at(5));
        assert_eq!(
            waits(budget.ask(&rebuild, one, &well(6))),
            "web-0 is out of service (drain-1)",
            "only its holder knows"
        );
        budget.settle(&drain, at(5));
        assert_eq!(
            waits(budget.ask(&rebuild, one, &well(4))),
            "web-0 is back (drain-1) and waits for check web/answers to pass again",
            "that pass was seen before it was back"
        );
        assert_eq!(budget.ask(&rebuild, one, &well(6)), Answer::Granted);
        assert_eq!(
            waits(budget.ask(&drain, one, &well(6))),
            "web-1 is out of service (rebuild)"
        );
    }

    #[test]
    fn a_change_that_breaks_the_service_gets_no_further_and_may_be_taken_back() {
        let mut budget = Budget::default();
        let one = AtOnce::ONE;
        assert_eq!(
            budget.ask(&ask("web-0", "rollout"), one, &well(1)),
            Answer::Granted
        );
        budget.settle(&ask("web-0", "rollout"), at(2));
        assert_eq!(
            waits(budget.ask(&ask("web-1", "rollout"), one, &failing())),
            "web-0 is back (rollout) and waits for check web/answers fails: status 500"
        );
        assert_eq!(
            budget.ask(&ask("web-0", "rollout"), one, &failing()),
            Answer::Granted,
            "the one that broke it"
        );
        assert_eq!(
            waits(budget.ask(&ask("web-0", "drain-1"), one, &failing())),
            "web-0 is out of service (rollout)"
        );
    }

    #[test]
    fn what_is_down_by_itself_uses_the_budget_and_may_be_moved() {
        let mut budget = Budget::default();
        let one = AtOnce::ONE;
        let sick = without("web-2", failing());
        assert_eq!(
            waits(budget.ask(&ask("web-0", "drain-1"), one, &sick)),
            "web-2 does not run: exit code 1"
        );
        assert_eq!(
            budget.ask(&ask("web-2", "drain-1"), one, &sick),
            Answer::Granted
        );
        let two = AtOnce(2.try_into().unwrap());
        let mut budget = Budget::default();
        assert_eq!(
            budget.ask(&ask("web-0", "drain-1"), two, &without("web-2", well(1))),
            Answer::Granted
        );
        assert_eq!(
            waits(budget.ask(&ask("web-1", "x"), two, &without("web-2", well(1)))),
            "web-0 is out of service (drain-1)"
        );
    }

    #[test]
    fn what_is_not_needed_any_more_is_free() {
        let mut budget = Budget::default();
        let first = ask("web-0", "drain-1");
        assert_eq!(budget.ask(&first, AtOnce::ONE, &well(1)), Answer::Granted);
        budget.release(&ask("web-0", "rollout"));
        assert_eq!(budget.slots().len(), 1, "another's");
        budget.release(&first);
        assert!(budget.slots().is_empty());
        budget.ask(&first, AtOnce::ONE, &well(1));
        budget.settle(&first, at(2));
        budget.release(&first);
        assert_eq!(budget.slots().len(), 1, "it was made use of");
        let mut smaller = well(1);
        smaller.tasks.remove(&name("web-0"));
        assert_eq!(
            budget.ask(&ask("web-1", "rollout"), AtOnce::ONE, &smaller),
            Answer::Granted
        );
    }

    #[test]
    fn a_service_that_does_not_pass_is_not_disturbed() {
        let mut budget = Budget::default();
        assert_eq!(
            waits(budget.ask(&ask("web-0", "drain-1"), AtOnce::ONE, &failing())),
            "check web/answers fails: status 500"
        );
        assert!(budget.slots().is_empty());
    }
}
