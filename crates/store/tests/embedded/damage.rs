//! Files that must be refused, each with a clear error, and left exactly as they were.

use std::path::{Path, PathBuf};

use homeostat_store::convenience::put;
use homeostat_store::{EmbeddedStore, OpenError, Store};
use redb::TableDefinition;

use super::{CONFIG, open};

/// A store with something in it, closed.
async fn store_in(folder: &Path) -> PathBuf {
    let path = folder.join("store.redb");
    let store = open(&path).await;
    for n in 0..200 {
        put(&store, &format!("k/{n}"), vec![b'v'; 5000])
            .await
            .unwrap();
    }
    path
}

/// Opens a file which must be refused, and checks that it is untouched.
async fn refused(path: &Path) -> OpenError {
    let before = std::fs::read(path).unwrap();
    let error = EmbeddedStore::open(path, CONFIG)
        .await
        .expect_err("it was opened");
    assert!(
        std::fs::read(path).unwrap() == before,
        "the file was changed by: {error}"
    );
    assert!(
        error.to_string().contains(path.to_str().unwrap()),
        "{error}"
    );
    error
}

#[tokio::test]
async fn a_truncated_file_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = store_in(folder.path()).await;
    let whole = std::fs::read(&path).unwrap();
    let len = whole.len();
    for cut in [
        0,
        1,
        63,
        64,
        319,
        320,
        4095,
        4096,
        4097,
        8192,
        len / 3,
        len / 2,
        len / 2 + 4096,
        len - 4096,
        len - 1,
    ] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let error = refused(&path).await;
        assert!(
            matches!(error, OpenError::Damaged { .. }),
            "cut at {cut} of {len}: {error:?}"
        );
    }
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(open(&path).await.revision().await.unwrap().0, 201);
}

#[tokio::test]
async fn an_overwritten_file_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = store_in(folder.path()).await;
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, "this is a note and not a store\n".repeat(1000)).unwrap();
    assert!(matches!(refused(&path).await, OpenError::Damaged { .. }));
    // Here and there: the damage is either found, or was in a page that is free.
    let mut found = 0;
    for page in (0..whole.len()).step_by(160 * 1024) {
        let mut bad = whole.clone();
        for byte in &mut bad[page..][..16] {
            *byte ^= 0x55;
        }
        std::fs::write(&path, &bad).unwrap();
        match EmbeddedStore::open(&path, CONFIG).await {
            Ok(store) => assert_eq!(store.revision().await.unwrap().0, 201),
            Err(error) => {
                assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
                assert!(
                    std::fs::read(&path).unwrap() == bad,
                    "the file was changed by: {error}"
                );
                found += 1;
            }
        }
    }
    assert!(found > 0);
}

#[tokio::test]
async fn a_newer_format_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = store_in(folder.path()).await;
    let db = redb::Database::open(&path).unwrap();
    let write = db.begin_write().unwrap();
    write
        .open_table(TableDefinition::<&str, u64>::new("meta"))
        .unwrap()
        .insert("format", 7)
        .unwrap();
    write.commit().unwrap();
    drop(db);
    let error = refused(&path).await;
    assert!(
        matches!(
            error,
            OpenError::NewerFormat {
                found: 7,
                known: 1,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(
        error
            .to_string()
            .contains("has format 7 and was written by a newer homeostat"),
        "{error}"
    );
}

#[tokio::test]
async fn somebody_elses_database_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.redb");
    let db = redb::Database::create(&path).unwrap();
    let write = db.begin_write().unwrap();
    write
        .open_table(TableDefinition::<u64, u64>::new("numbers"))
        .unwrap()
        .insert(1, 1)
        .unwrap();
    write.commit().unwrap();
    drop(db);
    assert!(matches!(refused(&path).await, OpenError::Damaged { .. }));
}

#[tokio::test]
async fn a_missing_folder_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let error = EmbeddedStore::open(folder.path().join("no/store.redb"), CONFIG)
        .await
        .unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
}

/// What a crash while creating leaves behind is neither taken for a store nor in the way.
#[tokio::test]
async fn half_a_new_store_is_begun_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    std::fs::write(folder.path().join("store.redb.new"), "half").unwrap();
    assert_eq!(open(&path).await.revision().await.unwrap().0, 1);
    assert!(!folder.path().join("store.redb.new").exists());
}
