//! etcd's limits, held by every implementation, checked here before anything is sent or written.
//!
//! They are etcd's defaults or a little below, so that a server with default settings never refuses what passed here:
//! a program that works on one machine must not begin to fail on three.

use std::collections::BTreeSet;
use std::time::Duration;

use homeostat_model::Revision;

use crate::{Keys, LimitExceeded, Op, Txn};

/// Comparisons, and operations of each branch, in one transaction (etcd's `--max-txn-ops`).
pub const OPERATIONS: usize = 128;
/// Bytes of one value.
pub const VALUE_BYTES: usize = 1024 * 1024;
/// Bytes of one key. etcd has no limit of its own; ours keeps errors and indexes readable.
pub const KEY_BYTES: usize = 1024;
/// Bytes of all keys and values of one transaction, both branches. etcd refuses requests from 1.5 MiB
/// (`--max-request-bytes`); the rest is room for framing.
pub const TXN_BYTES: usize = 1280 * 1024;
/// The shortest lease (etcd: 1.5 times the election timeout, rounded up: 2 s at its default of 1 s).
pub const SHORTEST_LEASE: Duration = Duration::from_secs(2);
/// The longest lease: 30 days. Longer than that it is not a lease.
pub const LONGEST_LEASE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Refuses a transaction that breaks a limit.
pub(crate) fn check_txn(txn: &Txn) -> Result<(), LimitExceeded> {
    for (what, count) in [
        ("comparisons", txn.compares.len()),
        ("operations", txn.then.len()),
        ("operations", txn.otherwise.len()),
    ] {
        if count > OPERATIONS {
            return Err(LimitExceeded::TooManyOperations { what, count });
        }
    }
    let mut bytes = 0;
    for compare in &txn.compares {
        check_key(&compare.key)?;
        bytes += compare.key.len();
    }
    for branch in [&txn.then, &txn.otherwise] {
        for op in branch {
            bytes += check_op(op)?;
        }
        check_each_key_once(branch)?;
    }
    if bytes > TXN_BYTES {
        return Err(LimitExceeded::TxnTooLarge { bytes });
    }
    Ok(())
}

/// Refuses keys that break a limit. An empty prefix is a fair thing to read or to watch.
pub(crate) fn check_keys(keys: &Keys) -> Result<(), LimitExceeded> {
    match keys {
        Keys::One(key) => check_key(key),
        Keys::Prefix(prefix) if prefix.is_empty() => Ok(()),
        Keys::Prefix(prefix) => check_key(prefix),
    }
}

/// The lease's time limit in whole seconds, rounded up.
pub(crate) fn lease_seconds(asked: Duration) -> Result<u64, LimitExceeded> {
    if asked < SHORTEST_LEASE {
        return Err(LimitExceeded::LeaseTooShort { asked });
    }
    if asked > LONGEST_LEASE {
        return Err(LimitExceeded::LeaseTooLong { asked });
    }
    Ok(asked.as_secs() + u64::from(asked.subsec_nanos() > 0))
}

/// Revisions are signed on etcd's wire.
pub(crate) fn check_revision(asked: Revision) -> Result<(), LimitExceeded> {
    match i64::try_from(asked.0) {
        Ok(_) => Ok(()),
        Err(_) => Err(LimitExceeded::RevisionTooLarge { asked }),
    }
}

fn check_key(key: &str) -> Result<(), LimitExceeded> {
    if key.is_empty() {
        return Err(LimitExceeded::EmptyKey);
    }
    if key.len() > KEY_BYTES {
        return Err(LimitExceeded::KeyTooLong { bytes: key.len() });
    }
    Ok(())
}

/// Returns the bytes of the operation's key and value.
fn check_op(op: &Op) -> Result<usize, LimitExceeded> {
    match op {
        Op::Put {
            key,
            value,
            lease: _,
        } => {
            check_key(key)?;
            if value.len() > VALUE_BYTES {
                return Err(LimitExceeded::ValueTooLarge {
                    key: key.clone(),
                    bytes: value.len(),
                });
            }
            Ok(key.len() + value.len())
        }
        Op::Delete {
            keys: Keys::Prefix(prefix),
        } if prefix.is_empty() => Err(LimitExceeded::DeleteAll),
        Op::Delete { keys } => {
            check_keys(keys)?;
            Ok(keys.start().len())
        }
    }
}

/// etcd refuses a branch that puts a key twice, or puts and deletes it: one revision holds one event of a key.
fn check_each_key_once(branch: &[Op]) -> Result<(), LimitExceeded> {
    let mut puts = BTreeSet::new();
    for op in branch {
        if let Op::Put { key, .. } = op
            && !puts.insert(key.as_str())
        {
            return Err(LimitExceeded::DuplicateKey { key: key.clone() });
        }
    }
    for op in branch {
        if let Op::Delete { keys } = op
            && let Some(key) = puts.iter().find(|key| keys.contains(key))
        {
            return Err(LimitExceeded::DuplicateKey {
                key: (*key).to_owned(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Compare;

    #[test]
    fn a_transaction_at_the_limits_passes() {
        let mut txn = Txn::new();
        for n in 0..OPERATIONS {
            txn = txn
                .when(Compare::absent(format!("k{n}")))
                .then(Op::put(format!("k{n}"), "v"));
        }
        assert_eq!(check_txn(&txn), Ok(()));
        assert_eq!(
            check_txn(&Txn::new().then(Op::put("k", vec![0; VALUE_BYTES]))),
            Ok(())
        );
    }

    #[test]
    fn each_key_once_per_branch() {
        let twice = Txn::new()
            .then(Op::put("a/b", "1"))
            .then(Op::delete_prefix("a/"));
        assert_eq!(
            check_txn(&twice),
            Err(LimitExceeded::DuplicateKey {
                key: "a/b".to_owned()
            })
        );
        let branches = Txn::new()
            .then(Op::put("a", "1"))
            .otherwise(Op::delete("a"));
        assert_eq!(check_txn(&branches), Ok(()));
        let overlapping = Txn::new()
            .then(Op::delete("a/b"))
            .then(Op::delete_prefix("a/"));
        assert_eq!(check_txn(&overlapping), Ok(()));
    }

    #[test]
    fn leases_are_rounded_up() {
        assert_eq!(lease_seconds(Duration::from_millis(2001)), Ok(3));
        assert_eq!(lease_seconds(Duration::from_secs(2)), Ok(2));
        assert!(lease_seconds(Duration::from_millis(1999)).is_err());
    }
}
