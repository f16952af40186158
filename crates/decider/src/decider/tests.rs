//! The decider by hand: how many round trips a failover takes, and what is waited for and said.
#![allow(clippy::unwrap_used)]

mod rebuild;

use std::collections::{BTreeMap, BTreeSet};

use homeostat_model::{Epoch, RecordVersion, ServiceName};

use super::*;
use crate::{
    BootId, CasOutcome, CopyOffer, CopyToken, Gtid, KeeperIncarnation, LogEnd, MemberReport,
    OrderOutcome, OrderReply, Pulse, Receiver, ServerFacts, ServerIncarnation, ServerState, Source,
};

fn name(text: &str) -> MemberId {
    MemberId::new(text).unwrap()
}

fn serving() -> Record {
    Record {
        epoch: Epoch(3),
        version: RecordVersion(9),
        term: Term(1),
        phase: Phase::Serving,
        holder: name("a"),
        ackers: BTreeSet::from([name("b"), name("c")]),
        leaving: None,
        k: 1,
        unclosed: Vec::new(),
    }
}

fn end(sequence: u64) -> LogEnd {
    LogEnd {
        barrier: Epoch(3),
        last: Some(Gtid {
            domain: 0,
            server: 1,
            sequence,
        }),
    }
}

fn report(member: &str, record: &Record) -> MemberReport {
    let holder = member == "a";
    let source = Source {
        member: name("a"),
        host: "127.0.0.1".to_owned(),
        port: 1,
    };
    let receiver = match holder {
        true => Receiver::None,
        false => Receiver::Running {
            source,
            connected: true,
            applying: true,
            error: None,
        },
    };
    let facts = ServerFacts {
        read_only: !holder,
        waits_for_ackers: holder,
        acker: !holder,
        receiver,
        received: (!holder).then(|| end(5)),
        applied: end(5),
        needs_salvage: false,
        admitted: if holder {
            BTreeSet::from([name("b"), name("c")])
        } else {
            BTreeSet::new()
        },
        receiving: BTreeSet::new(),
        barrier: holder.then_some(Epoch(3)),
        broken: None,
        after_barrier: None,
    };
    let incarnation = ServerIncarnation {
        boot: BootId("boot".to_owned()),
        pid: 4,
        start_ticks: 4,
    };
    MemberReport {
        member: name(member),
        incarnation: KeeperIncarnation(1),
        boot: BootId("boot".to_owned()),
        host: "127.0.0.1".to_owned(),
        port: 1,
        record: Some(record.clone()),
        held: holder.then_some(Epoch(3)),
        pulse: None,
        incomplete: None,
        rebuild: None,
        lends: None,
        server: ServerState::Up { incarnation, facts },
    }
}

fn down(member: &str, record: &Record) -> MemberReport {
    MemberReport {
        server: ServerState::Down {
            initialised: true,
            last: None,
        },
        ..report(member, record)
    }
}

/// A decider with its effects answered one round at a time, each order with what a working keeper would say.
struct Hand {
    decider: Decider,
    now: Now,
    pending: Vec<Effect>,
    script: Vec<String>,
    /// Its keeper answers nothing.
    mute: Option<MemberId>,
}

impl Hand {
    fn new() -> Self {
        let members = ["a", "b", "c"].map(name).to_vec();
        let config = Config {
            settle: Duration::ZERO,
            ..Config::mariadb(ServiceName::new("db").unwrap(), members, BTreeMap::new())
        };
        let decider = Decider::new(config, Term(2));
        Self {
            decider,
            now: Now::default(),
            pending: Vec::new(),
            script: Vec::new(),
            mute: None,
        }
    }

    /// The leader of a healthy cluster, with nothing left to do.
    fn leading() -> Self {
        let mut hand = Self::new();
        for member in ["a", "b", "c"] {
            hand.give(Input::Report(report(member, &serving())));
        }
        hand.rounds(&serving());
        hand.script.clear();
        hand
    }

    fn give(&mut self, input: Input) {
        let effects = self.decider.handle(self.now, input);
        self.pending.extend(
            effects
                .into_iter()
                .filter(|effect| !matches!(effect, Effect::Note(_))),
        );
    }

    /// Answers all that is under way at once, and again, until nothing is. One line of script per round.
    fn rounds(&mut self, stored: &Record) {
        while !self.pending.is_empty() {
            self.now = self.now.after(Duration::from_millis(1));
            let round = std::mem::take(&mut self.pending);
            self.script
                .push(round.iter().map(line).collect::<Vec<_>>().join(" | "));
            assert!(self.script.len() < 40, "no end: {:#?}", self.script);
            for effect in round {
                match effect {
                    Effect::ReadRecord => self.give(Input::RecordRead(Some(stored.clone()))),
                    Effect::Cas { attempt, .. } => {
                        self.give(Input::CasDone {
                            attempt,
                            outcome: CasOutcome::Committed,
                        });
                    }
                    Effect::Order { member, .. } if Some(&member) == self.mute.as_ref() => {}
                    Effect::Order { member, order, .. } => {
                        let outcome = answer(&order);
                        let (sequence, incarnation) =
                            (order.header.sequence, order.header.incarnation);
                        self.give(Input::Reply(OrderReply {
                            member,
                            sequence,
                            incarnation,
                            outcome,
                        }));
                    }
                    Effect::Endpoint { .. }
                    | Effect::GrantLease { .. }
                    | Effect::SwitchoverDone { .. }
                    | Effect::Note(_) => {}
                }
            }
        }
    }

    fn waits(&self) -> Vec<String> {
        self.decider
            .view()
            .waits
            .iter()
            .map(Wait::to_string)
            .collect()
    }
}

fn answer(order: &Order) -> OrderOutcome {
    match &order.verb {
        Verb::StopReceiving => OrderOutcome::Stopped {
            received: Some(end(5)),
            drained: None,
        },
        Verb::Kill => OrderOutcome::Exited { server: None },
        Verb::Lend { .. } => OrderOutcome::Lent {
            offer: CopyOffer {
                host: "127.0.0.1".to_owned(),
                port: 9,
                token: CopyToken::new("secret".to_owned()),
            },
        },
        Verb::Drain => OrderOutcome::Drained { applied: end(5) },
        Verb::Demote { .. } => OrderOutcome::Demoted { position: end(5) },
        Verb::Barrier => OrderOutcome::BarrierDone {
            epoch: order.header.record.epoch,
            at: Gtid {
                domain: 0,
                server: 2,
                sequence: 6,
            },
        },
        Verb::Start { .. } => OrderOutcome::Started {
            server: ServerIncarnation {
                boot: BootId("boot".to_owned()),
                pid: 5,
                start_ticks: 5,
            },
        },
        _ => OrderOutcome::Done,
    }
}

fn line(effect: &Effect) -> String {
    match effect {
        Effect::ReadRecord => "read".to_owned(),
        Effect::Cas { new, .. } => format!("cas {:?}({}) {}", new.phase, new.epoch, new.holder),
        Effect::Order { member, order, .. } => format!("{member}: {}", name_of(&order.verb)),
        Effect::Endpoint { target, .. } => match target {
            Some(target) => format!("endpoint {target}"),
            None => "endpoint closed".to_owned(),
        },
        Effect::GrantLease { member, grant } => {
            format!("lease {} of epoch {} to {member}", grant.nonce, grant.epoch)
        }
        Effect::SwitchoverDone { result, .. } => match result {
            Ok(to) => format!("switched to {to}"),
            Err(why) => format!("not switched: {why}"),
        },
        Effect::Note(_) => String::new(),
    }
}

#[test]
fn a_leader_puts_its_term_into_the_record_first() {
    let mut hand = Hand::new();
    for member in ["a", "b", "c"] {
        hand.give(Input::Report(report(member, &serving())));
    }
    hand.rounds(&serving());
    insta::assert_snapshot!(hand.script.join("\n"), @r"
    read
    cas Serving(3) a
    endpoint a | a: learn
    b: learn | c: learn
    ");
    assert_eq!(hand.decider.view().open, Some(name("a")));
}

#[test]
fn a_failover_takes_few_round_trips() {
    let mut hand = Hand::leading();
    hand.give(Input::Report(down(
        "a",
        &hand.decider.view().record.unwrap(),
    )));
    hand.rounds(&serving());
    insta::assert_snapshot!(hand.script.join("\n"), @r"
    cas Revoking(4) a
    endpoint closed | a: learn | b: stop-receiving | c: stop-receiving
    b: drain | c: drain
    cas Promoting(4) b
    c: repoint to b (Counts) | b: take-over
    b: admit c
    c: receive | b: barrier
    cas Serving(4) b
    b: open
    endpoint b | a: start (DropTail) | c: learn
    ");
}

#[test]
fn a_switchover_demotes_before_it_stops_anybody() {
    let mut hand = Hand::leading();
    hand.give(Input::Switchover {
        request: 1,
        to: Some(name("c")),
    });
    hand.rounds(&serving());
    insta::assert_snapshot!(hand.script.join("\n"), @r"
    cas Revoking(4) a
    endpoint closed | a: demote
    b: stop-receiving | c: stop-receiving
    b: drain | c: drain
    cas Promoting(4) c
    a: repoint to c (Counts) | b: repoint to c (Counts) | c: take-over
    c: admit a
    a: receive | c: admit b
    b: receive | c: barrier
    cas Serving(4) c
    c: open
    endpoint c | switched to c | a: learn | b: learn
    ");
}

#[test]
fn a_silent_holder_is_not_replaced() {
    let mut hand = Hand::leading();
    hand.give(Input::KeeperGone { member: name("a") });
    hand.now = hand.now.after(Duration::from_secs(3600));
    hand.give(Input::Tick);
    hand.rounds(&serving());
    assert!(hand.script.is_empty(), "{:?}", hand.script);
    assert_eq!(
        hand.decider.view().open,
        Some(name("a")),
        "it may well be serving"
    );
}

#[test]
fn a_silent_holder_of_an_ending_epoch_is_revoked_only_when_all_of_a_is_in_sight() {
    let mut hand = Hand::new();
    let revoking = Record {
        epoch: Epoch(4),
        phase: Phase::Revoking,
        version: RecordVersion(10),
        ..serving()
    };
    hand.give(Input::Report(report("b", &revoking)));
    hand.rounds(&revoking);
    hand.later(3_200);
    hand.rounds(&revoking);
    insta::assert_snapshot!(hand.waits().join("\n"), @"a's keeper, or c: only they can prove that a acknowledges no more writes of epoch 3");
    hand.script.clear();
    hand.give(Input::Report(report("c", &revoking)));
    hand.rounds(&revoking);
    insta::assert_snapshot!(hand.script.join("\n"), @r"
    b: stop-receiving | c: stop-receiving
    b: drain | c: drain
    cas Promoting(4) b
    c: repoint to b (Counts) | b: take-over
    b: admit c
    c: receive | b: barrier
    cas Serving(4) b
    b: open
    endpoint b | c: learn
    ");
}

/// Signs of life of all but the silent: the ackers' receivers heard something `source_ms` ago.
fn alive(member: &str, record: &Record, unanswered_ms: Option<u64>, source_ms: u64) -> Input {
    let pulse = Pulse {
        unanswered_ms,
        source_ms: (member != "a").then_some(source_ms),
    };
    Input::Report(MemberReport {
        pulse: Some(pulse),
        ..report(member, record)
    })
}

impl Hand {
    fn later(&mut self, ms: u64) {
        self.now = self.now.after(Duration::from_millis(ms));
        self.give(Input::Tick);
    }

    /// Time goes on with everybody but `silent` giving signs of life.
    fn live(&mut self, silent: &str, ms: u64, unanswered: bool, deaf: &[&str]) {
        let record = self.decider.view().record.unwrap();
        self.mute = MemberId::new(silent).ok();
        for at in (100..=ms).step_by(100) {
            self.now = self.now.after(Duration::from_millis(100));
            for member in ["a", "b", "c"]
                .into_iter()
                .filter(|member| *member != silent)
            {
                let unanswered = (unanswered && member == "a").then_some(at);
                let source = if deaf.contains(&member) { at } else { 20 };
                self.give(alive(member, &record, unanswered, source));
            }
            if !self.pending.is_empty() {
                self.rounds(&record);
                return;
            }
        }
    }
}

#[test]
fn a_cut_off_primary_is_replaced_after_h_by_a_fence_at_its_ackers() {
    let mut hand = Hand::leading();
    hand.live("", 1_000, false, &[]);
    let since = hand.now;
    hand.live("a", 60_000, false, &["b", "c"]);
    let took = hand.now.since(since).as_millis();
    assert!((3_000..=3_500).contains(&took), "after {took} ms");
    insta::assert_snapshot!(hand.script.join("\n"), @r"
    cas Revoking(4) a
    endpoint closed | a: kill | b: stop-receiving | c: stop-receiving
    b: drain | c: drain
    cas Promoting(4) b
    c: repoint to b (Counts) | b: take-over
    b: admit c
    c: receive | b: barrier
    cas Serving(4) b
    b: open
    endpoint b | c: learn
    ");
}

#[test]
fn a_hung_primary_is_killed_and_revoked_at_once() {
    let mut hand = Hand::leading();
    hand.live("", 1_000, false, &[]);
    let since = hand.now;
    hand.live("", 60_000, true, &["b", "c"]);
    let took = hand.now.since(since).as_millis();
    assert!((3_000..=3_100).contains(&took), "after {took} ms");
    assert_eq!(
        hand.script[..2],
        [
            "cas Revoking(4) a",
            "endpoint closed | a: kill | b: stop-receiving | c: stop-receiving"
        ]
    );
}

#[test]
fn one_side_alone_is_no_fault() {
    let quiet = |silent: &str, unanswered: bool, deaf: &[&str]| {
        let mut hand = Hand::leading();
        hand.live("", 1_000, false, &[]);
        hand.live(silent, 600_000, unanswered, deaf);
        assert_eq!(hand.script, [""; 0], "{silent} {unanswered} {deaf:?}");
    };
    // Only the controllers cannot reach it.
    quiet("a", false, &[]);
    // It answers reads: commits may wait for ackers.
    quiet("", false, &["b", "c"]);
    // An acker hears it.
    quiet("a", false, &["b"]);
    quiet("", true, &[]);
}

#[test]
fn what_a_connection_held_back_is_not_believed() {
    let mut hand = Hand::leading();
    hand.live("", 1_000, false, &[]);
    let record = hand.decider.view().record.unwrap();
    hand.later(4_000);
    for member in ["b", "c"] {
        hand.give(alive(member, &record, None, 3_500));
    }
    assert!(hand.pending.is_empty(), "{:?}", hand.pending);
    for member in ["b", "c"] {
        hand.give(alive(member, &record, None, 20));
    }
    hand.later(300);
    assert!(hand.pending.is_empty(), "{:?}", hand.pending);
}

#[test]
fn a_lease_is_granted_by_a_read_begun_after_it_was_asked_for() {
    let mut hand = Hand::leading();
    let record = hand.decider.view().record.unwrap();
    let ask = |epoch, nonce| {
        Input::LeaseAsked(crate::LeaseRequest {
            member: name("a"),
            incarnation: KeeperIncarnation(1),
            epoch: Epoch(epoch),
            nonce,
        })
    };
    hand.give(ask(3, 7));
    hand.rounds(&record);
    hand.give(ask(2, 8));
    hand.rounds(&record);
    assert_eq!(hand.script, ["read", "lease 7 of epoch 3 to a"]);
    // While an epoch is being ended nothing is granted.
    hand.script.clear();
    hand.give(Input::Report(down("a", &record)));
    hand.give(ask(3, 9));
    hand.rounds(&record);
    assert!(
        !hand.script.iter().any(|line| line.contains("lease")),
        "{:?}",
        hand.script
    );
}

#[test]
fn a_member_that_must_not_be_promoted_is_not_and_another_is() {
    let mut hand = Hand::leading();
    let rule = (name("b"), crate::Promotion::MustNot);
    hand.decider.config.promotion = BTreeMap::from([rule]);
    let record = hand.decider.view().record.unwrap();
    hand.give(Input::Report(down("a", &record)));
    hand.rounds(&serving());
    assert!(
        hand.script.contains(&"cas Promoting(4) c".to_owned()),
        "{:?}",
        hand.script
    );
}

#[test]
fn without_automatic_failover_the_role_stays() {
    let mut hand = Hand::leading();
    hand.decider.config.automatic = crate::Automatic::Off;
    hand.live("", 1_000, false, &[]);
    hand.live("a", 60_000, false, &["b", "c"]);
    assert_eq!(hand.script, [""; 0]);
    let waits = hand.waits().join("\n");
    assert!(waits.contains("automatic failover is off"), "{waits}");
    // One that exited is started again where it is.
    hand.mute = None;
    let record = hand.decider.view().record.unwrap();
    hand.give(Input::Report(down("a", &record)));
    hand.rounds(&serving());
    insta::assert_snapshot!(hand.script.join("\n"), @r"
    cas Revoking(4) a
    endpoint closed | a: learn | b: stop-receiving | c: stop-receiving
    b: drain | c: drain
    a: start (KeepTail)
    ");
}

#[test]
fn a_higher_term_stops_everything() {
    let mut hand = Hand::leading();
    let newer = Record {
        term: Term(3),
        version: RecordVersion(11),
        ..serving()
    };
    hand.give(Input::Report(report("b", &newer)));
    hand.rounds(&newer);
    assert_eq!(hand.script, ["read"]);
    hand.script.clear();
    hand.give(Input::Report(down("a", &newer)));
    hand.give(Input::Switchover {
        request: 1,
        to: None,
    });
    hand.rounds(&newer);
    assert_eq!(
        hand.script,
        ["not switched: the cluster has no open primary now (Serving)"]
    );
    assert_eq!(hand.waits(), ["nothing: a newer leader (term 3) acts"]);
}

#[test]
fn a_store_behind_its_members_stops_everything() {
    let mut hand = Hand::leading();
    let newer = Record {
        epoch: Epoch(7),
        ..serving()
    };
    hand.give(Input::Report(report("b", &newer)));
    hand.give(Input::Report(down("a", &serving())));
    let effects: Vec<String> = hand.pending.iter().map(line).collect();
    assert_eq!(effects, ["read"]);
    assert!(
        hand.waits()
            .iter()
            .any(|wait| wait.contains("a person: b knows epoch 7")),
        "{:?}",
        hand.waits()
    );
}
