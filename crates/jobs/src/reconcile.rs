//! What a job needs next: a pure function of what is wanted and what was seen. Called again after every change.

use std::collections::BTreeMap;
use std::time::Duration;

use homeostat_model::{ExitCause, RestartPolicy, TaskName, TaskState};

/// Elapsed time since the admin server began; never a wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Now(pub Duration);

/// A task that ran for this long is healthy: its earlier failures no longer count.
const SETTLED: Duration = Duration::from_secs(10);
/// How long the last task that was started must have run before the next one is replaced.
const STEADY: Duration = Duration::from_secs(1);
/// Pause before the second start in a row, doubled for each further one. The first restart is immediate: most
/// crashes are not loops, and a client is waiting.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

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
    pub failures: u32,
    pub started: Option<Now>,
    pub ended: Option<Now>,
    /// An order is on its way; nothing else is done meanwhile.
    pub busy: bool,
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
            failures: 0,
            started: None,
            ended: None,
            busy: false,
        }
    }

    pub(crate) fn runs(&self) -> bool {
        matches!(self.state, TaskState::Running { .. })
    }

    /// Nothing of it runs, as far as is known.
    pub(crate) fn over(&self) -> bool {
        match self.state {
            TaskState::Pending { .. } | TaskState::Exited { .. } | TaskState::Lost => true,
            TaskState::Starting | TaskState::Running { .. } | TaskState::Stopping { .. } => false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Place(TaskName),
    Start(TaskName),
    Stop(TaskName),
    Forget(TaskName),
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
        if is_wanted || task.busy {
            continue;
        }
        match &task.state {
            TaskState::Starting | TaskState::Running { .. } => {
                actions.push(Action::Stop(name.clone()))
            }
            TaskState::Stopping { .. } => {}
            // A job turned down keeps its placements, so that its data is found again; a smaller job gives them up.
            TaskState::Pending { .. } | TaskState::Exited { .. } | TaskState::Lost => {
                if wanted.is_some() && task.placed.is_some() {
                    actions.push(Action::Forget(name.clone()));
                }
            }
        }
    }
    let Some(wanted) = wanted else { return actions };
    for name in &wanted.tasks {
        let Some(task) = seen.get(name) else { continue };
        if task.busy || !task.over() {
            continue;
        }
        if task.placed.is_none() {
            actions.push(Action::Place(name.clone()));
            continue;
        }
        match start_at(wanted, task) {
            Start::Never => {}
            Start::At(at) if at > now => actions.push(Action::LookAgain(at)),
            Start::At(_) => actions.push(Action::Start(name.clone())),
        }
    }
    actions.extend(replace_one(wanted, seen, now));
    actions
}

enum Start {
    Never,
    At(Now),
}

fn start_at(wanted: &Wanted, task: &Seen) -> Start {
    let again = match (&task.state, wanted.restart) {
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
    Start::At(Now(ended.0 + pause(task.failures)))
}

/// How long to wait after this many failures in a row.
fn pause(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        n => FIRST_PAUSE
            .saturating_mul(1 << (n - 2).min(16))
            .min(LONGEST_PAUSE),
    }
}

/// Replaces tasks that were started from something else, one at a time, and only while all others have run for a moment:
/// a program that has just begun does not serve yet, or may be about to fail.
fn replace_one(wanted: &Wanted, seen: &BTreeMap<TaskName, Seen>, now: Now) -> Option<Action> {
    let all = |name: &TaskName| seen.get(name).is_some_and(|task| task.runs() && !task.busy);
    if !wanted.tasks.iter().all(all) {
        return None;
    }
    let outdated = |name: &&TaskName| {
        seen.get(*name)
            .is_some_and(|task| task.fingerprint.as_deref() != Some(wanted.fingerprint.as_str()))
    };
    let next = wanted.tasks.iter().find(outdated)?;
    let latest = seen.values().filter_map(|task| task.started).max();
    match latest.map(|started| Now(started.0 + STEADY)) {
        Some(steady) if steady > now => Some(Action::LookAgain(steady)),
        Some(_) | None => Some(Action::Stop(next.clone())),
    }
}

/// Failures in a row after an exit at `now`.
pub(crate) fn failures_after(task: &Seen, now: Now) -> u32 {
    let lived = task
        .started
        .map_or(Duration::ZERO, |started| now.0.saturating_sub(started.0));
    if lived >= SETTLED {
        1
    } else {
        task.failures.saturating_add(1)
    }
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
        let pauses: Vec<_> = [0, 1, 2, 3, 4, 40].map(|n| pause(n).as_millis()).to_vec();
        assert_eq!(pauses, [0, 0, 200, 400, 800, 30_000]);
        let mut crashed = task(failed());
        crashed.failures = 3;
        crashed.ended = Some(NOW);
        let seen = BTreeMap::from([(name(0), crashed.clone())]);
        let at = Now(NOW.0 + Duration::from_millis(400));
        assert_eq!(
            reconcile(&Wish::Up(wanted(1, RestartPolicy::Always)), &seen, NOW),
            [Action::LookAgain(at)]
        );
        assert_eq!(
            reconcile(&Wish::Up(wanted(1, RestartPolicy::Always)), &seen, at),
            [Action::Start(name(0))]
        );
        crashed.started = Some(Now(Duration::from_secs(1)));
        assert_eq!(
            failures_after(&crashed, NOW),
            1,
            "it had run for long: this is a first failure"
        );
    }

    #[test]
    fn a_change_replaces_one_at_a_time() {
        let mut seen = BTreeMap::from([(name(0), task(RUNS)), (name(1), task(RUNS))]);
        let mut wanted = wanted(2, RestartPolicy::Always);
        wanted.fingerprint = "b".into();
        let wanted = Wish::Up(wanted);
        assert_eq!(reconcile(&wanted, &seen, NOW), [Action::Stop(name(0))]);
        seen.insert(name(0), task(failed()));
        assert_eq!(
            reconcile(&wanted, &seen, NOW),
            [Action::Start(name(0))],
            "the other one waits"
        );
        let replaced = Seen {
            fingerprint: Some("b".into()),
            started: Some(NOW),
            ..task(RUNS)
        };
        seen.insert(name(0), replaced);
        let steady = Now(NOW.0 + STEADY);
        assert_eq!(reconcile(&wanted, &seen, NOW), [Action::LookAgain(steady)]);
        assert_eq!(reconcile(&wanted, &seen, steady), [Action::Stop(name(1))]);
    }

    #[test]
    fn turning_down_stops_everything_and_keeps_placements() {
        let seen = BTreeMap::from([(name(0), task(RUNS)), (name(1), task(failed()))]);
        assert_eq!(reconcile(&Wish::Down, &seen, NOW), [Action::Stop(name(0))]);
        let smaller = Wish::Up(wanted(1, RestartPolicy::Always));
        assert_eq!(reconcile(&smaller, &seen, NOW), [Action::Forget(name(1))]);
    }
}
