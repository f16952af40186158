//! Plans. A plan is settled before anything runs and never changes afterwards: what a person approved is what runs,
//! and it leaves no choices to the executor.
//!
//! A planner writes a [`Draft`], whose fields are open. [`Plan::seal`] lints it and gives it its operation's id; from
//! then on the fields can only be read. [`Plan::hash`] is what an approval is bound to.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use homeostat_model::{MachineName, OperationId, ProcedureName, ServiceName, StepName, TaskName};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::lint::{LintError, lint};
use crate::record::StepIndex;

/// The version of the stored form of a plan. One that is newer is refused, not guessed at.
pub const PLAN_FORMAT: u32 = 1;

/// What a planner or a person wants done, before it is an operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Draft {
    pub procedure: ProcedureName,
    /// The procedure's version: steps planned for one are not run by another.
    pub version: u32,
    /// What it touches. Two operations whose scopes have something in common never run at once. Names are compared,
    /// not what contains what: a procedure names the largest thing that it changes.
    pub scope: BTreeSet<Touched>,
    pub asked_by: Asker,
    /// For people, of any length up to a paragraph: "machine m2 is to be emptied for a new disk".
    pub why: String,
    pub approval: Approval,
    pub on_failure: OnFailure,
    pub steps: Vec<StepPlan>,
}

/// A thing that an operation changes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "name")]
pub enum Touched {
    Service(ServiceName),
    Machine(MachineName),
    Task(TaskName),
}

impl fmt::Display for Touched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Touched::Service(name) => write!(f, "service/{name}"),
            Touched::Machine(name) => write!(f, "machine/{name}"),
            Touched::Task(name) => write!(f, "task/{name}"),
        }
    }
}

/// Who wants something. It makes a difference: a freeze holds back automation and not people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "name")]
pub enum Asker {
    Person(Person),
    /// A planner, by name.
    Automation(String),
}

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Asker::Person(name) => write!(f, "{name}"),
            Asker::Automation(name) => write!(f, "{name} (automation)"),
        }
    }
}

/// Somebody who can be asked. Some things (approving, abandoning, doing a step by hand) only a person can.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Person(pub String);

impl fmt::Display for Person {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Whether a person has to agree to the plan before its first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Approval {
    NotNeeded,
    Needed,
}

/// What happens once a step is out of attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// Undo what was touched, in reverse.
    Undo,
    /// Leave everything as it is and ask a person.
    Stop,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepPlan {
    pub name: StepName,
    /// What it does, for people, in the imperative: "start the three members".
    pub about: String,
    /// For the procedure; nobody else looks inside.
    pub parameters: Value,
    /// Instructions for a person. A manual step differs from others in who does it and in nothing else: it is
    /// verified and undone in the same way, and so it can be automated later without a change to the procedure around it.
    pub manual: Option<String>,
    pub retry: Retry,
    /// Limits one attempt, one verification and one attempt at undoing, each by itself.
    pub timeout: Duration,
    pub undo: Undo,
}

/// How often something is attempted and how long the pauses are. Also used for undoing the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    pub max_attempts: u32,
    /// After the first failure; doubled after each further one.
    pub first: Duration,
    pub longest: Duration,
}

impl Retry {
    /// The pause after `failures` failed attempts.
    pub fn pause(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }
}

/// How a step is taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Undo {
    /// The procedure can. It has to cope with a step that never ran and with one that ran partly.
    ByProcedure,
    /// A person can.
    ByHand { instructions: String },
    /// The step changes nothing (it waits, or looks): undoing passes over it.
    Nothing,
    /// Nobody can. From the moment this step is touched the operation can only go forward.
    Impossible { why: String },
}

/// A plan under its operation's id. It has passed [`lint`] and does not change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    format: u32,
    operation: OperationId,
    draft: Draft,
}

/// Why a stored plan cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(
        "the stored plan has format {found}, this program knows {PLAN_FORMAT} at most: use the newer program"
    )]
    Newer { found: u32 },
    #[error("the stored plan cannot be read")]
    Garbled(#[source] serde_json::Error),
    #[error("the stored plan breaks the rules for plans")]
    Lint(#[from] LintError),
}

impl Plan {
    /// Settles a draft.
    ///
    /// # Errors
    /// Everything that [`lint`] has to say about it.
    pub fn seal(operation: OperationId, draft: Draft) -> Result<Self, LintError> {
        let problems = lint(&draft);
        if problems.is_empty() {
            Ok(Self {
                format: PLAN_FORMAT,
                operation,
                draft,
            })
        } else {
            Err(LintError {
                procedure: draft.procedure,
                problems,
            })
        }
    }

    pub fn operation(&self) -> &OperationId {
        &self.operation
    }

    /// The settled contents, for reading.
    pub fn draft(&self) -> &Draft {
        &self.draft
    }

    pub fn steps(&self) -> &[StepPlan] {
        &self.draft.steps
    }

    pub fn step(&self, step: StepIndex) -> Option<&StepPlan> {
        self.draft.steps.get(step.position())
    }

    pub fn index_of(&self, name: &StepName) -> Option<StepIndex> {
        let position = self
            .draft
            .steps
            .iter()
            .position(|step| step.name == *name)?;
        u32::try_from(position).ok().map(StepIndex)
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`PlanError`] for a newer format, for anything that is not a plan, and for a plan that would not be sealed today.
    pub fn decode(bytes: &[u8]) -> Result<Self, PlanError> {
        let found = format_of(bytes).map_err(PlanError::Garbled)?;
        if found > PLAN_FORMAT {
            return Err(PlanError::Newer { found });
        }
        let plan: Plan = serde_json::from_slice(bytes).map_err(PlanError::Garbled)?;
        // Checked again, because the rest of this room indexes steps and multiplies limits on the strength of it.
        let problems = lint(&plan.draft);
        if problems.is_empty() {
            Ok(plan)
        } else {
            Err(LintError {
                procedure: plan.draft.procedure,
                problems,
            }
            .into())
        }
    }

    /// Identifies this plan with everything in it, its operation's id included.
    pub fn hash(&self) -> PlanHash {
        let value =
            serde_json::to_value(self).expect("plain data with text keys always serializes");
        let mut text = Vec::new();
        canonical(&value, &mut text);
        let digest = Sha256::digest(&text);
        PlanHash(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// SHA-256 of a plan, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlanHash(String);

impl PlanHash {
    /// Enough of it to compare by eye.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl fmt::Display for PlanHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<String> for PlanHash {
    /// Any text: one that is no plan's hash matches no plan.
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// The format number of something stored, before anything else of it is looked at.
pub(crate) fn format_of(bytes: &[u8]) -> Result<u32, serde_json::Error> {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    serde_json::from_slice::<Head>(bytes).map(|head| head.format)
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data with text keys always serializes")
}

/// JSON with sorted keys. `serde_json` keeps keys sorted or in order of insertion depending on a feature that any crate of
/// the build may switch on, and a hash must not depend on that.
fn canonical(value: &Value, text: &mut Vec<u8>) {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            text.extend(encode(value))
        }
        Value::Array(items) => {
            text.push(b'[');
            for item in items {
                canonical(item, text);
                text.push(b',');
            }
            text.push(b']');
        }
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            text.push(b'{');
            for key in keys {
                text.extend(encode(key));
                text.push(b':');
                canonical(&map[key], text);
                text.push(b',');
            }
            text.push(b'}');
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::lint::tests::draft;

    #[test]
    fn a_plan_survives_the_store_and_keeps_its_hash() {
        let plan = Plan::seal(OperationId::new("turnup-1").unwrap(), draft()).unwrap();
        let read = Plan::decode(&plan.encode()).unwrap();
        assert_eq!(read, plan);
        assert_eq!(read.hash(), plan.hash());
    }

    #[test]
    fn the_hash_covers_everything() {
        let id = || OperationId::new("turnup-1").unwrap();
        let hash = Plan::seal(id(), draft()).unwrap().hash();
        let mut changed = draft();
        changed.steps[0].parameters = serde_json::json!({"members": 4});
        assert_ne!(Plan::seal(id(), changed).unwrap().hash(), hash);
        assert_ne!(
            Plan::seal(OperationId::new("turnup-2").unwrap(), draft())
                .unwrap()
                .hash(),
            hash
        );
    }

    #[test]
    fn the_canonical_text_does_not_depend_on_the_order_of_keys() {
        let mut text = Vec::new();
        canonical(
            &serde_json::json!({"b": [1, {"z": null, "a": "x"}], "a": true}),
            &mut text,
        );
        assert_eq!(
            String::from_utf8(text).unwrap(),
            r#"{"a":true,"b":[1,{"a":"x","z":null,},],}"#
        );
    }

    #[test]
    fn a_newer_plan_is_refused_whatever_else_it_says() {
        let newer = br#"{"format": 2, "operation": {"something": "else"}}"#;
        assert!(matches!(
            Plan::decode(newer),
            Err(PlanError::Newer { found: 2 })
        ));
        assert!(matches!(Plan::decode(b"{}"), Err(PlanError::Garbled(_))));
    }

    #[test]
    fn a_stored_plan_is_linted_again() {
        let mut plan = Plan::seal(OperationId::new("turnup-1").unwrap(), draft()).unwrap();
        plan.draft.steps.clear();
        assert!(matches!(
            Plan::decode(&plan.encode()),
            Err(PlanError::Lint(_))
        ));
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let retry = Retry {
            max_attempts: 9,
            first: Duration::from_millis(100),
            longest: Duration::from_millis(350),
        };
        let pauses: Vec<u128> = [1, 2, 3, 4, 99]
            .map(|n| retry.pause(n).as_millis())
            .to_vec();
        assert_eq!(pauses, [100, 200, 350, 350, 350]);
    }
}
