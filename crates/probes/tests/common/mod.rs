//! What tests of calls have in common.
#![allow(dead_code, clippy::unwrap_used)]

use std::time::Duration;

use homeostat_model::library::Call;
use homeostat_probes::{Applied, AppliedOutcome, Fix, Probe, Prober};
use homeostat_prodtest::{Observation, Outcome};
use serde_json::Value;

pub const PATIENT: Duration = Duration::from_secs(20);

/// `call("file", json!({"path": "/etc/hosts"}))`
pub fn call(kind: &str, args: Value) -> Call {
    Call {
        kind: kind.to_owned(),
        args: args.as_object().unwrap().clone().into_iter().collect(),
    }
}

pub async fn look_within(kind: &str, args: Value, deadline: Duration) -> Observation {
    let probe = Probe::from_call(&call(kind, args)).unwrap();
    Prober::new().run(&probe, deadline).await
}

pub async fn look(kind: &str, args: Value) -> Observation {
    look_within(kind, args, PATIENT).await
}

#[track_caller]
fn is(observation: &Observation, outcome: Outcome, seen: &str) {
    assert!(
        observation.outcome == outcome && observation.seen.contains(seen),
        "{observation:?}"
    );
}

#[track_caller]
pub fn passed(observation: &Observation, seen: &str) {
    is(observation, Outcome::Passed, seen);
}

#[track_caller]
pub fn failed(observation: &Observation, seen: &str) {
    is(observation, Outcome::Failed, seen);
}

#[track_caller]
pub fn not_run(observation: &Observation, seen: &str) {
    is(observation, Outcome::NotRun, seen);
}

pub fn fix(kind: &str, args: Value) -> Fix {
    Fix::from_call(&call(kind, args)).unwrap()
}

pub async fn apply(fix: &Fix) -> Applied {
    fix.apply(PATIENT).await
}

/// What every fix promises: its plan is what it does, its check passes then, and a second time it does nothing.
pub async fn repairs(fix: &Fix) -> Vec<String> {
    let prober = Prober::new();
    let plan = fix.plan(PATIENT).await.unwrap();
    assert!(!plan.is_empty(), "nothing to do for {}", fix.summary());
    let check = fix.check().unwrap();
    let before = prober.run(check, PATIENT).await;
    assert_eq!(before.outcome, Outcome::Failed, "{before:?}");
    let applied = apply(fix).await;
    assert_eq!(applied.outcome, AppliedOutcome::Changed, "{applied:?}");
    assert_eq!(applied.evidence, plan.join("; "));
    in_order(fix).await;
    plan
}

pub async fn in_order(fix: &Fix) {
    let after = Prober::new().run(fix.check().unwrap(), PATIENT).await;
    assert_eq!(after.outcome, Outcome::Passed, "{after:?}");
    assert_eq!(fix.plan(PATIENT).await.unwrap(), Vec::<String>::new());
    let again = apply(fix).await;
    assert_eq!(
        (again.outcome, again.evidence.as_str()),
        (AppliedOutcome::Unchanged, "in order")
    );
}

#[track_caller]
pub fn refused(applied: &Applied, why: &str) {
    assert!(
        applied.outcome == AppliedOutcome::Failed && applied.evidence.contains(why),
        "{applied:?}"
    );
}
