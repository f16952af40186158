//! What the loop makes of events and answers, in every order in which they may come.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use homeostat_api::grpc::RemoteCell;
use homeostat_api::uds;
use homeostat_api::v1::ServiceState;
use homeostat_model::ExitCause;

use super::*;

/// A loop whose cell cannot be reached: what it makes of events needs none.
fn job() -> (Loop, mpsc::Receiver<Command>) {
    let (commands, queue) = mpsc::channel(8);
    let cell = Arc::new(RemoteCell::new(uds::channel(Path::new(
        "/nonexistent/cell",
    ))));
    let service = ServiceName::new("web").unwrap();
    let publish = watch::Sender::new(View::down());
    (
        Loop::new(service, cell, commands.downgrade(), publish, || Chance(0)),
        queue,
    )
}

fn web() -> TaskName {
    TaskName::new("web-0").unwrap()
}

fn event(state: &TaskState) -> TaskEvent {
    TaskEvent {
        task: web().to_string(),
        service: "web".into(),
        machine: "m1".into(),
        generation: 1,
        state_json: serde_json::to_string(state).unwrap(),
        ..TaskEvent::default()
    }
}

fn ended() -> TaskState {
    TaskState::Exited {
        cause: ExitCause::Code { code: 0 },
    }
}

#[tokio::test]
async fn a_job_is_down_when_nothing_of_it_can_run() {
    let (mut job, _queue) = job();
    job.want(Wanting::Down);
    for state in [
        TaskState::Starting,
        TaskState::Running { pid: 7 },
        TaskState::Stopping { pid: 7 },
    ] {
        job.seen(&event(&state));
        assert_eq!(job.view().state, ServiceState::Stopping, "{state:?}");
    }
    job.seen(&event(&ended()));
    assert_eq!(job.view().state, ServiceState::Down);
}

#[tokio::test]
async fn an_order_under_way_is_ended_by_its_answer_only() {
    let (mut job, _queue) = job();
    job.seen(&event(&ended()));
    job.tasks.get_mut(&web()).unwrap().busy = true;
    job.seen(&event(&TaskState::Starting));
    job.seen(&event(&TaskState::Running { pid: 7 }));
    assert!(
        job.tasks[&web()].busy,
        "what it was started from is not known yet"
    );
    job.finished(web(), Finished::Started("new".into(), 1))
        .await;
    assert!(!job.tasks[&web()].busy);
    assert_eq!(job.tasks[&web()].fingerprint.as_deref(), Some("new"));
}

#[tokio::test]
async fn the_pause_after_an_order_ends_with_the_change_it_waits_for() {
    let (mut job, _queue) = job();
    job.seen(&event(&TaskState::Running { pid: 7 }));
    job.tasks.get_mut(&web()).unwrap().busy = true;
    job.finished(web(), Finished::Asked).await;
    assert!(job.tasks[&web()].busy, "the end is on its way");
    job.seen(&event(&ended()));
    assert!(!job.tasks[&web()].busy);
}

#[tokio::test]
async fn a_late_answer_does_not_overwrite_what_was_seen() {
    let (mut job, _queue) = job();
    job.seen(&event(&TaskState::Lost));
    // It started and ended before its start was answered.
    job.seen(&event(&TaskState::Starting));
    job.seen(&event(&ended()));
    job.finished(web(), Finished::Started("new".into(), 1))
        .await;
    assert_eq!(job.tasks[&web()].state, ended());
}

#[tokio::test]
async fn a_task_moves_when_its_machine_is_lost_and_is_not_disturbed_by_late_words() {
    let (mut job, _queue) = job();
    let lost = TaskEvent {
        machine_lost: true,
        ..event(&TaskState::Running { pid: 7 })
    };
    job.seen(&event(&TaskState::Running { pid: 7 }));
    job.seen(&lost);
    assert_eq!(job.tasks[&web()].ground, Ground::Lost);
    let elsewhere = Placed {
        machine: "m2".into(),
        generation: 2,
    };
    job.finished(web(), Finished::Placed(elsewhere.clone()))
        .await;
    assert!(job.tasks[&web()].over(), "it is to be started there");
    job.seen(&event(&TaskState::Running { pid: 7 }));
    assert_eq!(job.tasks[&web()].placed, Some(elsewhere));
    assert!(job.tasks[&web()].over(), "what the old place says is past");
}

#[tokio::test]
async fn an_end_that_was_asked_for_is_no_failure() {
    let (mut job, _queue) = job();
    job.seen(&event(&TaskState::Running { pid: 7 }));
    job.seen(&event(&TaskState::Stopping { pid: 7 }));
    job.seen(&event(&ended()));
    assert_eq!(job.tasks[&web()].tries.failures, 0);
    job.seen(&event(&TaskState::Running { pid: 8 }));
    job.seen(&event(&ended()));
    assert_eq!(job.tasks[&web()].tries.failures, 1);
}

#[tokio::test]
async fn a_task_leaves_the_place_that_it_was_told_to_leave_and_no_other() {
    let (mut job, _queue) = job();
    job.want(Wanting::Down);
    job.seen(&event(&TaskState::Running { pid: 7 }));
    job.evict(&web(), "m1").unwrap();
    assert_eq!(job.tasks[&web()].ground, Ground::Leaving);
    let same = Placed {
        machine: "m1".into(),
        generation: 1,
    };
    job.finished(web(), Finished::Placed(same)).await;
    assert_eq!(job.tasks[&web()].ground, Ground::Firm, "it may stay");
    job.evict(&web(), "m1").unwrap();
    let elsewhere = TaskEvent {
        machine: "m2".into(),
        generation: 2,
        ..event(&TaskState::Starting)
    };
    job.seen(&elsewhere);
    assert_eq!(job.tasks[&web()].ground, Ground::Firm, "it has left");
}
