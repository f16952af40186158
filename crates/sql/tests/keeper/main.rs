//! The keeper against real servers: every order, and what it must survive.

#![allow(clippy::unwrap_used)]

mod cluster;
mod copies;
mod guarded;
mod living;

use std::path::Path;
use std::time::{Duration, Instant};

use cluster::{Cluster, Keeper, kill, member, run};
use homeostat_decider::{
    Acker, OrderOutcome, Phase, Receiver, Recovery, Refusal, ServerState, Verb,
};
use homeostat_model::Epoch;
use homeostat_supervisor::process;
use homeostat_supervisor::protocol::{Answer, Phase as TaskPhase, Verb as Asked};
use mysql_async::Conn;
use mysql_async::prelude::Queryable;

/// Not a test: the process that a cluster starts for each of its keepers.
#[test]
fn keeper_process() {
    if let Some(run_dir) = std::env::var_os(cluster::RUN_DIR) {
        homeostat_sql::keeper::keep(Path::new(&run_dir)).unwrap();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

async fn count(conn: &mut Conn) -> u64 {
    conn.query_first("SELECT COUNT(*) FROM t")
        .await
        .unwrap()
        .unwrap()
}

/// Waits until the table is as large on a replica.
async fn until_count(cluster: &Cluster, index: usize, wanted: u64) {
    let begun = Instant::now();
    let mut conn = cluster.app(index).await;
    while count(&mut conn).await != wanted {
        let found = count(&mut conn).await;
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "db-{index} has {found} rows, not {wanted}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn fill(conn: &mut Conn, rows: std::ops::Range<u64>) {
    for id in rows {
        run(conn, &format!("INSERT INTO t VALUES ({id}, 'row {id}')"))
            .await
            .unwrap();
    }
}

#[test]
fn a_cluster_outlives_its_primary() {
    let mut cluster = Cluster::new(1);
    for keeper in &cluster.keepers {
        assert!(matches!(
            keeper.report.server,
            ServerState::Down {
                initialised: false,
                last: None
            }
        ));
        assert!(
            matches!(keeper.hello.phase, TaskPhase::Running { child } if child == keeper.hello.supervisor)
        );
    }
    cluster.first_start();
    block_on(async {
        let mut app = cluster.app(0).await;
        run(&mut app, "CREATE TABLE t (id BIGINT PRIMARY KEY, v TEXT)")
            .await
            .unwrap();
        fill(&mut app, 0..50).await;
        until_count(&cluster, 1, 50).await;
        until_count(&cluster, 2, 50).await;
        app.disconnect().await.unwrap();
    });

    println!("the primary's server is killed");
    let begun = Instant::now();
    cluster.keepers[0].kill_server();
    println!(
        "  its end was told after {:.1} ms",
        begun.elapsed().as_secs_f64() * 1000.0
    );
    cluster.revoke();
    cluster.done(0, Verb::Learn);
    let one = cluster.stop_receiving(1).unwrap();
    let two = cluster.stop_receiving(2).unwrap();
    assert_eq!(one, two);
    assert_eq!(one.barrier, Epoch(1));
    assert_eq!(cluster.drain(1), one);
    cluster.promoting(1, &[2]);
    cluster.done(1, Verb::TakeOver);
    cluster.attach(1, 2, Acker::Counts);
    cluster.open(1);
    println!(
        "  open again after {:.1} ms of hand-sent orders",
        begun.elapsed().as_secs_f64() * 1000.0
    );
    block_on(async {
        let mut app = cluster.app(1).await;
        assert_eq!(count(&mut app).await, 50);
        fill(&mut app, 50..60).await;
        app.disconnect().await.unwrap();
    });

    println!("the former primary comes back");
    cluster.done(0, Verb::Learn);
    cluster.start(0, Recovery::DropTail);
    cluster.attach(1, 0, Acker::Asynchronous);
    cluster.keepers[0].until("replication", Keeper::connected);
    block_on(until_count(&cluster, 0, 60));
    // Its last commits may have been truncated with its tail, so it got some of its own writes back.
    let [former, holder] = [0, 1].map(|index| cluster.keepers[index].fresh_facts().applied);
    assert_eq!(former, holder);
}

#[test]
fn an_unacknowledged_tail_is_dropped_and_kept_aside() {
    let mut cluster = Cluster::new(2);
    cluster.first_start();
    block_on(async {
        let mut app = cluster.app(0).await;
        run(&mut app, "CREATE TABLE t (id BIGINT PRIMARY KEY, v TEXT)")
            .await
            .unwrap();
        fill(&mut app, 0..5).await;
        until_count(&cluster, 1, 5).await;
        until_count(&cluster, 2, 5).await;
        // Cut the ackers off first: what is written then waits for ever, and is in the binlog of the holder alone.
        cluster.revoke();
        let one = cluster.stop_receiving(1);
        assert_eq!(one, cluster.stop_receiving(2));
        let tail = app.query_drop("INSERT INTO t VALUES (100, 'never acknowledged')");
        let answer = tokio::time::timeout(Duration::from_millis(300), tail).await;
        assert!(
            answer.is_err(),
            "a write without ackers was answered: {answer:?}"
        );
        cluster.keepers[0].kill_server();
    });
    cluster.done(0, Verb::Learn);
    cluster.drain(2);
    cluster.promoting(2, &[1]);
    cluster.done(2, Verb::TakeOver);
    cluster.attach(2, 1, Acker::Counts);

    // The tail may not be dropped before the successor serves.
    let refused = cluster.order(
        0,
        Verb::Start {
            recovery: Recovery::DropTail,
        },
    );
    assert!(
        matches!(refused, OrderOutcome::Refused(Refusal::NotLegal { .. })),
        "{refused:?}"
    );
    cluster.open(2);
    cluster.start(0, Recovery::DropTail);
    cluster.attach(2, 0, Acker::Asynchronous);
    cluster.keepers[0].until("replication", Keeper::connected);
    block_on(async {
        let mut app = cluster.app(2).await;
        assert_eq!(count(&mut app).await, 5);
        fill(&mut app, 5..8).await;
        until_count(&cluster, 0, 8).await;
    });
    let kept =
        std::fs::read_to_string(cluster.folder.path().join("d0/dropped/1/tail.sql")).unwrap();
    assert!(
        kept.contains("never acknowledged"),
        "the dropped row is not in {kept}"
    );
    let [former, holder] = [0, 2].map(|index| cluster.keepers[index].fresh_facts().applied);
    assert_eq!(former, holder);
}

#[test]
fn received_events_survive_the_death_of_both_servers() {
    let mut cluster = Cluster::new(3);
    cluster.first_start();
    let received = block_on(async {
        let mut app = cluster.app(0).await;
        run(
            &mut app,
            "CREATE TABLE t (id BIGINT PRIMARY KEY, v LONGTEXT)",
        )
        .await
        .unwrap();
        fill(&mut app, 0..3).await;
        until_count(&cluster, 1, 3).await;
        // db-2 falls out, and the applier of db-1 waits for a lock: what follows is received by db-1 and nobody else.
        assert!(cluster.stop_receiving(2).is_some());
        let mut lock = cluster.app(1).await;
        run(&mut lock, "LOCK TABLES t READ").await.unwrap();
        fill(&mut app, 3..40).await;
        // A large one: its printed form is larger than what the server takes by default.
        run(&mut app, "INSERT INTO t VALUES (40, REPEAT('x', 40000000))")
            .await
            .unwrap();
        run(&mut app, "UPDATE t SET v = 'changed' WHERE id < 3")
            .await
            .unwrap();
        let received = cluster.stop_receiving(1).unwrap();
        let facts = cluster.keepers[1].fresh_facts();
        assert_eq!(facts.received, Some(received));
        assert_ne!(
            facts.applied, received,
            "the applier was meant to be behind"
        );
        assert!(!facts.needs_salvage, "its applier runs");
        kill(cluster.keepers[0].server_pid());
        cluster.keepers[1].kill_server();
        received
    });
    cluster.keepers[0].until("the end", |report| {
        matches!(report.server, ServerState::Down { .. })
    });
    cluster.revoke();
    cluster.start(1, Recovery::KeepTail);
    let facts = cluster.keepers[1].fresh_facts();
    assert!(facts.needs_salvage);
    assert_eq!(
        facts.received, None,
        "what a restarted server received is not known before salvage"
    );
    assert_eq!(cluster.stop_receiving(1), None);
    let refused = cluster.order(1, Verb::Receive);
    assert!(
        matches!(
            refused,
            OrderOutcome::Refused(Refusal::WrongServerState { .. })
        ),
        "{refused:?}"
    );

    assert_eq!(cluster.drain(1), received);
    let facts = cluster.keepers[1].fresh_facts();
    assert_eq!(
        (facts.received, facts.needs_salvage),
        (Some(received), false)
    );
    // Once more changes nothing.
    assert_eq!(cluster.drain(1), received);

    // db-1 becomes the holder, db-2 catches up from it, and so does the former holder, whose log it must contain.
    assert!(cluster.stop_receiving(2).is_some());
    cluster.promoting(1, &[2]);
    cluster.start(0, Recovery::KeepTail);
    cluster.done(1, Verb::TakeOver);
    cluster.attach(1, 2, Acker::Counts);
    cluster.open(1);
    cluster.attach(1, 0, Acker::Asynchronous);
    block_on(async {
        let mut app = cluster.app(1).await;
        assert_eq!(count(&mut app).await, 41);
        let changed: Option<u64> = app
            .query_first("SELECT COUNT(*) FROM t WHERE v = 'changed'")
            .await
            .unwrap();
        assert_eq!(changed, Some(3));
        run(&mut app, "INSERT INTO t VALUES (41, 'after')")
            .await
            .unwrap();
        until_count(&cluster, 2, 42).await;
        until_count(&cluster, 0, 42).await;
    });
    cluster.keepers[0].until("replication", Keeper::connected);
}

#[test]
fn a_switchover_and_back() {
    let mut cluster = Cluster::new(4);
    cluster.first_start();
    block_on(async {
        let mut app = cluster.app(0).await;
        run(&mut app, "CREATE TABLE t (id BIGINT PRIMARY KEY, v TEXT)")
            .await
            .unwrap();
        fill(&mut app, 0..20).await;
        let mut busy = cluster.app(0).await;
        run(&mut busy, "BEGIN").await.unwrap();
        run(&mut busy, "INSERT INTO t VALUES (99, 'open transaction')")
            .await
            .unwrap();

        cluster.revoke();
        let begun = Instant::now();
        let outcome = cluster.order(0, Verb::Demote { patience_ms: 2000 });
        let OrderOutcome::Demoted { position } = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(position.barrier, Epoch(1));
        assert!(
            app.query_drop("SELECT 1").await.is_err(),
            "the application's connection was to be cut"
        );
        assert!(busy.query_drop("COMMIT").await.is_err());
        for index in 1..3 {
            cluster.keepers[index].until("the position", |report| {
                matches!(&report.server, ServerState::Up { facts, .. } if facts.applied == position)
            });
            assert_eq!(cluster.stop_receiving(index), Some(position));
        }
        assert_eq!(cluster.drain(1), position);
        cluster.promoting(1, &[0, 2]);
        cluster.done(1, Verb::TakeOver);
        cluster.attach(1, 2, Acker::Counts);
        cluster.attach(1, 0, Acker::Counts);
        cluster.open(1);
        println!(
            "  switched over in {:.1} ms",
            begun.elapsed().as_secs_f64() * 1000.0
        );
        let mut app = cluster.app(1).await;
        assert_eq!(count(&mut app).await, 20);
        fill(&mut app, 20..30).await;
    });
    println!("and one that is given up");
    cluster.revoke();
    assert!(matches!(
        cluster.order(1, Verb::Demote { patience_ms: 2000 }),
        OrderOutcome::Demoted { .. }
    ));
    let refused = cluster.order(1, Verb::Reinstate);
    assert!(
        matches!(refused, OrderOutcome::Refused(Refusal::NotLegal { .. })),
        "{refused:?}"
    );
    cluster.promoting(1, &[0, 2]);
    let outcome = cluster.order(1, Verb::Barrier);
    assert!(
        matches!(
            outcome,
            OrderOutcome::BarrierDone {
                epoch: Epoch(3),
                ..
            }
        ),
        "{outcome:?}"
    );
    cluster.record.version = cluster.record.version.next();
    cluster.record.phase = Phase::Serving;
    cluster.record.unclosed.clear();
    cluster.done(1, Verb::Reinstate);

    println!("an acker leaves");
    let refused = cluster.order(1, Verb::Expel { member: member(2) });
    assert!(
        matches!(refused, OrderOutcome::Refused(Refusal::NotLegal { .. })),
        "{refused:?}"
    );
    cluster.record.version = cluster.record.version.next();
    cluster.record.leaving = Some(member(2));
    cluster.done(1, Verb::Expel { member: member(2) });
    let facts = cluster.keepers[1].fresh_facts();
    assert_eq!(facts.admitted, [member(0)].into());
    assert_eq!(facts.receiving, [member(0)].into());
    assert!(matches!(
        cluster.order(1, Verb::Barrier),
        OrderOutcome::BarrierDone { .. }
    ));
    block_on(async {
        let mut app = cluster.app(1).await;
        fill(&mut app, 30..35).await;
        until_count(&cluster, 0, 35).await;
    });
    // Without any acker a barrier is an error and not a barrier, and its statement has ended by then.
    let none = [0, 2].map(|index| cluster.stop_receiving(index));
    assert!(none.iter().all(Option::is_some));
    let outcome = cluster.order(1, Verb::Barrier);
    assert!(
        matches!(&outcome, OrderOutcome::Failed { why } if why.contains("longer than")),
        "{outcome:?}"
    );
    cluster.done(0, Verb::Receive);
    assert!(matches!(
        cluster.order(1, Verb::Barrier),
        OrderOutcome::BarrierDone { .. }
    ));
}

#[test]
fn a_server_dies_with_its_keeper_and_a_new_keeper_remembers() {
    let mut cluster = Cluster::new(6);
    cluster.first_start();
    let old = cluster.make_order(1, Verb::StopReceiving);
    let server = cluster.keepers[1].server_pid();
    let running = process::stat(server).unwrap().unwrap().process;
    let begun = Instant::now();
    cluster.keepers[1].kill_keeper();
    // Reaping orphans is the business of pid 1, which takes its time.
    while process::alive(running) {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "the server outlives its keeper"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    println!(
        "  the server was gone {:.1} ms after its keeper",
        begun.elapsed().as_secs_f64() * 1000.0
    );

    cluster.restart_keeper(1);
    let report = cluster.keepers[1].report.clone();
    assert_eq!(report.record, Some(cluster.record.clone()));
    assert!(
        matches!(&report.server, ServerState::Down { initialised: true, last: Some(last) } if last.pid == server),
        "{report:?}"
    );
    let outcome = cluster.keepers[1].order(old);
    assert!(
        matches!(
            outcome,
            OrderOutcome::Refused(Refusal::OtherIncarnation { .. })
        ),
        "{outcome:?}"
    );

    cluster.start(1, Recovery::KeepTail);
    let facts = cluster.keepers[1].fresh_facts();
    assert!(facts.read_only && !facts.acker && facts.admitted.is_empty());
    // The application's account may have been received and not applied when it died.
    cluster.drain(1);
    assert!(
        matches!(&facts.receiver, Receiver::Stopped { source, applying: false } if source.member == member(0))
    );
    cluster.attach(0, 1, Acker::Counts);
    cluster.keepers[1].until("replication", Keeper::connected);

    // An orderly end: the server first, then the keeper, which says so.
    let server = cluster.keepers[2].server_pid();
    assert_eq!(
        cluster.keepers[2].ask(Asked::Stop { grace_ms: 10_000 }),
        Answer::Accepted
    );
    assert!(cluster.keepers[2].wait().success());
    assert!(!Path::new(&format!("/proc/{server}")).exists());
    assert!(
        cluster.keepers[2].log().contains("Shutdown complete"),
        "it was not shut down in order"
    );
    let exit = homeostat_supervisor::run::ExitFile::load(&cluster.keepers[2].run).unwrap();
    assert!(exit.is_some());
}
