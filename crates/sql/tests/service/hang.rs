//! Servers and keepers that stand still: who is replaced, who is not, and what they do when they wake.

use std::time::{Duration, Instant};

use homeostat_api::v1::ServiceState;
use homeostat_model::{Profile, Reads, ServiceKind, ServiceSpec};
use homeostat_sql::service::ClusterView;
use rustix::process::Signal;

use crate::cell::{PATIENCE, TestCell};
use crate::{act, app, count, fill, inspect, pid_of, server, signal, spec, until, up, up_as};

fn declared(profile: Profile, reads: Reads) -> ServiceSpec {
    let mut spec = spec();
    let ServiceKind::Sql(sql) = &mut spec.kind else {
        panic!("a cluster is declared")
    };
    (sql.profile, sql.reads) = (profile, reads);
    spec
}

async fn open_again(cell: &TestCell, after: u64, since: Instant) -> Duration {
    let mut endpoint = cell.endpoint();
    let opened = endpoint.wait_for(|target| {
        target
            .as_ref()
            .is_some_and(|target| target.epoch > after && !target.targets.is_empty())
    });
    match tokio::time::timeout(PATIENCE, opened).await {
        Ok(opened) => drop(opened.unwrap()),
        Err(_) => panic!("no new primary:\n{}", cell.notes().join("\n")),
    }
    println!(
        "  open again after {:.0} ms",
        since.elapsed().as_secs_f64() * 1000.0
    );
    since.elapsed()
}

fn well_at(epoch: u64) -> impl Fn(ServiceState, &ClusterView) -> bool {
    move |state, view| state == ServiceState::Up && view.epoch == epoch
}

fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_stands_still_is_replaced_and_killed() {
    let cell = TestCell::new(5);
    let server = server(&cell);
    up_as(&cell, &server, &declared(Profile::Fast, Reads::Bounded)).await;
    let (_, _, view) = inspect(&server).await;
    let (epoch, primary) = (view.epoch, view.primary.unwrap());
    let mut conn = app(&cell).await;
    fill(&mut conn, 0..50).await;

    let (_, _, view) = inspect(&server).await;
    let pid = pid_of(&view, &primary);
    let begun = Instant::now();
    signal(pid, Signal::STOP);
    let took = open_again(&cell, epoch, begun).await;
    assert!(took >= Profile::Fast.hang(), "{took:?} is no hang yet");
    let mut conn = app(&cell).await;
    assert_eq!(count(&mut conn).await, 50);
    fill(&mut conn, 50..60).await;
    let view = until(&cell, &server, well_at(epoch + 1)).await;
    assert_ne!(view.primary.as_deref(), Some(primary.as_str()));
    assert!(!alive(pid), "the one that stood still is left");
    let explained = act(&server, "explain", &[]).await.unwrap();
    println!("{}", explained.text);
    assert!(
        explained.text.contains("answered no read for"),
        "{}",
        explained.text
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_still_for_less_than_h_or_is_no_primary_is_left_alone() {
    let cell = TestCell::new(6);
    let server = server(&cell);
    up(&cell, &server).await;
    let (_, _, view) = inspect(&server).await;
    let (epoch, primary) = (view.epoch, view.primary.clone().unwrap());
    let mut conn = app(&cell).await;
    fill(&mut conn, 0..10).await;
    let replica = view.members.iter().find(|row| row.task != primary).unwrap();

    let stall = |pids: Vec<u32>, time: Duration| async move {
        pids.iter().for_each(|pid| signal(*pid, Signal::STOP));
        tokio::time::sleep(time).await;
        for pid in pids.into_iter().filter(|pid| alive(*pid)) {
            signal(pid, Signal::CONT);
        }
    };
    let (its_server, its_keeper) = (pid_of(&view, &primary), cell.keeper_pid(&primary));
    for pids in [
        vec![its_server],
        vec![its_keeper],
        vec![its_server, its_keeper],
    ] {
        println!("  {pids:?} stand still");
        stall(pids, Duration::from_secs(2)).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let notes = || [cell.notes().join("\n"), cell.log(&primary)].join("\n");
        assert!(alive(its_server) && alive(its_keeper), "{}", notes());
    }
    // The primary is heard by its replicas, so it serves, although its keeper is silent for longer than H.
    stall(vec![its_keeper], Duration::from_millis(3500)).await;
    // A replica that hangs may be started anew; nobody else has to know.
    stall(vec![replica.pid.unwrap()], Duration::from_millis(4500)).await;
    let mut conn = app(&cell).await;
    assert_eq!(count(&mut conn).await, 10);
    fill(&mut conn, 10..20).await;
    let view = until(&cell, &server, well_at(epoch)).await;
    assert_eq!(view.primary, Some(primary), "{}", cell.notes().join("\n"));
    assert_eq!(pid_of(&view, view.primary.as_deref().unwrap()), its_server);
}

/// As a machine that is cut off, or hangs as a whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_of_which_nothing_is_heard_is_replaced_by_what_its_ackers_prove() {
    let cell = TestCell::new(7);
    let server = server(&cell);
    up_as(&cell, &server, &declared(Profile::Fast, Reads::Strict)).await;
    let (_, _, view) = inspect(&server).await;
    let (epoch, primary) = (view.epoch, view.primary.clone().unwrap());
    let mut conn = app(&cell).await;
    fill(&mut conn, 0..50).await;

    let (_, _, view) = inspect(&server).await;
    let pids = [cell.keeper_pid(&primary), pid_of(&view, &primary)];
    let begun = Instant::now();
    pids.iter().for_each(|pid| signal(*pid, Signal::STOP));
    let took = open_again(&cell, epoch, begun).await;
    // Strict reads: nobody else serves before the old one's lease is over.
    assert!(took >= Duration::from_secs(5), "{took:?}");
    let mut conn = app(&cell).await;
    assert_eq!(count(&mut conn).await, 50);
    fill(&mut conn, 50..60).await;

    println!("it wakes");
    pids.iter().for_each(|pid| signal(*pid, Signal::CONT));
    let view = until(&cell, &server, well_at(epoch + 1)).await;
    assert_ne!(view.primary.as_deref(), Some(primary.as_str()));
    assert!(!alive(pids[1]), "the former primary is left as it was");
    let mut conn = app(&cell).await;
    assert_eq!(count(&mut conn).await, 60);
    let explained = act(&server, "explain", &[]).await.unwrap();
    println!("{}", explained.text);
    assert!(
        explained.text.contains("was not heard for"),
        "{}",
        explained.text
    );
    assert_eq!(cell.endpoints_refused(), 0);
}
