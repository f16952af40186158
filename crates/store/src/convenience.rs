//! Small common requests, as functions over any store.

use homeostat_model::Revision;

use crate::{Compare, Item, Keys, Op, RangeReply, Store, StoreError, Txn, TxnReply};

/// The key as it is now.
///
/// # Errors
/// As [`Store::range`].
pub async fn get(store: &dyn Store, key: &str) -> Result<Option<Item>, StoreError> {
    let reply = store.range(Keys::one(key), None).await?;
    Ok(reply.items.into_iter().next())
}

/// All keys with this prefix as they are now, in order.
///
/// # Errors
/// As [`Store::range`].
pub async fn list(store: &dyn Store, prefix: &str) -> Result<RangeReply, StoreError> {
    store.range(Keys::prefix(prefix), None).await
}

/// Sets a value whatever it was; returns the revision of the change.
///
/// # Errors
/// As [`Store::txn`].
pub async fn put(
    store: &dyn Store,
    key: &str,
    value: impl Into<Vec<u8>>,
) -> Result<Revision, StoreError> {
    Ok(store
        .txn(Txn::new().then(Op::put(key, value)))
        .await?
        .revision)
}

/// Sets a value if the key was last put at `seen` (0: does not exist).
///
/// # Errors
/// As [`Store::txn`]; a key that has moved on is no error but [`Outcome::Refused`](crate::Outcome::Refused).
pub async fn put_if(
    store: &dyn Store,
    key: &str,
    seen: Revision,
    value: impl Into<Vec<u8>>,
) -> Result<TxnReply, StoreError> {
    store
        .txn(
            Txn::new()
                .when(Compare::mod_revision(key, seen))
                .then(Op::put(key, value)),
        )
        .await
}

/// Deletes a key if it was last put at `seen`.
///
/// # Errors
/// As [`Store::txn`]; a key that has moved on is no error but [`Outcome::Refused`](crate::Outcome::Refused).
pub async fn delete_if(
    store: &dyn Store,
    key: &str,
    seen: Revision,
) -> Result<TxnReply, StoreError> {
    store
        .txn(
            Txn::new()
                .when(Compare::mod_revision(key, seen))
                .then(Op::delete(key)),
        )
        .await
}
