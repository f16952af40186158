//! Random histories, with restarts, against a model that keeps a copy of everything for every revision.

use std::collections::BTreeMap;

use homeostat_store::{
    Compare, EmbeddedStore, Event, Item, Keys, LeaseId, Op, Outcome, Revision, Store, StoreError,
    Txn, WatchBatch,
};
use proptest::prelude::*;

use super::{CONFIG, open};

/// Keys that share prefixes, so that everything meets.
const KEYS: [&str; 6] = ["a", "a/", "a/x", "a/y", "b", "b/x"];

#[derive(Debug, Clone)]
enum Step {
    Txn {
        compares: Vec<(usize, Guess)>,
        then: Vec<(usize, Action)>,
        otherwise: Vec<(usize, Action)>,
    },
    Grant,
    /// One of the leases granted so far.
    Revoke(usize),
    /// As a part of the present revision, in percent.
    Compact(u64),
    Reopen,
}

#[derive(Debug, Clone, Copy)]
enum Guess {
    Right,
    Wrong,
    Absent,
    Present,
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Put,
    PutLeased(usize),
    Delete,
    DeletePrefix,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let guess = prop_oneof![6 => Just(Guess::Right), 1 => Just(Guess::Wrong), 1 => Just(Guess::Absent), 1 => Just(Guess::Present)];
    let action = prop_oneof![
        4 => Just(Action::Put),
        2 => (0..3usize).prop_map(Action::PutLeased),
        2 => Just(Action::Delete),
        1 => Just(Action::DeletePrefix),
    ];
    let actions = prop::collection::vec((0..KEYS.len(), action), 0..4);
    let txn = (
        prop::collection::vec((0..KEYS.len(), guess), 0..3),
        actions.clone(),
        actions,
    )
        .prop_map(|(compares, then, otherwise)| Step::Txn {
            compares,
            then,
            otherwise,
        });
    let step = prop_oneof![
        20 => txn,
        2 => Just(Step::Grant),
        2 => (0..3usize).prop_map(Step::Revoke),
        1 => (0..=100u64).prop_map(Step::Compact),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

/// Everything, at every revision: simple, and wasteful.
struct Model {
    /// The state after each revision; index 0 is revision 1, the empty store.
    states: Vec<BTreeMap<String, Item>>,
    events: Vec<WatchBatch>,
    leases: Vec<(LeaseId, Life)>,
    compacted: u64,
}

#[derive(PartialEq, Clone, Copy)]
enum Life {
    Alive,
    Revoked,
}

impl Model {
    fn revision(&self) -> u64 {
        self.states.len() as u64
    }

    fn now(&self) -> &BTreeMap<String, Item> {
        self.states.last().unwrap()
    }

    fn compare(&self, key: &str, guess: Guess) -> (Compare, bool) {
        let found = self.now().get(key).map_or(0, |item| item.mod_revision.0);
        match guess {
            Guess::Right => (Compare::mod_revision(key, Revision(found)), true),
            Guess::Wrong => (Compare::mod_revision(key, Revision(found + 1)), false),
            Guess::Absent => (Compare::absent(key), found == 0),
            Guess::Present => (Compare::present(key), found != 0),
        }
    }

    /// The operations of a branch, without those that would change a key twice.
    fn ops(&self, actions: &[(usize, Action)], value: u64) -> Vec<Op> {
        let mut ops: Vec<Op> = Vec::new();
        for (key, action) in actions {
            let key = KEYS[*key];
            let op = match action {
                Action::Put => Op::put(key, value.to_string()),
                Action::PutLeased(number) => match self.leases.get(*number) {
                    Some((lease, _)) => Op::put_leased(key, value.to_string(), *lease),
                    None => Op::put(key, value.to_string()),
                },
                Action::Delete => Op::delete(key),
                Action::DeletePrefix => Op::delete_prefix(key),
            };
            let touches = |a: &Op, b: &Op| match (a, b) {
                (Op::Put { key: a, .. }, Op::Put { key: b, .. }) => a == b,
                (Op::Put { key, .. }, Op::Delete { keys })
                | (Op::Delete { keys }, Op::Put { key, .. }) => keys.contains(key),
                (Op::Delete { .. }, Op::Delete { .. }) => false,
            };
            if !ops.iter().any(|other| touches(other, &op)) {
                ops.push(op);
            }
        }
        ops
    }

    /// The first lease that an operation names and that is no more.
    fn dead_lease(&self, ops: &[Op]) -> Option<LeaseId> {
        ops.iter().find_map(|op| match op {
            Op::Put {
                lease: Some(lease), ..
            } => self
                .leases
                .iter()
                .any(|(id, life)| id == lease && *life == Life::Revoked)
                .then_some(*lease),
            Op::Put { lease: None, .. } | Op::Delete { .. } => None,
        })
    }

    fn apply(&mut self, ops: &[Op]) {
        let revision = Revision(self.revision() + 1);
        let mut state = self.now().clone();
        let mut events = Vec::new();
        for op in ops {
            match op {
                Op::Put { key, value, lease } => {
                    let create_revision =
                        state.get(key).map_or(revision, |item| item.create_revision);
                    let item = Item {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision,
                        mod_revision: revision,
                        lease: *lease,
                    };
                    state.insert(key.clone(), item.clone());
                    events.push(Event::Put(item));
                }
                Op::Delete { keys } => {
                    for key in state
                        .keys()
                        .filter(|key| keys.contains(key))
                        .cloned()
                        .collect::<Vec<_>>()
                    {
                        state.remove(&key);
                        events.push(Event::Delete { key });
                    }
                }
            }
        }
        if !events.is_empty() {
            self.states.push(state);
            self.events.push(WatchBatch { revision, events });
        }
    }

    async fn step(&mut self, store: &EmbeddedStore, step: &Step) {
        match step {
            Step::Txn {
                compares,
                then,
                otherwise,
            } => {
                let compares: Vec<_> = compares
                    .iter()
                    .map(|(key, guess)| self.compare(KEYS[*key], *guess))
                    .collect();
                let value = self.revision() + 1;
                let (then, otherwise) = (self.ops(then, value), self.ops(otherwise, value));
                let (outcome, ops) = if compares.iter().all(|(_, holds)| *holds) {
                    (Outcome::Committed, then.clone())
                } else {
                    (Outcome::Refused, otherwise.clone())
                };
                let compares = compares.into_iter().map(|(compare, _)| compare).collect();
                let reply = store
                    .txn(Txn {
                        compares,
                        then,
                        otherwise,
                    })
                    .await;
                if let Some(dead) = self.dead_lease(&ops) {
                    assert!(
                        matches!(reply, Err(StoreError::LeaseNotFound(lease)) if lease == dead),
                        "{reply:?}"
                    );
                    return;
                }
                self.apply(&ops);
                let reply = reply.unwrap();
                assert_eq!(
                    (reply.outcome, reply.revision),
                    (outcome, Revision(self.revision()))
                );
            }
            Step::Grant => {
                let lease = store
                    .grant(std::time::Duration::from_secs(3600))
                    .await
                    .unwrap();
                self.leases.push((lease.id, Life::Alive));
            }
            Step::Revoke(number) => {
                let Some((lease, life)) = self.leases.get_mut(*number) else {
                    return;
                };
                let (lease, before) = (*lease, std::mem::replace(life, Life::Revoked));
                let reply = store.revoke(lease).await;
                assert_eq!(reply.is_ok(), before == Life::Alive, "{reply:?}");
                let keys = self.now().values().filter(|item| item.lease == Some(lease));
                let ops: Vec<Op> = keys.map(|item| Op::delete(item.key.clone())).collect();
                self.apply(&ops);
            }
            Step::Compact(percent) => {
                let revision = self.revision() * percent / 100;
                store.compact(Revision(revision)).await.unwrap();
                self.compacted = self.compacted.max(revision);
            }
            Step::Reopen => {}
        }
    }

    /// Compares everything that can be seen.
    async fn check(&self, store: &EmbeddedStore) {
        assert_eq!(store.revision().await.unwrap(), Revision(self.revision()));
        for keys in [Keys::prefix(""), Keys::prefix("a/"), Keys::one("a")] {
            for at in 1..=self.revision() {
                let reply = store.range(keys.clone(), Some(Revision(at))).await;
                if at < self.compacted {
                    assert!(
                        matches!(reply, Err(StoreError::Compacted { oldest }) if oldest.0 == self.compacted)
                    );
                    continue;
                }
                let expected: Vec<Item> = self.states[at as usize - 1]
                    .values()
                    .filter(|item| keys.contains(&item.key))
                    .cloned()
                    .collect();
                assert_eq!(reply.unwrap().items, expected, "{keys:?} at {at}");
            }
            let now: Vec<Item> = self
                .now()
                .values()
                .filter(|item| keys.contains(&item.key))
                .cloned()
                .collect();
            assert_eq!(store.range(keys.clone(), None).await.unwrap().items, now);
            let mut watch = store
                .watch(keys.clone(), Revision(self.compacted + 1))
                .await
                .unwrap();
            for batch in self
                .events
                .iter()
                .filter(|batch| batch.revision.0 > self.compacted)
            {
                let events: Vec<Event> = batch
                    .events
                    .iter()
                    .filter(|event| keys.contains(event.key()))
                    .cloned()
                    .collect();
                if !events.is_empty() {
                    assert_eq!(
                        watch.next().await.unwrap(),
                        WatchBatch {
                            revision: batch.revision,
                            events
                        }
                    );
                }
            }
        }
    }
}

async fn run(steps: Vec<Step>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let mut store = EmbeddedStore::open(&path, CONFIG).await.unwrap();
    let mut model = Model {
        states: vec![BTreeMap::new()],
        events: Vec::new(),
        leases: Vec::new(),
        compacted: 0,
    };
    for step in &steps {
        match step {
            Step::Reopen => {
                drop(store);
                store = open(&path).await;
            }
            Step::Txn { .. } | Step::Grant | Step::Revoke(_) | Step::Compact(_) => {
                model.step(&store, step).await
            }
        }
    }
    model.check(&store).await;
    drop(store);
    model.check(&open(&path).await).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_agrees_with_the_model(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            tokio::time::timeout(std::time::Duration::from_secs(30), run(steps)).await.expect("a missing event");
        });
    }
}
