//! Cells that could never be placed, whatever the scheduler does.
//!
//! Refused here, where the file can be pointed at, rather than left pending for ever.

use homeostat_model::{MachineSpec, Resources};

use crate::declare::{Draft, Drafts, KindDraft, ServiceDraft};
use crate::reader::Problems;

pub(super) fn fit(drafts: &Drafts<'_>, problems: &mut Problems<'_>) {
    let machines: Vec<&MachineSpec> = drafts.machines.iter().map(|draft| &draft.spec).collect();
    if machines.is_empty() {
        return;
    }
    let before = problems.found.len();
    for draft in &drafts.services {
        one_service(draft, &machines, problems);
    }
    if problems.found.len() == before {
        all_together(drafts, &machines, problems);
    }
}

fn one_service(
    draft: &Draft<'_, ServiceDraft>,
    machines: &[&MachineSpec],
    problems: &mut Problems<'_>,
) {
    let name = &draft.spec.name;
    let (_, needs) = size(&draft.spec);
    let roomy = machines
        .iter()
        .filter(|machine| has_room(machine.capacity, needs))
        .count();
    if roomy == 0 {
        let too_much_cpu = machines
            .iter()
            .all(|machine| machine.capacity.cpu < needs.cpu);
        let argument = if too_much_cpu { "cpu" } else { "memory" };
        let message = format!(
            "a task of '{name}' needs {} and {}, which no machine has",
            needs.cpu, needs.memory
        );
        let most_cpu = machines
            .iter()
            .map(|machine| machine.capacity.cpu)
            .max()
            .unwrap_or_default();
        let most_memory = machines
            .iter()
            .map(|machine| machine.capacity.memory)
            .max()
            .unwrap_or_default();
        let hint = format!("the most that a machine has is {most_cpu} and {most_memory}");
        problems.argument(draft.item, argument, None, message, Some(hint));
        return;
    }
    let plural = if roomy == 1 { "" } else { "s" };
    match &draft.spec.kind {
        KindDraft::Sql(sql) => {
            if sql.members as usize > roomy {
                let message = format!(
                    "'{name}' has {} members, never two on a machine, and {roomy} machine{plural} with room for one",
                    sql.members
                );
                problems.argument(
                    draft.item,
                    "members",
                    None,
                    message,
                    Some("declare more machines".to_owned()),
                );
            }
        }
        KindDraft::Job(job) => {
            let fixed = job
                .task
                .ports
                .iter()
                .find_map(|(port, number)| number.map(|number| (port, number)));
            if let Some((port, number)) = fixed
                && job.tasks as usize > roomy
            {
                let message = format!(
                    "'{name}' has {} tasks that all want port {number}, and {roomy} machine{plural} with room for one",
                    job.tasks
                );
                let hint = format!("let the machine pick the port: ports = [\"{port}\"]");
                problems.argument(
                    draft.item,
                    "ports",
                    Some(port.as_str()),
                    message,
                    Some(hint),
                );
            }
        }
    }
}

fn all_together(drafts: &Drafts<'_>, machines: &[&MachineSpec], problems: &mut Problems<'_>) {
    let Some(cell) = drafts.cells.first() else {
        return;
    };
    let (mut cpu, mut memory) = (0_u64, 0_u128);
    for draft in &drafts.services {
        let (tasks, each) = size(&draft.spec);
        cpu += u64::from(tasks) * u64::from(each.cpu.0);
        memory += u128::from(tasks) * u128::from(each.memory.0);
    }
    let has_cpu: u64 = machines
        .iter()
        .map(|machine| u64::from(machine.capacity.cpu.0))
        .sum();
    let has_memory: u128 = machines
        .iter()
        .map(|machine| u128::from(machine.capacity.memory.0))
        .sum();
    let mib = |bytes: u128| bytes / (1024 * 1024);
    let message = if cpu > has_cpu {
        let (needs, has) = (cpu as f64 / 1000.0, has_cpu as f64 / 1000.0);
        format!("all tasks together need {needs:.2} cpu, and the machines have {has:.2}")
    } else if memory > has_memory {
        let (needs, has) = (mib(memory), mib(has_memory));
        format!("all tasks together need {needs} MiB of memory, and the machines have {has} MiB")
    } else {
        return;
    };
    let span = problems.sources.head(cell.item);
    problems.at(cell.item, &span, message, None);
}

/// How many tasks a service has, and what each needs.
fn size(service: &ServiceDraft) -> (u32, Resources) {
    match &service.kind {
        KindDraft::Job(job) => (job.tasks, job.task.resources),
        KindDraft::Sql(sql) => (sql.members, sql.resources),
    }
}

fn has_room(capacity: Resources, needs: Resources) -> bool {
    capacity.cpu >= needs.cpu && capacity.memory >= needs.memory
}
