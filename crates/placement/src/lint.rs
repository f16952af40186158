//! Looks at a finished plan with fresh eyes.
//!
//! Nothing here is shared with the planner: it adds up each machine from nothing, so a mistake in the planner's own
//! accounting shows. Run before a plan is committed and in every test.

use std::collections::BTreeMap;

use homeostat_model::{MachineName, TaskName};

use crate::{Apart, Assignment, Placed, Pool, PoolMachine, Readiness, Request};

/// A promise of this room that a plan breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("{task} had a place on {machine} and was moved, changed or dropped")]
    Moved {
        task: TaskName,
        machine: MachineName,
    },
    #[error("{task} has a place and nobody asked for it")]
    Unasked { task: TaskName },
    #[error("{task} was placed differently from its request")]
    NotAsRequested { task: TaskName },
    #[error("{task} was placed on {machine}, which is not in the pool or not ready")]
    NotReady {
        task: TaskName,
        machine: MachineName,
    },
    #[error("{machine} was given more {what} than it has")]
    OverCapacity {
        machine: MachineName,
        what: &'static str,
    },
    #[error("{first} and {second} both want port {port} on {machine}")]
    PortTwice {
        machine: MachineName,
        port: u16,
        first: TaskName,
        second: TaskName,
    },
    #[error("{first} and {second} may not share {machine}")]
    TooClose {
        machine: MachineName,
        first: TaskName,
        second: TaskName,
    },
    #[error("{task} was asked for and is neither placed nor pending, or both")]
    Unaccounted { task: TaskName },
    #[error("{task} is pending although {machine} has room for it")]
    PendingWithRoom {
        task: TaskName,
        machine: MachineName,
    },
}

/// Everything wrong with a plan that was made from these requests and this pool; empty for a good one.
pub fn lint(plan: &Placed, desired: &[Request], pool: &Pool) -> Vec<Violation> {
    let mut found = Vec::new();
    for (task, held) in &pool.assignments {
        if plan.assignments.get(task) != Some(held) {
            found.push(Violation::Moved {
                task: task.clone(),
                machine: held.machine.clone(),
            });
        }
    }
    lint_new_tasks(plan, desired, pool, &mut found);
    for (name, machine) in &pool.machines {
        lint_machine(plan, pool, name, machine, &mut found);
    }
    for request in desired {
        lint_accounting(plan, request, pool, &mut found);
    }
    found
}

fn lint_new_tasks(plan: &Placed, desired: &[Request], pool: &Pool, found: &mut Vec<Violation>) {
    for (task, held) in &plan.assignments {
        if pool.assignments.contains_key(task) {
            continue;
        }
        let ready = pool
            .machines
            .get(&held.machine)
            .is_some_and(|machine| machine.readiness == Readiness::Ready);
        if !ready {
            found.push(Violation::NotReady {
                task: task.clone(),
                machine: held.machine.clone(),
            });
        }
        match desired.iter().find(|request| request.task == *task) {
            None => found.push(Violation::Unasked { task: task.clone() }),
            Some(request) => {
                let same = held.service == request.service
                    && held.resources == request.resources
                    && held.fixed_ports == request.fixed_ports
                    && held.apart == request.apart
                    && held.generation == request.last_generation.next();
                if !same {
                    found.push(Violation::NotAsRequested { task: task.clone() });
                }
            }
        }
    }
}

/// What is added up over the tasks of a machine.
type Measure = fn(&Assignment) -> u128;

/// A machine that was overfull or crowded before is not the plan's fault, so only what the plan added is judged.
fn lint_machine(
    plan: &Placed,
    pool: &Pool,
    name: &MachineName,
    machine: &PoolMachine,
    found: &mut Vec<Violation>,
) {
    let here: Vec<(&TaskName, &Assignment)> = plan
        .assignments
        .iter()
        .filter(|(_, held)| held.machine == *name)
        .collect();
    let is_new = |task: &TaskName| !pool.assignments.contains_key(task);
    let sum = |what: Measure| here.iter().map(|(_, held)| what(held)).sum::<u128>();
    // A new task that wants nothing of a resource does not make it scarcer.
    let added = |what: Measure| {
        here.iter()
            .any(|(task, held)| is_new(task) && what(held) > 0)
    };
    let cpu = |held: &Assignment| u128::from(held.resources.cpu.0);
    let memory = |held: &Assignment| u128::from(held.resources.memory.0);
    let limits: [(&str, Measure, u128); 2] = [
        ("cpu", cpu, u128::from(machine.capacity.cpu.0)),
        ("memory", memory, u128::from(machine.capacity.memory.0)),
    ];
    for (what, of, capacity) in limits {
        if added(of) && sum(of) > capacity {
            found.push(Violation::OverCapacity {
                machine: name.clone(),
                what,
            });
        }
    }
    for (index, (first, a)) in here.iter().enumerate() {
        for (second, b) in &here[index + 1..] {
            if !is_new(first) && !is_new(second) {
                continue;
            }
            if let Some(port) = a.fixed_ports.intersection(&b.fixed_ports).next() {
                found.push(Violation::PortTwice {
                    machine: name.clone(),
                    port: *port,
                    first: (*first).clone(),
                    second: (*second).clone(),
                });
            }
            let insists = a.apart == Apart::Always || b.apart == Apart::Always;
            if a.service == b.service && insists {
                found.push(Violation::TooClose {
                    machine: name.clone(),
                    first: (*first).clone(),
                    second: (*second).clone(),
                });
            }
        }
    }
}

/// Placed or pending, never both, and pending only for a reason.
fn lint_accounting(plan: &Placed, request: &Request, pool: &Pool, found: &mut Vec<Violation>) {
    let task = &request.task;
    let pending = plan.pending.iter().any(|pending| pending.task == *task);
    if pending == plan.assignments.contains_key(task) {
        found.push(Violation::Unaccounted { task: task.clone() });
    }
    if !pending {
        return;
    }
    for (name, machine) in &pool.machines {
        // Adding the task to this machine must break something; if nothing breaks, it should be there.
        let mut with_it = plan.clone();
        with_it.pending.clear();
        with_it.assignments.insert(
            task.clone(),
            Assignment {
                machine: name.clone(),
                generation: request.last_generation.next(),
                service: request.service.clone(),
                resources: request.resources,
                fixed_ports: request.fixed_ports.clone(),
                apart: request.apart,
            },
        );
        let mut broken = Vec::new();
        // Only the pending task counts as new here: what else the plan added is judged above.
        let before = Pool {
            machines: BTreeMap::new(),
            assignments: plan.assignments.clone(),
        };
        lint_machine(&with_it, &before, name, machine, &mut broken);
        let waits_for_data = request.apart == Apart::Always
            && request
                .home
                .as_ref()
                .is_some_and(|home| home != name && pool.machines.contains_key(home));
        if broken.is_empty() && !waits_for_data && machine.readiness == Readiness::Ready {
            found.push(Violation::PendingWithRoom {
                task: task.clone(),
                machine: name.clone(),
            });
        }
    }
}
