//! One state, one row a member, and the words for what is wrong.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use homeostat_decider::{
    BootId, Gtid, KeeperIncarnation, LogEnd, MemberReport, ServerIncarnation, Source,
};
use homeostat_model::{Epoch, ExitCause, RecordVersion, Term};

use super::*;

fn member(n: u32) -> MemberId {
    MemberId::new(format!("db-{n}")).unwrap()
}

struct World {
    tasks: BTreeMap<MemberId, Seen>,
    view: View,
}

fn facts(n: u32) -> ServerFacts {
    let end = LogEnd {
        barrier: Epoch(3),
        last: Some(Gtid {
            domain: 0,
            server: 1,
            sequence: 77,
        }),
    };
    let source = Source {
        member: member(0),
        host: "127.0.0.1".into(),
        port: 1,
    };
    let running = Receiver::Running {
        source,
        connected: true,
        applying: true,
        error: None,
    };
    ServerFacts {
        read_only: n != 0,
        waits_for_ackers: n == 0,
        acker: n != 0,
        receiver: if n == 0 { Receiver::None } else { running },
        received: Some(end),
        applied: end,
        needs_salvage: false,
        admitted: BTreeSet::new(),
        receiving: BTreeSet::new(),
        barrier: None,
        broken: None,
        after_barrier: None,
    }
}

fn report(n: u32) -> MemberReport {
    let incarnation = ServerIncarnation {
        boot: BootId("b".into()),
        pid: 100 + n,
        start_ticks: 1,
    };
    MemberReport {
        member: member(n),
        incarnation: KeeperIncarnation(1),
        boot: BootId("b".into()),
        host: "127.0.0.1".into(),
        port: 3306,
        record: None,
        held: None,
        pulse: None,
        incomplete: None,
        rebuild: None,
        lends: None,
        server: ServerState::Up {
            incarnation,
            facts: facts(n),
        },
    }
}

/// Three members, all well.
fn world() -> World {
    let record = Record {
        epoch: Epoch(3),
        version: RecordVersion(9),
        term: Term(2),
        phase: Phase::Serving,
        holder: member(0),
        ackers: [member(1), member(2)].into(),
        leaving: None,
        k: 1,
        unclosed: Vec::new(),
    };
    let running = |n: u32| Seen {
        placed: Some(1),
        machine: format!("m{n}"),
        state: TaskState::Running { pid: n },
        ..Seen::new()
    };
    let row = |n: u32| MemberView {
        reachable: true,
        report: Some(report(n)),
        order: None,
    };
    World {
        tasks: (0..3).map(|n| (member(n), running(n))).collect(),
        view: View {
            record: Some(record),
            leading: true,
            open: Some(member(0)),
            members: (0..3).map(|n| (member(n), row(n))).collect(),
            waits: Vec::new(),
        },
    }
}

impl World {
    fn look(&self, wished: Wished) -> Looks {
        look(&Situation {
            service: &ServiceName::new("db").unwrap(),
            wished,
            preparing: None,
            members: &[member(0), member(1), member(2)],
            tasks: &self.tasks,
            decider: Some(&self.view),
        })
    }

    fn server(&mut self, n: u32, change: impl FnOnce(&mut ServerState)) {
        let view = self.view.members.get_mut(&member(n)).unwrap();
        change(&mut view.report.as_mut().unwrap().server);
    }

    fn facts(&mut self, n: u32, change: impl FnOnce(&mut ServerFacts)) {
        self.server(n, |server| match server {
            ServerState::Up { facts, .. } => change(facts),
            ServerState::Down { .. } | ServerState::Starting { .. } => panic!("not up"),
        });
    }
}

/// The state and what it waits for.
fn check(world: &World, state: ServiceState, waits: &str) {
    let looks = world.look(Wished::Up);
    assert_eq!((looks.state, looks.waits_for.as_str()), (state, waits));
}

#[test]
fn a_cluster_that_is_well_is_up() {
    let looks = world().look(Wished::Up);
    assert_eq!(
        (looks.state, looks.waits_for.as_str()),
        (ServiceState::Up, "")
    );
    insta::assert_snapshot!(serde_json::to_string_pretty(&looks.cluster.members[1]).unwrap(), @r#"
    {
      "task": "db-1",
      "machine": "m1",
      "pid": 101,
      "role": "replica",
      "gtid": "0-1-77",
      "acker": "acker",
      "state": "well"
    }
    "#);
    let whole = ClusterView {
        members: Vec::new(),
        ..looks.cluster
    };
    insta::assert_snapshot!(
        serde_json::to_string(&whole).unwrap(),
        @r#"{"name":"db","epoch":3,"phase":"serving","primary":"db-0","members":[],"waits":[]}"#
    );
}

#[test]
fn a_serving_cluster_that_lacks_something_is_degraded_and_says_what() {
    let degraded = ServiceState::Degraded;
    let mut it = world();
    it.server(1, |server| {
        *server = ServerState::Down {
            initialised: true,
            last: None,
        }
    });
    check(&it, degraded, "db-1: its server does not run");

    let mut it = world();
    it.view.members.get_mut(&member(2)).unwrap().reachable = false;
    check(&it, degraded, "db-2: its keeper is silent");
    assert_eq!(
        it.look(Wished::Up).cluster.members[2].role,
        Role::Unreachable
    );

    let mut it = world();
    it.tasks.get_mut(&member(2)).unwrap().state = TaskState::Exited {
        cause: ExitCause::Signal { signal: 9 },
    };
    check(&it, degraded, "db-2: its keeper ended (signal 9)");
    assert_eq!(it.look(Wished::Up).cluster.members[2].role, Role::Down);

    let mut it = world();
    it.facts(1, |facts| facts.acker = false);
    check(&it, degraded, "db-1: it does not acknowledge yet");

    let mut it = world();
    it.facts(1, |facts| facts.receiver = Receiver::None);
    check(&it, degraded, "db-1: it does not replicate yet");

    let mut it = world();
    it.view.record.as_mut().unwrap().ackers = [member(1)].into();
    check(
        &it,
        degraded,
        "a second replica that acknowledges (db-1 does now)",
    );
}

#[test]
fn without_a_primary_it_starts_and_says_for_what_it_waits() {
    let mut it = world();
    it.view.open = None;
    it.view.record.as_mut().unwrap().phase = Phase::Revoking;
    it.view.waits = vec![Wait::Fence {
        holder: member(0),
        epoch: Epoch(2),
        missing: Vec::new(),
    }];
    let waits =
        "db-0's keeper: nothing else proves that db-0 acknowledges no more writes of epoch 2";
    check(&it, ServiceState::Starting, waits);
    let cluster = it.look(Wished::Up).cluster;
    assert_eq!(
        (cluster.phase.as_str(), cluster.primary),
        ("revoking", None)
    );
    assert!(
        cluster
            .members
            .iter()
            .all(|member| member.role == Role::Replica),
        "nobody holds the epoch yet"
    );
}

#[test]
fn it_is_down_when_nothing_of_it_runs() {
    let mut it = world();
    let looks = it.look(Wished::Down);
    assert_eq!(looks.state, ServiceState::Stopping);
    assert!(
        looks.waits_for.starts_with("db-0 to end (it is running); "),
        "{}",
        looks.waits_for
    );
    for task in it.tasks.values_mut() {
        task.state = TaskState::Exited {
            cause: ExitCause::Code { code: 0 },
        };
    }
    assert_eq!(it.look(Wished::Down).state, ServiceState::Down);
}
