//! An operation in words, for `why` and `events`. Data stays apart from this: nothing is ever read back out of a text.

use std::fmt::Write as _;

use homeostat_model::UnixMillis;

use crate::operation::{Hold, Operation, Setback, StepState, StepTrack, UndoCause};
use crate::plan::{Approval, Plan};
use crate::record::{Event, FailureKind, Record, StepIndex, StuckWhy};

/// Where an operation is: a head, one line per step, and what holds it back.
pub fn render(operation: &Operation) -> String {
    let draft = operation.plan().draft();
    let scope: Vec<String> = draft.scope.iter().map(ToString::to_string).collect();
    let mut text = format!(
        "{}  {}\n  what   {} v{} of {}\n  asked  by {}: {}\n",
        operation.id(),
        operation.status().word(),
        draft.procedure,
        draft.version,
        scope.join(", "),
        draft.asked_by,
        draft.why,
    );
    if draft.approval == Approval::Needed {
        let plan = operation.hash().short();
        match operation.approved_by() {
            Some(person) => line(&mut text, &format!("  plan   {plan}, approved by {person}")),
            None => line(&mut text, &format!("  plan   {plan}, not approved yet")),
        }
    }
    let width = operation
        .plan()
        .steps()
        .iter()
        .map(|step| step.name.as_str().len())
        .max()
        .unwrap_or(0);
    for (planned, track) in operation.plan().steps().iter().zip(&operation.steps) {
        line(
            &mut text,
            &format!("  {:<width$}  {}", planned.name, state(track)),
        );
    }
    if let Some(cause) = operation.turned() {
        let cause = undo_cause(operation.plan(), cause);
        match operation.outcome() {
            Some(_) => line(&mut text, &format!("  undid itself: {cause}")),
            None => line(&mut text, &format!("  undoes itself: {cause}")),
        }
    }
    match operation.hold() {
        Some(Hold::Paused { by, why }) => line(&mut text, &format!("  paused by {by}: {why}")),
        Some(Hold::Stuck { why }) => line(
            &mut text,
            &format!("  stuck: {}", stuck(operation.plan(), why)),
        ),
        None => {}
    }
    text
}

/// Everything that happened, one line per record, with the time since the first.
pub fn render_log(plan: &Plan, log: &[Record]) -> String {
    let start = log.first().map_or(UnixMillis(0), |record| record.at);
    let mut text = String::new();
    for record in log {
        let since = record.at.0.saturating_sub(start.0);
        let since = format!("+{}.{:03}s", since / 1000, since % 1000);
        line(
            &mut text,
            &format!("{since:<10} {}", describe(plan, record)),
        );
    }
    text
}

/// One record in words.
pub fn describe(plan: &Plan, record: &Record) -> String {
    let name = |step: &StepIndex| step_name(plan, *step);
    match &record.event {
        Event::Begun { .. } => format!("begun: {}", plan.draft().why),
        Event::TakenOver => format!("taken over by the controller of term {}", record.term),
        Event::Approved { by, plan } => format!("approved by {by} (plan {})", plan.short()),
        Event::StepStarted { step, attempt } => format!("{}: attempt {attempt} begins", name(step)),
        Event::StepDone { step, .. } => format!("{}: ran", name(step)),
        Event::StepFailed {
            step,
            attempt,
            kind,
            evidence,
        } => {
            format!(
                "{}: attempt {attempt} {}: {evidence}",
                name(step),
                failed(*kind)
            )
        }
        Event::HandAsked { step } => format!("{}: waits for a person", name(step)),
        Event::DoneByHand { step, by, note, .. } => format!("{}: done by {by}: {note}", name(step)),
        Event::VerifyPassed { step, .. } => format!("{}: verified", name(step)),
        Event::VerifyFailed {
            step,
            attempt,
            evidence,
        } => {
            format!(
                "{}: attempt {attempt} had no effect: {evidence}",
                name(step)
            )
        }
        Event::UndoBegun { failed } => format!("undoes itself: {} failed", name(failed)),
        Event::UndoStarted { step, attempt } => {
            format!("{}: undo, attempt {attempt} begins", name(step))
        }
        Event::UndoDone { step, .. } => format!("{}: undone", name(step)),
        Event::UndoFailed {
            step,
            attempt,
            kind,
            evidence,
        } => {
            format!(
                "{}: undo, attempt {attempt} {}: {evidence}",
                name(step),
                failed(*kind)
            )
        }
        Event::UndoneByHand { step, by, note } => format!("{}: undone by {by}: {note}", name(step)),
        Event::Paused { by, why } => format!("paused by {by}: {why}"),
        Event::Stuck { why } => format!("stuck: {}", stuck(plan, why)),
        Event::Resumed { by } => format!("resumed by {by}"),
        Event::CancelAsked { by, why } => format!("cancelled by {by}: {why}"),
        Event::Completed => "done".to_owned(),
        Event::Undone => "undone".to_owned(),
        Event::Abandoned { by, why } => format!("abandoned by {by}: {why}"),
    }
}

fn state(track: &StepTrack) -> String {
    match &track.state {
        StepState::NotStarted => "not started".to_owned(),
        StepState::Running { attempt } => format!("running (attempt {attempt})"),
        StepState::AskedByHand => "waits for a person".to_owned(),
        StepState::Ran { .. } => "ran, being verified".to_owned(),
        StepState::Failed {
            attempt, setback, ..
        } => setback_text(setback, &format!("attempt {attempt}")),
        StepState::Passed { .. } => "done".to_owned(),
        StepState::Undoing { attempt } => format!("being undone (attempt {attempt})"),
        StepState::UndoFailed {
            attempt, setback, ..
        } => setback_text(setback, &format!("undo, attempt {attempt}")),
        StepState::Undone => match &track.last_setback {
            Some((attempt, setback)) => format!(
                "undone ({})",
                setback_text(setback, &format!("attempt {attempt}"))
            ),
            None => "undone".to_owned(),
        },
    }
}

fn setback_text(setback: &Setback, what: &str) -> String {
    match setback {
        Setback::Failed { kind, evidence } => format!("{what} {}: {evidence}", failed(*kind)),
        Setback::NotVerified { evidence } => format!("{what} had no effect: {evidence}"),
        Setback::Interrupted => format!("{what} was interrupted"),
    }
}

fn failed(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::Retryable => "failed",
        FailureKind::Final => "failed for good",
    }
}

fn stuck(plan: &Plan, why: &StuckWhy) -> String {
    match why {
        StuckWhy::StepFailed { step } => format!("{} is out of attempts", step_name(plan, *step)),
        StuckWhy::PastReturn { step, blocker } => format!(
            "{} is out of attempts, and {} cannot be undone",
            step_name(plan, *step),
            step_name(plan, *blocker)
        ),
        StuckWhy::UndoFailed { step } => format!("{} cannot be undone", step_name(plan, *step)),
    }
}

fn undo_cause(plan: &Plan, cause: &UndoCause) -> String {
    match cause {
        UndoCause::Failed { step } => format!("{} failed", step_name(plan, *step)),
        UndoCause::Cancelled { by, why } => format!("cancelled by {by}: {why}"),
    }
}

fn step_name(plan: &Plan, step: StepIndex) -> String {
    // A record that came from elsewhere is rendered all the same: this is what a person reads to find out.
    plan.step(step).map_or_else(
        || format!("step number {}", step.0 + 1),
        |step| step.name.to_string(),
    )
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("writing to a String cannot fail");
}
