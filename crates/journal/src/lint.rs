//! What is wrong with a plan, seen before it runs. Pure, complete (it reports every problem and not only the first), and
//! run both when a plan is sealed and when it is read back.

use std::collections::BTreeSet;
use std::time::Duration;

use homeostat_model::{ProcedureName, StepName};

use crate::limits;
use crate::plan::{Draft, StepPlan, Undo};

/// A draft that cannot become a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the plan of {procedure} cannot be run: {}", list(.problems))]
pub struct LintError {
    pub procedure: ProcedureName,
    pub problems: Vec<Problem>,
}

fn list(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(Problem::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// An empty selection is an error and never means "all".
    #[error("it touches nothing: an empty selection is an error, not 'all'")]
    EmptyScope,
    #[error("it touches {count} things, {} at most are allowed", limits::SCOPE)]
    ScopeTooLarge { count: usize },
    #[error(
        "the name of its procedure has more than {} characters",
        limits::PROCEDURE_BYTES
    )]
    ProcedureNameTooLong,
    #[error("it does not say why")]
    NoReason,
    #[error("it has no steps")]
    NoSteps,
    #[error("it has {count} steps, {} at most are allowed", limits::STEPS)]
    TooManySteps { count: usize },
    #[error("two steps are called {step}")]
    DuplicateStep { step: StepName },
    #[error("step {step}: {what} is empty")]
    EmptyText { step: StepName, what: &'static str },
    #[error("{what} has more than {} bytes", limits::TEXT_BYTES)]
    TextTooLong { what: String },
    #[error(
        "step {step}: {attempts} attempts; 1 to {} are allowed",
        limits::ATTEMPTS
    )]
    Attempts { step: StepName, attempts: u32 },
    #[error(
        "step {step}: a timeout of {timeout:?}; more than 0 and {:?} at most is allowed",
        limits::TIMEOUT
    )]
    Timeout { step: StepName, timeout: Duration },
    #[error(
        "step {step}: pauses from {first:?} to {longest:?}; they have to grow, to {:?} at most",
        limits::BACK_OFF
    )]
    BackOff {
        step: StepName,
        first: Duration,
        longest: Duration,
    },
    #[error("it has {bytes} bytes, {} at most are allowed", limits::PLAN_BYTES)]
    TooLarge { bytes: usize },
}

/// Everything that is wrong with a draft; nothing means that it can be sealed.
pub fn lint(draft: &Draft) -> Vec<Problem> {
    let mut problems = Vec::new();
    if draft.scope.is_empty() {
        problems.push(Problem::EmptyScope);
    }
    if draft.scope.len() > limits::SCOPE {
        problems.push(Problem::ScopeTooLarge {
            count: draft.scope.len(),
        });
    }
    if draft.procedure.as_str().len() > limits::PROCEDURE_BYTES {
        problems.push(Problem::ProcedureNameTooLong);
    }
    if draft.why.trim().is_empty() {
        problems.push(Problem::NoReason);
    }
    too_long("the reason", &draft.why, &mut problems);
    if draft.steps.is_empty() {
        problems.push(Problem::NoSteps);
    }
    if draft.steps.len() > limits::STEPS {
        problems.push(Problem::TooManySteps {
            count: draft.steps.len(),
        });
    }
    let mut names = BTreeSet::new();
    for step in &draft.steps {
        if !names.insert(&step.name) {
            problems.push(Problem::DuplicateStep {
                step: step.name.clone(),
            });
        }
        lint_step(step, &mut problems);
    }
    let bytes = crate::plan::encode(draft).len();
    if bytes > limits::PLAN_BYTES {
        problems.push(Problem::TooLarge { bytes });
    }
    problems
}

fn lint_step(step: &StepPlan, problems: &mut Vec<Problem>) {
    let name = || step.name.clone();
    let mut text = |what: &'static str, text: &str| {
        if text.trim().is_empty() {
            problems.push(Problem::EmptyText { step: name(), what });
        }
        too_long(&format!("step {}: {what}", step.name), text, problems);
    };
    text("what it is about", &step.about);
    if let Some(instructions) = &step.manual {
        text("what the person has to do", instructions);
    }
    match &step.undo {
        Undo::ByHand { instructions } => text("what the person has to undo", instructions),
        Undo::Impossible { why } => text("why it cannot be undone", why),
        Undo::ByProcedure | Undo::Nothing => {}
    }
    let attempts = step.retry.max_attempts;
    if attempts == 0 || attempts > limits::ATTEMPTS {
        problems.push(Problem::Attempts {
            step: name(),
            attempts,
        });
    }
    if step.timeout.is_zero() || step.timeout > limits::TIMEOUT {
        problems.push(Problem::Timeout {
            step: name(),
            timeout: step.timeout,
        });
    }
    let (first, longest) = (step.retry.first, step.retry.longest);
    if first > longest || longest > limits::BACK_OFF {
        problems.push(Problem::BackOff {
            step: name(),
            first,
            longest,
        });
    }
}

fn too_long(what: &str, text: &str, problems: &mut Vec<Problem>) {
    if text.len() > limits::TEXT_BYTES {
        problems.push(Problem::TextTooLong {
            what: what.to_owned(),
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use homeostat_model::ServiceName;

    use super::*;
    use crate::plan::{Approval, Asker, OnFailure, Person, Retry, Touched};

    pub(crate) fn step(name: &str) -> StepPlan {
        StepPlan {
            name: StepName::new(name).unwrap(),
            about: format!("do {name}"),
            parameters: serde_json::json!({"members": 3}),
            manual: None,
            retry: Retry {
                max_attempts: 3,
                first: Duration::from_secs(1),
                longest: Duration::from_secs(4),
            },
            timeout: Duration::from_secs(10),
            undo: Undo::ByProcedure,
        }
    }

    pub(crate) fn draft() -> Draft {
        Draft {
            procedure: ProcedureName::new("turnup").unwrap(),
            version: 1,
            scope: BTreeSet::from([Touched::Service(ServiceName::new("shop-db").unwrap())]),
            asked_by: Asker::Person(Person("alice".into())),
            why: "first start of the cell".into(),
            approval: Approval::NotNeeded,
            on_failure: OnFailure::Undo,
            steps: vec![
                step("place-members"),
                step("start-members"),
                step("open-endpoint"),
            ],
        }
    }

    #[test]
    fn a_good_draft_has_no_problems() {
        assert_eq!(lint(&draft()), []);
    }

    /// One helper for the whole table: change one thing of a good draft, read what is said about it.
    #[track_caller]
    fn check(change: impl FnOnce(&mut Draft), expect: &[&str]) {
        let mut draft = draft();
        change(&mut draft);
        let said: Vec<String> = lint(&draft).iter().map(Problem::to_string).collect();
        assert_eq!(said, expect);
    }

    #[test]
    fn each_problem_is_reported() {
        check(
            |d| d.scope.clear(),
            &["it touches nothing: an empty selection is an error, not 'all'"],
        );
        check(
            |d| {
                d.scope = (0..65)
                    .map(|n| Touched::Service(ServiceName::new(format!("s{n}")).unwrap()))
                    .collect()
            },
            &["it touches 65 things, 64 at most are allowed"],
        );
        check(
            |d| d.procedure = ProcedureName::new("a".repeat(29)).unwrap(),
            &["the name of its procedure has more than 28 characters"],
        );
        check(|d| d.why = " ".into(), &["it does not say why"]);
        check(
            |d| d.why = "x".repeat(1025),
            &["the reason has more than 1024 bytes"],
        );
        check(|d| d.steps.clear(), &["it has no steps"]);
        check(
            |d| d.steps = (0..65).map(|n| step(&format!("s{n}"))).collect(),
            &["it has 65 steps, 64 at most are allowed"],
        );
        check(
            |d| d.steps[1].name = d.steps[0].name.clone(),
            &["two steps are called place-members"],
        );
        check(
            |d| d.steps[0].about.clear(),
            &["step place-members: what it is about is empty"],
        );
        check(
            |d| d.steps[0].manual = Some(String::new()),
            &["step place-members: what the person has to do is empty"],
        );
        check(
            |d| d.steps[0].undo = Undo::Impossible { why: String::new() },
            &["step place-members: why it cannot be undone is empty"],
        );
        check(
            |d| d.steps[2].retry.max_attempts = 0,
            &["step open-endpoint: 0 attempts; 1 to 100 are allowed"],
        );
        check(
            |d| d.steps[2].retry.max_attempts = 101,
            &["step open-endpoint: 101 attempts; 1 to 100 are allowed"],
        );
        check(
            |d| d.steps[2].timeout = Duration::ZERO,
            &["step open-endpoint: a timeout of 0ns; more than 0 and 86400s at most is allowed"],
        );
        check(
            |d| d.steps[2].retry.first = Duration::from_secs(5),
            &["step open-endpoint: pauses from 5s to 4s; they have to grow, to 3600s at most"],
        );
        check(
            |d| d.steps[0].parameters = serde_json::json!("x".repeat(600 * 1024)),
            &["it has 615328 bytes, 524288 at most are allowed"],
        );
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        check(
            |d| {
                d.why.clear();
                d.steps[0].about.clear();
                d.steps[1].retry.max_attempts = 0;
            },
            &[
                "it does not say why",
                "step place-members: what it is about is empty",
                "step start-members: 0 attempts; 1 to 100 are allowed",
            ],
        );
    }
}
