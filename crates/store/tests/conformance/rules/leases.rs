//! Leases: what they delete, and when.

use std::time::{Duration, Instant};

use homeostat_store::convenience::{get, list, put};
use homeostat_store::{Keys, LeaseId, Op, Outcome, Revision, StoreError, Txn, limits};

use super::{Any, commit, next, texts};

pub async fn leases_delete_their_keys(store: Any) {
    let lease = store
        .grant(Duration::from_millis(1500 + 500))
        .await
        .unwrap();
    assert!(lease.ttl >= Duration::from_secs(2));
    let from = Instant::now();
    commit(
        &store,
        Txn::new()
            .then(Op::put_leased("l/b", "1", lease.id))
            .then(Op::put("l/free", "1")),
    )
    .await;
    let put = commit(
        &store,
        Txn::new().then(Op::put_leased("l/a", "1", lease.id)),
    )
    .await;
    assert_eq!(
        get(&*store, "l/a").await.unwrap().unwrap().lease,
        Some(lease.id)
    );
    let mut watch = store.watch(Keys::prefix("l/"), put.next()).await.unwrap();
    assert_eq!(next(&mut watch).await, format!("{}: -l/a -l/b", put.next()));
    let lived = from.elapsed();
    assert!(
        lived > lease.ttl - Duration::from_millis(100),
        "expired early, after {lived:?}"
    );
    assert!(
        lived < lease.ttl + Duration::from_secs(3),
        "expired late, after {lived:?}"
    );
    assert_eq!(
        texts(&list(&*store, "l/").await.unwrap().items),
        [("l/free", "1")]
    );
    assert!(
        matches!(store.keep_alive(lease.id).await, Err(StoreError::LeaseNotFound(id)) if id == lease.id)
    );
}

pub async fn leases_are_kept_alive(store: Any) {
    let lease = store.grant(limits::SHORTEST_LEASE).await.unwrap();
    let put = commit(&store, Txn::new().then(Op::put_leased("k", "1", lease.id))).await;
    let mut watch = store.watch(Keys::one("k"), put.next()).await.unwrap();
    let from = Instant::now();
    let mut kept = from;
    // Twice its time, by keeping it alive; the watch tells if that were not enough.
    while from.elapsed() < 2 * lease.ttl {
        assert_eq!(store.keep_alive(lease.id).await.unwrap(), lease.ttl);
        kept = Instant::now();
        let early = tokio::time::timeout(Duration::from_millis(500), watch.next()).await;
        assert!(early.is_err(), "expired although kept alive: {early:?}");
    }
    assert_eq!(next(&mut watch).await, format!("{}: -k", put.next()));
    assert!(
        kept.elapsed() > lease.ttl - Duration::from_millis(100),
        "expired early, after {:?}",
        kept.elapsed()
    );
}

pub async fn leases_can_be_revoked(store: Any) {
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    let put = commit(
        &store,
        Txn::new()
            .then(Op::put_leased("b", "1", lease.id))
            .then(Op::put_leased("a", "1", lease.id)),
    )
    .await;
    let mut watch = store.watch(Keys::prefix(""), put.next()).await.unwrap();
    store.revoke(lease.id).await.unwrap();
    assert_eq!(next(&mut watch).await, format!("{}: -a -b", put.next()));
    assert!(matches!(
        store.revoke(lease.id).await,
        Err(StoreError::LeaseNotFound(_))
    ));
    // A lease without keys ends without a revision.
    let before = store.revision().await.unwrap();
    let other = store.grant(Duration::from_secs(60)).await.unwrap();
    assert_ne!(other.id, lease.id);
    store.revoke(other.id).await.unwrap();
    assert_eq!(store.revision().await.unwrap(), before);
}

pub async fn keys_change_leases(store: Any) {
    let first = store.grant(Duration::from_secs(60)).await.unwrap().id;
    let second = store.grant(Duration::from_secs(60)).await.unwrap().id;
    for key in ["moved", "freed", "deleted", "stays"] {
        commit(&store, Txn::new().then(Op::put_leased(key, "1", first))).await;
    }
    commit(
        &store,
        Txn::new()
            .then(Op::put_leased("moved", "2", second))
            .then(Op::put("freed", "2")),
    )
    .await;
    commit(&store, Txn::new().then(Op::delete("deleted"))).await;
    put(&*store, "deleted", "again").await.unwrap();
    store.revoke(first).await.unwrap();
    assert_eq!(
        texts(&list(&*store, "").await.unwrap().items),
        [("deleted", "again"), ("freed", "2"), ("moved", "2")]
    );
    store.revoke(second).await.unwrap();
    assert_eq!(
        texts(&list(&*store, "").await.unwrap().items),
        [("deleted", "again"), ("freed", "2")]
    );
}

pub async fn unknown_leases_are_refused(store: Any) {
    let known = store.grant(Duration::from_secs(60)).await.unwrap().id;
    let unknown = LeaseId(known.0 + 1_000_000);
    let txn = Txn::new()
        .then(Op::put("a", "1"))
        .then(Op::put_leased("b", "1", known))
        .then(Op::put_leased("c", "1", unknown));
    let error = store.txn(txn).await.unwrap_err();
    assert!(
        matches!(error, StoreError::LeaseNotFound(lease) if lease == unknown),
        "{error:?}"
    );
    assert_eq!(
        store.revision().await.unwrap(),
        Revision(1),
        "nothing of it was done"
    );
    // Only the branch that runs counts.
    let txn = Txn::new()
        .then(Op::put("a", "1"))
        .otherwise(Op::put_leased("b", "1", unknown));
    assert_eq!(store.txn(txn).await.unwrap().outcome, Outcome::Committed);
    assert!(matches!(
        store.keep_alive(unknown).await,
        Err(StoreError::LeaseNotFound(_))
    ));
    assert!(matches!(
        store.revoke(unknown).await,
        Err(StoreError::LeaseNotFound(_))
    ));
}
