//! A member that lost its data becomes a copy of a peer, by itself, and counts again.

use homeostat_api::v1::ServiceState;
use homeostat_sql::service::Copying;

use crate::cell::TestCell;
use crate::{act, app, count, fill, kill, server, until, up};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_disk_is_rebuilt_and_counts_again() {
    let cell = TestCell::new(9);
    let server = server(&cell);
    up(&cell, &server).await;
    fill(&mut app(&cell).await, 0..100).await;
    act(&server, "switchover", &[("to", "db-1")]).await.unwrap();
    until(&cell, &server, |state, view| {
        state == ServiceState::Up && view.epoch == 2
    })
    .await;
    let mut conn = app(&cell).await;
    fill(&mut conn, 100..150).await;

    // The machine goes, with all that was on it. A new one takes its place, with the same keeper to start.
    let data = cell.folder().join("d-db-2");
    std::fs::rename(&data, cell.folder().join("lost")).unwrap();
    kill(cell.keeper_pid("db-2"));
    until(&cell, &server, |state, view| {
        state != ServiceState::Up || view.members.iter().any(|member| member.state != "well")
    })
    .await;
    fill(&mut conn, 150..200).await;
    let view = until(&cell, &server, |state, view| {
        let two = view.members.iter().find(|member| member.task == "db-2");
        state == ServiceState::Up
            && two.is_some_and(|two| two.state == "well" && two.acker == Copying::Acker)
    })
    .await;
    assert_eq!((view.epoch, view.primary.as_deref()), (2, Some("db-1")));
    let notes = cell.notes().join("\n");
    println!("{notes}");
    assert!(
        notes.contains("db-2 has to be rebuilt: it has no data"),
        "{notes}"
    );
    assert!(notes.contains("db-2 is a copy of "), "{notes}");
    assert!(data.join("sql/shop/t.ibd").exists());

    // It has everything, as the next primary shows.
    act(&server, "switchover", &[("to", "db-2")]).await.unwrap();
    let mut conn = app(&cell).await;
    assert_eq!(count(&mut conn).await, 200);
    fill(&mut conn, 200..210).await;
}
