//! Reads, each on one snapshot: the present, the past (the present with later events undone), and the log.

use std::collections::BTreeMap;

use homeostat_model::Revision;
use redb::{Database, ReadOnlyTable, ReadableDatabase};

use super::tables::{self, CURRENT, LOG, META, RowType, meta};
use crate::{Item, Keys, RangeReply, StoreError, WatchBatch};

/// A chunk of the log ends after this many revisions …
const CHUNK_REVISIONS: u64 = 256;
/// … or after this many bytes of values.
const CHUNK_BYTES: usize = 2 * 1024 * 1024;

/// Why a read failed: the request, or the file.
pub(super) enum ReadError {
    Refused(StoreError),
    File(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for ReadError {
    fn from(error: E) -> Self {
        Self::File(error.into())
    }
}

/// Keys now, or at a revision.
pub(super) fn range(
    db: &Database,
    keys: &Keys,
    at: Option<Revision>,
) -> Result<RangeReply, ReadError> {
    let read = db.begin_read()?;
    let meta = read.open_table(META)?;
    let revision = Revision(tables::number(&meta, meta::REVISION)?);
    let current = read.open_table(CURRENT)?;
    let Some(at) = at else {
        return Ok(RangeReply {
            revision,
            items: present(&current, keys)?,
        });
    };
    let compacted = Revision(tables::number(&meta, meta::COMPACTED)?);
    if at > revision {
        return Err(ReadError::Refused(StoreError::FutureRevision {
            asked: at,
            current: revision,
        }));
    }
    if at < compacted {
        return Err(ReadError::Refused(StoreError::Compacted {
            oldest: compacted,
        }));
    }
    let mut items: BTreeMap<String, Item> = present(&current, keys)?
        .into_iter()
        .map(|item| (item.key.clone(), item))
        .collect();
    let log = read.open_table(LOG)?;
    for entry in log.range((at.next().0, 0)..)?.rev() {
        let (_, value) = entry?;
        let (key, _, before) = value.value();
        if !keys.contains(key) {
            continue;
        }
        match before {
            Some(row) => items.insert(key.to_owned(), tables::item(key, row)),
            None => items.remove(key),
        };
    }
    Ok(RangeReply {
        revision,
        items: items.into_values().collect(),
    })
}

fn present(
    current: &ReadOnlyTable<&'static str, RowType>,
    keys: &Keys,
) -> Result<Vec<Item>, ReadError> {
    let mut items = Vec::new();
    for entry in current.range(keys.start()..)? {
        let (key, row) = entry?;
        if !keys.contains(key.value()) {
            break; // Keys are in order, and those with one prefix are neighbours.
        }
        items.push(tables::item(key.value(), row.value()));
    }
    Ok(items)
}

/// A stretch of the log.
pub(super) struct Chunk {
    pub(super) batches: Vec<WatchBatch>,
    /// Where the next chunk begins.
    pub(super) next: Revision,
    /// Whether the log ended here when it was read.
    pub(super) end: End,
}

pub(super) enum End {
    Reached,
    More,
}

/// The events of these keys from revision `from` on, whole revisions, up to a limit.
pub(super) fn log(db: &Database, keys: &Keys, from: Revision) -> Result<Chunk, ReadError> {
    let read = db.begin_read()?;
    let meta = read.open_table(META)?;
    let revision = Revision(tables::number(&meta, meta::REVISION)?);
    let compacted = Revision(tables::number(&meta, meta::COMPACTED)?);
    if from <= compacted {
        return Err(ReadError::Refused(StoreError::Compacted {
            oldest: compacted.next(),
        }));
    }
    let mut chunk = Chunk {
        batches: Vec::new(),
        next: from.max(revision.next()),
        end: End::Reached,
    };
    let mut bytes = 0;
    for entry in read.open_table(LOG)?.range((from.0, 0)..)? {
        let (place, value) = entry?;
        let (at, sub) = place.value();
        if sub == 0 && (at - from.0 >= CHUNK_REVISIONS || bytes >= CHUNK_BYTES) {
            chunk.next = Revision(at);
            chunk.end = End::More;
            break;
        }
        let (key, after, _) = value.value();
        if !keys.contains(key) {
            continue;
        }
        bytes += after.map_or(0, |row| row.3.len());
        let event = tables::event(key, after);
        match chunk.batches.last_mut() {
            Some(batch) if batch.revision.0 == at => batch.events.push(event),
            Some(_) | None => chunk.batches.push(WatchBatch {
                revision: Revision(at),
                events: vec![event],
            }),
        }
    }
    Ok(chunk)
}
