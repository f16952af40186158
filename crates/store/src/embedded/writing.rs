//! What requests do inside one redb transaction: every change writes `current` and `log` together, and takes the
//! lease's books along. Nothing here is visible to anybody until the writer has committed; if it cannot, the file is
//! opened anew and [`State`] is read back from it.
//!
//! Two kinds of failure are kept apart: an inner [`StoreError`] refuses one request and nothing was done for it; an
//! outer [`redb::Error`] means that the file failed, for all requests of the commit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use homeostat_model::Revision;
use redb::{ReadableDatabase, ReadableTable, Table, WriteTransaction};

use super::leases::Leases;
use super::tables::{self, CURRENT, LEASES, LOG, LogType, META, RowType, meta};
use crate::{
    Event, Expect, Item, Keys, Lease, LeaseId, Op, Outcome, StoreError, Txn, TxnReply, WatchBatch,
};

/// What the writer knows without reading.
#[derive(Debug)]
pub(super) struct State {
    pub(super) revision: Revision,
    compacted: Revision,
    last_lease: u64,
    pub(super) commits: u64,
    pub(super) leases: Leases,
}

impl State {
    /// Reads it from the file. All leases get their full time.
    pub(super) fn load(db: &redb::Database, now: Instant) -> Result<Self, redb::Error> {
        let read = db.begin_read()?;
        let numbers = read.open_table(META)?;
        let mut leases = Leases::default();
        for entry in read.open_table(LEASES)?.iter()? {
            let (id, seconds) = entry?;
            leases.insert(
                LeaseId(id.value()),
                Duration::from_secs(seconds.value()),
                now,
            );
        }
        for entry in read.open_table(CURRENT)?.iter()? {
            let (key, row) = entry?;
            let lease = row.value().2;
            leases.reassign(key.value(), None, (lease != 0).then_some(LeaseId(lease)));
        }
        Ok(Self {
            revision: Revision(tables::number(&numbers, meta::REVISION)?),
            compacted: Revision(tables::number(&numbers, meta::COMPACTED)?),
            last_lease: tables::number(&numbers, meta::LAST_LEASE)?,
            commits: tables::number(&numbers, meta::COMMITS)?,
            leases,
        })
    }
}

/// Whether there is anything to commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Changes {
    None,
    Some,
}

/// One redb transaction with its tables open.
pub(super) struct Writing<'txn> {
    meta: Table<'txn, &'static str, u64>,
    current: Table<'txn, &'static str, RowType>,
    log: Table<'txn, (u64, u32), LogType>,
    lease_rows: Table<'txn, u64, u64>,
    state: &'txn mut State,
    now: Instant,
    changes: Changes,
    news: Vec<Arc<WatchBatch>>,
}

/// One revision in the making.
struct Step {
    revision: Revision,
    events: Vec<Event>,
}

impl<'txn> Writing<'txn> {
    pub(super) fn begin(
        write: &'txn WriteTransaction,
        state: &'txn mut State,
        now: Instant,
    ) -> Result<Self, redb::Error> {
        Ok(Self {
            meta: write.open_table(META)?,
            current: write.open_table(CURRENT)?,
            log: write.open_table(LOG)?,
            lease_rows: write.open_table(LEASES)?,
            state,
            now,
            changes: Changes::None,
            news: Vec::new(),
        })
    }

    /// Writes the numbers; what is left to do is to commit, and then to tell the news.
    pub(super) fn finish(mut self) -> Result<(Changes, Vec<Arc<WatchBatch>>), redb::Error> {
        if self.changes == Changes::Some {
            self.state.commits += 1;
            self.meta.insert(meta::REVISION, self.state.revision.0)?;
            self.meta.insert(meta::COMPACTED, self.state.compacted.0)?;
            self.meta.insert(meta::LAST_LEASE, self.state.last_lease)?;
            self.meta.insert(meta::COMMITS, self.state.commits)?;
        }
        Ok((self.changes, self.news))
    }

    pub(super) fn txn(&mut self, txn: &Txn) -> Result<Result<TxnReply, StoreError>, redb::Error> {
        let mut outcome = Outcome::Committed;
        for compare in &txn.compares {
            let found = self
                .current
                .get(compare.key.as_str())?
                .map_or(0, |row| row.value().1);
            let holds = match compare.expect {
                Expect::Absent => found == 0,
                Expect::Present => found != 0,
                Expect::ModRevision(revision) => found == revision.0,
            };
            if !holds {
                outcome = Outcome::Refused;
                break;
            }
        }
        let ops = match outcome {
            Outcome::Committed => &txn.then,
            Outcome::Refused => &txn.otherwise,
        };
        if let Some(lease) = unknown_lease(ops, &self.state.leases) {
            return Ok(Err(StoreError::LeaseNotFound(lease)));
        }
        let mut step = self.step();
        for op in ops {
            match op {
                Op::Put { key, value, lease } => self.put(&mut step, key, value, *lease)?,
                Op::Delete { keys } => self.delete(&mut step, keys)?,
            }
        }
        Ok(Ok(TxnReply {
            revision: self.take(step),
            outcome,
        }))
    }

    pub(super) fn grant(&mut self, seconds: u64) -> Result<Lease, redb::Error> {
        self.state.last_lease += 1;
        let lease = Lease {
            id: LeaseId(self.state.last_lease),
            ttl: Duration::from_secs(seconds),
        };
        self.lease_rows.insert(lease.id.0, seconds)?;
        self.state.leases.insert(lease.id, lease.ttl, self.now);
        self.changes = Changes::Some;
        Ok(lease)
    }

    pub(super) fn keep_alive(&mut self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.state
            .leases
            .keep_alive(lease, self.now)
            .ok_or(StoreError::LeaseNotFound(lease))
    }

    pub(super) fn revoke(&mut self, lease: LeaseId) -> Result<Result<(), StoreError>, redb::Error> {
        let Some(keys) = self.state.leases.remove(lease) else {
            return Ok(Err(StoreError::LeaseNotFound(lease)));
        };
        self.lease_rows.remove(lease.0)?;
        self.changes = Changes::Some;
        let mut step = self.step();
        for key in keys {
            self.delete_one(&mut step, &key)?;
        }
        self.take(step);
        Ok(Ok(()))
    }

    /// Ends the leases that are due. Each is a revision of its own.
    pub(super) fn expire(&mut self) -> Result<(), redb::Error> {
        while let Some(lease) = self.state.leases.expired(self.now) {
            // A lease that is due exists, so there is nothing to refuse.
            let _ = self.revoke(lease)?;
        }
        Ok(())
    }

    pub(super) fn compact(
        &mut self,
        revision: Revision,
    ) -> Result<Result<(), StoreError>, redb::Error> {
        if revision > self.state.revision {
            return Ok(Err(StoreError::FutureRevision {
                asked: revision,
                current: self.state.revision,
            }));
        }
        if revision > self.state.compacted {
            self.log.retain_in(..(revision.next().0, 0), |_, _| false)?;
            self.state.compacted = revision;
            self.changes = Changes::Some;
        }
        Ok(Ok(()))
    }

    /// Cuts history to `keep` revisions, seldom: only once it is an eighth longer.
    pub(super) fn compact_to(&mut self, keep: u64) -> Result<(), redb::Error> {
        let kept = self.state.revision.0 - self.state.compacted.0;
        if self.changes == Changes::Some && kept > keep + keep / 8 {
            // The revision is not in the future, so there is nothing to refuse.
            let _ = self.compact(Revision(self.state.revision.0 - keep))?;
        }
        Ok(())
    }

    fn step(&self) -> Step {
        Step {
            revision: self.state.revision.next(),
            events: Vec::new(),
        }
    }

    /// Makes the step the store's revision, if it changed anything.
    fn take(&mut self, step: Step) -> Revision {
        if !step.events.is_empty() {
            self.changes = Changes::Some;
            self.state.revision = step.revision;
            self.news.push(Arc::new(WatchBatch {
                revision: step.revision,
                events: step.events,
            }));
        }
        self.state.revision
    }

    fn put(
        &mut self,
        step: &mut Step,
        key: &str,
        value: &[u8],
        lease: Option<LeaseId>,
    ) -> Result<(), redb::Error> {
        let before = self.look(key)?;
        let item = Item {
            key: key.to_owned(),
            value: value.to_vec(),
            create_revision: before
                .as_ref()
                .map_or(step.revision, |item| item.create_revision),
            mod_revision: step.revision,
            lease,
        };
        self.current.insert(key, tables::row(&item))?;
        self.state
            .leases
            .reassign(key, before.as_ref().and_then(|item| item.lease), lease);
        self.record(step, Event::Put(item), before.as_ref())
    }

    fn delete(&mut self, step: &mut Step, keys: &Keys) -> Result<(), redb::Error> {
        let mut doomed = Vec::new();
        for entry in self.current.range(keys.start()..)? {
            let (key, _) = entry?;
            if !keys.contains(key.value()) {
                break;
            }
            doomed.push(key.value().to_owned());
        }
        for key in doomed {
            self.delete_one(step, &key)?;
        }
        Ok(())
    }

    fn delete_one(&mut self, step: &mut Step, key: &str) -> Result<(), redb::Error> {
        let Some(before) = self.look(key)? else {
            return Ok(());
        };
        self.current.remove(key)?;
        self.state.leases.reassign(key, before.lease, None);
        self.record(
            step,
            Event::Delete {
                key: key.to_owned(),
            },
            Some(&before),
        )
    }

    fn look(&self, key: &str) -> Result<Option<Item>, redb::Error> {
        Ok(self
            .current
            .get(key)?
            .map(|row| tables::item(key, row.value())))
    }

    fn record(
        &mut self,
        step: &mut Step,
        event: Event,
        before: Option<&Item>,
    ) -> Result<(), redb::Error> {
        let after = match &event {
            Event::Put(item) => Some(tables::row(item)),
            Event::Delete { key: _ } => None,
        };
        // A delete by prefix can have many events, but not as many as this counts.
        let sub = u32::try_from(step.events.len()).unwrap_or(u32::MAX);
        self.log.insert(
            (step.revision.0, sub),
            (event.key(), after, before.map(tables::row)),
        )?;
        step.events.push(event);
        Ok(())
    }
}

fn unknown_lease(ops: &[Op], leases: &Leases) -> Option<LeaseId> {
    ops.iter().find_map(|op| match op {
        Op::Put {
            lease: Some(lease), ..
        } if !leases.contains(*lease) => Some(*lease),
        Op::Put { .. } | Op::Delete { .. } => None,
    })
}
