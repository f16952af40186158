//! What every store must do, on every store: the embedded one, and a real etcd that the test starts itself.
//!
//! Each rule is a function over a store and runs as one test per implementation, on a store of its own.
#![allow(clippy::unwrap_used)]

mod etcd_server;
mod rules;

use std::sync::Arc;

use homeostat_store::{EmbeddedConfig, EmbeddedStore, EtcdConfig, EtcdStore, Store};

/// A store with what has to outlive it.
struct Fixture<T> {
    store: Arc<dyn Store>,
    _alive: T,
}

async fn embedded() -> Fixture<tempfile::TempDir> {
    let folder = tempfile::tempdir().unwrap();
    let config = EmbeddedConfig {
        keep_revisions: EmbeddedConfig::KEEP_REVISIONS,
    };
    let store = EmbeddedStore::open(folder.path().join("store.redb"), config)
        .await
        .unwrap();
    Fixture {
        store: Arc::new(store),
        _alive: folder,
    }
}

async fn etcd() -> Fixture<etcd_server::EtcdServer> {
    let server = etcd_server::EtcdServer::start();
    let store = EtcdStore::new(EtcdConfig::with_endpoints(vec![server.client])).unwrap();
    Fixture {
        store: Arc::new(store),
        _alive: server,
    }
}

macro_rules! conformance {
    ($($rule:ident),* $(,)?) => {
        mod embedded_store {
            $(#[tokio::test]
            async fn $rule() {
                let fixture = super::embedded().await;
                super::bounded(super::rules::$rule(fixture.store.clone())).await;
            })*
        }
        mod etcd_store {
            $(#[tokio::test]
            async fn $rule() {
                let fixture = super::etcd().await;
                super::bounded(super::rules::$rule(fixture.store.clone())).await;
            })*
        }
    };
}

/// No rule may hang: a missing event has to fail its test.
async fn bounded(rule: impl Future<Output = ()>) {
    tokio::time::timeout(std::time::Duration::from_secs(30), rule)
        .await
        .expect("the rule did not finish in 30 s");
}

conformance!(
    revisions_rise_with_changes_only,
    items_carry_their_revisions,
    compare_and_set,
    branches_are_atomic,
    deletes_by_key_and_prefix,
    ranges_are_ordered_and_exact,
    the_past_can_be_read,
    watches_have_no_gap,
    watches_begin_anywhere,
    watches_see_only_their_keys,
    watches_survive_slow_consumers,
    leases_delete_their_keys,
    leases_are_kept_alive,
    leases_can_be_revoked,
    keys_change_leases,
    unknown_leases_are_refused,
    compaction_forgets_the_past,
    limits_are_refused,
    large_things_within_limits_pass,
    concurrent_compare_and_set_has_one_winner,
);

/// Every member that goes away is replaced by another endpoint; what was certainly not taken is tried again.
#[tokio::test]
async fn etcd_with_a_dead_endpoint() {
    let server = etcd_server::EtcdServer::start();
    let dead = etcd_server::free_address();
    let store = EtcdStore::new(EtcdConfig::with_endpoints(vec![dead, server.client])).unwrap();
    bounded(rules::compare_and_set(Arc::new(store))).await;
}

#[tokio::test]
async fn etcd_with_only_dead_endpoints_says_so() {
    let mut config = EtcdConfig::with_endpoints(vec![
        etcd_server::free_address(),
        etcd_server::free_address(),
    ]);
    config.retry_for = std::time::Duration::from_millis(200);
    let store = EtcdStore::new(config).unwrap();
    let error = homeostat_store::convenience::put(&store, "k", "v")
        .await
        .unwrap_err();
    assert!(
        matches!(error, homeostat_store::StoreError::Unavailable { .. }),
        "{error:?}"
    );
    let error = store
        .watch(
            homeostat_store::Keys::one("k"),
            homeostat_store::Revision(1),
        )
        .await
        .unwrap()
        .next()
        .await;
    assert!(
        matches!(error, Err(homeostat_store::StoreError::Unavailable { .. })),
        "{error:?}"
    );
}

#[test]
fn etcd_beyond_loopback_is_refused() {
    let config = EtcdConfig::with_endpoints(vec!["192.0.2.1:2379".parse().unwrap()]);
    let error = EtcdStore::new(config).unwrap_err();
    assert!(
        matches!(error, homeostat_store::OpenError::NotLoopback { .. }),
        "{error:?}"
    );
}

/// A watch goes on after its server was killed and started again, without a gap or a repetition.
#[tokio::test]
async fn etcd_watch_survives_a_restart_of_the_server() {
    let mut server = etcd_server::EtcdServer::start();
    let store = EtcdStore::new(EtcdConfig::with_endpoints(vec![server.client])).unwrap();
    bounded(async {
        let first = homeostat_store::convenience::put(&store, "k", "1")
            .await
            .unwrap();
        let mut watch = store
            .watch(homeostat_store::Keys::one("k"), first)
            .await
            .unwrap();
        assert_eq!(watch.next().await.unwrap().revision, first);
        server.restart();
        let second = loop {
            match homeostat_store::convenience::put(&store, "k", "2").await {
                Ok(revision) => break revision,
                Err(homeostat_store::StoreError::OutcomeUnknown { .. }) => {}
                Err(error) => panic!("{error:?}"),
            }
        };
        let mut seen = watch.next().await.unwrap().revision;
        assert!(seen > first);
        while seen < second {
            let next = watch.next().await.unwrap().revision;
            assert!(next > seen);
            seen = next;
        }
        assert_eq!(seen, second);
    })
    .await;
}
