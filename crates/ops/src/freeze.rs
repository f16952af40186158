//! The freeze: one key that stops all automation. Functions over a store and not methods of the executor, and not fenced:
//! whoever can reach the store can pull the brake, with or without a controller.

use homeostat_journal::{Brake, Person};
use homeostat_store::{Keys, Op, Store, StoreError, Txn};

use crate::keys;

/// Stops automation, whether it stood still before or not.
///
/// # Errors
/// Those of the store; the cell is then not frozen, as far as anybody knows.
pub async fn freeze(store: &dyn Store, by: &Person, why: &str) -> Result<(), StoreError> {
    store
        .txn(Txn::new().then(Op::put(keys::FREEZE, format!("frozen by {by}: {why}"))))
        .await?;
    Ok(())
}

/// Lets automation go on.
///
/// # Errors
/// Those of the store; the cell is then still frozen, as far as anybody knows.
pub async fn unfreeze(store: &dyn Store) -> Result<(), StoreError> {
    store.txn(Txn::new().then(Op::delete(keys::FREEZE))).await?;
    Ok(())
}

/// The brake as it is now. Whatever the key's value is, its presence freezes.
///
/// # Errors
/// Those of the store.
pub async fn frozen(store: &dyn Store) -> Result<Brake, StoreError> {
    let reply = store.range(Keys::one(keys::FREEZE), None).await?;
    Ok(match reply.items.first() {
        Some(item) => Brake::Frozen {
            why: String::from_utf8_lossy(&item.value).into_owned(),
        },
        None => Brake::Released,
    })
}

/// Returns when the brake may have been released. It only wakes: who is woken looks again.
pub(crate) async fn changed(store: &dyn Store) -> Result<(), StoreError> {
    let reply = store.range(Keys::one(keys::FREEZE), None).await?;
    if reply.items.is_empty() {
        return Ok(());
    }
    let mut watch = store
        .watch(Keys::one(keys::FREEZE), reply.revision.next())
        .await?;
    match watch.next().await {
        Ok(_) | Err(StoreError::Compacted { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
