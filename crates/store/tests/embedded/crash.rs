//! kill -9 and full disks, on a real process.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};

use homeostat_store::convenience::{get, list, put};
use homeostat_store::{EmbeddedStore, Op, Revision, Store, StoreError, Txn};

use super::{CONFIG, Process, open};

/// Writers that share commits; each owns two keys which must never differ.
const WRITERS: usize = 4;

/// A process of its own: writes as fast as it can and says what was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by its tests, in a process of its own"]
async fn writer_process() {
    let Some(file) = Process::file() else { return };
    let store = std::sync::Arc::new(EmbeddedStore::open(file, CONFIG).await.unwrap());
    let start = store.revision().await.unwrap().0;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        writers.spawn(async move {
            for n in 0.. {
                let value = format!("{start}.{n}");
                let txn = Txn::new()
                    .then(Op::put(format!("a/{writer}"), value.clone()))
                    .then(Op::put(format!("b/{writer}"), value.clone()));
                let revision = store.txn(txn).await.unwrap().revision;
                let mut out = std::io::stdout().lock();
                writeln!(out, "acknowledged {writer} {value} {revision}").unwrap();
                out.flush().unwrap();
            }
        });
    }
    writers.join_all().await;
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let mut last = Revision(0);
    for round in 0..12 {
        let mut process = Process::start("crash::writer_process", &path, "");
        let mut acknowledged = BTreeMap::new();
        let mut highest = Revision(0);
        let mut lines = BufReader::new(process.0.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let mut read = |count: usize, kill: &mut Process| {
            for line in lines.by_ref() {
                let Some((_, told)) = line.split_once("acknowledged ") else {
                    continue;
                };
                let [writer, value, revision] = told.split(' ').collect::<Vec<_>>()[..] else {
                    break; // The last line can be cut off.
                };
                let revision = Revision(revision.parse().unwrap());
                acknowledged.insert(writer.to_owned(), (value.to_owned(), revision));
                highest = highest.max(revision);
                if acknowledged.len() == WRITERS && highest.0 > last.0 + count as u64 {
                    kill.0.kill().unwrap(); // SIGKILL; the lines that it had written are still read.
                }
            }
        };
        read(round * 37, &mut process);
        drop(process);

        let store = open(&path).await;
        let revision = store.revision().await.unwrap();
        assert!(
            revision >= highest && highest > last,
            "round {round}: {revision} after {highest}, before {last}"
        );
        for (writer, (value, at)) in &acknowledged {
            let item = get(&store, &format!("a/{writer}")).await.unwrap().unwrap();
            assert!(
                item.mod_revision >= *at,
                "round {round}: {value} at {at} was lost"
            );
            if item.mod_revision == *at {
                assert_eq!(item.value, value.as_bytes());
            }
        }
        let (a, b) = (
            list(&store, "a/").await.unwrap().items,
            list(&store, "b/").await.unwrap().items,
        );
        assert_eq!((a.len(), b.len()), (WRITERS, WRITERS));
        for (a, b) in a.iter().zip(&b) {
            assert_eq!(
                (&a.value, a.mod_revision),
                (&b.value, b.mod_revision),
                "half a transaction"
            );
        }
        last = revision;
    }
}

/// A process of its own, whose files may not grow beyond what its shell has set.
#[tokio::test]
#[ignore = "run by its test, in a process of its own"]
async fn full_disk_process() {
    let Some(file) = Process::file() else { return };
    let store = EmbeddedStore::open(&file, CONFIG).await.unwrap();
    let value = vec![b'v'; 200_000];
    let mut written = 0;
    let error = loop {
        match put(&store, &format!("k/{written:04}"), value.clone()).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 1000, "the limit does not hold");
    };
    assert!(matches!(error, StoreError::DiskFull { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .contains("no space left to write the store"),
        "{error}"
    );
    // What was acknowledged can still be read, and nothing else is there.
    let kept = list(&store, "k/").await.unwrap();
    assert_eq!(
        (kept.items.len(), kept.revision),
        (written, Revision(1 + written as u64))
    );
    assert!(kept.items.iter().all(|item| item.value == value));

    // Room again: the same store goes on.
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Fsize);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
    put(&store, "k/more", value).await.unwrap();
    drop(store);
    let store = open(&file).await;
    assert_eq!(list(&store, "k/").await.unwrap().items.len(), written + 1);
    println!("wrote {written}");
}

#[test]
fn a_full_disk_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    // SIGXFSZ ignored, so that a write beyond the limit fails with EFBIG as a full disk does with ENOSPC.
    let before = r#"trap "" XFSZ; ulimit -S -f 16384;"#;
    let mut process = Process::start("crash::full_disk_process", &path, before);
    let mut said = String::new();
    std::io::Read::read_to_string(&mut process.0.stdout.take().unwrap(), &mut said).unwrap();
    assert!(
        process.0.wait().unwrap().success() && said.contains("wrote "),
        "{said}"
    );
}
