//! The story of a few changes, as people read it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use homeostat_decider::Record;
use homeostat_model::{Epoch, RecordVersion, Term};

use super::*;

fn member(n: u32) -> MemberId {
    MemberId::new(format!("db-{n}")).unwrap()
}

fn note(at_us: u64, epoch: u64, event: NoteEvent) -> Note {
    Note {
        at: Now(Duration::from_micros(at_us)),
        epoch: Epoch(epoch),
        version: RecordVersion(1),
        event,
    }
}

fn record(epoch: u64, phase: Phase, holder: u32) -> NoteEvent {
    let record = Record {
        epoch: Epoch(epoch),
        version: RecordVersion(1),
        term: Term(1),
        phase,
        holder: member(holder),
        ackers: BTreeSet::new(),
        leaving: None,
        k: 1,
        unclosed: Vec::new(),
    };
    NoteEvent::Record { record }
}

fn order(n: u32, order: &str, took_us: u64, outcome: &str) -> NoteEvent {
    let took = Duration::from_micros(took_us);
    NoteEvent::OrderDone {
        member: member(n),
        order: order.into(),
        took,
        outcome: outcome.into(),
    }
}

fn failover() -> Vec<Note> {
    let evidence = Evidence::ServerExited { holder: member(0) };
    let others = BTreeMap::from([
        (member(0), "its server does not run".to_owned()),
        (member(2), "another was found first".to_owned()),
    ]);
    let complete = vec!["epoch 1: db-1 has all".to_owned()];
    let opened = NoteEvent::Opened {
        holder: member(1),
        took: Duration::from_micros(69_020),
    };
    vec![
        note(1_000_000, 1, NoteEvent::Evidence { evidence }),
        note(1_000_240, 2, record(2, Phase::Revoking, 0)),
        note(
            1_000_250,
            2,
            NoteEvent::OrderSent {
                member: member(0),
                order: "learn".into(),
            },
        ),
        note(
            1_009_100,
            2,
            NoteEvent::Fence {
                proof: "Exited: no server runs there".into(),
            },
        ),
        note(
            1_017_900,
            2,
            order(1, "drain", 3_800, "applied to 0-1-105 (epoch 1)"),
        ),
        note(
            1_017_900,
            2,
            NoteEvent::Choice {
                chosen: member(1),
                complete,
                others,
            },
        ),
        note(1_020_600, 2, record(2, Phase::Promoting, 1)),
        note(
            1_064_000,
            2,
            order(1, "barrier", 21_100, "acknowledged at 0-2-200"),
        ),
        note(1_064_200, 2, record(2, Phase::Serving, 1)),
        note(1_069_000, 2, order(1, "open", 4_700, "done")),
        note(1_069_020, 2, opened),
        note(
            1_080_000,
            2,
            order(0, "start (DropTail)", 9_000, "started as pid 7"),
        ),
    ]
}

fn told() -> Story {
    let mut story = Story::default();
    let finished: Vec<bool> = failover()
        .iter()
        .map(|note| story.take(note, UnixMillis(1_700_000_000_123)) == Told::Finished)
        .collect();
    assert_eq!(finished.iter().filter(|finished| **finished).count(), 1);
    story
}

#[test]
fn a_failover_is_explained() {
    let story = told();
    insta::assert_snapshot!(story.changes().last().unwrap().text("db"), @"
    db: epoch 1 -> 2, the primary role went from db-0 to db-1; it began at 22:13:20.123 UTC and took 69.0 ms
      evidence    db-0's keeper reports that its server has ended
      fence       Exited: no server runs there
      complete    epoch 1: db-1 has all
      not chosen  db-0: its server does not run
      not chosen  db-2: another was found first
      steps       (when it was over since the beginning, how long it took)
            0.2 ms               record: epoch 2 begins, nobody holds it yet
            9.1 ms               the old primary is proved fenced
           17.9 ms       3.8 ms  db-1: drain: applied to 0-1-105 (epoch 1)
           17.9 ms               db-1 is chosen
           20.6 ms               record: db-1 is being promoted
           64.0 ms      21.1 ms  db-1: barrier: acknowledged at 0-2-200
           64.2 ms               record: db-1 serves
           69.0 ms       4.7 ms  db-1: open: done
           69.0 ms               endpoints lead to db-1
    ");
}

#[test]
fn a_failover_is_told_as_it_happens() {
    let events: Vec<String> = failover()
        .iter()
        .filter_map(event)
        .map(|(kind, text)| format!("{kind}: {text}"))
        .collect();
    insta::assert_snapshot!(events.join("\n"), @"
    failover: epoch 1: db-0's keeper reports that its server has ended
    failover: epoch 2: fenced: Exited: no server runs there
    failover: epoch 2: db-1 is chosen (epoch 1: db-1 has all)
    failover: epoch 2: db-1 is primary, open after 69.0 ms
    ");
}

#[test]
fn the_story_is_bounded_and_outlives_its_teller() {
    let mut story = told();
    let mut later = Story::default();
    later.remember(&story.to_bytes());
    assert!(later.changes().eq(story.changes()));

    for _ in 0..100 {
        let evidence = Evidence::ServerExited { holder: member(1) };
        story.take(&note(0, 2, NoteEvent::Evidence { evidence }), UnixMillis(0));
        for _ in 0..STEPS + 7 {
            story.take(
                &note(5, 3, order(1, &"x".repeat(60), 1, &"y".repeat(150))),
                UnixMillis(0),
            );
        }
    }
    assert_eq!(story.changes().count(), CHANGES);
    let last = story.changes().last().unwrap();
    assert_eq!(
        (last.steps.len(), last.steps_dropped, last.took_us),
        (STEPS, 7, None)
    );
    assert!(
        story.to_bytes().len() < 1024 * 1024,
        "{} bytes",
        story.to_bytes().len()
    );
    later.remember(&story.to_bytes());
    assert_eq!(
        later.changes().count(),
        1,
        "what this leader knows is newer"
    );
}

#[test]
fn a_hang_and_a_cut_are_told_with_their_witnesses() {
    let told = [
        Evidence::Hung {
            holder: member(0),
            no_answer_ms: 3051,
            witnesses: vec![member(1), member(2)],
        },
        Evidence::CutOff {
            holder: member(0),
            silent_ms: 3104,
            witnesses: vec![member(2)],
        },
        Evidence::Hung {
            holder: member(0),
            no_answer_ms: 511,
            witnesses: Vec::new(),
        },
    ]
    .map(|evidence| {
        let mut story = Story::default();
        let cut = matches!(evidence, Evidence::CutOff { .. });
        story.take(&note(0, 4, NoteEvent::Evidence { evidence }), UnixMillis(0));
        if cut {
            let proof = "epoch 4: Revoked: nobody acknowledges for db-0 any more (db-1 stopped receiving, db-2 has no server)";
            let proof = proof.to_owned();
            story.take(&note(9_000, 5, NoteEvent::Fence { proof }), UnixMillis(0));
        }
        story.changes().last().unwrap().text("db")
    });
    insta::assert_snapshot!(told.join("\n"), @"
    db: epoch 4 -> 4, the primary role leaves db-0; it began at 00:00:00.000 UTC and is not finished, or was overtaken
      evidence    db-0's server answered no read for 3051 ms, and db-1 and db-2, which acknowledge for it, hear nothing from it
      steps       (when it was over since the beginning, how long it took)
    db: epoch 4 -> 5, the primary role leaves db-0; it began at 00:00:00.000 UTC and is not finished, or was overtaken
      evidence    db-0's keeper was not heard for 3104 ms, and db-2, which acknowledges for it, hears nothing from it
      fence       epoch 4: Revoked: nobody acknowledges for db-0 any more (db-1 stopped receiving, db-2 has no server)
      steps       (when it was over since the beginning, how long it took)
            9.0 ms               the old primary is proved fenced
    db: epoch 4 -> 4, the primary role leaves db-0; it began at 00:00:00.000 UTC and is not finished, or was overtaken
      evidence    db-0's server answered no read for 511 ms, and no acker can say whether it lives
      steps       (when it was over since the beginning, how long it took)
    ");
}
