//! The executor as others see it: submit, run, and what people may say to an operation.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use homeostat_journal::{
    Asker, Draft, Event, Next, Operation, Outcome, Person, PlanHash, Record, next,
};
use homeostat_model::{OperationId, StepName, Term};
use homeostat_store::Store;
use tokio::sync::{Notify, broadcast};

use crate::books::{Books, Tried};
use crate::clock::Clock;
use crate::driver::Driver;
use crate::error::{LoadError, OpsError};
use crate::freeze::frozen;
use crate::limits;
use crate::procedure::Procedure;
use crate::stored::Loaded;

/// Runs operations under one term of leadership. Cheap to clone; all clones are the same executor.
#[derive(Clone)]
pub struct Executor {
    books: Arc<Books>,
    running: Arc<Mutex<Running>>,
}

/// The drivers of this process, and how to wake them.
type Running = BTreeMap<OperationId, Arc<Notify>>;

/// A record that was written, with the operation as it is after it.
#[derive(Debug, Clone)]
pub struct Progress {
    pub record: Record,
    pub operation: Arc<Operation>,
}

/// All operations that are kept, oldest first.
#[derive(Debug)]
pub struct Listing {
    pub operations: Vec<Operation>,
    /// What is not understood, by id, with the reason. Nothing is done with these.
    pub unreadable: Vec<(String, LoadError)>,
}

/// One operation with everything that is known of it.
#[derive(Debug, Clone)]
pub struct View {
    pub operation: Operation,
    pub log: Vec<Record>,
    /// What it does or waits for at this moment.
    pub next: Next,
}

impl Executor {
    /// Becomes *the* executor: an older one, or another one of this term, cannot write any more.
    ///
    /// # Errors
    /// [`OpsError::Fenced`] when there is one of a newer term.
    pub async fn open(
        store: Arc<dyn Store>,
        term: Term,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OpsError> {
        let books = Arc::new(Books::open(store, term, clock).await?);
        Ok(Self {
            books,
            running: Arc::default(),
        })
    }

    /// The records written by this executor from here on. A listener that is too slow is told how many it missed
    /// ([`limits::PROGRESS`] wait for it), and lists anew.
    pub fn progress(&self) -> broadcast::Receiver<Progress> {
        self.books.progress()
    }

    /// Writes an operation down. It does nothing before [`Executor::run`].
    ///
    /// # Errors
    /// [`OpsError::Lint`] for a bad draft; [`OpsError::Busy`] while another operation touches the same things.
    pub async fn submit(&self, draft: Draft) -> Result<Operation, OpsError> {
        self.books.submit(draft).await
    }

    /// Runs an operation until it is over, through every pause, freeze and wait for a person in between. Returns at once when
    /// it is over already.
    ///
    /// Goes on when the caller stops waiting; it ends with its operation, with this executor's term, or with the process.
    ///
    /// # Errors
    /// [`OpsError::Fenced`]; [`OpsError::Store`] when the store stays away (run it again later); [`OpsError::Wedged`].
    pub async fn run(
        &self,
        id: &OperationId,
        procedure: Arc<dyn Procedure>,
    ) -> Result<Outcome, OpsError> {
        let wake = self.register(id)?;
        let driver = Driver {
            books: self.books.clone(),
            id: id.clone(),
            procedure,
            wake,
        };
        let (running, books, id) = (self.running.clone(), self.books.clone(), id.clone());
        let driving = tokio::spawn(async move {
            // Dropped however this task ends, a panic and the end of the runtime included.
            let _registered = Registered { running, id };
            let outcome = driver.drive().await?;
            books.trim(limits::FINISHED).await?;
            Ok(outcome)
        });
        match driving.await {
            Ok(ended) => ended,
            Err(error) => match error.try_into_panic() {
                // A bug of this room, not of a step: those are caught where they run.
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(OpsError::Store {
                    doing: "go on: the runtime is shutting down",
                    source: homeostat_store::StoreError::Closed,
                }),
            },
        }
    }

    /// Takes over all operations that are not over, and returns them to be run. To be called once, after opening.
    ///
    /// # Errors
    /// Those of the store and of the fence. An operation which cannot be read is left alone and is found in
    /// [`Executor::list`].
    pub async fn resume_all(&self) -> Result<Vec<Operation>, OpsError> {
        let mut unfinished = Vec::new();
        for operation in self.list().await?.operations {
            if operation.outcome().is_none() {
                unfinished.push(self.books.take_over(operation.id()).await?.operation);
            }
        }
        Ok(unfinished)
    }

    /// # Errors
    /// Those of the store.
    pub async fn list(&self) -> Result<Listing, OpsError> {
        self.books.load_all().await
    }

    /// # Errors
    /// [`OpsError::NoSuch`], [`OpsError::Unreadable`], and those of the store.
    pub async fn get(&self, id: &OperationId) -> Result<View, OpsError> {
        let Loaded { operation, log } = self.books.load(id).await?;
        let brake = frozen(&*self.books.store)
            .await
            .map_err(|source| OpsError::Store {
                doing: "look whether the cell is frozen",
                source,
            })?;
        let next = next(&operation, &brake, self.books.clock.now());
        Ok(View {
            operation,
            log,
            next,
        })
    }

    /// Agrees to the plan with this hash, and to no other.
    ///
    /// # Errors
    /// [`OpsError::Refused`] when it is another plan, or no approval is awaited. All that people say may be refused so.
    pub async fn approve(
        &self,
        id: &OperationId,
        by: Person,
        plan: PlanHash,
    ) -> Result<Operation, OpsError> {
        self.tell(id, |_| {
            Ok(Event::Approved {
                by: by.clone(),
                plan: plan.clone(),
            })
        })
        .await
    }

    /// Lets what runs end and nothing further begin.
    ///
    /// # Errors
    /// As [`Executor::approve`].
    pub async fn pause(
        &self,
        id: &OperationId,
        by: Asker,
        why: &str,
    ) -> Result<Operation, OpsError> {
        self.tell(id, |_| {
            Ok(Event::Paused {
                by: by.clone(),
                why: why.to_owned(),
            })
        })
        .await
    }

    /// Ends a pause; tries again what is stuck.
    ///
    /// # Errors
    /// As [`Executor::approve`].
    pub async fn resume(&self, id: &OperationId, by: Person) -> Result<Operation, OpsError> {
        self.tell(id, |_| Ok(Event::Resumed { by: by.clone() }))
            .await
    }

    /// Stops what runs and undoes everything.
    ///
    /// # Errors
    /// As [`Executor::approve`]; among others once something was touched that cannot be undone.
    pub async fn cancel(
        &self,
        id: &OperationId,
        by: Asker,
        why: &str,
    ) -> Result<Operation, OpsError> {
        self.tell(id, |_| {
            Ok(Event::CancelAsked {
                by: by.clone(),
                why: why.to_owned(),
            })
        })
        .await
    }

    /// Ends it as it is. An attempt that is under way has to end first: pause, or cancel.
    ///
    /// # Errors
    /// As [`Executor::approve`].
    pub async fn abandon(
        &self,
        id: &OperationId,
        by: Person,
        why: &str,
    ) -> Result<Operation, OpsError> {
        self.tell(id, |_| {
            Ok(Event::Abandoned {
                by: by.clone(),
                why: why.to_owned(),
            })
        })
        .await
    }

    /// A person did the step, or, while the operation undoes itself, undid it.
    ///
    /// # Errors
    /// As [`Executor::approve`]; [`OpsError::NoStep`].
    pub async fn done_by_hand(
        &self,
        id: &OperationId,
        step: &StepName,
        by: Person,
        note: &str,
    ) -> Result<Operation, OpsError> {
        self.tell(id, |operation| {
            let no_step = || OpsError::NoStep {
                operation: id.clone(),
                step: step.clone(),
            };
            let index = operation.plan().index_of(step).ok_or_else(no_step)?;
            let (by, note) = (by.clone(), note.to_owned());
            if operation.turned().is_some() {
                return Ok(Event::UndoneByHand {
                    step: index,
                    by,
                    note,
                });
            }
            let attempt = operation.next_attempt(index).ok_or_else(no_step)?;
            Ok(Event::DoneByHand {
                step: index,
                attempt,
                by,
                note,
            })
        })
        .await
    }

    /// Records what somebody says to an operation as it is at that moment, and wakes its driver.
    async fn tell(
        &self,
        id: &OperationId,
        event: impl Fn(&Operation) -> Result<Event, OpsError>,
    ) -> Result<Operation, OpsError> {
        for _ in 0..limits::CONFLICTS {
            let Loaded { operation, .. } = self.books.take_over(id).await?;
            let event = event(&operation)?;
            if let Tried::Written(after) = self.books.append(&operation, event).await? {
                if let Some(wake) = self.lock_running().get(id) {
                    wake.notify_one();
                }
                return Ok(after);
            }
        }
        Err(OpsError::Contended {
            doing: "record what was asked",
            tries: limits::CONFLICTS,
        })
    }

    fn register(&self, id: &OperationId) -> Result<Arc<Notify>, OpsError> {
        let mut running = self.lock_running();
        if running.contains_key(id) {
            return Err(OpsError::AlreadyRuns {
                operation: id.clone(),
            });
        }
        let wake = Arc::new(Notify::new());
        running.insert(id.clone(), wake.clone());
        Ok(wake)
    }

    fn lock_running(&self) -> std::sync::MutexGuard<'_, Running> {
        // Nothing in there can be half done.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An operation's place among those that run.
struct Registered {
    running: Arc<Mutex<Running>>,
    id: OperationId,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.id);
    }
}
