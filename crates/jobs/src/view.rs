//! What a job's loop shows of itself. Pure.

use std::collections::BTreeMap;

use homeostat_api::v1::ServiceState;
use homeostat_model::{ExitCause, TaskName, TaskState};

use crate::reconcile::{Ground, Seen, Wanted, Wish, rests};
use crate::restart::Verdict;

/// What the loop last knew, for inspection.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct View {
    pub state: ServiceState,
    pub waits_for: String,
    /// Tasks replaced since the loop began.
    pub replaced: u32,
    /// What there is to tell of a task besides its state.
    pub notes: BTreeMap<TaskName, String>,
}

impl View {
    /// Nothing has been heard yet: it may well run.
    pub(crate) fn unheard() -> Self {
        Self {
            state: ServiceState::Starting,
            waits_for: "the cell to tell what runs".to_owned(),
            ..Self::down()
        }
    }

    pub(crate) fn down() -> Self {
        Self {
            state: ServiceState::Down,
            waits_for: String::new(),
            replaced: 0,
            notes: BTreeMap::new(),
        }
    }
}

pub(crate) fn view(
    wish: &Wish,
    tasks: &BTreeMap<TaskName, Seen>,
    replaced: u32,
    held: &str,
) -> View {
    let notes = tasks
        .iter()
        .filter(|(_, task)| task.tries.verdict() != Verdict::Steady)
        .map(|(name, task)| (name.clone(), task.tries.to_string()))
        .collect();
    let (state, waits_for) = match wish {
        Wish::Up(wanted) => up(wanted, tasks, held),
        Wish::Unknown | Wish::Down => ending(wish, tasks),
    };
    View {
        state,
        waits_for,
        replaced,
        notes,
    }
}

fn ending(wish: &Wish, tasks: &BTreeMap<TaskName, Seen>) -> (ServiceState, String) {
    // Of a lost machine nothing is known, and nothing can be waited for.
    let runs = |task: &&Seen| !task.over() && task.ground != Ground::Lost;
    let running = tasks.values().filter(runs).count();
    let quiet = running == 0 && tasks.values().all(|task| !task.busy);
    match (wish, quiet) {
        (_, true) => (ServiceState::Down, String::new()),
        (Wish::Unknown, false) => (
            ServiceState::Starting,
            "the leader to say what is wanted".to_owned(),
        ),
        (Wish::Down | Wish::Up(_), false) => {
            (ServiceState::Stopping, format!("{running} tasks to end"))
        }
    }
}

fn up(wanted: &Wanted, tasks: &BTreeMap<TaskName, Seen>, held: &str) -> (ServiceState, String) {
    let mut missing = Vec::new();
    let mut outdated = 0;
    for name in &wanted.tasks {
        let Some(task) = tasks.get(name) else {
            continue;
        };
        let current = task.fingerprint.as_deref() == Some(wanted.fingerprint.as_str());
        if task.ground == Ground::Lost && !rests(wanted, task) {
            missing.push(format!("{name}: its machine is lost{}", pending(task)));
            continue;
        }
        match &task.state {
            TaskState::Running { .. } if current => {}
            TaskState::Running { .. } => {
                outdated += 1;
                missing.push(format!("{name} to be replaced"));
            }
            // It has done what it was there for.
            TaskState::Exited {
                cause: ExitCause::Code { code: 0 },
            } if rests(wanted, task) => {}
            TaskState::Pending { why } => missing.push(format!("{name}: {why}")),
            TaskState::Exited { cause } => {
                let loops = match task.tries.verdict() {
                    Verdict::CrashLoop => format!(" ({})", task.tries),
                    Verdict::Steady | Verdict::Failing => String::new(),
                };
                missing.push(format!("{name}: {cause}{loops}"));
            }
            TaskState::Starting | TaskState::Stopping { .. } | TaskState::Lost => {
                missing.push(format!("{name} {}", task.state.word()));
            }
        }
    }
    if missing.is_empty() {
        return (ServiceState::Up, String::new());
    }
    let state = if missing.len() == outdated {
        ServiceState::Updating
    } else if missing.len() < wanted.tasks.len() {
        ServiceState::Degraded
    } else {
        ServiceState::Starting
    };
    let mut text = missing.join(", ");
    if outdated > 0 && !held.is_empty() {
        text.push_str(&format!("; nothing is replaced while {held}"));
    }
    (state, text)
}

/// Why a task that has to move has not.
fn pending(task: &Seen) -> String {
    match &task.state {
        TaskState::Pending { why } => format!(", and {why}"),
        TaskState::Starting
        | TaskState::Running { .. }
        | TaskState::Stopping { .. }
        | TaskState::Exited { .. }
        | TaskState::Lost => String::new(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use homeostat_model::RestartPolicy;

    fn name(n: u32) -> TaskName {
        TaskName::new(format!("web-{n}")).unwrap()
    }

    /// Two tasks of which the first was started from `fingerprint`, the second as wanted.
    fn seen(fingerprint: &str, state: TaskState) -> String {
        let task = |from: &str, state| Seen {
            state,
            fingerprint: Some(from.into()),
            ..Seen::new()
        };
        let runs = TaskState::Running { pid: 7 };
        let tasks = BTreeMap::from([
            (name(0), task(fingerprint, state)),
            (name(1), task("b", runs)),
        ]);
        let wish = Wish::Up(Wanted {
            tasks: vec![name(0), name(1)],
            fingerprint: "b".into(),
            restart: RestartPolicy::Always,
        });
        let view = view(&wish, &tasks, 0, "web-1 does not run");
        format!("{:?}: {}", view.state, view.waits_for)
    }

    #[test]
    fn a_job_says_what_it_waits_for() {
        let runs = || TaskState::Running { pid: 8 };
        assert_eq!(seen("b", runs()), "Up: ");
        // All of it serves: its checks pass, which is what the replacement waits for.
        assert_eq!(
            seen("a", runs()),
            "Updating: web-0 to be replaced; nothing is replaced while web-1 does not run"
        );
        assert_eq!(seen("a", TaskState::Starting), "Degraded: web-0 starting");
    }
}
