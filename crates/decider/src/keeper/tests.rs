//! One test per rule.
#![allow(clippy::unwrap_used)]

mod file;
mod lease;
mod rebuild;

use std::collections::BTreeSet;

use homeostat_model::RecordVersion;

use super::*;
use crate::{Acker, LogEnd, OrderHeader, ServerFacts, ServerIncarnation, Source};

const OWN: KeeperIncarnation = KeeperIncarnation(77);

fn name(text: &str) -> MemberId {
    MemberId::new(text).unwrap()
}

fn record(epoch: u64, version: u64, phase: Phase, holder: &str) -> Record {
    let ackers = ["a", "b", "c"]
        .into_iter()
        .filter(|member| *member != holder)
        .take(2)
        .map(name)
        .collect();
    Record {
        epoch: Epoch(epoch),
        version: RecordVersion(version),
        term: Term(5),
        phase,
        holder: name(holder),
        ackers,
        leaving: None,
        k: 1,
        unclosed: Vec::new(),
    }
}

fn down() -> ServerState {
    ServerState::Down {
        initialised: true,
        last: None,
    }
}

fn source(member: &str) -> Source {
    Source {
        member: name(member),
        host: "127.0.0.1".to_owned(),
        port: 3306,
    }
}

fn facts(receiver: Receiver) -> ServerFacts {
    ServerFacts {
        read_only: true,
        waits_for_ackers: false,
        acker: false,
        receiver,
        received: None,
        applied: LogEnd::EMPTY,
        needs_salvage: false,
        admitted: BTreeSet::new(),
        receiving: BTreeSet::new(),
        barrier: None,
        broken: None,
        after_barrier: None,
    }
}

fn up(facts: ServerFacts) -> ServerState {
    let incarnation = ServerIncarnation {
        boot: BootId("boot".to_owned()),
        pid: 9,
        start_ticks: 1,
    };
    ServerState::Up { incarnation, facts }
}

fn idle() -> ServerState {
    up(facts(Receiver::None))
}

/// The keeper of "a", with this record persisted.
fn keeper(record: Record) -> KeeperCore {
    let held = record.holds(&name("a")).then_some(record.epoch);
    let kept = Kept {
        term: record.term,
        record,
        boot: BootId("boot".to_owned()),
        held,
        incomplete: None,
    };
    KeeperCore::new(name("a"), OWN, BootId("boot".to_owned()), Some(kept))
}

fn order(sequence: u64, record: &Record, verb: Verb) -> Order {
    Order {
        header: OrderHeader {
            sequence: Sequence(sequence),
            incarnation: OWN,
            record: record.clone(),
        },
        verb,
    }
}

fn refusal(keeper: &mut KeeperCore, order: &Order, server: &ServerState) -> Option<Refusal> {
    match keeper.offer(order, server) {
        Decision::Refuse(OrderReply {
            outcome: OrderOutcome::Refused(refusal),
            ..
        }) => Some(refusal),
        Decision::Refuse(reply) => panic!("a refusal with another outcome: {reply:?}"),
        Decision::Obey { .. } => None,
    }
}

/// Is the verb obeyed by the keeper of "a" that has `record` persisted?
#[track_caller]
fn check(record: &Record, verb: Verb, server: &ServerState, obeyed: Result<(), ()>) {
    let said = refusal(
        &mut keeper(record.clone()),
        &order(1, record, verb.clone()),
        server,
    );
    assert_eq!(
        said.is_none(),
        obeyed.is_ok(),
        "{verb:?} under {record:?}: {said:?}"
    );
}

#[test]
fn a_higher_record_is_persisted_before_the_verb() {
    let mut keeper = keeper(record(3, 4, Phase::Serving, "b"));
    let higher = record(4, 5, Phase::Revoking, "b");
    let Decision::Obey {
        persist: Some(kept),
        verb: Verb::StopReceiving,
    } = keeper.offer(&order(1, &higher, Verb::StopReceiving), &idle())
    else {
        panic!("it must be persisted and obeyed")
    };
    assert_eq!(kept.record, higher);
    assert_eq!(
        keeper.record().unwrap().epoch,
        Epoch(3),
        "not before it is on disk"
    );
    keeper.persisted(kept);
    assert_eq!(keeper.record(), Some(&higher));
    assert_eq!(
        keeper.completed(OrderOutcome::Done).unwrap().sequence,
        Sequence(1)
    );
    assert!(matches!(
        keeper.offer(&order(2, &higher, Verb::Learn), &idle()),
        Decision::Obey { persist: None, .. }
    ));
}

#[test]
fn a_lower_record_or_term_is_refused_with_what_is_known() {
    let known = record(4, 5, Phase::Serving, "b");
    for (epoch, version, term) in [(3, 9, 5), (4, 4, 5), (4, 6, 4)] {
        let lower = Record {
            term: Term(term),
            ..record(epoch, version, Phase::Serving, "b")
        };
        let said = refusal(
            &mut keeper(known.clone()),
            &order(1, &lower, Verb::Learn),
            &idle(),
        );
        assert_eq!(
            said,
            Some(Refusal::Stale {
                persisted: Box::new(known.clone())
            })
        );
    }
}

#[test]
fn another_record_of_the_same_version_is_refused() {
    let known = record(4, 5, Phase::Serving, "b");
    let other = record(4, 5, Phase::Serving, "c");
    assert!(matches!(
        refusal(&mut keeper(known), &order(1, &other, Verb::Learn), &idle()),
        Some(Refusal::NotLegal { .. })
    ));
}

#[test]
fn an_order_is_obeyed_once_and_in_sequence() {
    let known = record(4, 5, Phase::Serving, "b");
    let mut keeper = keeper(known.clone());
    assert_eq!(
        refusal(&mut keeper, &order(2, &known, Verb::Learn), &idle()),
        None
    );
    let busy = refusal(&mut keeper, &order(3, &known, Verb::Learn), &idle());
    assert_eq!(
        busy,
        Some(Refusal::Busy {
            sequence: Sequence(2)
        })
    );
    keeper.completed(OrderOutcome::Done);
    for old in [1, 2] {
        let said = refusal(&mut keeper, &order(old, &known, Verb::Learn), &idle());
        assert_eq!(said, Some(Refusal::OldSequence { last: Sequence(2) }));
    }
    // The next leader numbers from the beginning.
    let next = Record {
        term: Term(6),
        version: RecordVersion(6),
        ..known
    };
    assert_eq!(
        refusal(&mut keeper, &order(1, &next, Verb::Learn), &idle()),
        None
    );
}

#[test]
fn an_order_for_an_earlier_process_is_refused() {
    let known = record(4, 5, Phase::Serving, "b");
    let mut late = order(1, &known, Verb::Learn);
    late.header.incarnation = KeeperIncarnation(76);
    assert_eq!(
        refusal(&mut keeper(known), &late, &idle()),
        Some(Refusal::OtherIncarnation { own: OWN })
    );
}

#[test]
fn a_keeper_without_its_file_obeys_nothing_until_it_is_told_the_record() {
    let mut keeper = KeeperCore::new(name("a"), OWN, BootId("boot".to_owned()), None);
    let given = record(4, 5, Phase::Serving, "b");
    let start = Verb::Start {
        recovery: Recovery::KeepTail,
    };
    assert!(refusal(&mut keeper, &order(1, &given, start.clone()), &down()).is_some());
    let Decision::Obey {
        persist: Some(kept),
        ..
    } = keeper.offer(&order(2, &given, Verb::Learn), &down())
    else {
        panic!("learning is allowed")
    };
    assert_eq!(
        kept.held, None,
        "it restarts as a replica does, which keeps everything"
    );
    keeper.persisted(kept);
    keeper.completed(OrderOutcome::Done);
    assert_eq!(
        refusal(&mut keeper, &order(3, &given, start), &down()),
        None
    );
}

#[test]
fn only_the_holder_of_a_serving_epoch_opens_and_only_after_its_barrier() {
    let barrier = |epoch| {
        up(ServerFacts {
            barrier: epoch,
            ..facts(Receiver::None)
        })
    };
    for verb in [Verb::Open, Verb::Reinstate] {
        check(
            &record(4, 5, Phase::Serving, "a"),
            verb.clone(),
            &barrier(Some(Epoch(4))),
            Ok(()),
        );
        check(
            &record(4, 5, Phase::Serving, "a"),
            verb.clone(),
            &barrier(Some(Epoch(3))),
            Err(()),
        );
        check(
            &record(4, 5, Phase::Serving, "a"),
            verb.clone(),
            &barrier(None),
            Err(()),
        );
        check(
            &record(4, 5, Phase::Promoting, "a"),
            verb.clone(),
            &barrier(Some(Epoch(4))),
            Err(()),
        );
        check(
            &record(4, 5, Phase::Revoking, "a"),
            verb.clone(),
            &barrier(Some(Epoch(4))),
            Err(()),
        );
        check(
            &record(4, 5, Phase::Serving, "b"),
            verb,
            &barrier(Some(Epoch(4))),
            Err(()),
        );
    }
}

#[test]
fn only_the_holder_commits_barriers_and_lets_members_in() {
    let admit = Verb::Admit { member: name("b") };
    for verb in [Verb::Barrier, admit.clone()] {
        check(
            &record(4, 5, Phase::Promoting, "a"),
            verb.clone(),
            &idle(),
            Ok(()),
        );
        check(
            &record(4, 5, Phase::Serving, "a"),
            verb.clone(),
            &idle(),
            Ok(()),
        );
        check(
            &record(4, 5, Phase::Revoking, "a"),
            verb.clone(),
            &idle(),
            Err(()),
        );
        check(&record(4, 5, Phase::Promoting, "b"), verb, &idle(), Err(()));
    }
    check(&record(4, 5, Phase::Serving, "a"), admit, &down(), Err(()));
}

#[test]
fn taking_over_belongs_to_promoting() {
    check(
        &record(4, 5, Phase::Promoting, "a"),
        Verb::TakeOver,
        &idle(),
        Ok(()),
    );
    check(
        &record(4, 5, Phase::Serving, "a"),
        Verb::TakeOver,
        &idle(),
        Err(()),
    );
    check(
        &record(4, 5, Phase::Promoting, "b"),
        Verb::TakeOver,
        &idle(),
        Err(()),
    );
}

#[test]
fn an_acker_is_expelled_only_once_it_is_leaving() {
    let expel = Verb::Expel { member: name("b") };
    let mut leaving = record(4, 5, Phase::Serving, "a");
    check(&leaving, expel.clone(), &idle(), Err(()));
    leaving.leaving = Some(name("b"));
    check(&leaving, expel.clone(), &idle(), Ok(()));
    leaving.ackers.remove(&name("b"));
    leaving.leaving = None;
    check(&leaving, expel, &idle(), Ok(()));
}

#[test]
fn a_member_is_pointed_only_at_the_holder_and_acknowledges_only_in_a() {
    let to = |member, acker| Verb::Repoint {
        source: source(member),
        acker,
    };
    let mut serving = record(4, 5, Phase::Serving, "b");
    check(&serving, to("b", Acker::Counts), &idle(), Ok(()));
    check(&serving, to("c", Acker::Counts), &idle(), Err(()));
    check(&serving, to("c", Acker::Asynchronous), &idle(), Err(()));
    serving.ackers.remove(&name("a"));
    check(&serving, to("b", Acker::Counts), &idle(), Err(()));
    check(&serving, to("b", Acker::Asynchronous), &idle(), Ok(()));
    check(
        &record(4, 5, Phase::Revoking, "b"),
        to("b", Acker::Counts),
        &idle(),
        Err(()),
    );
}

#[test]
fn a_start_of_replication_that_would_purge_is_refused() {
    let stopped = |member| Receiver::Stopped {
        source: source(member),
        applying: false,
    };
    let serving = record(4, 5, Phase::Serving, "b");
    check(&serving, Verb::Receive, &up(facts(stopped("b"))), Ok(()));
    check(&serving, Verb::Receive, &up(facts(stopped("c"))), Err(()));
    check(
        &serving,
        Verb::Receive,
        &up(ServerFacts {
            needs_salvage: true,
            ..facts(stopped("b"))
        }),
        Err(()),
    );
    check(&serving, Verb::Receive, &idle(), Err(()));
}

#[test]
fn a_tail_is_dropped_only_when_another_serves_at_a_higher_closed_epoch() {
    let drop = |record: &Record, held: Option<u64>| {
        let kept = Kept {
            record: record.clone(),
            term: record.term,
            boot: BootId("boot".to_owned()),
            held: held.map(Epoch),
            incomplete: None,
        };
        let mut keeper = KeeperCore::new(name("a"), OWN, BootId("boot".to_owned()), Some(kept));
        let verb = Verb::Start {
            recovery: Recovery::DropTail,
        };
        refusal(&mut keeper, &order(1, record, verb), &down()).is_none()
    };
    assert!(drop(&record(4, 5, Phase::Serving, "b"), Some(3)));
    assert!(
        !drop(&record(4, 5, Phase::Serving, "b"), Some(4)),
        "its own epoch"
    );
    assert!(!drop(&record(4, 5, Phase::Serving, "b"), None), "a replica");
    assert!(
        !drop(&record(4, 5, Phase::Promoting, "b"), Some(3)),
        "nobody serves yet"
    );
    assert!(
        !drop(&record(4, 5, Phase::Revoking, "b"), Some(3)),
        "nobody serves yet"
    );
    let unclosed = vec![record(4, 5, Phase::Revoking, "a").ended_as_unclosed()];
    assert!(
        !drop(
            &Record {
                unclosed,
                ..record(4, 5, Phase::Serving, "b")
            },
            Some(3)
        ),
        "its epoch may be needed"
    );
}

#[test]
fn a_holder_is_not_restarted_or_killed_while_its_epoch_serves() {
    let start = Verb::Start {
        recovery: Recovery::KeepTail,
    };
    check(
        &record(4, 5, Phase::Serving, "a"),
        start.clone(),
        &down(),
        Err(()),
    );
    check(
        &record(5, 6, Phase::Revoking, "a"),
        start.clone(),
        &down(),
        Ok(()),
    );
    check(&record(5, 6, Phase::Revoking, "a"), start, &idle(), Err(()));
    check(
        &record(4, 5, Phase::Serving, "a"),
        Verb::Kill,
        &idle(),
        Err(()),
    );
    check(
        &record(5, 6, Phase::Revoking, "a"),
        Verb::Kill,
        &idle(),
        Ok(()),
    );
}

#[test]
fn only_the_holder_of_the_ended_epoch_is_demoted() {
    let demote = Verb::Demote { patience_ms: 100 };
    check(
        &record(5, 6, Phase::Revoking, "a"),
        demote.clone(),
        &idle(),
        Ok(()),
    );
    check(
        &record(5, 6, Phase::Revoking, "b"),
        demote.clone(),
        &idle(),
        Err(()),
    );
    check(&record(5, 6, Phase::Serving, "a"), demote, &idle(), Err(()));
}

#[test]
fn what_was_held_is_remembered_until_the_member_is_a_replica() {
    let revoking = record(5, 6, Phase::Revoking, "a");
    let next = record(5, 7, Phase::Promoting, "b");
    let following = up(facts(Receiver::Stopped {
        source: source("b"),
        applying: false,
    }));
    // The simulator found that `Receive` alone must do as well (seed 20013 of the time).
    for replica in [
        Verb::Repoint {
            source: source("b"),
            acker: Acker::Counts,
        },
        Verb::Receive,
    ] {
        let mut keeper = keeper(record(4, 5, Phase::Promoting, "a"));
        let orders = [
            (&revoking, Verb::Learn, Some(4)),
            (&next, Verb::Learn, Some(4)),
            (&next, replica, None),
        ];
        for (sequence, (record, verb, held)) in (1..).zip(orders) {
            let Decision::Obey {
                persist: Some(kept),
                ..
            } = keeper.offer(&order(sequence, record, verb), &following)
            else {
                panic!("it is obeyed, and there is something to persist")
            };
            keeper.persisted(kept);
            keeper.completed(OrderOutcome::Done);
            assert_eq!(keeper.held(), held.map(Epoch));
        }
    }
}

#[test]
fn an_open_server_is_not_made_a_replica() {
    let open = up(ServerFacts {
        read_only: false,
        ..facts(Receiver::None)
    });
    let serving = record(4, 5, Phase::Serving, "b");
    let repoint = Verb::Repoint {
        source: source("b"),
        acker: Acker::Counts,
    };
    for verb in [Verb::StopReceiving, Verb::Drain, repoint, Verb::Receive] {
        check(&serving, verb, &open, Err(()));
    }
    check(&serving, Verb::Kill, &open, Ok(()));
}

#[test]
fn a_kill_goes_before_an_order_that_hangs_but_not_before_a_start() {
    let revoking = record(5, 6, Phase::Revoking, "a");
    let mut hung = keeper(revoking.clone());
    let demote = Verb::Demote { patience_ms: 100 };
    assert_eq!(
        refusal(&mut hung, &order(1, &revoking, demote), &idle()),
        None
    );
    assert!(refusal(&mut hung, &order(2, &revoking, Verb::Learn), &idle()).is_some());
    assert_eq!(
        refusal(&mut hung, &order(3, &revoking, Verb::Kill), &idle()),
        None
    );
    let exited = OrderOutcome::Exited { server: None };
    assert_eq!(hung.completed(exited).unwrap().sequence, Sequence(3));
    let start = Verb::Start {
        recovery: Recovery::KeepTail,
    };
    assert_eq!(
        refusal(&mut hung, &order(4, &revoking, start), &down()),
        None
    );
    assert!(refusal(&mut hung, &order(5, &revoking, Verb::Kill), &down()).is_some());
}
