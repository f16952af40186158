//! Operations from submission to the last record, on a real store.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::*;
use homeostat_journal::*;
use homeostat_model::StepName;
use homeostat_ops::{limits, *};

#[tokio::test]
async fn an_operation_runs_to_its_end() {
    let room = Room::new().await;
    let executor = room.executor(1).await;
    let operation = executor.submit(draft()).await.unwrap();
    assert_eq!(operation.id(), &id(1));
    let hands = room.hands(&[]);
    assert_eq!(
        executor.run(&id(1), hands.clone()).await.unwrap(),
        Outcome::Done
    );
    assert_eq!(
        *hands.calls.lock().unwrap(),
        ["run place", "run start", "run open"]
    );
    assert_eq!(room.effects(), ["open", "place", "start"]);
    assert_eq!(
        story(&executor, &id(1)).await,
        "begun: first start of the cell\n\
         place: attempt 1 begins\nplace: ran\nplace: verified\n\
         start: attempt 1 begins\nstart: ran\nstart: verified\n\
         open: attempt 1 begins\nopen: ran\nopen: verified\n\
         done\n"
    );
    // Each step saw the outputs of those before it.
    let view = executor.get(&id(1)).await.unwrap();
    let outputs: Vec<u64> = view
        .operation
        .outputs()
        .map(|(_, output)| output["after"].as_u64().unwrap())
        .collect();
    assert_eq!(outputs, [0, 1, 2]);
    // Over is over, and the locks are free.
    assert_eq!(
        executor.run(&id(1), hands.clone()).await.unwrap(),
        Outcome::Done
    );
    assert_eq!(hands.calls.lock().unwrap().len(), 3);
    assert_eq!(executor.submit(draft()).await.unwrap().id(), &id(2));
}

#[tokio::test]
async fn a_failure_is_undone_in_reverse() {
    let room = Room::new().await;
    let executor = room.executor(1).await;
    executor.submit(draft()).await.unwrap();
    let hands = room.hands(&[("start", Fault::FailsAlways)]);
    assert_eq!(
        executor.run(&id(1), hands.clone()).await.unwrap(),
        Outcome::Undone
    );
    assert_eq!(
        *hands.calls.lock().unwrap(),
        [
            "run place",
            "run start",
            "run start",
            "undo start",
            "undo place"
        ]
    );
    assert!(room.effects().is_empty());
    executor.submit(draft()).await.expect("the locks are free");
}

#[tokio::test]
async fn what_goes_wrong_once_is_tried_again() {
    for fault in [Fault::FailsOnce, Fault::PanicsOnce, Fault::NoEffectOnce] {
        let room = Room::new().await;
        let executor = room.executor(1).await;
        executor.submit(draft()).await.unwrap();
        let hands = room.hands(&[("start", fault)]);
        assert_eq!(
            executor.run(&id(1), hands.clone()).await.unwrap(),
            Outcome::Done,
            "{fault:?}"
        );
        assert_eq!(hands.called("run start"), 2, "{fault:?}");
        let story = story(&executor, &id(1)).await;
        let evidence = match fault {
            Fault::PanicsOnce => "start: attempt 1 failed: panicked: what a mess\n",
            Fault::NoEffectOnce => "start: attempt 1 had no effect: its file is not there\n",
            _ => "start: attempt 1 failed: no answer\n",
        };
        assert!(story.contains(evidence), "{story}");
    }
}

#[tokio::test]
async fn an_attempt_out_of_time_has_failed() {
    let room = Room::new().await;
    let executor = room.executor(1).await;
    let mut plan = draft();
    plan.steps[1].timeout = Duration::from_millis(20);
    executor.submit(plan).await.unwrap();
    let hands = room.hands(&[("start", Fault::HangsOnce)]);
    assert_eq!(
        executor.run(&id(1), hands.clone()).await.unwrap(),
        Outcome::Done
    );
    assert_eq!(hands.called("run start"), 2);
}

#[tokio::test]
async fn a_cancel_stops_what_runs_and_undoes_it() {
    let room = Room::new().await;
    let executor = room.executor(1).await;
    executor.submit(draft()).await.unwrap();
    let hands = room.hands(&[("start", Fault::Hangs)]);
    let run = spawn(&executor, &id(1), &hands);
    hands.hanging.notified().await;
    executor
        .cancel(&id(1), by_alice(), "changed my mind")
        .await
        .unwrap();
    assert_eq!(ended(run).await.unwrap(), Outcome::Undone);
    assert_eq!(hands.called("undo start"), 1);
    assert!(room.effects().is_empty());
}

#[tokio::test]
async fn one_operation_per_thing() {
    let room = Room::new().await;
    let executor = room.executor(1).await;
    executor.submit(draft()).await.unwrap();
    let error = executor.submit(draft()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "service/shop-db is being changed by operation turnup-1: wait for it, or cancel it"
    );
    let mut other = draft();
    other.scope = [Touched::Service(
        homeostat_model::ServiceName::new("shop-web").unwrap(),
    )]
    .into();
    assert_eq!(executor.submit(other).await.unwrap().id(), &id(2));
    executor
        .abandon(&id(1), alice(), "not needed")
        .await
        .unwrap();
    assert_eq!(executor.submit(draft()).await.unwrap().id(), &id(3));
}

#[tokio::test]
async fn two_at_the_same_moment_are_one() {
    let room = Room::new().await;
    let executor = room.executor(1).await;
    let submitted = (0..8).map(|_| {
        let executor = executor.clone();
        tokio::spawn(async move { executor.submit(draft()).await })
    });
    let mut accepted = 0;
    for result in submitted.collect::<Vec<_>>() {
        match result.await.unwrap() {
            Ok(_) => accepted += 1,
            Err(OpsError::Busy { holder, .. }) => assert_eq!(holder, id(1)),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(accepted, 1);
    let hands = room.hands(&[("place", Fault::HangsOnce)]);
    let run = spawn(&executor, &id(1), &hands);
    hands.hanging.notified().await;
    assert!(matches!(
        executor.run(&id(1), hands.clone()).await,
        Err(OpsError::AlreadyRuns { .. })
    ));
    executor.cancel(&id(1), by_alice(), "enough").await.unwrap();
    ended(run).await.unwrap();
}

#[tokio::test]
async fn an_empty_selection_is_an_error() {
    let room = Room::new().await;
    let mut nothing = draft();
    nothing.scope.clear();
    assert!(matches!(
        room.executor(1).await.submit(nothing).await,
        Err(OpsError::Lint(_))
    ));
}

#[tokio::test]
async fn there_is_a_limit_to_what_is_unfinished() {
    let room = Room::new().await;
    let executor = room.executor(1).await;
    for n in 0..=limits::UNFINISHED {
        let mut plan = draft();
        plan.scope = [Touched::Service(
            homeostat_model::ServiceName::new(format!("s{n}")).unwrap(),
        )]
        .into();
        match executor.submit(plan).await {
            Ok(_) => assert!(n < limits::UNFINISHED),
            Err(OpsError::TooMany { count }) => {
                assert_eq!((n, count), (limits::UNFINISHED, limits::UNFINISHED))
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn another_version_is_refused() {
    let room = Room::new().await;
    let executor = room.executor(1).await;
    let mut plan = draft();
    plan.version = 2;
    executor.submit(plan).await.unwrap();
    let error = executor.run(&id(1), room.hands(&[])).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "operation turnup-1 was planned for turnup v2, this is turnup v1"
    );
}

#[tokio::test]
async fn a_freeze_holds_automation_until_it_ends() {
    let room = Room::new().await;
    let executor = room.executor(1).await;
    let mut plan = draft();
    plan.asked_by = Asker::Automation("drain".into());
    executor.submit(plan).await.unwrap();
    let hands = room.hands(&[("start", Fault::HangsOnce)]);
    let run = spawn(&executor, &id(1), &hands);
    hands.hanging.notified().await;
    freeze(&*room.store, &alice(), "investigating")
        .await
        .unwrap();
    let mut progress = executor.progress();
    // The attempt under way is stopped from outside to see that no other begins.
    executor.pause(&id(1), by_alice(), "to look").await.unwrap();
    executor.resume(&id(1), alice()).await.unwrap();
    let view = executor.get(&id(1)).await.unwrap();
    assert_eq!(view.next, Next::InFlight { step: StepIndex(1) });
    executor.cancel(&id(1), by_alice(), "enough").await.unwrap();
    until(&mut progress, |event| {
        matches!(event, Event::StepFailed { .. })
    })
    .await;
    let view = executor.get(&id(1)).await.unwrap();
    let why = "frozen by alice: investigating".to_owned();
    assert_eq!(
        view.next,
        Next::Wait(Wait::Frozen {
            step: StepIndex(1),
            why
        })
    );
    assert_eq!(hands.called("undo start"), 0);
    unfreeze(&*room.store).await.unwrap();
    assert_eq!(ended(run).await.unwrap(), Outcome::Undone);
}

#[tokio::test]
async fn a_freeze_does_not_hold_people() {
    let room = Room::new().await;
    let executor = room.executor(1).await;
    freeze(&*room.store, &alice(), "investigating")
        .await
        .unwrap();
    executor.submit(draft()).await.unwrap();
    assert_eq!(
        executor.run(&id(1), room.hands(&[])).await.unwrap(),
        Outcome::Done
    );
}

#[tokio::test]
async fn people_approve_do_and_resume_while_it_waits() {
    let room = Room::new().await;
    let executor = room.executor(1).await;
    let mut plan = draft();
    plan.approval = Approval::Needed;
    plan.steps[1].manual = Some("create the file".into());
    let operation = executor.submit(plan).await.unwrap();
    let hands = room.hands(&[]);
    let mut progress = executor.progress();
    let run = spawn(&executor, &id(1), &hands);
    let wrong = executor
        .approve(&id(1), alice(), PlanHash::from("0".repeat(64)))
        .await;
    assert!(matches!(wrong, Err(OpsError::Refused { .. })));
    executor
        .approve(&id(1), alice(), operation.hash().clone())
        .await
        .unwrap();
    until(&mut progress, |event| {
        matches!(event, Event::HandAsked { .. })
    })
    .await;
    let start = StepName::new("start").unwrap();
    // Said too early: it is verified, and asked for again.
    executor
        .done_by_hand(&id(1), &start, alice(), "done")
        .await
        .unwrap();
    until(&mut progress, |event| {
        matches!(event, Event::VerifyFailed { .. })
    })
    .await;
    std::fs::write(room.folder.path().join("start.effect"), "").unwrap();
    executor
        .done_by_hand(&id(1), &start, alice(), "now really")
        .await
        .unwrap();
    assert_eq!(ended(run).await.unwrap(), Outcome::Done);
    assert_eq!(hands.called("run start"), 0);
}

#[tokio::test]
async fn what_is_stuck_waits_for_its_person() {
    let room = Room::new().await;
    let executor = room.executor(1).await;
    executor.submit(draft()).await.unwrap();
    let mut progress = executor.progress();
    let hands = room.hands(&[
        ("place", Fault::UndoFailsAlways),
        ("start", Fault::FailsAlways),
    ]);
    let run = spawn(&executor, &id(1), &hands);
    let seen = until(&mut progress, |event| matches!(event, Event::Stuck { .. })).await;
    assert_eq!(seen.operation.status(), Status::Stuck);
    assert!(
        matches!(executor.submit(draft()).await, Err(OpsError::Busy { .. })),
        "stuck is not over"
    );
    executor.resume(&id(1), alice()).await.unwrap();
    until(&mut progress, |event| matches!(event, Event::Stuck { .. })).await;
    assert_eq!(hands.called("undo place"), 4);
    executor
        .done_by_hand(
            &id(1),
            &StepName::new("place").unwrap(),
            alice(),
            "removed it",
        )
        .await
        .unwrap();
    assert_eq!(ended(run).await.unwrap(), Outcome::Undone);
}

#[tokio::test]
async fn what_is_not_understood_is_left_alone_and_shown() {
    let room = Room::new().await;
    let executor = room.executor(1).await;
    executor.submit(draft()).await.unwrap();
    let newer = homeostat_store::Op::put("/ops/turnup-1/log/00000002", r#"{"format": 99}"#);
    room.store
        .txn(homeostat_store::Txn::new().then(newer))
        .await
        .unwrap();
    let next = room.executor(2).await;
    assert!(next.resume_all().await.unwrap().is_empty());
    let listing = next.list().await.unwrap();
    assert!(matches!(
        listing.unreadable.as_slice(),
        [(name, LoadError::Record(RecordError::Newer { found: 99 }))] if name == "turnup-1"
    ));
    assert!(matches!(
        next.run(&id(1), room.hands(&[])).await,
        Err(OpsError::Unreadable { .. })
    ));
}
