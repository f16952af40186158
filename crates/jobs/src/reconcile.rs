//! What a job needs next: a pure function of what is wanted and what was seen. Called again after every change.

use std::collections::BTreeMap;
use std::time::Duration;

use homeostat_model::{ExitCause, RestartPolicy, TaskName, TaskState};

use crate::restart::{SETTLED, Tries};

/// Elapsed time since the admin server began; never a wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Now(pub Duration);

/// How long a task that was replaced must have run before the cell is told that it is back: a program that has just
/// begun does not serve yet, or may be about to fail.
const STEADY: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wanted {
    pub tasks: Vec<TaskName>,
    pub fingerprint: String,
    pub restart: RestartPolicy,
}

/// What the cell asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Wish {
    /// Nothing yet: a new leader has not said it. What runs is left alone.
    Unknown,
    Down,
    Up(Wanted),
}

/// What is known of one task.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Seen {
    /// Where it was placed; none: nowhere yet.
    pub placed: Option<Placed>,
    pub state: TaskState,
    /// What it was started from last.
    pub fingerprint: Option<String>,
    pub tries: Tries,
    pub started: Option<Now>,
    pub ended: Option<Now>,
    pub end: End,
    /// An order is on its way; nothing else is done meanwhile.
    pub busy: bool,
    pub ground: Ground,
    pub leave: Leave,
}

/// How a task that is over came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Itself,
    /// It was stopped: whatever its restart policy says, it has not finished.
    Asked,
}

/// Whether the task may stay where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ground {
    Firm,
    /// Its machine is lost: it is placed anew whatever was last heard of it.
    Lost,
    /// Its machine is to be emptied, and the cell allows it to go now.
    Leaving,
}

/// Whether the cell lets it be replaced (the service's budget).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    NotAsked,
    Granted,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    pub machine: String,
    pub generation: u64,
}

impl Seen {
    pub(crate) fn new() -> Self {
        Self {
            placed: None,
            state: TaskState::Pending {
                why: "not placed yet".into(),
            },
            fingerprint: None,
            tries: Tries::FRESH,
            started: None,
            ended: None,
            end: End::Itself,
            busy: false,
            ground: Ground::Firm,
            leave: Leave::NotAsked,
        }
    }

    pub(crate) fn runs(&self) -> bool {
        matches!(self.state, TaskState::Running { .. }) && self.ground != Ground::Lost
    }

    /// Nothing of it runs, as far as is known.
    pub(crate) fn over(&self) -> bool {
        match self.state {
            TaskState::Pending { .. } | TaskState::Exited { .. } | TaskState::Lost => true,
            TaskState::Starting | TaskState::Running { .. } | TaskState::Stopping { .. } => false,
        }
    }

    /// How long it has been running.
    pub(crate) fn lived(&self, now: Now) -> Duration {
        self.started
            .map_or(Duration::ZERO, |started| now.0.saturating_sub(started.0))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Place(TaskName),
    /// Gives up the place of this generation for another one.
    Move(TaskName, u64),
    Start(TaskName),
    Stop(TaskName),
    Forget(TaskName),
    /// Asks for the service's budget, to replace this task.
    Ask(TaskName),
    /// The replaced task is back.
    Settle(TaskName),
    /// Nothing to do before this moment.
    LookAgain(Now),
}

/// What to do now.
pub(crate) fn reconcile(wish: &Wish, seen: &BTreeMap<TaskName, Seen>, now: Now) -> Vec<Action> {
    let wanted = match wish {
        Wish::Unknown => return Vec::new(),
        Wish::Down => None,
        Wish::Up(wanted) => Some(wanted),
    };
    let mut actions = Vec::new();
    for (name, task) in seen {
        let is_wanted = wanted.is_some_and(|wanted| wanted.tasks.contains(name));
        if is_wanted || task.busy || task.ground == Ground::Lost {
            continue;
        }
        match &task.state {
            TaskState::Starting | TaskState::Running { .. } => {
                actions.push(Action::Stop(name.clone()))
            }
            TaskState::Stopping { .. } => {}
            // A job turned down keeps its placements, so that its data is found again; a smaller job gives them up, and so
            // does a machine that is to be emptied.
            TaskState::Pending { .. } | TaskState::Exited { .. } | TaskState::Lost => {
                let gives_up = wanted.is_some() || task.ground == Ground::Leaving;
                if gives_up && task.placed.is_some() {
                    actions.push(Action::Forget(name.clone()));
                }
            }
        }
    }
    let Some(wanted) = wanted else { return actions };
    for name in &wanted.tasks {
        if let Some(task) = seen.get(name).filter(|task| !task.busy) {
            actions.extend(keep(wanted, name, task, now));
        }
    }
    actions.extend(replace_one(wanted, seen, now));
    actions
}

/// What keeps one wanted task running in a place where it may be.
fn keep(wanted: &Wanted, name: &TaskName, task: &Seen, now: Now) -> Option<Action> {
    let rests = rests(wanted, task);
    let Some(placed) = &task.placed else {
        return (!rests).then(|| Action::Place(name.clone()));
    };
    match task.ground {
        // It has finished: no machine is needed for that.
        Ground::Lost if rests => return None,
        Ground::Leaving if rests => return Some(Action::Forget(name.clone())),
        Ground::Lost => return Some(Action::Move(name.clone(), placed.generation)),
        Ground::Leaving if task.over() => {
            return Some(Action::Move(name.clone(), placed.generation));
        }
        Ground::Leaving => {
            let stopping = matches!(task.state, TaskState::Stopping { .. });
            return (!stopping).then(|| Action::Stop(name.clone()));
        }
        Ground::Firm => {}
    }
    if task.over() {
        return match start_at(wanted, task) {
            Start::Never => None,
            Start::At(at) if at > now => Some(Action::LookAgain(at)),
            Start::At(_) => Some(Action::Start(name.clone())),
        };
    }
    // After a good run its earlier failures are forgotten.
    let settled = task.started.map(|started| Now(started.0 + SETTLED));
    (task.runs() && task.tries.failures > 0)
        .then_some(settled)
        .flatten()
        .filter(|at| *at > now)
        .map(Action::LookAgain)
}

/// Whether a task is over and is not started again.
pub(crate) fn rests(wanted: &Wanted, task: &Seen) -> bool {
    task.over() && matches!(start_at(wanted, task), Start::Never)
}

enum Start {
    Never,
    At(Now),
}

fn start_at(wanted: &Wanted, task: &Seen) -> Start {
    let again = match (&task.state, wanted.restart) {
        (TaskState::Exited { .. } | TaskState::Lost, _) if task.end == End::Asked => true,
        (TaskState::Exited { cause }, RestartPolicy::OnFailure) => {
            !matches!(cause, ExitCause::Code { code: 0 })
        }
        (TaskState::Exited { .. } | TaskState::Lost, RestartPolicy::Never) => false,
        (
            TaskState::Pending { .. }
            | TaskState::Starting
            | TaskState::Running { .. }
            | TaskState::Stopping { .. }
            | TaskState::Exited { .. }
            | TaskState::Lost,
            RestartPolicy::Always | RestartPolicy::OnFailure | RestartPolicy::Never,
        ) => true,
    };
    // A changed task is started whatever became of the one before.
    if !again && task.fingerprint.as_deref() == Some(wanted.fingerprint.as_str()) {
        return Start::Never;
    }
    let ended = task.ended.unwrap_or(Now(Duration::ZERO));
    Start::At(Now(ended.0 + task.tries.pause))
}

/// Replaces tasks that were started from something else, one at a time: each only with the cell's leave, which it gives
/// when all of the service runs and its checks have passed since the one before.
fn replace_one(wanted: &Wanted, seen: &BTreeMap<TaskName, Seen>, now: Now) -> Option<Action> {
    let tasks = || {
        wanted
            .tasks
            .iter()
            .filter_map(|name| Some((name, seen.get(name)?)))
    };
    let outdated = |task: &Seen| task.fingerprint.as_deref() != Some(wanted.fingerprint.as_str());
    if let Some((name, task)) = tasks().find(|(_, task)| task.leave == Leave::Granted) {
        if task.busy {
            return None;
        }
        if rests(wanted, task) {
            // It has done what it was there for.
            return Some(Action::Settle(name.clone()));
        }
        if !task.runs() {
            return None;
        }
        if outdated(task) {
            return Some(Action::Stop(name.clone()));
        }
        let steady = Now(task.started.map_or(Duration::ZERO, |at| at.0) + STEADY);
        return Some(if steady > now {
            Action::LookAgain(steady)
        } else {
            Action::Settle(name.clone())
        });
    }
    if tasks().any(|(_, task)| task.busy) {
        return None;
    }
    // The one that was started last comes first: when a rollout that went wrong is taken back, it is the one that has the
    // cell's leave already.
    tasks()
        .filter(|(_, task)| task.runs() && outdated(task))
        .max_by_key(|(name, task)| (task.started, std::cmp::Reverse(*name)))
        .map(|(name, _)| Action::Ask(name.clone()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn name(n: u32) -> TaskName {
        TaskName::new(format!("web-{n}")).unwrap()
    }

    fn wanted(tasks: u32, restart: RestartPolicy) -> Wanted {
        Wanted {
            tasks: (0..tasks).map(name).collect(),
            fingerprint: "a".into(),
            restart,
        }
    }

    fn task(state: TaskState) -> Seen {
        Seen {
            placed: Some(Placed {
                machine: "m1".into(),
                generation: 1,
            }),
            state,
            fingerprint: Some("a".into()),
            ..Seen::new()
        }
    }

    const RUNS: TaskState = TaskState::Running { pid: 7 };
    const NOW: Now = Now(Duration::from_secs(100));

    fn failed() -> TaskState {
        TaskState::Exited {
            cause: ExitCause::Signal { signal: 9 },
        }
    }

    #[test]
    fn a_new_task_is_placed_then_started() {
        let mut seen = BTreeMap::from([(name(0), Seen::new())]);
        let wanted = Wish::Up(wanted(1, RestartPolicy::Always));
        assert_eq!(reconcile(&wanted, &seen, NOW), [Action::Place(name(0))]);
        seen.insert(
            name(0),
            Seen {
                placed: task(RUNS).placed,
                ..Seen::new()
            },
        );
        assert_eq!(reconcile(&wanted, &seen, NOW), [Action::Start(name(0))]);
    }

    #[test]
    fn what_is_as_wanted_is_left_alone() {
        let seen = BTreeMap::from([(name(0), task(RUNS)), (name(1), task(RUNS))]);
        assert_eq!(
            reconcile(&Wish::Up(wanted(2, RestartPolicy::Always)), &seen, NOW),
            []
        );
    }

    #[test]
    fn a_new_leader_touches_nothing_before_it_is_told_what_is_wanted() {
        let seen = BTreeMap::from([(name(0), task(RUNS)), (name(1), task(failed()))]);
        assert_eq!(reconcile(&Wish::Unknown, &seen, NOW), []);
    }

    #[test]
    fn restarts_follow_the_policy() {
        let done = TaskState::Exited {
            cause: ExitCause::Code { code: 0 },
        };
        let start = vec![Action::Start(name(0))];
        for (policy, state, expect) in [
            (RestartPolicy::Always, done.clone(), start.clone()),
            (RestartPolicy::Always, failed(), start.clone()),
            (RestartPolicy::OnFailure, done.clone(), vec![]),
            (RestartPolicy::OnFailure, failed(), start.clone()),
            (RestartPolicy::OnFailure, TaskState::Lost, start),
            (RestartPolicy::Never, failed(), vec![]),
            (RestartPolicy::Never, TaskState::Lost, vec![]),
        ] {
            let seen = BTreeMap::from([(name(0), task(state.clone()))]);
            assert_eq!(
                reconcile(&Wish::Up(wanted(1, policy)), &seen, NOW),
                expect,
                "{policy:?} after {state:?}"
            );
        }
    }

    #[test]
    fn a_crash_loop_is_slowed_down() {
        let mut crashed = task(failed());
        crashed.tries = Tries {
            failures: 3,
            pause: Duration::from_millis(400),
        };
        crashed.ended = Some(NOW);
        let seen = BTreeMap::from([(name(0), crashed)]);
        let wish = Wish::Up(wanted(1, RestartPolicy::Always));
        let at = Now(NOW.0 + Duration::from_millis(400));
        assert_eq!(reconcile(&wish, &seen, NOW), [Action::LookAgain(at)]);
        assert_eq!(reconcile(&wish, &seen, at), [Action::Start(name(0))]);
    }

    #[test]
    fn a_task_that_failed_is_looked_at_again_after_a_good_run() {
        let mut again = task(RUNS);
        again.tries.failures = 1;
        again.started = Some(NOW);
        let seen = BTreeMap::from([(name(0), again)]);
        let wish = Wish::Up(wanted(1, RestartPolicy::Always));
        let settled = Now(NOW.0 + SETTLED);
        assert_eq!(reconcile(&wish, &seen, NOW), [Action::LookAgain(settled)]);
        assert_eq!(reconcile(&wish, &seen, settled), []);
    }

    #[test]
    fn a_task_of_a_lost_machine_is_placed_anew_whatever_was_last_heard_of_it() {
        let lost = Seen {
            ground: Ground::Lost,
            ..task(RUNS)
        };
        let seen = BTreeMap::from([(name(0), lost)]);
        let wish = Wish::Up(wanted(1, RestartPolicy::Never));
        assert_eq!(reconcile(&wish, &seen, NOW), [Action::Move(name(0), 1)]);
        assert_eq!(
            reconcile(&Wish::Down, &seen, NOW),
            [],
            "nobody there can be told to stop"
        );
    }

    #[test]
    fn a_task_that_has_finished_is_not_run_again_elsewhere() {
        let done = TaskState::Exited {
            cause: ExitCause::Code { code: 0 },
        };
        let wish = Wish::Up(wanted(1, RestartPolicy::OnFailure));
        let expect = |task: Seen, expect: &[Action]| {
            let seen = BTreeMap::from([(name(0), task)]);
            assert_eq!(reconcile(&wish, &seen, NOW), expect, "{seen:?}");
        };
        let on = |ground| Seen {
            ground,
            ..task(done.clone())
        };
        expect(on(Ground::Lost), &[]);
        expect(on(Ground::Leaving), &[Action::Forget(name(0))]);
        let freed = Seen {
            placed: None,
            ..task(done.clone())
        };
        expect(freed, &[]);
        let stopped = Seen {
            end: End::Asked,
            ..on(Ground::Leaving)
        };
        expect(stopped, &[Action::Move(name(0), 1)]);
        let replaced = Seen {
            leave: Leave::Granted,
            ..task(done.clone())
        };
        expect(replaced, &[Action::Settle(name(0))]);
    }

    #[test]
    fn a_task_that_has_to_leave_is_stopped_first() {
        let leaving = |state| Seen {
            ground: Ground::Leaving,
            ..task(state)
        };
        let wish = Wish::Up(wanted(1, RestartPolicy::Always));
        for (state, expect) in [
            (RUNS, vec![Action::Stop(name(0))]),
            (TaskState::Stopping { pid: 7 }, vec![]),
            (failed(), vec![Action::Move(name(0), 1)]),
        ] {
            let seen = BTreeMap::from([(name(0), leaving(state.clone()))]);
            assert_eq!(reconcile(&wish, &seen, NOW), expect, "{state:?}");
        }
    }

    #[test]
    fn a_change_replaces_one_at_a_time_with_the_cells_leave() {
        let mut seen = BTreeMap::from([(name(0), task(RUNS)), (name(1), task(RUNS))]);
        let mut wanted = wanted(2, RestartPolicy::Always);
        wanted.fingerprint = "b".into();
        let wanted = Wish::Up(wanted);
        assert_eq!(reconcile(&wanted, &seen, NOW), [Action::Ask(name(0))]);
        let granted = |state| Seen {
            leave: Leave::Granted,
            ..task(state)
        };
        seen.insert(name(0), granted(RUNS));
        assert_eq!(reconcile(&wanted, &seen, NOW), [Action::Stop(name(0))]);
        seen.insert(name(0), granted(failed()));
        assert_eq!(
            reconcile(&wanted, &seen, NOW),
            [Action::Start(name(0))],
            "the other one waits"
        );
        let replaced = Seen {
            fingerprint: Some("b".into()),
            started: Some(NOW),
            ..granted(RUNS)
        };
        seen.insert(name(0), replaced.clone());
        let steady = Now(NOW.0 + STEADY);
        assert_eq!(reconcile(&wanted, &seen, NOW), [Action::LookAgain(steady)]);
        assert_eq!(reconcile(&wanted, &seen, steady), [Action::Settle(name(0))]);
        seen.insert(
            name(0),
            Seen {
                leave: Leave::NotAsked,
                ..replaced
            },
        );
        assert_eq!(reconcile(&wanted, &seen, steady), [Action::Ask(name(1))]);
    }

    #[test]
    fn what_was_replaced_last_is_taken_back_first() {
        let bad = Seen {
            fingerprint: Some("b".into()),
            started: Some(NOW),
            ..task(RUNS)
        };
        let seen = BTreeMap::from([(name(0), task(RUNS)), (name(1), bad)]);
        let mut wanted = wanted(2, RestartPolicy::Always);
        wanted.fingerprint = "c".into();
        assert_eq!(
            reconcile(&Wish::Up(wanted), &seen, NOW),
            [Action::Ask(name(1))]
        );
    }

    #[test]
    fn turning_down_stops_everything_and_keeps_placements() {
        let seen = BTreeMap::from([(name(0), task(RUNS)), (name(1), task(failed()))]);
        assert_eq!(reconcile(&Wish::Down, &seen, NOW), [Action::Stop(name(0))]);
        let smaller = Wish::Up(wanted(1, RestartPolicy::Always));
        assert_eq!(reconcile(&smaller, &seen, NOW), [Action::Forget(name(1))]);
    }
}
