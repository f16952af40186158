//! The decision itself.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use homeostat_model::{Bytes, MachineName, MilliCpu, RackName, Resources, ServiceName, TaskName};

use crate::{
    Apart, Assignment, Note, Pending, Placed, Pool, PoolMachine, Readiness, Refusal, Request,
};

/// Finds a place for every request that has none.
///
/// The hardest to place come first (those that must be apart, those with fixed ports, then by size), which packs better
/// than any other order that is as simple. Planning again with the answer changes nothing: what was placed is kept, and a
/// machine that refused a task when it was considered holds the same or more since then, so it still refuses.
///
/// A task requested twice is placed once.
pub fn place(desired: &[Request], observed: &Pool) -> Placed {
    let mut plan = Placed {
        assignments: observed.assignments.clone(),
        pending: Vec::new(),
        report: notes_on_existing(desired, observed),
    };
    let mut waiting: BTreeMap<&TaskName, &Request> = BTreeMap::new();
    for request in desired {
        if !observed.assignments.contains_key(&request.task) {
            waiting.entry(&request.task).or_insert(request);
        }
    }
    let mut waiting: Vec<&Request> = waiting.into_values().collect();
    waiting.sort_by_key(|request| hardness(request));

    for request in waiting {
        let board = Board::new(&observed.machines, &plan.assignments);
        match board.choose(request) {
            Ok(choice) => {
                plan.report.push(Note::Chosen {
                    task: request.task.clone(),
                    machine: choice.machine.clone(),
                    because: choice.because,
                });
                plan.assignments
                    .insert(request.task.clone(), assignment(request, choice.machine));
            }
            Err(why) => {
                plan.report.push(Note::Pending {
                    task: request.task.clone(),
                });
                plan.pending.push(Pending {
                    task: request.task.clone(),
                    why,
                });
            }
        }
    }
    plan.pending.sort_by(|a, b| a.task.cmp(&b.task));
    plan
}

/// Sorts the hardest to place first; the name makes the order total.
fn hardness(
    request: &Request,
) -> (
    u8,
    Reverse<usize>,
    Reverse<Bytes>,
    Reverse<MilliCpu>,
    TaskName,
) {
    let apart = match request.apart {
        Apart::Always => 0,
        Apart::Preferably => 1,
    };
    (
        apart,
        Reverse(request.fixed_ports.len()),
        Reverse(request.resources.memory),
        Reverse(request.resources.cpu),
        request.task.clone(),
    )
}

fn assignment(request: &Request, machine: MachineName) -> Assignment {
    Assignment {
        machine,
        generation: request.last_generation.next(),
        service: request.service.clone(),
        resources: request.resources,
        fixed_ports: request.fixed_ports.clone(),
        apart: request.apart,
    }
}

fn notes_on_existing(desired: &[Request], observed: &Pool) -> Vec<Note> {
    let note = |(task, held): (&TaskName, &Assignment)| {
        let (task, machine) = (task.clone(), held.machine.clone());
        if !desired.iter().any(|request| request.task == task) {
            return Note::Unwanted { task, machine };
        }
        match observed.machines.get(&machine).map(|m| &m.readiness) {
            Some(Readiness::Ready) => Note::Kept { task, machine },
            Some(Readiness::NotReady { why }) => Note::Stranded {
                task,
                machine,
                why: why.clone(),
            },
            None => Note::Stranded {
                task,
                machine,
                why: "it is not in the pool".to_owned(),
            },
        }
    };
    observed.assignments.iter().map(note).collect()
}

/// The machines with what is on them at one point of the planning.
struct Board<'a> {
    machines: &'a BTreeMap<MachineName, PoolMachine>,
    assignments: &'a BTreeMap<TaskName, Assignment>,
}

struct Choice {
    machine: MachineName,
    because: String,
}

/// What makes one machine better than another; the smallest wins.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Score<'a> {
    siblings_in_rack: usize,
    siblings_on_machine: usize,
    load_permille: u64,
    name: &'a MachineName,
}

impl<'a> Board<'a> {
    fn new(
        machines: &'a BTreeMap<MachineName, PoolMachine>,
        assignments: &'a BTreeMap<TaskName, Assignment>,
    ) -> Self {
        Self {
            machines,
            assignments,
        }
    }

    /// The best machine, or the refusals of all.
    fn choose(&self, request: &Request) -> Result<Choice, BTreeMap<MachineName, Vec<Refusal>>> {
        let mut refusals = BTreeMap::new();
        let mut best: Option<Score<'a>> = None;
        for (name, machine) in self.machines {
            let why = self.refusals(request, name, machine);
            if !why.is_empty() {
                refusals.insert(name.clone(), why);
                continue;
            }
            let score = self.score(request, name, machine);
            if best.as_ref().is_none_or(|best| score < *best) {
                best = Some(score);
            }
        }
        let Some(best) = best else {
            return Err(refusals);
        };
        let home = request.home.as_ref();
        if let Some(home) =
            home.filter(|home| self.machines.contains_key(*home) && !refusals.contains_key(*home))
        {
            return Ok(Choice {
                machine: home.clone(),
                because: "its data is there".to_owned(),
            });
        }
        Ok(Choice {
            machine: best.name.clone(),
            because: format!(
                "{} of {} in its rack, {} on it, {} % full with it",
                best.siblings_in_rack,
                request.service,
                best.siblings_on_machine,
                best.load_permille / 10,
            ),
        })
    }

    fn refusals(
        &self,
        request: &Request,
        name: &MachineName,
        machine: &PoolMachine,
    ) -> Vec<Refusal> {
        let mut why = Vec::new();
        if let Readiness::NotReady { why: reason } = &machine.readiness {
            why.push(Refusal::NotReady {
                why: reason.clone(),
            });
        }
        let used = self.used(name);
        let free = Resources {
            cpu: MilliCpu(machine.capacity.cpu.0.saturating_sub(used.cpu.0)),
            memory: Bytes(machine.capacity.memory.0.saturating_sub(used.memory.0)),
        };
        if request.resources.cpu > free.cpu {
            why.push(Refusal::Cpu {
                needs: request.resources.cpu,
                free: free.cpu,
            });
        }
        if request.resources.memory > free.memory {
            why.push(Refusal::Memory {
                needs: request.resources.memory,
                free: free.memory,
            });
        }
        for (task, held) in self.on(name) {
            for port in held.fixed_ports.intersection(&request.fixed_ports) {
                why.push(Refusal::Port {
                    port: *port,
                    held_by: task.clone(),
                });
            }
            if held.service == request.service && must_be_apart(held.apart, request.apart) {
                why.push(Refusal::Sibling { task: task.clone() });
            }
        }
        // Those that must be apart are members, and a member is nothing without its data.
        if let (Apart::Always, Some(home)) = (request.apart, &request.home)
            && home != name
            && self.machines.contains_key(home)
        {
            why.push(Refusal::DataElsewhere { home: home.clone() });
        }
        why
    }

    fn score(&self, request: &Request, name: &'a MachineName, machine: &PoolMachine) -> Score<'a> {
        let used = self.used(name);
        Score {
            siblings_in_rack: self.siblings_in_rack(&request.service, &machine.rack),
            siblings_on_machine: self
                .on(name)
                .filter(|(_, held)| held.service == request.service)
                .count(),
            load_permille: load_permille(machine.capacity, used, request.resources),
            name,
        }
    }

    fn siblings_in_rack(&self, service: &ServiceName, rack: &RackName) -> usize {
        let in_rack = |held: &&Assignment| {
            let machine = self.machines.get(&held.machine);
            held.service == *service && machine.is_some_and(|machine| machine.rack == *rack)
        };
        self.assignments.values().filter(in_rack).count()
    }

    fn on(&self, name: &MachineName) -> impl Iterator<Item = (&'a TaskName, &'a Assignment)> {
        self.assignments
            .iter()
            .filter(move |(_, held)| held.machine == *name)
    }

    fn used(&self, name: &MachineName) -> Resources {
        self.on(name)
            .fold(Resources::default(), |sum, (_, held)| Resources {
                cpu: MilliCpu(sum.cpu.0.saturating_add(held.resources.cpu.0)),
                memory: Bytes(sum.memory.0.saturating_add(held.resources.memory.0)),
            })
    }
}

/// One of the two insisting is enough: a service may change its mind between two tasks.
fn must_be_apart(a: Apart, b: Apart) -> bool {
    matches!(a, Apart::Always) || matches!(b, Apart::Always)
}

/// How full the fuller of the two resources would be. Computed in u128: a byte count times a thousand can pass 64 bits.
fn load_permille(capacity: Resources, used: Resources, more: Resources) -> u64 {
    let share = |part: u128, whole: u128| {
        let permille = part.saturating_mul(1000).checked_div(whole);
        u64::try_from(permille.unwrap_or(0)).unwrap_or(u64::MAX)
    };
    let cpu = share(
        u128::from(used.cpu.0) + u128::from(more.cpu.0),
        u128::from(capacity.cpu.0),
    );
    let memory = share(
        u128::from(used.memory.0) + u128::from(more.memory.0),
        u128::from(capacity.memory.0),
    );
    cpu.max(memory)
}
