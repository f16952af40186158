//! Servers that stand still, keepers that do, and the serving lease.

use std::time::{Duration, Instant};

use homeostat_decider::{OrderOutcome, Phase, ServerState, Verb};
use homeostat_supervisor::protocol::Answer;
use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use rustix::process::Signal;
use tokio::runtime::Runtime;

use crate::cluster::{Cluster, Keeper, member, run, signal};

const LEASE: Duration = Duration::from_secs(2);
/// For what is to happen at once, on a small machine that does something else as well.
const SOON: Duration = Duration::from_millis(1500);

/// A connection belongs to the runtime that made it.
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn down(keeper: &Keeper) -> bool {
    matches!(keeper.report.server, ServerState::Down { .. })
}

/// Reads at the server again and again while its keeper is listened to.
fn reads_go_on(cluster: &mut Cluster, (runtime, conn): (&Runtime, &mut Conn), time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        cluster.keepers[0].listen(ms(100));
        let answer = runtime.block_on(async {
            tokio::time::timeout(SOON, conn.query_first::<u64, _>("SELECT 7")).await
        });
        assert!(
            matches!(answer, Ok(Ok(Some(7)))),
            "no answer after {:?}: {answer:?}",
            begun.elapsed()
        );
    }
}

/// Says how long the server lived on.
fn dies_within(keeper: &mut Keeper, most: Duration) -> Duration {
    let begun = Instant::now();
    while !down(keeper) {
        assert!(begun.elapsed() < most, "the server lives still");
        keeper.listen(ms(20));
    }
    begun.elapsed()
}

#[test]
fn a_stopped_server_is_told_of_from_both_sides_and_killed_before_the_order_that_it_holds() {
    let mut cluster = Cluster::new(11);
    cluster.first_start();
    for keeper in &mut cluster.keepers {
        keeper.until_sign("it answers", |pulse| pulse.unanswered_ms.is_none());
    }
    for index in [1, 2] {
        cluster.keepers[index].until_sign("the source is heard", |pulse| {
            pulse.source_ms.is_some_and(|age| age < 150)
        });
    }
    let no_source = |pulse: homeostat_decider::Pulse| pulse.source_ms.is_none();
    cluster.keepers[0].until_sign("the holder has no source", no_source);

    println!("an idle source is heard by its heartbeats");
    let signs = cluster.keepers[1].signs;
    cluster.keepers[1].listen(ms(2000));
    let came = cluster.keepers[1].signs - signs;
    assert!((10..=30).contains(&came), "{came} signs in 2 s");

    println!("the server stands still");
    let pid = cluster.keepers[0].server_pid();
    signal(pid, Signal::STOP);
    for index in [1, 2] {
        cluster.keepers[index].until_sign("the source is silent", |pulse| {
            pulse.source_ms.is_some_and(|age| age >= 700)
        });
        cluster.keepers[index].until_sign("it answers itself", |p| p.unanswered_ms.is_none());
    }
    cluster.keepers[0].until_sign("a read is not answered", |pulse| {
        pulse.unanswered_ms.is_some_and(|age| age >= 700)
    });

    println!("an order that it holds, and a kill");
    let hanging = cluster.make_order(0, Verb::Admit { member: member(1) });
    let hanging = cluster.keepers[0].send(hanging);
    cluster.revoke();
    let begun = Instant::now();
    cluster.stop_receiving(1).unwrap();
    assert!(begun.elapsed() < SOON, "it waited for its source");
    let begun = Instant::now();
    let outcome = cluster.order(0, Verb::Kill);
    assert!(matches!(outcome, OrderOutcome::Exited { server: Some(server) } if server.pid == pid));
    assert!(begun.elapsed() < SOON, "the kill waited");
    assert!(
        matches!(
            &cluster.keepers[0].answers[&hanging],
            Answer::Refused { .. }
        ),
        "the order that gave way has an answer of its own"
    );
    cluster.keepers[0].until("its end", |report| {
        matches!(report.server, ServerState::Down { .. })
    });
    cluster.keepers[0].until_sign("nothing is asked", |p| p.unanswered_ms.is_none());
    for index in [1, 2] {
        cluster.stop_receiving(index).unwrap();
        cluster.keepers[index].until_sign("it listens no more", no_source);
    }
}

#[test]
fn the_lease_is_renewed_by_ackers_or_by_the_leader_and_ends_without_both() {
    let mut cluster = Cluster::with_lease(12, LEASE);
    cluster.first_start();
    let pid = cluster.keepers[0].server_pid();
    let runtime = &runtime();
    let mut app = runtime.block_on(cluster.app(0));
    runtime
        .block_on(run(&mut app, "CREATE TABLE t (id BIGINT PRIMARY KEY)"))
        .unwrap();

    println!("no controller");
    reads_go_on(&mut cluster, (runtime, &mut app), LEASE * 3 + ms(500));
    runtime
        .block_on(run(&mut app, "INSERT INTO t VALUES (1)"))
        .unwrap();
    assert!(cluster.keepers[0].asked > 10, "renewals are asked for");

    println!("no ackers");
    cluster.keepers[0].grants = true;
    cluster.keepers[0].listen(LEASE);
    for index in [1, 2] {
        cluster.keepers[index].kill_server();
    }
    reads_go_on(&mut cluster, (runtime, &mut app), LEASE * 2);
    let mut other = runtime.block_on(cluster.app(0));
    runtime.block_on(async {
        let write = other.query_drop("INSERT INTO t VALUES (2)");
        let waits = tokio::time::timeout(ms(500), write).await;
        assert!(waits.is_err(), "{waits:?}: nobody acknowledged it");
    });
    reads_go_on(&mut cluster, (runtime, &mut app), LEASE);
    assert_eq!(cluster.keepers[0].server_pid(), pid);

    println!("neither");
    cluster.keepers[0].grants = false;
    let lived = dies_within(&mut cluster.keepers[0], LEASE + SOON);
    println!("  dead after {lived:?}");
    // The last grant was for a request at most a fifth of the lease old.
    assert!(lived > LEASE / 2, "{lived:?}");
    assert!(
        cluster.keepers[0]
            .log()
            .contains("its serving lease had ended")
    );
}

#[test]
fn a_keeper_that_slept_beyond_the_lease_kills_its_server_when_it_wakes() {
    let mut cluster = Cluster::with_lease(13, LEASE);
    cluster.first_start();
    let (keeper, server) = (
        cluster.keepers[0].hello.supervisor.pid,
        cluster.keepers[0].server_pid(),
    );
    signal(keeper, Signal::STOP);
    signal(server, Signal::STOP);
    std::thread::sleep(LEASE + ms(300));
    signal(server, Signal::CONT);
    signal(keeper, Signal::CONT);
    dies_within(&mut cluster.keepers[0], SOON);
    for index in [1, 2] {
        assert!(!down(&cluster.keepers[index]));
    }
}

#[test]
fn a_primary_whose_switchover_failed_lives_on_into_the_next_epoch() {
    let mut cluster = Cluster::with_lease(14, LEASE);
    cluster.first_start();
    cluster.keepers[0].grants = true;
    cluster.keepers[0].listen(ms(500));
    let pid = cluster.keepers[0].server_pid();

    cluster.revoke();
    let outcome = cluster.order(0, Verb::Demote { patience_ms: 0 });
    assert!(
        matches!(outcome, OrderOutcome::Failed { .. }),
        "{outcome:?}"
    );
    cluster.promoting(0, &[1, 2]);
    cluster.done(0, Verb::Learn);
    // It asks for a lease of the new epoch while it is open by that of the old one.
    cluster.keepers[0].listen(LEASE / 2);
    assert!(!down(&cluster.keepers[0]), "killed while it is reinstated");
    let outcome = cluster.order(0, Verb::Barrier);
    assert!(
        matches!(outcome, OrderOutcome::BarrierDone { .. }),
        "{outcome:?}"
    );
    cluster.record.version = cluster.record.version.next();
    cluster.record.phase = Phase::Serving;
    cluster.record.unclosed.clear();
    cluster.done(0, Verb::Reinstate);
    cluster.keepers[0].listen(LEASE * 2);
    assert_eq!(cluster.keepers[0].server_pid(), pid);
}
