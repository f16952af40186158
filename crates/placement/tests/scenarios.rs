//! Scripted pools with the whole plan as golden text. Each plan is also linted and planned a second time.
//!
//! Lines: `machine NAME RACK CPU MEMORY_MIB [why it is not ready]`, `job SERVICE TASKS CPU MEMORY_MIB [PORT]`,
//! `sql SERVICE MEMBERS CPU MEMORY_MIB`, `held SERVICE TASK MACHINE CPU MEMORY_MIB`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use homeostat_model::{
    Bytes, Generation, MachineName, MilliCpu, RackName, Resources, ServiceName, TaskName,
};
use homeostat_placement::{Apart, Assignment, Pool, PoolMachine, Readiness, Request, lint, place};

fn resources(cpu: &str, memory: &str) -> Resources {
    Resources {
        cpu: MilliCpu((cpu.parse::<f64>().unwrap() * 1000.0) as u32),
        memory: Bytes::mib(memory.parse().unwrap()),
    }
}

fn requests(
    service: &str,
    tasks: &str,
    resources: Resources,
    port: &[&str],
    apart: Apart,
) -> Vec<Request> {
    let service = ServiceName::new(service).unwrap();
    (0..tasks.parse().unwrap())
        .map(|index| Request {
            task: TaskName::of(&service, index).unwrap(),
            service: service.clone(),
            resources,
            fixed_ports: port.iter().map(|port| port.parse().unwrap()).collect(),
            apart,
            last_generation: Generation(0),
            home: None,
        })
        .collect()
}

fn read(script: &str) -> (Vec<Request>, Pool) {
    let mut pool = Pool::default();
    let mut desired = Vec::new();
    for line in script.lines().filter(|line| !line.trim().is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["machine", name, rack, cpu, memory, why @ ..] => {
                let readiness = if why.is_empty() {
                    Readiness::Ready
                } else {
                    Readiness::NotReady { why: why.join(" ") }
                };
                let machine = PoolMachine {
                    rack: RackName::new(*rack).unwrap(),
                    capacity: resources(cpu, memory),
                    readiness,
                };
                pool.machines
                    .insert(MachineName::new(*name).unwrap(), machine);
            }
            ["job", service, tasks, cpu, memory, port @ ..] => {
                desired.extend(requests(
                    service,
                    tasks,
                    resources(cpu, memory),
                    port,
                    Apart::Preferably,
                ));
            }
            ["sql", service, members, cpu, memory] => {
                desired.extend(requests(
                    service,
                    members,
                    resources(cpu, memory),
                    &[],
                    Apart::Always,
                ));
            }
            ["held", service, task, machine, cpu, memory] => {
                let held = Assignment {
                    machine: MachineName::new(*machine).unwrap(),
                    generation: Generation(7),
                    service: ServiceName::new(*service).unwrap(),
                    resources: resources(cpu, memory),
                    fixed_ports: BTreeSet::new(),
                    apart: Apart::Preferably,
                };
                pool.assignments.insert(TaskName::new(*task).unwrap(), held);
            }
            _ => panic!("not a line of this little language: {line}"),
        }
    }
    (desired, pool)
}

fn plan(script: &str) -> String {
    let (desired, mut pool) = read(script);
    let plan = place(&desired, &pool);
    assert_eq!(lint(&plan, &desired, &pool), Vec::new());
    pool.assignments = plan.assignments.clone();
    assert_eq!(
        place(&desired, &pool).assignments,
        plan.assignments,
        "planning again moved something"
    );
    let notes = plan.report.iter().map(ToString::to_string);
    let pending = plan.pending.iter().map(ToString::to_string);
    notes.chain(pending).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_shop_spreads_over_its_racks() {
    insta::assert_snapshot!(plan(
        "machine m1 r1 4 8192
         machine m2 r2 4 8192
         machine m3 r3 4 8192
         sql shop-db 3 0.5 512
         job shop-web 2 0.25 128
         job shop-load 1 0.25 64"
    ), @r"
    shop-db-0 goes to m1: 0 of shop-db in its rack, 0 on it, 12 % full with it
    shop-db-1 goes to m2: 0 of shop-db in its rack, 0 on it, 12 % full with it
    shop-db-2 goes to m3: 0 of shop-db in its rack, 0 on it, 12 % full with it
    shop-web-0 goes to m1: 0 of shop-web in its rack, 0 on it, 18 % full with it
    shop-web-1 goes to m2: 0 of shop-web in its rack, 0 on it, 18 % full with it
    shop-load-0 goes to m3: 0 of shop-load in its rack, 0 on it, 18 % full with it
    ");
}

#[test]
fn racks_come_before_load() {
    insta::assert_snapshot!(plan(
        "machine m1 r1 8 8192
         machine m2 r1 8 8192
         machine m3 r2 8 8192
         held other other-0 m3 6 6000
         job other 1 6 6000
         job web 3 1 512"
    ), @r"
    other-0 stays on m3
    web-0 goes to m1: 0 of web in its rack, 0 on it, 12 % full with it
    web-1 goes to m3: 0 of web in its rack, 0 on it, 87 % full with it
    web-2 goes to m2: 1 of web in its rack, 0 on it, 12 % full with it
    ");
}

#[test]
fn a_member_too_many_says_why_on_every_machine() {
    insta::assert_snapshot!(plan(
        "machine m1 r1 4 8192
         machine m2 r2 4 8192 its agent has not reported yet
         machine m3 r3 4 256
         sql shop-db 3 0.5 512"
    ), @r"
    shop-db-0 goes to m1: 0 of shop-db in its rack, 0 on it, 12 % full with it
    no machine takes shop-db-1
    no machine takes shop-db-2
    shop-db-1 is pending
      m1: shop-db-0 is there, and no two tasks of its service may share a machine
      m2: not ready: its agent has not reported yet
      m3: needs 512 MiB of memory, 256 MiB free
    shop-db-2 is pending
      m1: shop-db-0 is there, and no two tasks of its service may share a machine
      m2: not ready: its agent has not reported yet
      m3: needs 512 MiB of memory, 256 MiB free
    ");
}

#[test]
fn refusals_carry_numbers_and_add_up() {
    insta::assert_snapshot!(plan(
        "machine m1 r1 2 1024
         held old old-0 m1 1.5 1000
         job big 1 2 512"
    ), @r"
    old-0 on m1 is no longer wanted
    no machine takes big-0
    big-0 is pending
      m1: needs 2.00 cpu, 0.50 free; needs 512 MiB of memory, 24 MiB free
    ");
}

#[test]
fn a_fixed_port_is_used_once_per_machine() {
    insta::assert_snapshot!(plan(
        "machine m1 r1 4 8192
         machine m2 r1 4 8192
         job proxy 3 0.1 64 80"
    ), @r"
    proxy-0 goes to m1: 0 of proxy in its rack, 0 on it, 2 % full with it
    proxy-1 goes to m2: 1 of proxy in its rack, 0 on it, 2 % full with it
    no machine takes proxy-2
    proxy-2 is pending
      m1: port 80 is held by proxy-0
      m2: port 80 is held by proxy-1
    ");
}

#[test]
fn what_has_a_place_stays_even_where_nothing_new_may_go() {
    insta::assert_snapshot!(plan(
        "machine m1 r1 4 8192 draining
         machine m2 r2 4 8192
         held web web-0 m1 0.5 128
         held web web-1 gone 0.5 128
         job web 3 0.5 128"
    ), @r"
    web-0 stays on m1, which is not ready: draining
    web-1 stays on gone, which is not ready: it is not in the pool
    web-2 goes to m2: 0 of web in its rack, 0 on it, 12 % full with it
    ");
}

#[test]
fn a_member_waits_for_the_machine_that_has_its_data() {
    let (mut desired, pool) = read(
        "machine m1 r1 4 8192 it is drained
         machine m2 r2 4 8192
         sql shop-db 1 0.5 512",
    );
    desired[0].home = Some(MachineName::new("m1").unwrap());
    let waits = place(&desired, &pool);
    assert_eq!(lint(&waits, &desired, &pool), []);
    let why: Vec<String> = waits.pending.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(why.join("\n"), @r"
    shop-db-0 is pending
      m1: not ready: it is drained
      m2: its data is on m1
    ");
    desired[0].home = Some(MachineName::new("gone").unwrap());
    let elsewhere = place(&desired, &pool);
    assert_eq!(elsewhere.pending, []);
    assert_eq!(lint(&elsewhere, &desired, &pool), []);
}

#[test]
fn an_empty_pool_is_a_reason_too() {
    insta::assert_snapshot!(plan("job web 1 0.1 64"), @r"
    no machine takes web-0
    web-0 is pending: the pool has no machine
    ");
}

#[test]
fn the_linter_sees_what_the_planner_would_never_do() {
    let (desired, pool) = read(
        "machine m1 r1 1 8192
         machine m2 r2 4 8192
         held web web-2 m2 0.5 128
         sql web 3 0.6 512",
    );
    let mut bad = place(&desired, &pool);
    let m1 = MachineName::new("m1").unwrap();
    for assignment in bad.assignments.values_mut() {
        assignment.machine = m1.clone();
    }
    let found: Vec<String> = lint(&bad, &desired, &pool)
        .iter()
        .map(ToString::to_string)
        .collect();
    insta::assert_snapshot!(found.join("\n"), @r"
    web-2 had a place on m2 and was moved, changed or dropped
    m1 was given more cpu than it has
    web-0 and web-2 may not share m1
    web-1 is pending although m2 has room for it
    ");
}
