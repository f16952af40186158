//! A verb of a service's own ("switchover") as an operation: planned first, recorded before it runs, one at a time with
//! whatever else touches the service.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use homeostat_api::Refusal;
use homeostat_api::v1::{ActReply, ActRequest};
use homeostat_journal::{
    Approval, Asker, Draft, Evidence, OnFailure, Retry, StepPlan, Touched, Undo,
};
use homeostat_model::{ProcedureName, ServiceName, StepName};
use homeostat_ops::{Procedure, StepContext, StepError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::plan::PROCEDURE_VERSION;
use crate::procedure::{Cell, step_error};

/// A service bounds its own verbs; this is for one that does not.
const WITHIN: Duration = Duration::from_secs(120);

/// What the step of such an operation does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Act {
    pub service: ServiceName,
    pub verb: ProcedureName,
    /// Definite: the service was asked to plan first.
    pub arguments: BTreeMap<String, String>,
}

impl Act {
    /// What a stored operation would do; `None` when it is something else.
    pub fn of(draft: &Draft) -> Option<Self> {
        serde_json::from_value(draft.steps.first()?.parameters.clone()).ok()
    }

    /// One attempt: a verb that failed left things as they were (its service sees to that), and whoever asked decides
    /// whether to ask again.
    pub fn draft(&self, about: String, asked_by: Asker) -> Draft {
        Draft {
            procedure: self.verb.clone(),
            version: PROCEDURE_VERSION,
            scope: [Touched::Service(self.service.clone())].into(),
            asked_by,
            why: about.clone(),
            approval: Approval::NotNeeded,
            on_failure: OnFailure::Undo,
            steps: vec![StepPlan {
                name: StepName::new("act").expect("invariant: 'act' is a valid step name"),
                about,
                parameters: serde_json::to_value(self)
                    .expect("invariant: names and texts always serialize"),
                manual: None,
                retry: Retry {
                    max_attempts: 1,
                    first: Duration::from_secs(1),
                    longest: Duration::from_secs(1),
                },
                timeout: WITHIN,
                undo: Undo::Nothing,
            }],
        }
    }
}

/// Carries one such operation out and keeps the service's answer.
pub struct ActProcedure {
    act: Act,
    cell: Arc<dyn Cell>,
    answer: Mutex<Option<Result<ActReply, Refusal>>>,
}

impl ActProcedure {
    pub fn new(act: Act, cell: Arc<dyn Cell>) -> Self {
        Self {
            act,
            cell,
            answer: Mutex::new(None),
        }
    }

    /// What the service said, once the step has run in this process.
    pub fn answer(&self) -> Option<Result<ActReply, Refusal>> {
        self.answer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[async_trait]
impl Procedure for ActProcedure {
    fn name(&self) -> &ProcedureName {
        &self.act.verb
    }

    fn version(&self) -> u32 {
        PROCEDURE_VERSION
    }

    async fn run(&self, _: &StepPlan, _: &StepContext) -> Result<Value, StepError> {
        let service = &self.act.service;
        let admin = self
            .cell
            .admin(service)
            .ok_or_else(|| StepError::final_(format!("{service} is not declared")))?;
        let arguments: HashMap<String, String> = self.act.arguments.clone().into_iter().collect();
        let request = ActRequest {
            service: service.to_string(),
            verb: self.act.verb.to_string(),
            arguments,
            by: String::new(),
        };
        let answer = admin.act(request).await;
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer.clone());
        let reply = answer.map_err(step_error)?;
        Ok(serde_json::json!({ "text": reply.text }))
    }

    async fn verify(&self, _: &StepPlan, _: &StepContext) -> Result<(), Evidence> {
        // The service answered only after it had looked; its checks go on looking.
        Ok(())
    }

    async fn undo(&self, _: &StepPlan, _: &StepContext) -> Result<(), StepError> {
        // Planned as `Undo::Nothing`.
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use homeostat_journal::{Person, lint};

    #[test]
    fn what_an_operation_does_is_read_back_from_its_plan() {
        let act = Act {
            service: ServiceName::new("shop-db").unwrap(),
            verb: ProcedureName::new("switchover").unwrap(),
            arguments: [
                ("from".to_owned(), "shop-db-0".to_owned()),
                ("to".to_owned(), "shop-db-1".to_owned()),
            ]
            .into(),
        };
        let draft = act.draft(
            "make shop-db-1 the primary".into(),
            Asker::Person(Person("kim".into())),
        );
        assert_eq!(lint(&draft), []);
        assert_eq!(Act::of(&draft), Some(act));
        let turnup = crate::plan::turnup(&[], Asker::Person(Person("kim".into())), "x".into());
        assert_eq!(Act::of(&turnup), None);
    }
}
