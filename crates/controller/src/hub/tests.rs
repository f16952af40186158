//! What is told to whom, and whose words count.

#![allow(clippy::unwrap_used)]

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

fn machine(name: &str) -> MachineName {
    MachineName::new(name).unwrap()
}

fn connect(hub: &Hub, name: &str) -> (u64, mpsc::Receiver<Result<ToAgent, tonic::Status>>) {
    let (orders, agent) = mpsc::channel(8);
    (
        hub.connected(machine(name), AgentHello::default(), orders),
        agent,
    )
}

fn done(id: u64) -> CallDone {
    CallDone {
        id,
        ..CallDone::default()
    }
}

/// The id of the next order that is not about endpoints.
async fn asked(agent: &mut mpsc::Receiver<Result<ToAgent, tonic::Status>>) -> u64 {
    loop {
        let order = agent.recv().await.unwrap().unwrap();
        if order.id != 0 {
            return order.id;
        }
    }
}

fn shutdown() -> to_agent::Message {
    to_agent::Message::Shutdown(homeostat_api::v1::Shutdown {})
}

fn of_web(task: &str) -> TaskEvent {
    TaskEvent {
        task: task.into(),
        service: "web".into(),
        machine: "m1".into(),
        ..TaskEvent::default()
    }
}

#[tokio::test]
async fn only_the_agent_that_was_asked_answers_and_only_over_its_stream() {
    let hub = Hub::new();
    let (first, mut agent) = connect(&hub, "m1");
    let (other, _other_agent) = connect(&hub, "m2");
    let m1 = machine("m1");
    let asking = hub.order(&m1, shutdown(), PATIENCE);
    let answering = async {
        let id = asked(&mut agent).await;
        hub.answered(&machine("m2"), other, done(id));
        hub.answered(&machine("m1"), first + 100, done(id));
        assert_eq!(hub.lock().calls.len(), 1, "neither was an answer");
        hub.answered(&machine("m1"), first, done(id));
    };
    let (answer, ()) = tokio::join!(asking, answering);
    answer.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_order_that_nobody_waits_for_is_forgotten() {
    let hub = Hub::new();
    let (_, _agent) = connect(&hub, "m1");
    let late = hub
        .order(&machine("m1"), shutdown(), PATIENCE)
        .await
        .unwrap_err();
    assert_eq!(late.kind, RefusalKind::Unknown);
    assert!(hub.lock().calls.is_empty());
}

#[tokio::test]
async fn a_new_stream_ends_the_calls_of_the_one_before() {
    let hub = Hub::new();
    let (_, mut agent) = connect(&hub, "m1");
    let m1 = machine("m1");
    let asking = hub.order(&m1, shutdown(), PATIENCE);
    let reconnecting = async {
        asked(&mut agent).await;
        connect(&hub, "m1")
    };
    let (answer, _again) = tokio::join!(asking, reconnecting);
    assert_eq!(answer.unwrap_err().kind, RefusalKind::Unknown);
}

#[tokio::test]
async fn a_watcher_that_does_not_keep_up_is_dropped_and_gets_a_fresh_snapshot() {
    let hub = Hub::new();
    let (number, _agent) = connect(&hub, "m1");
    let m1 = machine("m1");
    let mut slow = hub.watch("web", &[], 1);
    for round in 0..10 {
        hub.observed(
            &m1,
            number,
            TaskEvent {
                generation: round,
                ..of_web("web-0")
            },
        );
    }
    while slow.recv().await.is_some() {}
    let placed = [(TaskName::new("web-0").unwrap(), m1, 9)];
    let mut fresh = hub.watch("web", &placed, 1);
    assert_eq!(fresh.recv().await.unwrap().generation, 9);
    assert!(fresh.recv().await.unwrap().synced);
}

#[tokio::test]
async fn words_of_an_ended_stream_are_not_heard() {
    let hub = Hub::new();
    let (old, _agent) = connect(&hub, "m1");
    let (_, _again) = connect(&hub, "m1");
    hub.observed(&machine("m1"), old, of_web("web-0"));
    hub.disconnected(&machine("m1"), old);
    assert!(hub.tasks().is_empty());
    assert!(hub.agent(&machine("m1")).is_some());
}

#[tokio::test]
async fn the_tasks_of_a_lost_machine_are_told_as_such_also_to_late_watchers() {
    let hub = Hub::new();
    let m1 = machine("m1");
    let placed = [(TaskName::new("web-0").unwrap(), "web".to_owned(), 3)];
    let known = [(placed[0].0.clone(), m1.clone(), 3)];
    let mut early = hub.watch("web", &known, 1);
    assert!(!early.recv().await.unwrap().machine_lost);
    assert!(early.recv().await.unwrap().synced);
    hub.call_lost(&m1, &placed);
    assert!(early.recv().await.unwrap().machine_lost);
    let mut late = hub.watch("web", &known, 1);
    assert!(late.recv().await.unwrap().machine_lost);
    hub.call_found(&m1);
    assert!(!early.recv().await.unwrap().machine_lost);
}

#[test]
fn an_older_endpoint_is_refused() {
    let hub = Hub::new();
    let target = |version| EndpointTarget {
        service: "web".into(),
        epoch: 2,
        version,
        ..EndpointTarget::default()
    };
    assert_eq!(hub.set_endpoint(target(5)), Ok(()));
    assert_eq!(hub.set_endpoint(target(4)), Err((2, 5)));
    assert_eq!(hub.endpoints()["web"].version, 5);
}

#[tokio::test]
async fn a_sign_is_passed_on_once_and_changes_nothing() {
    let hub = Hub::new();
    let (number, _agent) = connect(&hub, "m1");
    let m1 = machine("m1");
    let mut listener = hub.watch("web", &[], 1);
    assert!(listener.recv().await.unwrap().synced);
    hub.observed(&m1, number, of_web("web-0"));
    assert!(listener.recv().await.unwrap().sign.is_empty());
    let sign = TaskEvent {
        sign: b"alive".to_vec(),
        ..of_web("web-0")
    };
    let mut changes = hub.changes();
    changes.mark_unchanged();
    hub.sign(&m1, number, &sign);
    assert_eq!(listener.recv().await.unwrap(), sign);
    assert!(!changes.has_changed().unwrap(), "everybody was woken");
    assert!(
        hub.task(&TaskName::new("web-0").unwrap())
            .unwrap()
            .sign
            .is_empty()
    );

    // Not over an ended stream, and not to one that is behind, who hears the changes all the same.
    hub.sign(&m1, number + 7, &sign);
    for _ in 0..10 {
        hub.sign(&m1, number, &sign);
    }
    hub.observed(&m1, number, of_web("web-0"));
    let mut signs = 0;
    while !listener.recv().await.unwrap().sign.is_empty() {
        signs += 1;
    }
    assert!((1..10).contains(&signs), "{signs} of ten");
}

#[test]
fn a_silence_begins_no_earlier_than_the_listening() {
    let hub = Hub::new();
    let (number, _agent) = connect(&hub, "m1");
    std::thread::sleep(Duration::from_millis(5));
    let before = Instant::now();
    hub.listen_anew();
    assert!(hub.silence(&machine("m1")) <= before.elapsed());
    hub.disconnected(&machine("m1"), number);
    assert!(hub.silence(&machine("m1")) <= before.elapsed());
    assert!(
        hub.silence(&machine("m2")) <= before.elapsed(),
        "never heard"
    );
}

#[test]
fn what_is_known_of_a_place_is_taken_with_that_place() {
    let hub = Hub::new();
    let (number, _agent) = connect(&hub, "m1");
    let event = TaskEvent {
        generation: 2,
        ..of_web("web-0")
    };
    hub.observed(&machine("m1"), number, event);
    let task = TaskName::new("web-0").unwrap();
    assert_eq!(hub.take(&task, 1), None);
    assert!(hub.take(&task, 2).is_some());
    assert_eq!(hub.task(&task), None);
}

#[test]
fn nothing_of_a_lost_machine_is_within_reach() {
    let hub = Hub::new();
    let (number, _agent) = connect(&hub, "m1");
    let event = TaskEvent {
        reachable: true,
        service_event: b"{}".to_vec(),
        ..of_web("web-0")
    };
    hub.observed(&machine("m1"), number, event);
    let task = TaskName::new("web-0").unwrap();
    hub.call_lost(&machine("m1"), &[(task.clone(), "web".to_owned(), 0)]);
    let known = hub.task(&task).unwrap();
    assert!(!known.reachable && known.service_event.is_empty());
}
