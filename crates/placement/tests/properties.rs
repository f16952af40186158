//! What must hold of any plan for any pool.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use homeostat_model::{
    Bytes, Generation, MachineName, MilliCpu, RackName, Resources, ServiceName, TaskName,
};
use homeostat_placement::{Apart, Pool, PoolMachine, Readiness, Request, lint, place};
use proptest::prelude::*;

fn resources(cpu: u32, memory: u64) -> Resources {
    Resources {
        cpu: MilliCpu(cpu),
        memory: Bytes(memory),
    }
}

fn any_pool() -> impl Strategy<Value = Pool> {
    let machine = (
        0..3_u8,
        0..5000_u32,
        0..5000_u64,
        prop::bool::weighted(0.85),
    );
    prop::collection::vec(machine, 0..7).prop_map(|machines| {
        let named = machines
            .into_iter()
            .enumerate()
            .map(|(index, (rack, cpu, memory, ready))| {
                let readiness = if ready {
                    Readiness::Ready
                } else {
                    Readiness::NotReady {
                        why: "draining".to_owned(),
                    }
                };
                let machine = PoolMachine {
                    rack: RackName::new(format!("r{rack}")).unwrap(),
                    capacity: resources(cpu, memory),
                    readiness,
                };
                (MachineName::new(format!("m{index}")).unwrap(), machine)
            });
        Pool {
            machines: named.collect(),
            assignments: BTreeMap::new(),
        }
    })
}

fn any_requests() -> impl Strategy<Value = Vec<Request>> {
    let service = (
        1..5_u32,
        0..2500_u32,
        0..2500_u64,
        prop::option::weighted(0.3, 80..83_u16),
        any::<bool>(),
    );
    prop::collection::vec(service, 0..6).prop_map(|services| {
        let mut requests = Vec::new();
        for (index, (tasks, cpu, memory, port, always)) in services.into_iter().enumerate() {
            let service = ServiceName::new(format!("s{index}")).unwrap();
            for task in 0..tasks {
                requests.push(Request {
                    task: TaskName::of(&service, task).unwrap(),
                    service: service.clone(),
                    resources: resources(cpu, memory),
                    fixed_ports: port.into_iter().collect::<BTreeSet<u16>>(),
                    apart: if always {
                        Apart::Always
                    } else {
                        Apart::Preferably
                    },
                    last_generation: Generation(u64::from(task)),
                    home: None,
                });
            }
        }
        requests
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_keeps_the_promises(pool in any_pool(), desired in any_requests()) {
        let plan = place(&desired, &pool);
        prop_assert_eq!(lint(&plan, &desired, &pool), Vec::new());
    }

    #[test]
    fn planning_again_changes_nothing(pool in any_pool(), desired in any_requests()) {
        let first = place(&desired, &pool);
        let pool = Pool { assignments: first.assignments.clone(), ..pool };
        let second = place(&desired, &pool);
        prop_assert_eq!(&first.assignments, &second.assignments);
        let names = |pending: &[homeostat_placement::Pending]| -> Vec<TaskName> {
            pending.iter().map(|pending| pending.task.clone()).collect()
        };
        prop_assert_eq!(names(&first.pending), names(&second.pending));
    }

    #[test]
    fn the_order_of_the_requests_does_not_matter(
        pool in any_pool(),
        (desired, shuffled) in any_requests().prop_flat_map(|requests| {
            (Just(requests.clone()), Just(requests).prop_shuffle())
        }),
    ) {
        prop_assert_eq!(place(&desired, &pool), place(&shuffled, &pool));
    }

    /// A pool that grows, loses readiness and is asked for more never moves what has a place.
    #[test]
    fn later_plans_keep_the_promises_too(
        pool in any_pool(),
        later in any_pool(),
        desired in any_requests(),
        more in any_requests(),
    ) {
        let first = place(&desired, &pool);
        let pool = Pool { machines: later.machines, assignments: first.assignments };
        let second = place(&more, &pool);
        prop_assert_eq!(lint(&second, &more, &pool), Vec::new());
    }

    /// With equal empty machines, the tasks of a service differ by at most one per rack.
    #[test]
    fn racks_are_used_evenly(racks in 1..4_usize, tasks in 1..12_u32) {
        let machines = (0..racks * 2).map(|index| {
            let machine = PoolMachine {
                rack: RackName::new(format!("r{}", index % racks)).unwrap(),
                capacity: resources(10_000, 10_000),
                readiness: Readiness::Ready,
            };
            (MachineName::new(format!("m{index}")).unwrap(), machine)
        });
        let pool = Pool { machines: machines.collect(), assignments: BTreeMap::new() };
        let service = ServiceName::new("web").unwrap();
        let desired: Vec<Request> = (0..tasks).map(|index| Request {
            task: TaskName::of(&service, index).unwrap(),
            service: service.clone(),
            resources: resources(10, 10),
            fixed_ports: BTreeSet::new(),
            apart: Apart::Preferably,
            last_generation: Generation(0),
            home: None,
        }).collect();
        let plan = place(&desired, &pool);
        let mut per_rack: BTreeMap<&RackName, usize> =
            pool.machines.values().map(|machine| (&machine.rack, 0)).collect();
        for held in plan.assignments.values() {
            *per_rack.entry(&pool.machines[&held.machine].rack).or_default() += 1;
        }
        let (least, most) = (per_rack.values().min().unwrap(), per_rack.values().max().unwrap());
        prop_assert!(most - least <= 1, "{per_rack:?}");
    }
}
