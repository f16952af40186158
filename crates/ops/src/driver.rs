//! The loop of one operation: read, ask the journal, do, write down. No decision is made here.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use homeostat_journal::{
    Attempt, Event, Evidence, FailureKind, Next, Operation, Outcome, Phase, StepIndex, StepPlan,
    Wait, limits as journal_limits, next,
};
use homeostat_model::{OperationId, StepName};
use serde_json::Value;
use tokio::sync::{Notify, watch};

use crate::attempt::{Ended, Why, attempt};
use crate::books::{Books, Tried};
use crate::error::OpsError;
use crate::freeze;
use crate::limits;
use crate::procedure::{Cancellation, Procedure, StepContext, StepError, Wanted};

pub(crate) struct Driver {
    pub(crate) books: Arc<Books>,
    pub(crate) id: OperationId,
    pub(crate) procedure: Arc<dyn Procedure>,
    /// Somebody said something to the operation: look again.
    pub(crate) wake: Arc<Notify>,
}

/// How one turn of the loop ended.
enum Turn {
    Again,
    Over(Outcome),
}

/// Whether a cancel stops an attempt. Nothing stops an undo but its time.
#[derive(Clone, Copy)]
enum Stops {
    OnCancel,
    InTime,
}

impl Driver {
    pub(crate) async fn drive(self) -> Result<Outcome, OpsError> {
        let operation = self.books.take_over(&self.id).await?.operation;
        self.fits(&operation)?;
        loop {
            match self.turn().await? {
                Turn::Again => {}
                Turn::Over(outcome) => return Ok(outcome),
            }
        }
    }

    async fn turn(&self) -> Result<Turn, OpsError> {
        let operation = self.books.load(&self.id).await?.operation;
        let brake = freeze::frozen(&*self.books.store)
            .await
            .map_err(brake_error)?;
        match next(&operation, &brake, self.books.clock.now()) {
            Next::Run { step, attempt } => self.run(&operation, step, attempt).await?,
            Next::Verify { step, attempt } => self.verify(&operation, step, attempt).await?,
            Next::Undo { step, attempt } => self.undo(&operation, step, attempt).await?,
            Next::Note(event) => {
                // Lost or not, the next turn starts from what is written.
                self.books.append(&operation, event).await?;
            }
            // This driver is the only one of the only executor, and it has no attempt under way: what the log shows is
            // one whose result could not be written. Nobody knows how far it came.
            Next::InFlight { .. } => {
                self.books.append(&operation, Event::TakenOver).await?;
            }
            Next::Wait(Wait::BackOff { until, .. }) => {
                let pause = Duration::from_millis(until.0.saturating_sub(self.books.clock.now().0));
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.wake.notified() => {}
                }
            }
            Next::Wait(Wait::Frozen { .. }) => tokio::select! {
                changed = freeze::changed(&*self.books.store) => changed.map_err(brake_error)?,
                () = self.wake.notified() => {}
            },
            Next::NeedsOperator(_) => self.wake.notified().await,
            Next::Done { outcome } => return Ok(Turn::Over(outcome)),
        }
        Ok(Turn::Again)
    }

    async fn run(
        &self,
        operation: &Operation,
        step: StepIndex,
        number: Attempt,
    ) -> Result<(), OpsError> {
        let started = Event::StepStarted {
            step,
            attempt: number,
        };
        let Tried::Written(operation) = self.books.append(operation, started).await? else {
            return Ok(());
        };
        let planned = planned(&operation, step);
        let (stop, context) = self.context(&operation, number);
        let (procedure, owned) = (self.procedure.clone(), planned.clone());
        let work = async move { procedure.run(&owned, &context).await };
        let ended = self.attempt(work, planned, &stop, Stops::OnCancel).await?;
        let event = match ended.and_then(small_enough) {
            Ok(output) => Event::StepDone {
                step,
                attempt: number,
                output,
            },
            Err(StepError { kind, evidence }) => Event::StepFailed {
                step,
                attempt: number,
                kind,
                evidence,
            },
        };
        self.result(event).await
    }

    async fn verify(
        &self,
        operation: &Operation,
        step: StepIndex,
        number: Attempt,
    ) -> Result<(), OpsError> {
        let planned = planned(operation, step);
        let (stop, context) = self.context(operation, number);
        let (procedure, owned) = (self.procedure.clone(), planned.clone());
        let work = async move {
            procedure
                .verify(&owned, &context)
                .await
                .map_err(StepError::retryable)
        };
        let event = match self.attempt(work, planned, &stop, Stops::OnCancel).await? {
            Ok(()) => Event::VerifyPassed {
                step,
                attempt: number,
            },
            Err(StepError { evidence, .. }) => Event::VerifyFailed {
                step,
                attempt: number,
                evidence,
            },
        };
        self.result(event).await
    }

    async fn undo(
        &self,
        operation: &Operation,
        step: StepIndex,
        number: Attempt,
    ) -> Result<(), OpsError> {
        // What the step handed on is known before its undo begins, and gone after.
        let (stop, context) = self.context(operation, number);
        let started = Event::UndoStarted {
            step,
            attempt: number,
        };
        let Tried::Written(operation) = self.books.append(operation, started).await? else {
            return Ok(());
        };
        let planned = planned(&operation, step);
        let (procedure, owned) = (self.procedure.clone(), planned.clone());
        let work = async move { procedure.undo(&owned, &context).await };
        let event = match self.attempt(work, planned, &stop, Stops::InTime).await? {
            Ok(()) => Event::UndoDone {
                step,
                attempt: number,
            },
            Err(StepError { kind, evidence }) => Event::UndoFailed {
                step,
                attempt: number,
                kind,
                evidence,
            },
        };
        self.result(event).await
    }

    /// Runs one attempt in isolation; whatever happens to it becomes a result.
    async fn attempt<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StepError>> + Send + 'static,
        planned: &StepPlan,
        stop: &watch::Sender<Wanted>,
        stops: Stops,
    ) -> Result<Result<T, StepError>, OpsError> {
        let ended = match stops {
            Stops::OnCancel => attempt(work, planned.timeout, stop, self.cancelled()).await,
            Stops::InTime => attempt(work, planned.timeout, stop, std::future::pending()).await,
        };
        Ok(match ended {
            Ended::With(result) => result,
            Ended::Panicked(message) => Err(StepError::retryable(message)),
            Ended::Stopped(Why::OutOfTime) => Err(StepError::retryable(format!(
                "no result within {:?}",
                planned.timeout
            ))),
            Ended::Stopped(Why::Cancelled) => Err(StepError::retryable(
                "stopped, because the operation was cancelled",
            )),
            Ended::Wedged => {
                return Err(OpsError::Wedged {
                    operation: self.id.clone(),
                    step: planned.name.clone(),
                });
            }
        })
    }

    /// Returns once the operation turned round.
    async fn cancelled(&self) {
        loop {
            self.wake.notified().await;
            match self.books.load(&self.id).await {
                Ok(loaded) if *loaded.operation.phase() != Phase::Forward => return,
                // Something else was said; or it cannot be read, and then the attempt's result will find out.
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Writes a result down. Others may have written meanwhile (a pause, a cancel), which does not make it less of a fact.
    async fn result(&self, event: Event) -> Result<(), OpsError> {
        for _ in 0..limits::CONFLICTS {
            let operation = self.books.load(&self.id).await?.operation;
            if let Tried::Written(_) = self.books.append(&operation, event.clone()).await? {
                return Ok(());
            }
        }
        Err(OpsError::Contended {
            doing: "write down a result",
            tries: limits::CONFLICTS,
        })
    }

    fn context(
        &self,
        operation: &Operation,
        attempt: Attempt,
    ) -> (watch::Sender<Wanted>, StepContext) {
        let (stop, cancellation) = Cancellation::channel();
        let outputs: BTreeMap<StepName, Value> = operation
            .outputs()
            .map(|(step, output)| (planned(operation, step).name.clone(), output.clone()))
            .collect();
        let context = StepContext {
            operation: self.id.clone(),
            term: self.books.term,
            attempt,
            cancellation,
            outputs,
        };
        (stop, context)
    }

    fn fits(&self, operation: &Operation) -> Result<(), OpsError> {
        let draft = operation.plan().draft();
        if draft.procedure == *self.procedure.name() && draft.version == self.procedure.version() {
            return Ok(());
        }
        Err(OpsError::OtherProcedure {
            operation: self.id.clone(),
            wanted: draft.procedure.clone(),
            wanted_version: draft.version,
            found: self.procedure.name().clone(),
            found_version: self.procedure.version(),
        })
    }
}

fn planned(operation: &Operation, step: StepIndex) -> &StepPlan {
    operation
        .plan()
        .step(step)
        .expect("the journal names steps of the plan only")
}

fn small_enough(output: Value) -> Result<Value, StepError> {
    let bytes = output.to_string().len();
    if bytes <= journal_limits::OUTPUT_BYTES {
        return Ok(output);
    }
    Err(StepError {
        kind: FailureKind::Final,
        evidence: Evidence::new(format!(
            "its output has {bytes} bytes, {} at most may be handed on",
            journal_limits::OUTPUT_BYTES
        )),
    })
}

fn brake_error(source: homeostat_store::StoreError) -> OpsError {
    OpsError::Store {
        doing: "look whether the cell is frozen",
        source,
    }
}
