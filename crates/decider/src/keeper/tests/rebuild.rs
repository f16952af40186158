//! Who may become a copy of a peer, and what a member that lost its data still counts for.

use super::*;
use crate::{CopyOffer, CopyToken, Former, Unclosed};

fn rebuild() -> Verb {
    Verb::Rebuild {
        source: name("c"),
        offer: CopyOffer {
            host: "127.0.0.1".to_owned(),
            port: 9,
            token: CopyToken::new("secret".to_owned()),
        },
        former: Former::Discarded,
    }
}

fn without_a(record: Record) -> Record {
    Record {
        ackers: BTreeSet::from([name("c")]),
        ..record
    }
}

fn unclosed(record: Record) -> Record {
    let of = Unclosed {
        epoch: Epoch(2),
        holder: name("b"),
        ackers: BTreeSet::from([name("c")]),
        k: 1,
    };
    Record {
        unclosed: vec![of],
        ..record
    }
}

#[test]
fn only_a_member_that_nobody_counts_on_is_rebuilt_and_its_server_is_down() {
    let serving = without_a(record(4, 5, Phase::Serving, "b"));
    let counts = Record {
        ackers: BTreeSet::from([name("a"), name("c")]),
        ..serving.clone()
    };
    for (record, server, obeyed) in [
        (serving.clone(), down(), Ok(())),
        (serving.clone(), idle(), Err(())),
        (counts, down(), Err(())),
        (unclosed(serving.clone()), down(), Err(())),
        (
            without_a(record(4, 5, Phase::Serving, "a")),
            down(),
            Err(()),
        ),
        (
            without_a(record(4, 5, Phase::Promoting, "b")),
            down(),
            Err(()),
        ),
        (
            without_a(record(4, 5, Phase::Revoking, "b")),
            down(),
            Err(()),
        ),
    ] {
        check(&record, rebuild(), &server, obeyed);
    }
    // What it held before is no tail of the log it gets.
    let mut keeper = keeper(record(3, 4, Phase::Serving, "a"));
    assert_eq!(keeper.held(), Some(Epoch(3)));
    let Decision::Obey {
        persist: Some(kept),
        ..
    } = keeper.offer(&order(1, &serving, rebuild()), &down())
    else {
        panic!("it must be persisted and obeyed")
    };
    assert_eq!(kept.held, None);
    let text = format!("{:?}", rebuild());
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn a_member_lends_only_while_somebody_serves() {
    let lend = || Verb::Lend {
        to: name("c"),
        bytes_per_second: None,
    };
    for phase in [Phase::Serving, Phase::Revoking, Phase::Promoting] {
        let obeyed = if phase == Phase::Serving {
            Ok(())
        } else {
            Err(())
        };
        check(&record(4, 5, phase, "b"), lend(), &idle(), obeyed);
        check(&record(4, 5, phase, "b"), lend(), &down(), Err(()));
    }
}

#[test]
fn a_data_folder_made_anew_is_incomplete_until_the_member_was_out_of_a() {
    let fresh = ServerState::Down {
        initialised: false,
        last: None,
    };
    let start = Verb::Start {
        recovery: Recovery::KeepTail,
    };
    let counts = |record: Record| Record {
        ackers: BTreeSet::from([name("a"), name("c")]),
        ..record
    };
    let after = |record: &Record, server: &ServerState| {
        let mut keeper = keeper(record.clone());
        match keeper.offer(&order(1, record, start.clone()), server) {
            Decision::Obey { persist, .. } => persist.and_then(|kept| kept.incomplete),
            Decision::Refuse(reply) => panic!("{reply:?}"),
        }
    };
    for (record, expected) in [
        (counts(record(4, 5, Phase::Serving, "b")), Some(Epoch(4))),
        (counts(record(4, 5, Phase::Revoking, "b")), Some(Epoch(3))),
        // It has acknowledged nothing yet.
        (counts(record(4, 5, Phase::Promoting, "b")), None),
        (without_a(record(4, 5, Phase::Serving, "b")), None),
        (
            without_a(record(4, 5, Phase::Revoking, "a")),
            Some(Epoch(3)),
        ),
    ] {
        assert_eq!(after(&record, &fresh), expected, "{record:?}");
        assert_eq!(after(&record, &down()), None, "{record:?}");
    }
    let mut keeper = keeper(counts(record(4, 5, Phase::Serving, "b")));
    let mut obey = |number, record: &Record, verb: Verb| {
        match keeper.offer(&order(number, record, verb), &fresh) {
            Decision::Obey { persist, .. } => {
                persist.into_iter().for_each(|kept| keeper.persisted(kept))
            }
            Decision::Refuse(reply) => panic!("{reply:?}"),
        }
        keeper.completed(OrderOutcome::Done);
        keeper.incomplete()
    };
    let incomplete = Some(Epoch(4));
    assert_eq!(
        obey(1, &counts(record(4, 5, Phase::Serving, "b")), start.clone()),
        incomplete
    );
    assert_eq!(
        obey(2, &counts(record(4, 6, Phase::Serving, "b")), Verb::Learn),
        incomplete
    );
    assert_eq!(
        obey(
            3,
            &without_a(record(4, 7, Phase::Serving, "b")),
            Verb::Learn
        ),
        None
    );
    assert_eq!(
        obey(4, &counts(record(4, 8, Phase::Serving, "b")), Verb::Learn),
        None
    );
}
