//! Executors that die, and executors that do not know yet that they are dead.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::*;
use homeostat_journal::*;
use homeostat_model::{Revision, Term};
use homeostat_ops::*;
use homeostat_store::{Keys, Lease, LeaseId, RangeReply, Store, StoreError, Txn, TxnReply, Watch};
use tokio::io::{AsyncBufReadExt, BufReader};

#[tokio::test]
async fn an_older_executor_is_fenced() {
    let room = Room::new().await;
    let old = room.executor(1).await;
    old.submit(draft()).await.unwrap();
    let hands = room.hands(&[("start", Fault::HangsOnce)]);
    let run = spawn(&old, &id(1), &hands);
    hands.hanging.notified().await;

    let new = room.executor(2).await;
    let unfinished = new.resume_all().await.unwrap();
    assert_eq!(unfinished.len(), 1);
    assert_eq!(unfinished[0].term(), Term(2));
    // The old one can neither submit nor say anything; and what its attempt reports is not taken in.
    let mut other = draft();
    other.scope = [Touched::Service(
        homeostat_model::ServiceName::new("shop-web").unwrap(),
    )]
    .into();
    let fenced = |result: &OpsError| {
        matches!(
            result,
            OpsError::Fenced {
                own: Term(1),
                newer: Term(2)
            }
        )
    };
    assert!(fenced(&old.submit(other).await.unwrap_err()));
    assert!(fenced(
        &old.cancel(&id(1), by_alice(), "no").await.unwrap_err()
    ));

    let others = room.hands(&[]);
    assert_eq!(
        new.run(&id(1), others.clone()).await.unwrap(),
        Outcome::Done
    );
    assert_eq!(*others.calls.lock().unwrap(), ["run start", "run open"]);
    assert!(matches!(
        Executor::open(room.store.clone(), Term(1), Arc::new(SystemClock)).await,
        Err(OpsError::Fenced { .. })
    ));
    run.abort();
}

#[tokio::test]
async fn the_result_of_a_fenced_attempt_is_dropped_loudly() {
    let room = Room::new().await;
    let old = room.executor(1).await;
    let mut plan = draft();
    plan.steps[1].timeout = Duration::from_millis(300);
    old.submit(plan).await.unwrap();
    let hands = room.hands(&[("start", Fault::Hangs)]);
    let run = spawn(&old, &id(1), &hands);
    hands.hanging.notified().await;
    let new = room.executor(2).await;
    assert!(matches!(
        ended(run).await,
        Err(OpsError::Fenced { newer: Term(2), .. })
    ));
    assert_eq!(
        new.run(&id(1), room.hands(&[])).await.unwrap(),
        Outcome::Done
    );
    assert!(
        story(&new, &id(1))
            .await
            .contains("taken over by the controller of term 2\nstart: attempt 2 begins\n")
    );
}

const CHILD: &str = "HOMEOSTAT_OPS_TEST_CHILD";

/// Not a test by itself: the process that `after_kill_9_the_next_goes_on` kills.
#[tokio::test]
async fn child() {
    let Some(folder) = std::env::var_os(CHILD) else {
        return;
    };
    let folder = std::path::PathBuf::from(folder);
    let store = open_store(&folder).await;
    let executor = Executor::open(store, Term(1), Arc::new(SystemClock))
        .await
        .unwrap();
    executor.submit(draft()).await.unwrap();
    let hands = Hands::new(&folder, &[("start", Fault::Hangs)]);
    let run = spawn(&executor, &id(1), &hands);
    hands.hanging.notified().await;
    println!("\nhanging");
    // Until it is killed, or its parent is gone.
    let _ = tokio::time::timeout(PATIENCE, run).await;
}

#[tokio::test]
async fn after_kill_9_the_next_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, folder.path())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let hanging = async {
        while lines
            .next_line()
            .await
            .unwrap()
            .expect("the child ended early")
            != "hanging"
        {}
    };
    tokio::time::timeout(PATIENCE, hanging).await.unwrap();
    child.kill().await.unwrap();

    let store = open_store(folder.path()).await;
    let executor = Executor::open(store, Term(2), Arc::new(SystemClock))
        .await
        .unwrap();
    let unfinished = executor.resume_all().await.unwrap();
    assert_eq!(
        unfinished
            .iter()
            .map(|operation| operation.id().clone())
            .collect::<Vec<_>>(),
        [id(1)]
    );
    let hands = Hands::new(folder.path(), &[]);
    assert_eq!(
        executor.run(&id(1), hands.clone()).await.unwrap(),
        Outcome::Done
    );
    assert_eq!(
        *hands.calls.lock().unwrap(),
        ["run start", "run open"],
        "what was verified is not run again"
    );
    assert_eq!(effects(folder.path()), ["open", "place", "start"]);
}

/// A real store which does something nasty to one transaction.
struct Nasty {
    store: Arc<dyn Store>,
    left: AtomicU32,
    trick: Trick,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Trick {
    /// The process dies before this transaction reached the store. It stays dead.
    DiesBefore,
    /// The process dies before it heard of its success.
    DiesAfter,
    /// The answer is lost; the transaction is not.
    LosesAnswer,
    /// Neither request nor answer arrive, and nobody can tell.
    LosesRequest,
    /// Away for a moment.
    Away,
}

impl Nasty {
    fn dead(&self) -> bool {
        matches!(self.trick, Trick::DiesBefore | Trick::DiesAfter)
            && self.left.load(Ordering::SeqCst) == 0
    }
}

#[async_trait::async_trait]
impl Store for Nasty {
    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        if self.dead() {
            return Err(StoreError::Closed);
        }
        let before = self.left.load(Ordering::SeqCst);
        self.left.store(before.saturating_sub(1), Ordering::SeqCst);
        if before != 1 {
            return self.store.txn(txn).await;
        }
        let source = || Arc::new(std::io::Error::other("nasty"));
        let unknown = || {
            Err(StoreError::OutcomeUnknown {
                store: "nasty".into(),
                source: source(),
            })
        };
        match self.trick {
            Trick::DiesBefore => Err(StoreError::Closed),
            Trick::DiesAfter => {
                self.store.txn(txn).await?;
                Err(StoreError::Closed)
            }
            Trick::LosesAnswer => {
                self.store.txn(txn).await?;
                unknown()
            }
            Trick::LosesRequest => unknown(),
            Trick::Away => Err(StoreError::Unavailable {
                store: "nasty".into(),
                tried_for: Duration::ZERO,
                source: source(),
            }),
        }
    }

    async fn range(&self, keys: Keys, at: Option<Revision>) -> Result<RangeReply, StoreError> {
        if self.dead() {
            Err(StoreError::Closed)
        } else {
            self.store.range(keys, at).await
        }
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.store.revision().await
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }

    async fn watch(&self, keys: Keys, from: Revision) -> Result<Watch, StoreError> {
        self.store.watch(keys, from).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.store.compact(revision).await
    }
}

/// Lives with a trick at transaction `at`. Says whether the trick was played.
async fn live(
    room: &Room,
    hands: &Arc<Hands>,
    at: u32,
    trick: Trick,
) -> (bool, Result<Outcome, OpsError>) {
    let nasty = Arc::new(Nasty {
        store: room.store.clone(),
        left: AtomicU32::new(at),
        trick,
    });
    let result = async {
        let executor = Executor::open(nasty.clone(), Term(1), Arc::new(SystemClock)).await?;
        executor.submit(draft()).await?;
        executor.run(&id(1), hands.clone()).await
    }
    .await;
    (nasty.left.load(Ordering::SeqCst) == 0, result)
}

/// Every operation takes fewer transactions than this.
const ENOUGH: u32 = 40;

async fn sweep_deaths(faults: &[(&str, Fault)], expect: Outcome, effects: &[&str]) {
    for trick in [Trick::DiesBefore, Trick::DiesAfter] {
        for at in 1..=ENOUGH {
            let room = Room::new().await;
            let (played, result) = live(&room, &room.hands(faults), at, trick).await;
            if !played {
                assert_eq!(result.unwrap(), expect);
                assert!(at > 8, "the sweep was too short: {at}");
                break;
            }
            assert!(at < ENOUGH, "the sweep never ends");
            let executor = room.executor(2).await;
            executor.resume_all().await.unwrap();
            match executor.submit(draft()).await {
                // It died before there was an operation, or after it was over.
                Ok(_) | Err(OpsError::Busy { .. }) => {}
                Err(other) => panic!("{trick:?} at {at}: {other}"),
            }
            for operation in executor.list().await.unwrap().operations {
                let outcome = executor
                    .run(operation.id(), room.hands(faults))
                    .await
                    .unwrap();
                assert_eq!(
                    outcome,
                    expect,
                    "{trick:?} at {at}: {}",
                    story(&executor, operation.id()).await
                );
            }
            assert_eq!(room.effects(), effects, "{trick:?} at {at}");
            executor.submit(draft()).await.expect("the locks are free");
        }
    }
}

#[tokio::test]
async fn death_at_every_record_of_a_success() {
    sweep_deaths(&[], Outcome::Done, &["open", "place", "start"]).await;
}

#[tokio::test]
async fn death_at_every_record_of_an_undo() {
    sweep_deaths(&[("open", Fault::FailsAlways)], Outcome::Undone, &[]).await;
}

#[tokio::test]
async fn an_answer_lost_at_every_record_changes_nothing() {
    for trick in [Trick::LosesAnswer, Trick::LosesRequest, Trick::Away] {
        for at in 2..=ENOUGH {
            let room = Room::new().await;
            let hands = room.hands(&[]);
            let (played, result) = live(&room, &hands, at, trick).await;
            assert_eq!(result.unwrap(), Outcome::Done, "{trick:?} at {at}");
            assert_eq!(
                *hands.calls.lock().unwrap(),
                ["run place", "run start", "run open"],
                "{trick:?} at {at}"
            );
            if !played {
                break;
            }
            assert!(at < ENOUGH, "the sweep never ends");
        }
    }
}
