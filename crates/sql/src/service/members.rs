//! Which keepers to place, start and stop: a pure function of what is wished and what was seen.
//!
//! Starting a keeper starts no server: that takes an order of the decider. So a keeper that ended is started again at
//! once, whatever its server's role was.

use std::collections::BTreeMap;
use std::time::Duration;

use homeostat_decider::{MemberId, MemberReport, Now};
use homeostat_model::TaskState;

/// A keeper that ran for this long is well: its earlier ends no longer count.
const SETTLED: Duration = Duration::from_secs(10);
/// Before the second start in a row, doubled for each further one. The first is immediate: a primary's keeper may be the
/// only one who can prove that its server is gone.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What is known of one member's task.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Seen {
    /// Its generation; `None`: it has no place yet.
    pub placed: Option<u64>,
    pub machine: String,
    pub state: TaskState,
    pub failures: u32,
    pub started: Option<Now>,
    pub ended: Option<Now>,
    /// A call is on its way; nothing else is done meanwhile.
    pub busy: bool,
    /// It was told to stop and has not ended yet: whatever is wished by now, it will end.
    pub ending: bool,
    /// What its keeper said last; `None` while it cannot be reached.
    pub said: Option<Said>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Said {
    /// As it came, to see whether it is news.
    pub bytes: Vec<u8>,
    pub report: MemberReport,
}

impl Seen {
    pub(super) fn new() -> Self {
        Self {
            placed: None,
            machine: String::new(),
            state: TaskState::Pending {
                why: "not placed yet".into(),
            },
            failures: 0,
            started: None,
            ended: None,
            busy: false,
            ending: false,
            said: None,
        }
    }

    /// Nothing of it runs.
    pub(super) fn over(&self) -> bool {
        match self.state {
            TaskState::Pending { .. } | TaskState::Exited { .. } | TaskState::Lost => true,
            TaskState::Starting | TaskState::Running { .. } | TaskState::Stopping { .. } => false,
        }
    }

    /// Takes a new state in.
    pub(super) fn became(&mut self, state: TaskState, now: Now) {
        let ran = !self.over();
        match &state {
            TaskState::Running { .. } if !matches!(self.state, TaskState::Running { .. }) => {
                self.started = Some(now)
            }
            TaskState::Exited { .. } | TaskState::Lost if ran => self.failed(now),
            TaskState::Pending { .. }
            | TaskState::Starting
            | TaskState::Running { .. }
            | TaskState::Stopping { .. }
            | TaskState::Exited { .. }
            | TaskState::Lost => {}
        }
        self.busy &= self.state == state;
        self.state = state;
        self.ending &= !self.over();
    }

    /// It ended, or could not be started.
    pub(super) fn failed(&mut self, now: Now) {
        let settled = self
            .started
            .take()
            .is_some_and(|started| now.since(started) >= SETTLED);
        self.failures = if settled {
            1
        } else {
            self.failures.saturating_add(1)
        };
        self.ended = Some(now);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted<'a> {
    /// Nobody said what is wanted.
    Nothing,
    Up(&'a [MemberId]),
    /// The holder ends before the others, so that they receive what it wrote last.
    Down {
        holder: Option<&'a MemberId>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// All that have no place, together: the scheduler then spreads them best.
    Place(Vec<MemberId>),
    Start(MemberId),
    Stop(MemberId),
    /// Nothing to do before this moment.
    LookAgain(Now),
}

/// What to do now. Called again after every change.
pub(super) fn next(wanted: Wanted<'_>, seen: &BTreeMap<MemberId, Seen>, now: Now) -> Vec<Action> {
    match wanted {
        Wanted::Nothing => Vec::new(),
        Wanted::Up(members) => up(members, seen, now),
        Wanted::Down { holder } => down(holder, seen),
    }
}

fn up(members: &[MemberId], seen: &BTreeMap<MemberId, Seen>, now: Now) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut homeless = Vec::new();
    for name in members {
        let Some(task) = seen.get(name).filter(|task| !task.busy && task.over()) else {
            continue;
        };
        let at = task.ended.unwrap_or_default().after(pause(task.failures));
        if at > now {
            actions.push(Action::LookAgain(at));
        } else if task.placed.is_none() {
            homeless.push(name.clone());
        } else {
            actions.push(Action::Start(name.clone()));
        }
    }
    if !homeless.is_empty() {
        actions.push(Action::Place(homeless));
    }
    actions
}

fn down(holder: Option<&MemberId>, seen: &BTreeMap<MemberId, Seen>) -> Vec<Action> {
    let running = |task: &Seen| match task.state {
        TaskState::Starting | TaskState::Running { .. } => true,
        TaskState::Stopping { .. }
        | TaskState::Pending { .. }
        | TaskState::Exited { .. }
        | TaskState::Lost => false,
    };
    let first = holder
        .and_then(|holder| Some((holder, seen.get(holder)?)))
        .filter(|(_, task)| !task.over());
    let all = seen
        .iter()
        .filter(|(name, _)| first.is_none_or(|(holder, _)| *name == holder));
    all.filter(|(_, task)| running(task) && !task.busy)
        .map(|(name, _)| Action::Stop(name.clone()))
        .collect()
}

/// How long to wait after this many ends in a row.
fn pause(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        n => FIRST_PAUSE
            .saturating_mul(1 << (n - 2).min(16))
            .min(LONGEST_PAUSE),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use homeostat_model::ExitCause;

    use super::*;

    fn name(n: u32) -> MemberId {
        MemberId::new(format!("db-{n}")).unwrap()
    }

    fn at(ms: u64) -> Now {
        Now(Duration::from_millis(ms))
    }

    fn task(state: TaskState) -> Seen {
        Seen {
            placed: Some(1),
            state,
            ..Seen::new()
        }
    }

    fn running() -> TaskState {
        TaskState::Running { pid: 7 }
    }

    fn exited() -> TaskState {
        TaskState::Exited {
            cause: ExitCause::Signal { signal: 9 },
        }
    }

    #[test]
    fn a_new_cluster_is_placed_together_then_started() {
        let members = [name(0), name(1)];
        let mut seen: BTreeMap<_, _> = members
            .iter()
            .map(|name| (name.clone(), Seen::new()))
            .collect();
        assert_eq!(
            next(Wanted::Up(&members), &seen, at(0)),
            [Action::Place(members.to_vec())]
        );
        for task in seen.values_mut() {
            task.placed = Some(1);
        }
        let started = next(Wanted::Up(&members), &seen, at(0));
        assert_eq!(started, members.clone().map(Action::Start));
        for task in seen.values_mut() {
            task.became(running(), at(1));
        }
        assert_eq!(next(Wanted::Up(&members), &seen, at(2)), []);
    }

    #[test]
    fn an_ended_keeper_is_started_at_once_then_with_pauses() {
        let members = [name(0)];
        let mut seen = BTreeMap::from([(name(0), task(running()))]);
        let mut pauses = Vec::new();
        let mut now = at(60_000);
        for _ in 0..10 {
            let task = seen.get_mut(&name(0)).unwrap();
            task.became(running(), now);
            task.became(exited(), now);
            match &next(Wanted::Up(&members), &seen, now)[..] {
                [Action::Start(_)] => pauses.push(0),
                [Action::LookAgain(then)] => {
                    pauses.push(then.since(now).as_millis());
                    now = *then;
                    assert_eq!(
                        next(Wanted::Up(&members), &seen, now),
                        [Action::Start(name(0))]
                    );
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(
            pauses,
            [0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
        let task = seen.get_mut(&name(0)).unwrap();
        task.became(running(), now);
        task.became(exited(), now.after(SETTLED));
        assert_eq!(
            next(Wanted::Up(&members), &seen, now.after(SETTLED)),
            [Action::Start(name(0))]
        );
    }

    #[test]
    fn the_holder_ends_first() {
        let mut seen: BTreeMap<_, _> = (0..3).map(|n| (name(n), task(running()))).collect();
        let holder = name(1);
        let wanted = Wanted::Down {
            holder: Some(&holder),
        };
        assert_eq!(next(wanted, &seen, at(0)), [Action::Stop(name(1))]);
        seen.insert(name(1), task(TaskState::Stopping { pid: 7 }));
        assert_eq!(
            next(wanted, &seen, at(0)),
            [],
            "the others wait for its end"
        );
        seen.insert(name(1), task(exited()));
        assert_eq!(
            next(wanted, &seen, at(0)),
            [Action::Stop(name(0)), Action::Stop(name(2))]
        );
        for n in [0, 2] {
            seen.insert(name(n), task(TaskState::Lost));
        }
        assert_eq!(next(wanted, &seen, at(0)), []);
    }

    #[test]
    fn nothing_is_done_while_a_call_is_on_its_way_or_nothing_is_wanted() {
        let members = [name(0)];
        let busy = Seen {
            busy: true,
            ..task(exited())
        };
        let seen = BTreeMap::from([(name(0), busy)]);
        assert_eq!(next(Wanted::Up(&members), &seen, at(0)), []);
        let seen = BTreeMap::from([(name(0), task(exited()))]);
        assert_eq!(next(Wanted::Nothing, &seen, at(0)), []);
    }
}
