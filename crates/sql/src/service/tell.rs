//! Calls of the loop that are more than one request: attaching, preparing, holding; and the two that talk to people and
//! to the future without ever holding anything up: notes and history.

use homeostat_api::v1::{HelloRequest, Launch, NoteRequest, WatchRequest};
use homeostat_api::{Refusal, TaskEvents};
use homeostat_decider::{MemberId, NoteEvent};
use homeostat_model::{ServiceSpec, SqlSpec};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::launch;
use super::lead::{Told, endpoint};
use super::own::{Changed, Own};
use super::{record, secrets};

const SPEC: &str = "spec";
const HISTORY: &str = "history";
/// Notes that may wait; what comes while it is full is dropped: nothing hangs on it.
const NOTES: usize = 256;

/// `spec` in the store, version 1: fields are only added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredWish {
    pub up: bool,
    pub spec: ServiceSpec,
}

pub(super) struct Attached {
    /// Of the controller.
    pub term: u64,
    pub wished: Option<StoredWish>,
    pub history: Vec<u8>,
    pub events: TaskEvents,
}

pub(super) async fn attach(own: &Own) -> Result<Attached, Refusal> {
    let service = own.service.to_string();
    let hello = own
        .cell
        .hello(HelloRequest {
            service: service.clone(),
        })
        .await?;
    let wished = own
        .read(SPEC)
        .await?
        .value
        .map(|bytes| own.parse(SPEC, &bytes))
        .transpose()?;
    let history = own.read(HISTORY).await?.value.unwrap_or_default();
    let events = own.cell.watch(WatchRequest { service }).await?;
    Ok(Attached {
        term: hello.term,
        wished,
        history,
        events,
    })
}

/// Saves the wish, makes the passwords; returns what keepers are started with.
pub(super) async fn prepare(
    own: &Own,
    spec: &ServiceSpec,
    sql: &SqlSpec,
    members: &[MemberId],
) -> Result<Launch, Refusal> {
    let wished = StoredWish {
        up: true,
        spec: spec.clone(),
    };
    own.update(SPEC, |current: Option<StoredWish>| {
        Ok(if current.as_ref() == Some(&wished) {
            Changed::Keep(wished.clone())
        } else {
            Changed::To(wished.clone())
        })
    })
    .await?;
    let secrets = secrets::ensure(own, &sql.database, members).await?;
    let deciding = launch::deciding(&own.service, members, sql);
    launch::launch(sql, members, &secrets, &deciding)
}

/// Saves that the service is to be down, and makes its endpoint hold new clients. Returns who was primary last.
pub(super) async fn hold(own: &Own) -> Result<Option<MemberId>, Refusal> {
    let item = own.read(SPEC).await?;
    if let Some(bytes) = item.value {
        let mut wished: StoredWish = own.parse(SPEC, &bytes)?;
        wished.up = false;
        let bytes =
            serde_json::to_vec(&wished).map_err(|error| Refusal::internal(error.to_string()))?;
        if !own.write(SPEC, bytes, item.revision).await?.committed {
            return Err(Refusal::not_now(
                "the wish was changed by somebody else; looking again",
            ));
        }
    }
    let Some(record) = record::current(own).await? else {
        return Ok(None);
    };
    let request = endpoint(
        &own.service,
        record.epoch,
        Told::TurnedDown(record.version),
        Vec::new(),
    );
    own.cell.set_endpoint(request).await?;
    Ok(Some(record.holder))
}

/// Two tasks that end with this value.
pub(super) struct Tellers {
    service: String,
    notes: mpsc::Sender<NoteRequest>,
    history: watch::Sender<Vec<u8>>,
}

impl Tellers {
    pub(super) fn begin(own: &Own) -> Self {
        let (notes, mut waiting) = mpsc::channel(NOTES);
        let cell = own.cell.clone();
        tokio::spawn(async move {
            while let Some(note) = waiting.recv().await {
                // Not worth trying again.
                drop(cell.note(note).await);
            }
        });
        let (history, mut newest) = watch::channel(Vec::new());
        let keeper = own.clone();
        tokio::spawn(async move {
            while newest.changed().await.is_ok() {
                let bytes = newest.borrow_and_update().clone();
                // Losing it loses a story, nothing else.
                if let Ok(item) = keeper.read(HISTORY).await {
                    drop(keeper.write(HISTORY, bytes, item.revision).await);
                }
            }
        });
        Self {
            service: own.service.to_string(),
            notes,
            history,
        }
    }

    pub(super) fn note(&self, about: &str, kind: &str, text: String, detail: Option<&NoteEvent>) {
        let detail_json = detail
            .and_then(|detail| serde_json::to_string(detail).ok())
            .unwrap_or_default();
        let (service, about, kind) = (self.service.clone(), about.to_owned(), kind.to_owned());
        drop(self.notes.try_send(NoteRequest {
            service,
            about,
            kind,
            text,
            detail_json,
        }));
    }

    pub(super) fn history(&self, bytes: Vec<u8>) {
        self.history.send_replace(bytes);
    }
}
