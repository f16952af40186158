//! A member becomes a copy of a peer by orders: what they are refused for, what they give way to, what is left behind.

use std::num::NonZeroU64;
use std::path::Path;
use std::time::{Duration, Instant};

use homeostat_decider::{
    Acker, CopyOffer, Former, MemberReport, OrderOutcome, RebuildState, Recovery, Refusal,
    ServerState, Verb,
};
use mysql_async::prelude::Queryable;

use crate::cluster::{Cluster, Keeper, member, run};
use crate::{block_on, count, fill, until_count};

fn lent(cluster: &mut Cluster, source: usize, to: usize, mib_a_second: Option<u64>) -> CopyOffer {
    let bytes_per_second = mib_a_second.and_then(|mib| NonZeroU64::new(mib << 20));
    let to = member(to);
    match cluster.order(
        source,
        Verb::Lend {
            to,
            bytes_per_second,
        },
    ) {
        OrderOutcome::Lent { offer } => offer,
        other => panic!("{other:?}"),
    }
}

fn rebuild(source: usize, offer: &CopyOffer) -> Verb {
    Verb::Rebuild {
        source: member(source),
        offer: offer.clone(),
        former: Former::KeptAside,
    }
}

fn failed(report: &MemberReport) -> Option<&str> {
    match &report.rebuild {
        Some(RebuildState::Failed { why, .. }) => Some(why),
        _ => None,
    }
}

fn copying(report: &MemberReport) -> bool {
    report.rebuild.as_ref().is_some_and(RebuildState::under_way)
}

/// Waits until some of a copy is unpacked.
fn until_it_flows(incoming: &Path) {
    let begun = Instant::now();
    while !incoming.join("ibdata1").exists() {
        assert!(begun.elapsed() < Duration::from_secs(20), "nothing came");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The holder dies with a commit that nobody acknowledged and comes back with it: another history than the next holder's.
fn diverge(cluster: &mut Cluster) {
    cluster.first_start();
    block_on(async {
        let mut app = cluster.app(0).await;
        run(&mut app, "CREATE TABLE t (id BIGINT PRIMARY KEY, v TEXT)")
            .await
            .unwrap();
        fill(&mut app, 0..20).await;
        until_count(cluster, 1, 20).await;
        until_count(cluster, 2, 20).await;
        for replica in [1, 2] {
            assert!(cluster.stop_receiving(replica).is_some());
        }
        let unacknowledged = app.query_drop("INSERT INTO t VALUES (99, 'nobody has it')");
        let waited = tokio::time::timeout(Duration::from_millis(500), unacknowledged).await;
        assert!(waited.is_err(), "it was answered: {waited:?}");
    });
    cluster.keepers[0].kill_server();
    cluster.revoke();
    for replica in [1, 2] {
        assert!(cluster.stop_receiving(replica).is_some());
        cluster.drain(replica);
    }
    cluster.promoting(1, &[2]);
    cluster.done(1, Verb::TakeOver);
    cluster.attach(1, 2, Acker::Counts);
    cluster.open(1);
    cluster.done(2, Verb::Learn);
    cluster.start(0, Recovery::KeepTail);
    let source = cluster.source(1);
    cluster.done(
        0,
        Verb::Repoint {
            source,
            acker: Acker::Asynchronous,
        },
    );
    cluster.done(1, Verb::Admit { member: member(0) });
    // Whether it is seen to fail at once is chance.
    let _ = cluster.order(0, Verb::Receive);
}

#[test]
fn a_member_with_another_history_becomes_a_copy() {
    let mut cluster = Cluster::new(21);
    diverge(&mut cluster);
    cluster.keepers[0].until("the end of replication", |report| {
        matches!(&report.server, ServerState::Up { facts, .. }
            if facts.broken.as_ref().is_some_and(|why| why.contains("GTID")))
    });

    println!("what must not be");
    let offer = lent(&mut cluster, 2, 0, Some(10));
    for (index, verb) in [
        (0, rebuild(2, &offer)),
        (2, rebuild(1, &offer)),
        (1, rebuild(2, &offer)),
    ] {
        let refused = cluster.order(index, verb);
        let as_expected = match index {
            0 => matches!(
                refused,
                OrderOutcome::Refused(Refusal::WrongServerState { .. })
            ),
            _ => matches!(refused, OrderOutcome::Refused(Refusal::NotLegal { .. })),
        };
        assert!(as_expected, "db-{index}: {refused:?}");
    }
    let folder = cluster.folder.path().join("d0");

    println!("it becomes a copy");
    assert!(matches!(
        cluster.order(0, Verb::Kill),
        OrderOutcome::Exited { .. }
    ));
    cluster.done(0, rebuild(2, &offer));
    assert!(copying(&cluster.keepers[0].report) || failed(&cluster.keepers[0].report).is_none());
    let refused = cluster.order(
        0,
        Verb::Start {
            recovery: Recovery::KeepTail,
        },
    );
    assert!(
        matches!(&refused, OrderOutcome::Failed { why } if why.contains("a copy is under way")),
        "{refused:?}"
    );
    assert_eq!(cluster.keepers[0].report.held, None);
    cluster.keepers[0].until("the copy", |report| {
        assert_eq!(failed(report), None);
        matches!(report.rebuild, Some(RebuildState::Done { .. }))
    });
    let names = std::fs::read_dir(&folder).unwrap();
    let names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(
        names.iter().any(|name| name.starts_with("sql.aside-2-")),
        "{names:?}"
    );
    assert!(
        !names.iter().any(|name| name.ends_with("incoming")),
        "{names:?}"
    );

    cluster.start(0, Recovery::KeepTail);
    let facts = cluster.keepers[0].fresh_facts();
    assert_eq!(facts.applied.barrier.0, 2);
    assert!(facts.read_only && facts.admitted.is_empty() && facts.broken.is_none());
    assert_eq!(cluster.keepers[0].report.rebuild, None);
    cluster.attach(1, 0, Acker::Asynchronous);
    cluster.keepers[0].until("replication", Keeper::connected);
    block_on(async {
        let mut app = cluster.app(1).await;
        fill(&mut app, 20..25).await;
        until_count(&cluster, 0, 25).await;
        let mut copy = cluster.app(0).await;
        assert_eq!(count(&mut copy).await, 25);
        let dropped: Option<u64> = copy
            .query_first("SELECT id FROM t WHERE id = 99")
            .await
            .unwrap();
        assert_eq!(dropped, None);
    });
}

#[test]
fn a_copy_gives_way_to_a_change_of_role_and_dies_with_its_keeper() {
    let mut cluster = Cluster::new(22);
    cluster.first_start();
    println!("db-2 leaves A");
    cluster.record.version = cluster.record.version.next();
    cluster.record.leaving = Some(member(2));
    cluster.done(0, Verb::Expel { member: member(2) });
    assert!(matches!(
        cluster.order(0, Verb::Barrier),
        OrderOutcome::BarrierDone { .. }
    ));
    cluster.record.version = cluster.record.version.next();
    cluster.record.leaving = None;
    cluster.record.ackers = [member(1)].into();
    for index in 0..3 {
        cluster.done(index, Verb::Learn);
    }
    assert!(matches!(
        cluster.order(2, Verb::Kill),
        OrderOutcome::Exited { .. }
    ));

    println!("its source is repointed");
    let incoming = cluster.folder.path().join("d2/sql.incoming");
    let offer = lent(&mut cluster, 1, 2, Some(5));
    cluster.done(2, rebuild(1, &offer));
    cluster.keepers[2].until("the copy's beginning", copying);
    cluster.keepers[1].until("lending", |report| report.lends == Some(member(2)));
    until_it_flows(&incoming);
    cluster.stop_receiving(1);
    cluster.keepers[2].until("the copy's end", |report| failed(report).is_some());
    let why = failed(&cluster.keepers[2].report).unwrap().to_owned();
    assert!(why.contains("the source ended the copy"), "{why}");
    cluster.keepers[1].until("the end of lending", |report| report.lends.is_none());
    cluster.done(1, Verb::Receive);

    println!("its keeper is killed");
    let offer = lent(&mut cluster, 1, 2, Some(5));
    cluster.done(2, rebuild(1, &offer));
    cluster.keepers[2].until("the copy's beginning", copying);
    until_it_flows(&incoming);
    cluster.keepers[2].kill_keeper();
    cluster.restart_keeper(2);
    let report = cluster.keepers[2].report.clone();
    assert!(
        matches!(
            report.server,
            ServerState::Down {
                initialised: true,
                ..
            }
        ),
        "{report:?}"
    );
    assert_eq!(report.rebuild, None);
    assert!(!incoming.exists());

    println!("and at last");
    let offer = lent(&mut cluster, 1, 2, None);
    cluster.done(2, rebuild(1, &offer));
    cluster.keepers[2].until("the copy", |report| {
        assert_eq!(failed(report), None);
        matches!(report.rebuild, Some(RebuildState::Done { .. }))
    });
    cluster.start(2, Recovery::KeepTail);
    cluster.attach(0, 2, Acker::Asynchronous);
    cluster.keepers[2].until("replication", Keeper::connected);
}
