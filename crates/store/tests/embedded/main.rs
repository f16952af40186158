//! What only the embedded store must do: survive kill -9 and full disks, refuse what it cannot use without touching it,
//! and agree with a simple model on every history.
#![allow(clippy::unwrap_used)]

mod crash;
mod damage;
mod model;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use homeostat_store::convenience::{get, list, put};
use homeostat_store::{
    EmbeddedConfig, EmbeddedStore, Keys, Op, OpenError, Revision, Store, StoreError, Txn, limits,
};

const CONFIG: EmbeddedConfig = EmbeddedConfig {
    keep_revisions: EmbeddedConfig::KEEP_REVISIONS,
};

async fn open(path: &Path) -> EmbeddedStore {
    EmbeddedStore::open(path, CONFIG).await.unwrap()
}

/// Another process: this test binary, running one of the tests marked as being a process of its own.
struct Process(Child);

/// Tells such a test which file to work on; it does nothing when run without.
const FILE: &str = "HOMEOSTAT_STORE_TEST_FILE";

impl Process {
    /// `before` is a line of shell to run first.
    fn start(test: &str, file: &Path, before: &str) -> Self {
        let child = Command::new("sh")
            .arg("-c")
            .arg(format!(
                r#"{before} exec "$0" --exact "$1" --nocapture --ignored"#
            ))
            .arg(std::env::current_exe().unwrap())
            .arg(test)
            .env(FILE, file)
            .stdout(Stdio::piped())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn file() -> Option<PathBuf> {
        std::env::var_os(FILE).map(PathBuf::from)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn what_was_written_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = open(&path).await;
    let revision = put(&store, "k", "v").await.unwrap();
    put(&store, "k", "w").await.unwrap();
    let mut watch = store.watch(Keys::one("k"), Revision(100)).await.unwrap();
    drop(store);
    assert!(matches!(watch.next().await, Err(StoreError::Closed)));

    let store = open(&path).await;
    assert_eq!(store.revision().await.unwrap(), revision.next());
    assert_eq!(get(&store, "k").await.unwrap().unwrap().value, b"w");
    assert_eq!(
        store
            .range(Keys::one("k"), Some(revision))
            .await
            .unwrap()
            .items[0]
            .value,
        b"v"
    );
    let mut watch = store.watch(Keys::one("k"), revision).await.unwrap();
    assert_eq!(watch.next().await.unwrap().revision, revision);
    assert_eq!(watch.next().await.unwrap().revision, revision.next());
    let mut files: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|file| file.unwrap().file_name())
        .collect();
    files.sort();
    assert_eq!(files, ["store.redb", "store.redb.lock"]);
}

/// Two openers in one process are as bad as in two.
#[tokio::test]
async fn a_second_opener_is_told_who_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = open(&path).await;
    let error = EmbeddedStore::open(&path, CONFIG).await.unwrap_err();
    assert!(
        matches!(&error, OpenError::InUse { holder, .. } if *holder == Some(std::process::id())),
        "{error:?}"
    );
    let text = error.to_string();
    assert!(
        text.contains("store.redb") && text.contains("stop that one first"),
        "{text}"
    );
    put(&store, "k", "v").await.unwrap();
    drop(store);
    assert!(get(&open(&path).await, "k").await.unwrap().is_some());
}

#[tokio::test]
async fn a_restart_gives_leases_their_full_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = open(&path).await;
    let lease = store.grant(limits::SHORTEST_LEASE).await.unwrap();
    let txn = Txn::new().then(Op::put_leased("k", "v", lease.id));
    let revision = store.txn(txn).await.unwrap().revision;
    // Most of its time passes: the watch would tell if it were over.
    let mut watch = store.watch(Keys::one("k"), revision.next()).await.unwrap();
    assert!(
        tokio::time::timeout(Duration::from_millis(1500), watch.next())
            .await
            .is_err()
    );
    drop(store);

    let store = open(&path).await;
    let opened = std::time::Instant::now();
    let mut watch = store.watch(Keys::one("k"), revision.next()).await.unwrap();
    assert_eq!(watch.next().await.unwrap().revision, revision.next());
    assert!(
        opened.elapsed() >= lease.ttl - Duration::from_millis(50),
        "after {:?}",
        opened.elapsed()
    );
    // Ids go on where they were.
    assert!(store.grant(limits::SHORTEST_LEASE).await.unwrap().id > lease.id);
}

#[tokio::test]
async fn history_is_cut_to_what_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = EmbeddedStore::open(&path, EmbeddedConfig { keep_revisions: 16 })
        .await
        .unwrap();
    put(&store, "first", "v").await.unwrap();
    for n in 0..200 {
        let revision = put(&store, "k", n.to_string()).await.unwrap();
        let kept = Revision(revision.0.saturating_sub(16).max(2));
        let past = store.range(Keys::prefix(""), Some(kept)).await.unwrap();
        assert_eq!(past.items[0].key, "first");
        if revision > Revision(30) {
            let gone = store
                .range(Keys::prefix(""), Some(Revision(revision.0 - 19)))
                .await;
            assert!(
                matches!(gone, Err(StoreError::Compacted { .. })),
                "{gone:?}"
            );
        }
    }
    assert_eq!(list(&store, "").await.unwrap().items.len(), 2);
}

/// A watch that does not know what it missed must say so.
#[tokio::test]
async fn a_consumer_slower_than_history_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let config = EmbeddedConfig { keep_revisions: 8 };
    let store = EmbeddedStore::open(folder.path().join("store.redb"), config)
        .await
        .unwrap();
    let mut watch = store.watch(Keys::prefix(""), Revision(2)).await.unwrap();
    for n in 0..400 {
        put(&store, "k", n.to_string()).await.unwrap();
    }
    let mut expected = Revision(2);
    let oldest = loop {
        match watch.next().await {
            Ok(batch) => {
                assert_eq!(batch.revision, expected);
                expected = expected.next();
            }
            Err(StoreError::Compacted { oldest }) => break oldest,
            Err(error) => panic!("{error:?}"),
        }
    };
    assert!(oldest > expected && oldest <= Revision(402));
    assert!(matches!(watch.next().await, Err(StoreError::Closed)));
}
