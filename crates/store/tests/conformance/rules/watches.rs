//! Watches: each revision once, whole and in order.

use homeostat_store::convenience::put;
use homeostat_store::{Keys, Op, Revision, Txn};

use super::{Any, commit, next, told};

/// Many watches begun at many places while several writers are at work: each sees every revision once, in order.
pub async fn watches_have_no_gap(store: Any) {
    const WRITERS: usize = 4;
    const WRITES: usize = 25;
    let mut watches = Vec::new();
    let spawn = |writers: &mut tokio::task::JoinSet<()>, writer: usize| {
        let store = store.clone();
        writers.spawn(async move {
            for n in 0..WRITES {
                put(&*store, &format!("w/{writer}"), n.to_string())
                    .await
                    .unwrap();
            }
        });
    };
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        spawn(&mut writers, writer);
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
        watches.push(store.watch(Keys::prefix("w/"), Revision(2)).await.unwrap());
    }
    for writer in 0..WRITERS {
        spawn(&mut writers, writer);
        watches.push(store.watch(Keys::prefix("w/"), Revision(2)).await.unwrap());
        tokio::task::yield_now().await;
    }
    let last = 1 + 2 * (WRITERS * WRITES) as u64;
    let mut first: Option<Vec<String>> = None;
    for mut watch in watches {
        let mut seen = Vec::new();
        for expected in 2..=last {
            let batch = watch.next().await.unwrap();
            assert_eq!(batch.revision, Revision(expected));
            assert_eq!(batch.events.len(), 1);
            seen.push(told(&batch));
        }
        assert_eq!(*first.get_or_insert_with(|| seen.clone()), seen);
    }
    writers.join_all().await;
}

pub async fn watches_begin_anywhere(store: Any) {
    put(&*store, "k", "2").await.unwrap();
    put(&*store, "k", "3").await.unwrap();
    let mut all = store.watch(Keys::one("k"), Revision(0)).await.unwrap();
    let mut past = store.watch(Keys::one("k"), Revision(3)).await.unwrap();
    let mut present = store.watch(Keys::one("k"), Revision(4)).await.unwrap();
    let mut future = store.watch(Keys::one("k"), Revision(6)).await.unwrap();
    for value in ["4", "5", "6"] {
        put(&*store, "k", value).await.unwrap();
    }
    for (watch, from) in [
        (&mut all, 2),
        (&mut past, 3),
        (&mut present, 4),
        (&mut future, 6),
    ] {
        for revision in from..=6 {
            assert_eq!(next(watch).await, format!("{revision}: +k={revision}"));
        }
    }
}

pub async fn watches_see_only_their_keys(store: Any) {
    let mut prefix = store.watch(Keys::prefix("a/"), Revision(1)).await.unwrap();
    let mut one = store.watch(Keys::one("a/x"), Revision(1)).await.unwrap();
    put(&*store, "a", "no").await.unwrap();
    put(&*store, "a0", "no").await.unwrap();
    commit(
        &store,
        Txn::new()
            .then(Op::put("a/y", "1"))
            .then(Op::put("z", "1"))
            .then(Op::put("a/x", "1")),
    )
    .await;
    put(&*store, "a/xx", "2").await.unwrap();
    commit(
        &store,
        Txn::new().then(Op::delete("a/x")).then(Op::delete("z")),
    )
    .await;
    assert_eq!(next(&mut prefix).await, "4: +a/y=1 +a/x=1");
    assert_eq!(next(&mut prefix).await, "5: +a/xx=2");
    assert_eq!(next(&mut prefix).await, "6: -a/x");
    assert_eq!(next(&mut one).await, "4: +a/x=1");
    assert_eq!(next(&mut one).await, "6: -a/x");
}

/// A consumer that reads nothing while far more is written than any queue holds, and then everything.
pub async fn watches_survive_slow_consumers(store: Any) {
    const WRITES: u64 = 600;
    let mut slow = store.watch(Keys::prefix("k"), Revision(1)).await.unwrap();
    let mut quick = store.watch(Keys::prefix("k"), Revision(1)).await.unwrap();
    let value = vec![b'v'; 2000];
    for n in 0..WRITES {
        put(&*store, &format!("k{}", n % 7), value.clone())
            .await
            .unwrap();
        assert_eq!(quick.next().await.unwrap().revision, Revision(n + 2));
    }
    for n in 0..WRITES {
        let batch = slow.next().await.unwrap();
        assert_eq!(batch.revision, Revision(n + 2));
        assert_eq!(batch.events.len(), 1);
        assert_eq!(batch.events[0].key(), format!("k{}", n % 7));
    }
    let more = put(&*store, "k", "more").await.unwrap();
    assert_eq!(next(&mut slow).await, format!("{more}: +k=more"));
}
