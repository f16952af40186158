//! Databases, users, grants and replication: looked at and repaired on real servers.

use std::time::Instant;

use homeostat_prodtest::Outcome;
use mysql_async::prelude::Queryable;
use serde_json::{Value, json};

use super::common::{apply, failed, fix, in_order, look, passed, refused, repairs};
use super::{PATIENT, Server};

/// The arguments, with the administrator's address.
fn with(url: &str, args: Value) -> Value {
    let mut all = json!({ "url": url });
    all.as_object_mut()
        .unwrap()
        .extend(args.as_object().unwrap().clone());
    all
}

pub(super) async fn queries(url: &str) {
    passed(&look("sql", json!({ "url": url })).await, "answered");
    passed(
        &look(
            "sql",
            with(url, json!({"query": "SELECT 7", "want": {"greater": 6}})),
        )
        .await,
        "7",
    );
    failed(
        &look(
            "sql",
            with(url, json!({"query": "SELECT 7", "want": {"greater": 7}})),
        )
        .await,
        "the answer is 7",
    );
    let rows = "SELECT seq, CONCAT('n', seq) FROM seq_1_to_3";
    passed(
        &look(
            "sql",
            with(
                url,
                json!({"query": rows, "rows": [["1", "n1"], ["2", "n2"], ["3", "n3"]]}),
            ),
        )
        .await,
        "3 rows",
    );
    failed(
        &look(
            "sql",
            with(url, json!({"query": rows, "rows": {"length": 2}})),
        )
        .await,
        "(length 3)",
    );
    failed(
        &look(
            "sql",
            with(
                url,
                json!({"query": "SELECT seq FROM seq_1_to_2000", "rows": {"length": 2000}}),
            ),
        )
        .await,
        "more than 1000 rows",
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{url}\n")).unwrap();
    let address = format!("file:{}", file.path().display());
    passed(&look("sql", json!({ "url": address })).await, "answered");
    failed(
        &look("sql", json!({"url": "file:/no/such/file"})).await,
        "cannot read /no/such/file",
    );
}

pub(super) async fn repair(url: &str) {
    let database = |args: Value| fix("sql_database", with(url, args));
    repairs(&database(json!({"name": "shop`s"}))).await;
    let plan = repairs(&database(json!({"name": "shop", "charset": "latin1"}))).await;
    assert!(
        plan[0].starts_with("CREATE DATABASE `shop` CHARACTER SET latin1 at 127.0.0.1:"),
        "{plan:?}"
    );
    repairs(&database(
        json!({"name": "shop", "charset": "utf8mb4", "collation": "utf8mb4_bin"}),
    ))
    .await;
    in_order(&database(json!({"name": "shop"}))).await;
    refused(
        &apply(&database(json!({"name": "other", "charset": "klingon"}))).await,
        "klingon",
    );

    let user = |args: Value| fix("sql_user", with(url, args));
    let secret = r"it's \a `secret";
    let plan = repairs(&user(
        json!({"name": "kim", "host": "127.0.0.1", "password": secret}),
    ))
    .await;
    assert!(
        plan[0].starts_with("CREATE USER 'kim'@'127.0.0.1' at "),
        "{plan:?}"
    );
    let plan = repairs(&user(
        json!({"name": "kim", "host": "127.0.0.1", "password": "another secret"}),
    ))
    .await;
    assert!(
        plan[0].starts_with("set the password of 'kim'@'127.0.0.1'"),
        "{plan:?}"
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "third secret\n").unwrap();
    let from_file = format!("file:{}", file.path().display());
    repairs(&user(
        json!({"name": "kim", "host": "127.0.0.1", "password": from_file}),
    ))
    .await;
    in_order(&user(json!({"name": "kim", "host": "127.0.0.1"}))).await;

    let grant = |args: Value| fix("sql_grant", with(url, args));
    let some = json!({"user": "kim", "host": "127.0.0.1", "privileges": ["SELECT", "insert"], "on": "shop.*"});
    let plan = repairs(&grant(some.clone())).await;
    assert!(
        plan[0].starts_with("GRANT INSERT, SELECT ON `shop`.* TO 'kim'@'127.0.0.1'"),
        "{plan:?}"
    );
    let more = json!({"user": "kim", "host": "127.0.0.1", "privileges": ["SELECT", "DELETE"], "on": "shop.*"});
    let plan = repairs(&grant(more)).await;
    assert!(plan[0].starts_with("GRANT DELETE ON"), "{plan:?}");
    let all = json!({"user": "kim", "host": "127.0.0.1", "privileges": ["ALL"], "on": "*.*"});
    repairs(&grant(all)).await;
    in_order(&grant(some)).await;
    let nobody = json!({"user": "nobody", "privileges": ["SELECT"], "on": "shop.*"});
    failed(
        &look("sql_grant", with(url, nobody.clone())).await,
        "without SELECT",
    );
    let refused_grant = apply(&grant(nobody)).await;
    assert!(!refused_grant.evidence.is_empty(), "{refused_grant:?}");

    repairs(&fix(
        "sql_user_absent",
        with(url, json!({"name": "kim", "host": "127.0.0.1"})),
    ))
    .await;
    failed(
        &look(
            "sql_user",
            with(url, json!({"name": "kim", "host": "127.0.0.1"})),
        )
        .await,
        "there is no such user",
    );
}

/// A second server follows the first.
pub(super) async fn replication(source: &Server, source_url: &str) {
    failed(
        &look("sql_replication", json!({ "url": source_url })).await,
        "it replicates from nobody",
    );
    let mut replica = Server::start();
    let mut admin = replica.admin().await;
    admin
        .query_drop("CREATE USER app@'127.0.0.1' IDENTIFIED BY 'secret'")
        .await
        .unwrap();
    admin
        .query_drop("GRANT ALL ON *.* TO app@'127.0.0.1'")
        .await
        .unwrap();
    let change = format!(
        "CHANGE MASTER TO master_host = '127.0.0.1', master_port = {}, master_user = 'app', \
         master_password = 'secret', master_use_gtid = current_pos, master_connect_retry = 1",
        source.port
    );
    admin.query_drop("RESET MASTER").await.unwrap();
    admin.query_drop(change).await.unwrap();
    let url = format!("mysql://app:secret@127.0.0.1:{}/mysql", replica.port);
    let args = json!({"url": url, "lag": "10s"});
    failed(
        &look("sql_replication", args.clone()).await,
        "receiving: No, applying: No",
    );
    admin.query_drop("START SLAVE").await.unwrap();
    let end = Instant::now() + PATIENT;
    loop {
        let seen = look("sql_replication", args.clone()).await;
        if seen.outcome == Outcome::Passed {
            assert_eq!(seen.seen, "0 s behind");
            break;
        }
        assert!(Instant::now() < end, "{seen:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    admin.query_drop("STOP SLAVE SQL_THREAD").await.unwrap();
    failed(
        &look("sql_replication", args).await,
        "receiving: Yes, applying: No",
    );
}
