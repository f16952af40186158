//! Members that become copies of a peer: in which order, from whom, and what is said meanwhile.

use super::*;
use crate::RebuildState;

/// A replica without a data folder, by a keeper that knows this record.
fn empty(member: &str, record: &Record) -> MemberReport {
    MemberReport {
        server: ServerState::Down {
            initialised: false,
            last: None,
        },
        ..report(member, record)
    }
}

fn copy_of(member: &str, record: &Record, rebuild: RebuildState) -> MemberReport {
    MemberReport {
        rebuild: Some(rebuild),
        ..down(member, record)
    }
}

/// The record as the decider has it now.
fn current(hand: &Hand) -> Record {
    hand.decider.view().record.unwrap()
}

#[test]
fn an_acker_that_lost_its_disk_leaves_a_before_it_is_copied() {
    let mut hand = Hand::leading();
    hand.give(Input::Report(empty("c", &serving())));
    hand.rounds(&serving());
    insta::assert_snapshot!(hand.script.join("\n"), @r"
    cas Serving(3) a
    a: learn
    b: learn | a: expel c
    a: barrier
    cas Serving(3) a
    a: learn
    b: learn | a: lend a copy to c
    c: rebuild from a
    ");
    assert_eq!(current(&hand).ackers, BTreeSet::from([name("b")]));
    insta::assert_snapshot!(
        hand.waits().join("\n"),
        @"c to be rebuilt (it has no data): it is copied from a"
    );

    // A new leader leaves it alone while it is copied, and starts it after.
    let source = name("a");
    let copying = RebuildState::Copying {
        source: source.clone(),
        bytes: 7,
        of: None,
        bytes_per_second: 1,
    };
    let record = current(&hand);
    hand.script.clear();
    hand.give(Input::Report(copy_of("c", &record, copying)));
    hand.rounds(&record);
    assert_eq!(hand.script, [""; 0]);
    hand.give(Input::Report(copy_of(
        "c",
        &record,
        RebuildState::Done { source },
    )));
    hand.rounds(&record);
    insta::assert_snapshot!(hand.script.join("\n"), @"c: start (KeepTail)");
}

#[test]
fn a_copy_that_fails_is_begun_anew_after_a_pause() {
    let mut hand = Hand::leading();
    let mut diverged = report("c", &serving());
    if let ServerState::Up { facts, .. } = &mut diverged.server {
        facts.acker = false;
        facts.broken = Some("error 1236".to_owned());
        facts.receiver = Receiver::Stopped {
            source: facts.receiver.source().unwrap().clone(),
            applying: true,
        };
    }
    hand.give(Input::Report(diverged));
    hand.rounds(&serving());
    insta::assert_snapshot!(hand.script.join("\n"), @r"
    cas Serving(3) a
    a: learn
    b: learn | a: expel c
    a: barrier
    cas Serving(3) a
    a: learn
    b: learn | c: kill
    a: lend a copy to c
    c: rebuild from a
    ");
    let record = current(&hand);
    let failed = RebuildState::Failed {
        source: name("a"),
        why: "the disk is full".to_owned(),
    };
    hand.script.clear();
    hand.give(Input::Report(copy_of("c", &record, failed)));
    hand.rounds(&record);
    assert_eq!(hand.script, [""; 0]);
    insta::assert_snapshot!(
        hand.waits().join("\n"),
        @"c to be rebuilt (it cannot follow the primary: error 1236): the last try failed, another one follows"
    );
    hand.now = hand.decider.wake_at().unwrap();
    hand.give(Input::Tick);
    hand.rounds(&record);
    insta::assert_snapshot!(hand.script.join("\n"), @r"
    a: lend a copy to c
    c: rebuild from a
    ");
}
