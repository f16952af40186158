//! The tables of the file. This is the format on disk: change it only together with [`FORMAT`].
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | number |
//! | `current` | key | create revision, mod revision, lease (0: none), value |
//! | `log` | revision, position in it | key, what is there after it, what was there before it |
//! | `leases` | id | time limit in seconds |
//!
//! One transaction of redb writes all of them. `meta` never changes its shape, whatever the format: that is how an old
//! program can tell a newer file from a broken one.

use homeostat_model::Revision;
use redb::{ReadableTable, TableDefinition};

use crate::{Event, Item, LeaseId};

/// The format this program writes, and the highest it reads.
pub(super) const FORMAT: u64 = 1;

pub(super) const META: TableDefinition<'static, &'static str, u64> = TableDefinition::new("meta");
pub(super) const CURRENT: TableDefinition<'static, &'static str, RowType> =
    TableDefinition::new("current");
pub(super) const LOG: TableDefinition<'static, (u64, u32), LogType> = TableDefinition::new("log");
pub(super) const LEASES: TableDefinition<'static, u64, u64> = TableDefinition::new("leases");

/// Create revision, mod revision, lease (0: none), value.
pub(super) type RowType = (u64, u64, u64, &'static [u8]);
/// Key, row after, row before.
pub(super) type LogType = (&'static str, Option<RowType>, Option<RowType>);
pub(super) type Row<'a> = (u64, u64, u64, &'a [u8]);

/// Names in `meta`.
pub(super) mod meta {
    pub(in crate::embedded) const FORMAT: &str = "format";
    pub(in crate::embedded) const REVISION: &str = "revision";
    /// History at this revision and below is gone; the state at this revision can still be read.
    pub(in crate::embedded) const COMPACTED: &str = "compacted";
    /// Leases are numbered, and no number is used twice, so that a late keep-alive never meets a stranger's lease.
    pub(in crate::embedded) const LAST_LEASE: &str = "last-lease";
    /// Counts commits, so that after a failed one it can be found out whether it reached the disk.
    pub(in crate::embedded) const COMMITS: &str = "commits";
}

pub(super) fn row(item: &Item) -> Row<'_> {
    (
        item.create_revision.0,
        item.mod_revision.0,
        item.lease.map_or(0, |lease| lease.0),
        &item.value,
    )
}

pub(super) fn item(key: &str, (create, modified, lease, value): Row<'_>) -> Item {
    Item {
        key: key.to_owned(),
        value: value.to_vec(),
        create_revision: Revision(create),
        mod_revision: Revision(modified),
        lease: (lease != 0).then_some(LeaseId(lease)),
    }
}

pub(super) fn event(key: &str, after: Option<Row<'_>>) -> Event {
    match after {
        Some(row) => Event::Put(item(key, row)),
        None => Event::Delete {
            key: key.to_owned(),
        },
    }
}

/// A number of `meta`. A file that lacks one was not written by us.
pub(super) fn number(
    meta: &impl ReadableTable<&'static str, u64>,
    name: &str,
) -> Result<u64, redb::Error> {
    match meta.get(name)? {
        Some(value) => Ok(value.value()),
        None => Err(redb::Error::Corrupted(format!(
            "'{name}' is missing in table meta"
        ))),
    }
}
