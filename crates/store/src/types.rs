//! What is asked of a store and what it answers. Plain data, the same for every implementation.

use std::fmt;
use std::time::Duration;

use homeostat_model::Revision;

/// Which keys are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// Exactly this key.
    One(String),
    /// All keys that begin with this text. Empty means every key, which a delete refuses.
    Prefix(String),
}

impl Keys {
    pub fn one(key: impl Into<String>) -> Self {
        Self::One(key.into())
    }

    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self::Prefix(prefix.into())
    }

    /// Whether this key is among them.
    pub fn contains(&self, key: &str) -> bool {
        match self {
            Self::One(one) => one == key,
            Self::Prefix(prefix) => key.starts_with(prefix.as_str()),
        }
    }

    /// The smallest text a key among them can be.
    pub(crate) fn start(&self) -> &str {
        match self {
            Self::One(text) | Self::Prefix(text) => text,
        }
    }
}

/// A key with its value, as it was at some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub key: String,
    pub value: Vec<u8>,
    /// The revision that created the key (anew, if it had been deleted before).
    pub create_revision: Revision,
    /// The revision that last put the key: what a compare-and-set compares.
    pub mod_revision: Revision,
    /// The lease that deletes the key when it ends.
    pub lease: Option<LeaseId>,
}

/// The answer to [`Store::range`](crate::Store::range).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeReply {
    /// The store's revision when it was read.
    pub revision: Revision,
    pub items: Vec<Item>,
}

/// One condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    pub key: String,
    pub expect: Expect,
}

/// What a [`Compare`] expects of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// There is no such key.
    Absent,
    /// There is such a key, whatever its revision.
    Present,
    /// The key was last put at this revision; revision 0 is another way to say that there is no such key.
    ModRevision(Revision),
}

impl Compare {
    /// The key was last put at this revision (0: there is no such key).
    pub fn mod_revision(key: impl Into<String>, revision: Revision) -> Self {
        Self {
            key: key.into(),
            expect: Expect::ModRevision(revision),
        }
    }

    /// There is no such key.
    pub fn absent(key: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            expect: Expect::Absent,
        }
    }

    /// There is such a key.
    pub fn present(key: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            expect: Expect::Present,
        }
    }

    /// The key is still as this item says.
    pub fn unchanged(item: &Item) -> Self {
        Self::mod_revision(item.key.clone(), item.mod_revision)
    }
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets the value. The key then belongs to this lease, or to none, whatever it belonged to before.
    Put {
        key: String,
        value: Vec<u8>,
        lease: Option<LeaseId>,
    },
    /// Deletes the keys that exist among these; none is no error.
    Delete { keys: Keys },
}

impl Op {
    pub fn put(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        }
    }

    pub fn put_leased(key: impl Into<String>, value: impl Into<Vec<u8>>, lease: LeaseId) -> Self {
        Self::Put {
            key: key.into(),
            value: value.into(),
            lease: Some(lease),
        }
    }

    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete {
            keys: Keys::one(key),
        }
    }

    pub fn delete_prefix(prefix: impl Into<String>) -> Self {
        Self::Delete {
            keys: Keys::prefix(prefix),
        }
    }
}

/// A transaction: if all of `compares` hold, `then`, otherwise `otherwise`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub then: Vec<Op>,
    pub otherwise: Vec<Op>,
}

impl Txn {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    #[must_use]
    pub fn then(mut self, op: Op) -> Self {
        self.then.push(op);
        self
    }

    #[must_use]
    pub fn otherwise(mut self, op: Op) -> Self {
        self.otherwise.push(op);
        self
    }
}

/// Which branch of a transaction ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All comparisons held: `then` was carried out.
    Committed,
    /// A comparison did not hold: `otherwise` was carried out.
    Refused,
}

/// The answer to [`Store::txn`](crate::Store::txn).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TxnReply {
    /// The revision of this transaction's changes; if it changed nothing, the store's revision when it was decided.
    pub revision: Revision,
    pub outcome: Outcome,
}

impl TxnReply {
    /// The revision if the comparisons held.
    pub fn committed(&self) -> Option<Revision> {
        match self.outcome {
            Outcome::Committed => Some(self.revision),
            Outcome::Refused => None,
        }
    }
}

/// Names a lease. Never used twice by one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A lease as granted: its keys live until this long after the last [`keep_alive`](crate::Store::keep_alive), or longer
/// (the store may be late to notice, and starts the time anew when it restarts); never shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    pub id: LeaseId,
    pub ttl: Duration,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Put(Item),
    Delete { key: String },
}

impl Event {
    pub fn key(&self) -> &str {
        match self {
            Self::Put(item) => &item.key,
            Self::Delete { key } => key,
        }
    }
}

/// All that one revision changed among the keys watched, at least one event. A transaction changes a key once at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchBatch {
    pub revision: Revision,
    pub events: Vec<Event>,
}
