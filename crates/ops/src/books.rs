//! Operations in the store: reading them, and the three transactions that write them (open, submit, append).
//!
//! Every transaction compares the fence. One that is refused was either fenced, which ends this executor, or lost to
//! another writer of this process (or to a freeze), which means: read again, decide again.

use std::collections::BTreeMap;
use std::sync::Arc;

use homeostat_journal::{Asker, Draft, Event, Operation, Plan, RECORD_FORMAT, Record};
use homeostat_model::{OperationId, Revision, Term};
use homeostat_store::{Compare, Item, Keys, Op, Outcome as Txned, Store, StoreError, Txn};
use tokio::sync::broadcast;

use crate::clock::Clock;
use crate::error::OpsError;
use crate::executor::{Listing, Progress};
use crate::patience::{Tries, read};
use crate::stored::{FENCE_FORMAT, Fence, Loaded, fence_term, fold, holder, number_of};
use crate::{keys, limits};

pub(crate) struct Books {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) term: Term,
    pub(crate) clock: Arc<dyn Clock>,
    /// The revision at which this executor raised the fence.
    fence: Revision,
    progress: broadcast::Sender<Progress>,
}

/// What came of trying to write.
#[derive(Debug)]
pub(crate) enum Tried<T> {
    Written(T),
    /// Something is no longer as it was read: look again.
    Lost,
}

impl Books {
    /// Raises the fence to `term`. An older executor, or another one of the same term, cannot write from here on.
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        term: Term,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OpsError> {
        const DOING: &str = "raise the fence of operations";
        let (progress, _) = broadcast::channel(limits::PROGRESS);
        for _ in 0..limits::CONFLICTS {
            let found = read(&*store, Keys::one(keys::FENCE), DOING)
                .await?
                .items
                .pop();
            let seen = found.as_ref().map_or(Revision(0), |item| item.mod_revision);
            if let Some(item) = &found {
                let newer = fence_term(item)?;
                if newer > term {
                    return Err(OpsError::Fenced { own: term, newer });
                }
            }
            let value = serde_json::to_vec(&Fence {
                format: FENCE_FORMAT,
                term,
            })
            .expect("plain data serializes");
            let txn = Txn::new()
                .when(Compare::mod_revision(keys::FENCE, seen))
                .then(Op::put(keys::FENCE, value));
            match store.txn(txn).await {
                Ok(reply) if reply.outcome == Txned::Committed => {
                    return Ok(Self {
                        store,
                        term,
                        clock,
                        fence: reply.revision,
                        progress,
                    });
                }
                // Somebody else raised it, or it is unknown whether we did. Once more, from what is there now: only an
                // answer tells at which revision the fence is ours.
                Ok(_) | Err(StoreError::OutcomeUnknown { .. }) => {}
                Err(source) => {
                    return Err(OpsError::Store {
                        doing: DOING,
                        source,
                    });
                }
            }
        }
        Err(OpsError::Contended {
            doing: DOING,
            tries: limits::CONFLICTS,
        })
    }

    pub(crate) fn progress(&self) -> broadcast::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub(crate) async fn load(&self, id: &OperationId) -> Result<Loaded, OpsError> {
        let items = read(
            &*self.store,
            Keys::prefix(keys::operation(id)),
            "read an operation",
        )
        .await?
        .items;
        if items.is_empty() {
            return Err(OpsError::NoSuch {
                operation: id.clone(),
            });
        }
        fold(&items).map_err(|source| OpsError::Unreadable {
            operation: id.clone(),
            source,
        })
    }

    pub(crate) async fn load_all(&self) -> Result<Listing, OpsError> {
        let items = read(
            &*self.store,
            Keys::prefix(keys::OPERATIONS),
            "list operations",
        )
        .await?
        .items;
        let mut by_id: BTreeMap<String, Vec<Item>> = BTreeMap::new();
        for item in items {
            let id = keys::split(&item.key)
                .map_or(item.key.as_str(), |(id, _)| id)
                .to_owned();
            by_id.entry(id).or_default().push(item);
        }
        let mut listing = Listing {
            operations: Vec::new(),
            unreadable: Vec::new(),
        };
        for (id, items) in by_id {
            match fold(&items) {
                Ok(loaded) => listing.operations.push(loaded.operation),
                Err(why) => listing.unreadable.push((id, why)),
            }
        }
        listing
            .operations
            .sort_by(|a, b| (a.begun_at(), a.id()).cmp(&(b.begun_at(), b.id())));
        Ok(listing)
    }

    /// Makes a draft an operation: plan, first record, locks and number, all or nothing.
    pub(crate) async fn submit(&self, draft: Draft) -> Result<Operation, OpsError> {
        const DOING: &str = "submit an operation";
        let number_key = keys::next_number(&draft.procedure);
        for _ in 0..limits::CONFLICTS {
            self.check_locks(&draft).await?;
            let number = read(&*self.store, Keys::one(&number_key), DOING)
                .await?
                .items
                .pop();
            let n = number.as_ref().map_or(Ok(1), number_of)?;
            let id = OperationId::new(format!("{}-{n}", draft.procedure)).map_err(|error| {
                OpsError::Garbled {
                    what: number_key.clone(),
                    why: error.to_string(),
                }
            })?;
            let plan = Plan::seal(id.clone(), draft.clone())?;
            let bytes = plan.encode();
            let mut operation = Operation::planned(plan);
            let begun = self.stamp(
                &operation,
                Event::Begun {
                    plan: operation.hash().clone(),
                },
            );
            refused(&mut operation, &begun)?;
            let seen = number.map_or(Revision(0), |item| item.mod_revision);
            let mut txn = self
                .fenced()
                .when(Compare::mod_revision(&number_key, seen))
                .when(Compare::absent(keys::plan(&id)))
                .then(Op::put(&number_key, (n + 1).to_string()))
                .then(Op::put(keys::plan(&id), bytes.clone()))
                .then(Op::put(keys::record(&id, begun.seq), begun.encode()));
            for touched in &draft.scope {
                let lock = keys::lock(touched);
                txn = txn
                    .when(Compare::absent(&lock))
                    .then(Op::put(lock, id.as_str()));
            }
            match self.commit(txn, &keys::plan(&id), &bytes, DOING).await? {
                Tried::Written(()) => {
                    self.tell(&begun, &operation);
                    return Ok(operation);
                }
                Tried::Lost => {}
            }
        }
        Err(OpsError::Contended {
            doing: DOING,
            tries: limits::CONFLICTS,
        })
    }

    /// Reads an operation and, if it was last written under another term, takes it over.
    pub(crate) async fn take_over(&self, id: &OperationId) -> Result<Loaded, OpsError> {
        for _ in 0..limits::CONFLICTS {
            let loaded = self.load(id).await?;
            if loaded.operation.outcome().is_some() || loaded.operation.term() >= self.term {
                return Ok(loaded);
            }
            self.append(&loaded.operation, Event::TakenOver).await?;
        }
        Err(OpsError::Contended {
            doing: "take an operation over",
            tries: limits::CONFLICTS,
        })
    }

    /// Writes down that `event` happened to the operation as it was read. What ends it gives its locks back as well.
    ///
    /// # Errors
    /// [`OpsError::Refused`] when the journal says that it cannot have happened.
    pub(crate) async fn append(
        &self,
        operation: &Operation,
        event: Event,
    ) -> Result<Tried<Operation>, OpsError> {
        if operation.term() > self.term {
            return Err(OpsError::Fenced {
                own: self.term,
                newer: operation.term(),
            });
        }
        let mut after = operation.clone();
        let record = self.stamp(operation, event);
        refused(&mut after, &record)?;
        let key = keys::record(operation.id(), record.seq);
        let bytes = record.encode();
        let mut txn = self
            .fenced()
            .when(Compare::absent(&key))
            .then(Op::put(&key, bytes.clone()));
        if begins_automatic_action(operation, &record.event) {
            txn = txn.when(Compare::absent(keys::FREEZE));
        }
        if after.outcome().is_some() {
            for touched in &operation.plan().draft().scope {
                txn = txn.then(Op::delete(keys::lock(touched)));
            }
        }
        Ok(
            match self
                .commit(txn, &key, &bytes, "write down what happened")
                .await?
            {
                Tried::Written(()) => {
                    self.tell(&record, &after);
                    Tried::Written(after)
                }
                Tried::Lost => Tried::Lost,
            },
        )
    }

    /// Forgets the oldest of those that are over, beyond the number that is kept.
    pub(crate) async fn trim(&self, keep: usize) -> Result<(), OpsError> {
        let mut over: Vec<Operation> = self
            .load_all()
            .await?
            .operations
            .into_iter()
            .filter(|operation| operation.outcome().is_some())
            .collect();
        over.sort_by_key(|operation| std::cmp::Reverse(operation.last_at()));
        for operation in over.iter().skip(keep) {
            let txn = self
                .fenced()
                .then(Op::delete_prefix(keys::operation(operation.id())));
            let first = keys::plan(operation.id());
            self.commit(txn, &first, &[], "forget an old operation")
                .await?;
        }
        Ok(())
    }

    async fn check_locks(&self, draft: &Draft) -> Result<(), OpsError> {
        let locks = read(
            &*self.store,
            Keys::prefix(keys::LOCKS),
            "read the locks of operations",
        )
        .await?
        .items;
        let mut holders: Vec<&[u8]> = locks.iter().map(|item| item.value.as_slice()).collect();
        for touched in &draft.scope {
            let key = keys::lock(touched);
            if let Some(item) = locks.iter().find(|item| item.key == key) {
                return Err(OpsError::Busy {
                    touched: touched.clone(),
                    holder: holder(touched, item)?,
                });
            }
        }
        holders.sort_unstable();
        holders.dedup();
        if holders.len() >= limits::UNFINISHED {
            return Err(OpsError::TooMany {
                count: holders.len(),
            });
        }
        Ok(())
    }

    fn stamp(&self, operation: &Operation, event: Event) -> Record {
        Record {
            format: RECORD_FORMAT,
            operation: operation.id().clone(),
            seq: operation.seq().next(),
            term: self.term,
            at: self.clock.now(),
            event,
        }
    }

    fn tell(&self, record: &Record, operation: &Operation) {
        // Nobody listening is no error.
        let _ = self.progress.send(Progress {
            record: record.clone(),
            operation: Arc::new(operation.clone()),
        });
    }

    fn fenced(&self) -> Txn {
        Txn::new().when(Compare::mod_revision(keys::FENCE, self.fence))
    }

    /// Carries a transaction out although the store may be away for a moment. `marker` is a key that only this transaction
    /// creates, with `value`: after an answer was lost it tells whether the refusal is that of our own success.
    async fn commit(
        &self,
        txn: Txn,
        marker: &str,
        value: &[u8],
        doing: &'static str,
    ) -> Result<Tried<()>, OpsError> {
        let mut unknown = false;
        let mut tries = Tries::new();
        loop {
            match self.store.txn(txn.clone()).await {
                Ok(reply) => match reply.outcome {
                    Txned::Committed => return Ok(Tried::Written(())),
                    Txned::Refused => {
                        let ours = unknown && self.holds(marker, value, doing).await?;
                        self.check_fence(doing).await?;
                        return Ok(if ours {
                            Tried::Written(())
                        } else {
                            Tried::Lost
                        });
                    }
                },
                Err(error) => {
                    unknown |= matches!(error, StoreError::OutcomeUnknown { .. });
                    tries.again(error, doing).await?;
                }
            }
        }
    }

    async fn holds(&self, key: &str, value: &[u8], doing: &'static str) -> Result<bool, OpsError> {
        Ok(read(&*self.store, Keys::one(key), doing)
            .await?
            .items
            .first()
            .is_some_and(|item| item.value == value))
    }

    async fn check_fence(&self, doing: &'static str) -> Result<(), OpsError> {
        let found = read(&*self.store, Keys::one(keys::FENCE), doing)
            .await?
            .items
            .pop();
        match found {
            Some(item) if item.mod_revision == self.fence => Ok(()),
            Some(item) => Err(OpsError::Fenced {
                own: self.term,
                newer: fence_term(&item)?,
            }),
            None => Err(OpsError::Garbled {
                what: keys::FENCE.to_owned(),
                why: "it is gone".to_owned(),
            }),
        }
    }
}

fn refused(operation: &mut Operation, record: &Record) -> Result<(), OpsError> {
    operation.apply(record).map_err(|source| OpsError::Refused {
        operation: record.operation.clone(),
        source,
    })
}

/// Whether a freeze forbids it. Compared in the transaction itself, so that there is no moment between looking and
/// beginning.
fn begins_automatic_action(operation: &Operation, event: &Event) -> bool {
    let automatic = match operation.plan().draft().asked_by {
        Asker::Automation(_) => true,
        Asker::Person(_) => false,
    };
    automatic && matches!(event, Event::StepStarted { .. } | Event::UndoStarted { .. })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use homeostat_journal::{Approval, OnFailure, Person, Retry, StepPlan, Touched, Undo};
    use homeostat_model::{ProcedureName, ServiceName, StepName, UnixMillis};
    use homeostat_store::{EmbeddedConfig, EmbeddedStore};

    use super::*;
    /// Every look at it is a millisecond later.
    #[derive(Default)]
    struct Ticks(std::sync::atomic::AtomicU64);

    impl Clock for Ticks {
        fn now(&self) -> UnixMillis {
            UnixMillis(self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst))
        }
    }

    fn draft() -> Draft {
        Draft {
            procedure: ProcedureName::new("turnup").unwrap(),
            version: 1,
            scope: BTreeSet::from([Touched::Service(ServiceName::new("shop-db").unwrap())]),
            asked_by: Asker::Person(Person("alice".into())),
            why: "a test".into(),
            approval: Approval::NotNeeded,
            on_failure: OnFailure::Undo,
            steps: vec![StepPlan {
                name: StepName::new("place").unwrap(),
                about: "place it".into(),
                parameters: serde_json::Value::Null,
                manual: None,
                retry: Retry {
                    max_attempts: 1,
                    first: Duration::ZERO,
                    longest: Duration::ZERO,
                },
                timeout: Duration::from_secs(1),
                undo: Undo::Nothing,
            }],
        }
    }

    #[tokio::test]
    async fn the_oldest_that_are_over_are_forgotten_and_their_numbers_are_not_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let config = EmbeddedConfig {
            keep_revisions: 100,
        };
        let store = Arc::new(
            EmbeddedStore::open(folder.path().join("store.redb"), config)
                .await
                .unwrap(),
        );
        let books = Books::open(store, Term(1), Arc::new(Ticks::default()))
            .await
            .unwrap();
        let end = Event::Abandoned {
            by: Person("alice".into()),
            why: "a test".into(),
        };
        for _ in 0..4 {
            let operation = books.submit(draft()).await.unwrap();
            assert!(matches!(
                books.append(&operation, end.clone()).await.unwrap(),
                Tried::Written(_)
            ));
        }
        books.submit(draft()).await.unwrap();
        books.trim(2).await.unwrap();
        let left: Vec<String> = books
            .load_all()
            .await
            .unwrap()
            .operations
            .iter()
            .map(|operation| operation.id().to_string())
            .collect();
        assert_eq!(
            left,
            ["turnup-3", "turnup-4", "turnup-5"],
            "what is not over stays, however old"
        );
        books.trim(0).await.unwrap();
        assert_eq!(books.load_all().await.unwrap().operations.len(), 1);
    }
}
