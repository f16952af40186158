//! Revisions, compare-and-set, ranges, history and limits.

use std::time::Duration;

use homeostat_store::convenience::{delete_if, get, list, put, put_if};
use homeostat_store::{
    Compare, Event, Item, Keys, LimitExceeded, Op, Outcome, Revision, StoreError, Txn, limits,
};

use super::{Any, commit, next, texts};

pub async fn revisions_rise_with_changes_only(store: Any) {
    assert_eq!(store.revision().await.unwrap(), Revision(1));
    assert_eq!(put(&*store, "a", "1").await.unwrap(), Revision(2));
    let both = commit(
        &store,
        Txn::new().then(Op::put("b", "1")).then(Op::put("c", "1")),
    )
    .await;
    assert_eq!(both, Revision(3));
    // Nothing changed: reads, refusals, deletes of nothing, empty transactions.
    list(&*store, "").await.unwrap();
    let refused = put_if(&*store, "a", Revision(0), "2").await.unwrap();
    assert_eq!(
        (refused.outcome, refused.revision),
        (Outcome::Refused, Revision(3))
    );
    assert_eq!(
        commit(&store, Txn::new().then(Op::delete("none"))).await,
        Revision(3)
    );
    assert_eq!(commit(&store, Txn::new()).await, Revision(3));
    assert_eq!(store.revision().await.unwrap(), Revision(3));
    // Putting the same value again is a change.
    assert_eq!(put(&*store, "a", "1").await.unwrap(), Revision(4));
}

pub async fn items_carry_their_revisions(store: Any) {
    let created = put(&*store, "k", "1").await.unwrap();
    let changed = put(&*store, "k", vec![0, 255, 0]).await.unwrap();
    let item = get(&*store, "k").await.unwrap().unwrap();
    let expected = Item {
        key: "k".to_owned(),
        value: vec![0, 255, 0],
        create_revision: created,
        mod_revision: changed,
        lease: None,
    };
    assert_eq!(item, expected);
    commit(&store, Txn::new().then(Op::delete("k"))).await;
    assert_eq!(get(&*store, "k").await.unwrap(), None);
    let again = put(&*store, "k", "").await.unwrap();
    let item = get(&*store, "k").await.unwrap().unwrap();
    assert_eq!(
        (item.create_revision, item.mod_revision, item.value.len()),
        (again, again, 0)
    );
}

pub async fn compare_and_set(store: Any) {
    let one = put_if(&*store, "k", Revision(0), "1")
        .await
        .unwrap()
        .committed()
        .unwrap();
    assert_eq!(
        put_if(&*store, "k", Revision(0), "x")
            .await
            .unwrap()
            .committed(),
        None
    );
    let two = put_if(&*store, "k", one, "2")
        .await
        .unwrap()
        .committed()
        .unwrap();
    assert_eq!(
        put_if(&*store, "k", one, "x").await.unwrap().committed(),
        None
    );
    assert_eq!(get(&*store, "k").await.unwrap().unwrap().value, b"2");
    assert_eq!(
        delete_if(&*store, "k", one).await.unwrap().committed(),
        None
    );
    assert!(
        delete_if(&*store, "k", two)
            .await
            .unwrap()
            .committed()
            .is_some()
    );

    let absent = |key: &str| {
        Txn::new()
            .when(Compare::absent(key))
            .then(Op::put("seen", "absent"))
    };
    let present = |key: &str| {
        Txn::new()
            .when(Compare::present(key))
            .then(Op::put("seen", "present"))
    };
    assert_eq!(
        store.txn(present("k")).await.unwrap().outcome,
        Outcome::Refused
    );
    assert_eq!(
        store.txn(absent("k")).await.unwrap().outcome,
        Outcome::Committed
    );
    assert_eq!(
        store.txn(present("seen")).await.unwrap().outcome,
        Outcome::Committed
    );
    assert_eq!(
        store.txn(absent("seen")).await.unwrap().outcome,
        Outcome::Refused
    );
    let item = get(&*store, "seen").await.unwrap().unwrap();
    let again = Txn::new()
        .when(Compare::unchanged(&item))
        .then(Op::delete("seen"));
    assert_eq!(store.txn(again).await.unwrap().outcome, Outcome::Committed);
}

pub async fn branches_are_atomic(store: Any) {
    let a = put(&*store, "a", "1").await.unwrap();
    let txn = |seen| {
        Txn::new()
            .when(Compare::mod_revision("a", seen))
            .when(Compare::absent("b"))
            .then(Op::put("a", "2"))
            .then(Op::put("b", "2"))
            .otherwise(Op::put("refused", "yes"))
    };
    // One of two comparisons fails: nothing of `then`, all of `otherwise`.
    let reply = store.txn(txn(Revision(a.0 + 1))).await.unwrap();
    assert_eq!(
        (reply.outcome, reply.revision),
        (Outcome::Refused, a.next())
    );
    assert_eq!(
        texts(&list(&*store, "").await.unwrap().items),
        [("a", "1"), ("refused", "yes")]
    );
    let reply = store.txn(txn(a)).await.unwrap();
    assert_eq!(
        (reply.outcome, reply.revision),
        (Outcome::Committed, a.next().next())
    );
    let items = list(&*store, "").await.unwrap().items;
    assert_eq!(texts(&items), [("a", "2"), ("b", "2"), ("refused", "yes")]);
    assert_eq!(items[0].mod_revision, items[1].mod_revision);
}

pub async fn deletes_by_key_and_prefix(store: Any) {
    for key in ["a", "a/1", "a/2", "a0", "b"] {
        put(&*store, key, "v").await.unwrap();
    }
    let from = store.revision().await.unwrap().next();
    let mut watch = store.watch(Keys::prefix(""), from).await.unwrap();
    let first = commit(&store, Txn::new().then(Op::delete_prefix("a/"))).await;
    assert_eq!(next(&mut watch).await, format!("{first}: -a/1 -a/2"));
    let second = commit(
        &store,
        Txn::new().then(Op::delete("a")).then(Op::put("c", "v")),
    )
    .await;
    assert_eq!(next(&mut watch).await, format!("{second}: -a +c=v"));
    // Overlapping deletes delete once.
    let third = commit(
        &store,
        Txn::new()
            .then(Op::delete("b"))
            .then(Op::delete_prefix("b")),
    )
    .await;
    assert_eq!(next(&mut watch).await, format!("{third}: -b"));
    assert_eq!(
        texts(&list(&*store, "").await.unwrap().items),
        [("a0", "v"), ("c", "v")]
    );
}

pub async fn ranges_are_ordered_and_exact(store: Any) {
    for key in [
        "b",
        "a/é",
        "a/z",
        "a",
        "a/",
        "a0",
        "ä",
        "a/a/x",
        "\u{10ffff}x",
    ] {
        put(&*store, key, key).await.unwrap();
    }
    let keys = |items: Vec<Item>| items.into_iter().map(|item| item.key).collect::<Vec<_>>();
    assert_eq!(
        keys(list(&*store, "a/").await.unwrap().items),
        ["a/", "a/a/x", "a/z", "a/é"]
    );
    assert_eq!(
        keys(list(&*store, "").await.unwrap().items),
        [
            "a",
            "a/",
            "a/a/x",
            "a/z",
            "a/é",
            "a0",
            "b",
            "ä",
            "\u{10ffff}x"
        ]
    );
    assert_eq!(
        keys(list(&*store, "\u{10ffff}").await.unwrap().items),
        ["\u{10ffff}x"]
    );
    assert_eq!(
        keys(store.range(Keys::one("a"), None).await.unwrap().items),
        ["a"]
    );
    let none = store.range(Keys::one("aa"), None).await.unwrap();
    assert_eq!((none.items.len(), none.revision), (0, Revision(10)));
}

pub async fn the_past_can_be_read(store: Any) {
    let one = commit(
        &store,
        Txn::new()
            .then(Op::put("p/a", "1"))
            .then(Op::put("p/b", "1")),
    )
    .await;
    let two = commit(
        &store,
        Txn::new().then(Op::put("p/a", "2")).then(Op::delete("p/b")),
    )
    .await;
    let three = commit(
        &store,
        Txn::new().then(Op::put("p/b", "3")).then(Op::put("q", "3")),
    )
    .await;
    let at = |revision| store.range(Keys::prefix("p/"), Some(revision));
    assert_eq!(texts(&at(Revision(1)).await.unwrap().items), []);
    let first = at(one).await.unwrap();
    assert_eq!(texts(&first.items), [("p/a", "1"), ("p/b", "1")]);
    assert_eq!(first.items[1].mod_revision, one);
    assert_eq!(
        first.revision, three,
        "the reply tells the store's revision"
    );
    let second = at(two).await.unwrap();
    assert_eq!(texts(&second.items), [("p/a", "2")]);
    assert_eq!(
        (
            second.items[0].create_revision,
            second.items[0].mod_revision
        ),
        (one, two)
    );
    let third = at(three).await.unwrap();
    assert_eq!(texts(&third.items), [("p/a", "2"), ("p/b", "3")]);
    assert_eq!(
        third.items[1].create_revision, three,
        "it had been deleted in between"
    );
    assert_eq!(third.items, at(three).await.unwrap().items);
    match at(three.next()).await {
        Err(StoreError::FutureRevision { asked, current }) => {
            assert_eq!((asked, current), (three.next(), three))
        }
        other => panic!("{other:?}"),
    }
}

pub async fn compaction_forgets_the_past(store: Any) {
    put(&*store, "old", "2").await.unwrap();
    for revision in 3..=8 {
        put(&*store, "k", revision.to_string()).await.unwrap();
    }
    commit(&store, Txn::new().then(Op::delete("k"))).await; // 9
    put(&*store, "k", "10").await.unwrap();
    let mut begun = store.watch(Keys::one("k"), Revision(3)).await.unwrap();
    assert_eq!(next(&mut begun).await, "3: +k=3");

    store.compact(Revision(9)).await.unwrap();
    let at = |revision| store.range(Keys::prefix(""), Some(Revision(revision)));
    match at(8).await {
        Err(StoreError::Compacted { oldest }) => assert_eq!(oldest, Revision(9)),
        other => panic!("{other:?}"),
    }
    assert_eq!(texts(&at(9).await.unwrap().items), [("old", "2")]);
    assert_eq!(
        texts(&at(10).await.unwrap().items),
        [("k", "10"), ("old", "2")]
    );
    assert_eq!(
        texts(&list(&*store, "").await.unwrap().items),
        [("k", "10"), ("old", "2")]
    );
    for from in [2, 8, 9] {
        let mut late = store.watch(Keys::one("k"), Revision(from)).await.unwrap();
        match late.next().await {
            Err(StoreError::Compacted { oldest }) => assert_eq!(oldest, Revision(10)),
            other => panic!("{other:?}"),
        }
    }
    let mut watch = store.watch(Keys::one("k"), Revision(10)).await.unwrap();
    assert_eq!(next(&mut watch).await, "10: +k=10");

    // Again, or less, is no error; more than there is, is one.
    store.compact(Revision(9)).await.unwrap();
    store.compact(Revision(4)).await.unwrap();
    match store.compact(Revision(11)).await {
        Err(StoreError::FutureRevision { asked, current }) => {
            assert_eq!((asked, current), (Revision(11), Revision(10)))
        }
        other => panic!("{other:?}"),
    }
    put(&*store, "k", "11").await.unwrap();
    assert_eq!(next(&mut watch).await, "11: +k=11");
}

pub async fn limits_are_refused(store: Any) {
    let many = |count: usize| {
        (0..count).fold(Txn::new(), |txn, n| txn.then(Op::put(format!("k{n}"), "v")))
    };
    let limit = async |txn: Txn| match store.txn(txn).await {
        Err(StoreError::Limit(limit)) => limit,
        other => panic!("{other:?}"),
    };
    let refused = limit(many(limits::OPERATIONS + 1)).await;
    assert_eq!(
        refused.to_string(),
        "a transaction may have 128 operations at most, not 129"
    );
    let compares = (0..129).fold(Txn::new(), |txn, n| {
        txn.when(Compare::absent(format!("k{n}")))
    });
    assert!(matches!(
        limit(compares).await,
        LimitExceeded::TooManyOperations {
            what: "comparisons",
            count: 129
        }
    ));
    let large = limit(Txn::new().then(Op::put("k", vec![0; limits::VALUE_BYTES + 1]))).await;
    assert_eq!(
        large.to_string(),
        "the value of 'k' has 1048577 bytes; 1048576 at most"
    );
    let sum = (0..3).fold(Txn::new(), |txn, n| {
        txn.then(Op::put(format!("k{n}"), vec![0; limits::VALUE_BYTES / 2]))
    });
    assert!(matches!(
        limit(sum).await,
        LimitExceeded::TxnTooLarge { .. }
    ));
    assert!(matches!(
        limit(Txn::new().then(Op::put("", "v"))).await,
        LimitExceeded::EmptyKey
    ));
    assert!(matches!(
        limit(Txn::new().then(Op::delete_prefix(""))).await,
        LimitExceeded::DeleteAll
    ));
    let long = "k".repeat(limits::KEY_BYTES + 1);
    assert!(matches!(
        limit(Txn::new().then(Op::put(long, "v"))).await,
        LimitExceeded::KeyTooLong { .. }
    ));
    let twice = Txn::new().then(Op::put("k", "1")).then(Op::put("k", "2"));
    assert!(matches!(
        limit(twice).await,
        LimitExceeded::DuplicateKey { .. }
    ));
    for (ttl, short) in [
        (Duration::from_millis(1999), true),
        (Duration::from_secs(31 * 24 * 3600), false),
    ] {
        match store.grant(ttl).await {
            Err(StoreError::Limit(LimitExceeded::LeaseTooShort { .. })) => assert!(short),
            Err(StoreError::Limit(LimitExceeded::LeaseTooLong { .. })) => assert!(!short),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(
        store.range(Keys::one(""), None).await,
        Err(StoreError::Limit(LimitExceeded::EmptyKey))
    ));
    assert!(matches!(
        store.watch(Keys::one(""), Revision(1)).await,
        Err(StoreError::Limit(LimitExceeded::EmptyKey))
    ));
    assert_eq!(store.revision().await.unwrap(), Revision(1));
}

pub async fn large_things_within_limits_pass(store: Any) {
    let many = (0..limits::OPERATIONS).fold(Txn::new(), |txn, n| {
        let key = format!("many/{n:03}");
        txn.when(Compare::absent(&key))
            .then(Op::put(&key, vec![b'v'; 8000]))
            .otherwise(Op::delete(key))
    });
    commit(&store, many).await;
    assert_eq!(
        list(&*store, "many/").await.unwrap().items.len(),
        limits::OPERATIONS
    );
    let key = "k".repeat(limits::KEY_BYTES);
    let put = put(&*store, &key, vec![7; limits::VALUE_BYTES])
        .await
        .unwrap();
    let mut watch = store.watch(Keys::one(&key), put).await.unwrap();
    match watch.next().await.unwrap().events.as_slice() {
        [Event::Put(item)] => assert_eq!(item.value, vec![7; limits::VALUE_BYTES]),
        other => panic!("{} events", other.len()),
    }
    // More in all than gRPC takes in one message by default.
    for n in 0..5 {
        homeostat_store::convenience::put(
            &*store,
            &format!("big/{n}"),
            vec![n; limits::VALUE_BYTES],
        )
        .await
        .unwrap();
    }
    let items = list(&*store, "big/").await.unwrap().items;
    assert_eq!(
        items.iter().map(|item| item.value.len()).sum::<usize>(),
        5 * limits::VALUE_BYTES
    );
}

pub async fn concurrent_compare_and_set_has_one_winner(store: Any) {
    let mut seen = put(&*store, "k", "start").await.unwrap();
    for _ in 0..10 {
        let mut contenders = tokio::task::JoinSet::new();
        for n in 0..8 {
            let store = store.clone();
            contenders.spawn(async move {
                (
                    n,
                    put_if(&*store, "k", seen, n.to_string())
                        .await
                        .unwrap()
                        .committed(),
                )
            });
        }
        let won: Vec<(i32, Revision)> = contenders
            .join_all()
            .await
            .into_iter()
            .filter_map(|(n, won)| Some((n, won?)))
            .collect();
        let [(winner, revision)] = won[..] else {
            panic!("{won:?}")
        };
        let item = get(&*store, "k").await.unwrap().unwrap();
        assert_eq!(
            (item.value, item.mod_revision),
            (winner.to_string().into_bytes(), revision)
        );
        assert_eq!(revision, seen.next());
        seen = revision;
    }
}
