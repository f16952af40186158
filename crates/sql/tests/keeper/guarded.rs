//! Who may do what with a member.

use homeostat_decider::{KeeperIncarnation, OrderOutcome, Refusal, Verb};
use homeostat_model::{Epoch, Sequence};
use homeostat_supervisor::protocol::{Answer, Verb as Asked};

use crate::cluster::{Cluster, error_of, member, run};
use crate::{block_on, fill, until_count};

#[test]
fn nobody_else_administers_a_member() {
    let mut cluster = Cluster::new(5);
    cluster.first_start();
    block_on(async {
        let mut app = cluster.app(0).await;
        run(&mut app, "CREATE TABLE t (id BIGINT PRIMARY KEY, v TEXT)")
            .await
            .unwrap();
        fill(&mut app, 0..2).await;
        until_count(&cluster, 1, 2).await;

        // 1227: it lacks a privilege; 1044, 1045, 1142, 1698: access denied; 1290: read_only.
        for reserved in [
            "SET GLOBAL read_only = OFF",
            "SET GLOBAL rpl_semi_sync_master_enabled = OFF",
            "SET SESSION gtid_seq_no = 9000000000000",
            "SET SESSION gtid_domain_id = 7",
            "SET SESSION server_id = 7",
            "SET SESSION sql_log_bin = 0",
            "STOP SLAVE",
            "RESET MASTER",
            "KILL 1",
            "SHUTDOWN",
            "CREATE USER x",
        ] {
            let code = error_of(&mut app, reserved).await;
            assert!(
                matches!(code, 1227 | 1094 | 1095),
                "'{reserved}' gave {code}"
            );
        }
        let foreign = error_of(&mut app, "DELETE FROM homeostat.epoch").await;
        assert!(matches!(foreign, 1044 | 1142), "{foreign}");
        let mut replica = cluster.app(1).await;
        assert_eq!(
            error_of(&mut replica, "INSERT INTO t VALUES (7, 'x')").await,
            1290
        );

        for (user, password) in [("root", ""), ("", ""), ("mysql", ""), ("keeper", "")] {
            assert!(
                cluster.connect(0, user, password, None).await.is_err(),
                "{user:?} was let in"
            );
        }
        // The account of the holder itself is locked on the holder, those of its replicas are not; on replicas all are.
        for (at, whose, open) in [
            (0, 0, false),
            (0, 1, true),
            (1, 0, false),
            (1, 2, false),
            (2, 2, false),
        ] {
            let password = cluster.config.members[&member(whose)]
                .replication_password
                .reveal();
            let user = format!("replica-db-{whose}");
            let let_in = cluster.connect(at, &user, password, None).await.is_ok();
            assert_eq!(let_in, open, "{user} on db-{at}");
        }
    });

    // No secret is left in a file that the servers do not need, nor on a command line.
    for keeper in &cluster.keepers {
        assert!(!keeper.run.join("m/init.sql").exists());
        let line =
            std::fs::read_to_string(format!("/proc/{}/cmdline", keeper.server_pid())).unwrap();
        for secret in [&cluster.config.application.password].into_iter().chain(
            cluster
                .config
                .members
                .values()
                .map(|peer| &peer.replication_password),
        ) {
            assert!(!line.contains(secret.reveal()));
            assert!(
                !keeper.log().contains(secret.reveal()),
                "a password is in the log"
            );
        }
    }
    refusals_change_nothing(&mut cluster);
}

fn refusals_change_nothing(cluster: &mut Cluster) {
    let before: Vec<_> = (0..3)
        .map(|index| cluster.keepers[index].fresh_facts())
        .collect();
    let serving = cluster.record.clone();

    let mut order = cluster.make_order(1, Verb::Kill);
    order.header.incarnation = KeeperIncarnation(order.header.incarnation.0 ^ 1);
    let outcome = cluster.keepers[1].order(order);
    assert!(
        matches!(
            outcome,
            OrderOutcome::Refused(Refusal::OtherIncarnation { .. })
        ),
        "{outcome:?}"
    );

    let mut order = cluster.make_order(1, Verb::Kill);
    order.header.sequence = Sequence(1);
    let outcome = cluster.keepers[1].order(order);
    assert!(
        matches!(outcome, OrderOutcome::Refused(Refusal::OldSequence { .. })),
        "{outcome:?}"
    );

    let outcome = cluster.order(1, Verb::Open);
    assert!(
        matches!(outcome, OrderOutcome::Refused(Refusal::NotLegal { .. })),
        "{outcome:?}"
    );
    let outcome = cluster.order(0, Verb::Kill);
    assert!(
        matches!(outcome, OrderOutcome::Refused(Refusal::NotLegal { .. })),
        "{outcome:?}"
    );

    cluster.record.epoch = Epoch(0);
    let outcome = cluster.order(0, Verb::StopReceiving);
    assert!(
        matches!(outcome, OrderOutcome::Refused(Refusal::Stale { .. })),
        "{outcome:?}"
    );
    cluster.record = serving;

    for call in ["{\"ask\":\"the time\"}", "7"] {
        let body = serde_json::from_str(call).unwrap();
        assert!(matches!(
            cluster.keepers[0].ask(Asked::Call { body }),
            Answer::Refused { .. }
        ));
    }
    for (index, before) in before.into_iter().enumerate() {
        assert_eq!(cluster.keepers[index].fresh_facts(), before, "db-{index}");
    }
}
