//! The cluster's record in the store: read, and replaced as a whole.
//!
//! A decider compares whole records, the store compares revisions. The two meet here: the revision at which a record was
//! read or written stands for exactly that record. When the decider expects another record than the one held here, it is
//! read again, and only if it is the expected one its revision is used.

use std::time::Duration;

use homeostat_api::Refusal;
use homeostat_decider::{CasOutcome, Record};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::sleep;

use super::own::{Item, Own};

const KEY: &str = "record";
const FORMAT: u32 = 1;
/// Before a store that refused is asked again. Never on the way of a failover that goes well.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    format: u32,
    record: Record,
}

/// The record as last seen, and its revision.
#[derive(Debug, Clone)]
struct Held {
    record: Option<Record>,
    revision: u64,
}

/// One at a time, in the order asked for.
pub(super) struct RecordCell {
    own: Own,
    held: Mutex<Option<Held>>,
}

impl RecordCell {
    pub(super) fn new(own: Own) -> Self {
        Self {
            own,
            held: Mutex::new(None),
        }
    }

    /// Reads until the store answers. `trouble` hears why it does not.
    pub(super) async fn read(&self, mut trouble: impl FnMut(Refusal)) -> Option<Record> {
        loop {
            let mut held = self.held.lock().await;
            match look(&self.own).await {
                Ok(seen) => return held.insert(seen).record.clone(),
                Err(refusal) => {
                    *held = None;
                    drop(held);
                    trouble(refusal);
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Replaces the record if it is still the expected one.
    pub(super) async fn replace(&self, expected: Option<&Record>, new: Record) -> CasOutcome {
        let mut held = self.held.lock().await;
        match self.try_replace(&mut held, expected, new).await {
            Ok(outcome) => outcome,
            Err(_) => {
                // Also where it was certainly not done: the decider reads and decides again, which is right for both. The
                // pause keeps a store that refuses every write from being asked in a tight loop.
                *held = None;
                sleep(PAUSE).await;
                CasOutcome::Unknown
            }
        }
    }

    async fn try_replace(
        &self,
        held: &mut Option<Held>,
        expected: Option<&Record>,
        new: Record,
    ) -> Result<CasOutcome, Refusal> {
        let seen = match held.take() {
            Some(seen) if seen.record.as_ref() == expected => seen,
            Some(_) | None => look(&self.own).await?,
        };
        if seen.record.as_ref() != expected {
            let current = seen.record.clone();
            *held = Some(seen);
            return Ok(CasOutcome::Lost { current });
        }
        let value = serde_json::to_vec(&Stored {
            format: FORMAT,
            record: new.clone(),
        })
        .map_err(|error| Refusal::internal(error.to_string()))?;
        let reply = self.own.write(KEY, value, seen.revision).await?;
        if reply.committed {
            *held = Some(Held {
                record: Some(new),
                revision: reply.mod_revision,
            });
            return Ok(CasOutcome::Committed);
        }
        let value = (reply.mod_revision != 0).then_some(reply.current);
        let seen = parse(
            &self.own,
            &Item {
                value,
                revision: reply.mod_revision,
            },
        )?;
        let current = seen.record.clone();
        *held = Some(seen);
        Ok(CasOutcome::Lost { current })
    }
}

/// The record as it is now.
pub(super) async fn current(own: &Own) -> Result<Option<Record>, Refusal> {
    Ok(look(own).await?.record)
}

async fn look(own: &Own) -> Result<Held, Refusal> {
    parse(own, &own.read(KEY).await?)
}

fn parse(own: &Own, item: &Item) -> Result<Held, Refusal> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let Some(bytes) = &item.value else {
        return Ok(Held {
            record: None,
            revision: item.revision,
        });
    };
    let version: Version = own.parse(KEY, bytes)?;
    if version.format > FORMAT {
        let why = format!(
            "the record of {} has format {}; this program reads up to {FORMAT}: use a newer one",
            own.service, version.format
        );
        return Err(Refusal::internal(why));
    }
    let stored: Stored = own.parse(KEY, bytes)?;
    Ok(Held {
        record: Some(stored.record),
        revision: item.revision,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use homeostat_api::v1::*;
    use homeostat_api::{CellHandle, TaskEvents};
    use homeostat_decider::{MemberId, Phase};
    use homeostat_model::{Epoch, RecordVersion, ServiceName, Term};

    use super::*;

    /// A store of one key whose next answers can be made to fail.
    #[derive(Default)]
    struct Cell(Mutex<State>);

    #[derive(Default)]
    struct State {
        value: Vec<u8>,
        revision: u64,
        reads: u32,
        fail_read: bool,
        fail_write: Option<Fails>,
    }

    enum Fails {
        BeforeWriting,
        AfterWriting,
    }

    fn no<T>() -> Result<T, Refusal> {
        Err(Refusal::not_now("this cell is a store only"))
    }

    #[async_trait]
    impl CellHandle for Cell {
        async fn read(&self, _: ReadRequest) -> Result<ReadReply, Refusal> {
            let mut state = self.0.lock().unwrap();
            state.reads += 1;
            if std::mem::take(&mut state.fail_read) {
                return Err(Refusal::unknown("the store is away"));
            }
            Ok(ReadReply {
                found: state.revision > 0,
                value: state.value.clone(),
                mod_revision: state.revision,
            })
        }
        async fn write(&self, request: WriteRequest) -> Result<WriteReply, Refusal> {
            let mut state = self.0.lock().unwrap();
            let fails = state.fail_write.take();
            if let Some(Fails::BeforeWriting) = fails {
                return Err(Refusal::unknown("the store is away"));
            }
            if request.expected_mod_revision != state.revision {
                let (mod_revision, current) = (state.revision, state.value.clone());
                return Ok(WriteReply {
                    committed: false,
                    mod_revision,
                    current,
                });
            }
            state.value = request.value;
            state.revision += 1;
            match fails {
                Some(Fails::BeforeWriting | Fails::AfterWriting) => {
                    Err(Refusal::unknown("its answer was lost"))
                }
                None => Ok(WriteReply {
                    committed: true,
                    mod_revision: state.revision,
                    current: Vec::new(),
                }),
            }
        }
        async fn hello(&self, _: HelloRequest) -> Result<HelloReply, Refusal> {
            no()
        }
        async fn watch(&self, _: WatchRequest) -> Result<TaskEvents, Refusal> {
            no()
        }
        async fn place(&self, _: PlaceRequest) -> Result<PlaceReply, Refusal> {
            no()
        }
        async fn start(&self, _: StartRequest) -> Result<StartReply, Refusal> {
            no()
        }
        async fn stop(&self, _: StopRequest) -> Result<StopReply, Refusal> {
            no()
        }
        async fn kill(&self, _: KillRequest) -> Result<KillReply, Refusal> {
            no()
        }
        async fn forget(&self, _: ForgetRequest) -> Result<ForgetReply, Refusal> {
            no()
        }
        async fn set_endpoint(&self, _: SetEndpointRequest) -> Result<SetEndpointReply, Refusal> {
            no()
        }
        async fn local_call(&self, _: LocalCallRequest) -> Result<LocalCallReply, Refusal> {
            no()
        }
        async fn note(&self, _: NoteRequest) -> Result<NoteReply, Refusal> {
            no()
        }
    }

    fn record(version: u64) -> Record {
        let member = |n: u32| MemberId::new(format!("db-{n}")).unwrap();
        Record {
            epoch: Epoch(1),
            version: RecordVersion(version),
            term: Term(1),
            phase: Phase::Serving,
            holder: member(0),
            ackers: [member(1)].into(),
            leaving: None,
            k: 1,
            unclosed: Vec::new(),
        }
    }

    fn two_leaders() -> (Arc<Cell>, RecordCell, RecordCell) {
        let cell = Arc::new(Cell::default());
        let own = || Own {
            service: ServiceName::new("db").unwrap(),
            cell: cell.clone(),
        };
        let (one, two) = (RecordCell::new(own()), RecordCell::new(own()));
        (cell, one, two)
    }

    #[tokio::test]
    async fn the_record_is_replaced_only_if_it_is_the_expected_one() {
        let (cell, one, two) = two_leaders();
        assert_eq!(one.read(drop).await, None);
        assert_eq!(one.replace(None, record(1)).await, CasOutcome::Committed);
        // Without reading again in between: what was written is what is there.
        assert_eq!(
            one.replace(Some(&record(1)), record(2)).await,
            CasOutcome::Committed
        );
        assert_eq!(cell.0.lock().unwrap().reads, 1);

        // Another one writes; who has not seen it loses and is told what is there.
        assert_eq!(
            two.replace(Some(&record(2)), record(3)).await,
            CasOutcome::Committed
        );
        assert_eq!(
            one.replace(Some(&record(2)), record(4)).await,
            CasOutcome::Lost {
                current: Some(record(3))
            }
        );
        // An expectation that is neither here nor there loses too, whatever the revision is.
        assert_eq!(
            one.replace(Some(&record(9)), record(10)).await,
            CasOutcome::Lost {
                current: Some(record(3))
            }
        );
        assert_eq!(
            one.replace(None, record(10)).await,
            CasOutcome::Lost {
                current: Some(record(3))
            }
        );
        assert_eq!(one.read(drop).await, Some(record(3)));
    }

    #[tokio::test]
    async fn an_unknown_outcome_is_said_and_looked_up() {
        let (cell, one, _) = two_leaders();
        assert_eq!(one.replace(None, record(1)).await, CasOutcome::Committed);
        cell.0.lock().unwrap().fail_write = Some(Fails::AfterWriting);
        assert_eq!(
            one.replace(Some(&record(1)), record(2)).await,
            CasOutcome::Unknown
        );
        // It was done all the same, and nobody believes the old revision any more.
        assert_eq!(
            one.replace(Some(&record(1)), record(3)).await,
            CasOutcome::Lost {
                current: Some(record(2))
            }
        );
        cell.0.lock().unwrap().fail_write = Some(Fails::BeforeWriting);
        assert_eq!(
            one.replace(Some(&record(2)), record(3)).await,
            CasOutcome::Unknown
        );
        assert_eq!(
            one.replace(Some(&record(2)), record(3)).await,
            CasOutcome::Committed
        );

        cell.0.lock().unwrap().fail_read = true;
        let mut troubles = 0;
        assert_eq!(one.read(|_| troubles += 1).await, Some(record(3)));
        assert_eq!(troubles, 1);
    }

    #[tokio::test]
    async fn a_record_of_a_newer_program_is_not_guessed_at() {
        let (cell, one, _) = two_leaders();
        *cell.0.lock().unwrap() = State {
            value: br#"{"format": 2, "holder": "x"}"#.to_vec(),
            revision: 7,
            ..State::default()
        };
        assert_eq!(one.replace(None, record(1)).await, CasOutcome::Unknown);
        assert_eq!(cell.0.lock().unwrap().revision, 7);
        let own = Own {
            service: ServiceName::new("db").unwrap(),
            cell,
        };
        let why = current(&own).await.unwrap_err().message;
        assert_eq!(
            why,
            "the record of db has format 2; this program reads up to 1: use a newer one"
        );
    }
}
