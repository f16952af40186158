//! Figure 2: what a cell costs when nothing happens. Its customer is told to place no orders; the checks go on.
//!
//! Memory is the sum of PSS, which counts a page that n processes share as 1/n in each: the sum over processes is what
//! the machine really holds for them. CPU is what /proc says of each process at both ends of a window, what it waited
//! for included, because probes and checks come and go in between. The databases are told apart and not counted.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::cell::Cell;
use crate::plan::Plan;
use crate::processes::{self, Memory, Process};
use crate::stats::{Distribution, rounded, verdict};

const TARGET_MIB: f64 = 120.0;
const TARGET_CPU_PERCENT: f64 = 3.0;
/// Looks at the memory, spread over the window; each walks through all pages of all processes, so few.
const LOOKS: u32 = 5;
const DATABASE: &str = "mariadbd";

#[derive(Debug, Default)]
struct Kind {
    /// Processes at the last look.
    processes: usize,
    /// Of all of them together, at each look.
    pss_kib: Vec<f64>,
    /// Of each, at the last look.
    private_kib: Vec<f64>,
    cpu_s: f64,
    reaped_cpu_s: f64,
}

pub async fn measure(plan: &Plan, cell: &Cell) -> anyhow::Result<(String, Value)> {
    cell.customer_rate(0).await?;
    sleep(plan.settle).await;
    let marks = cell.marks();
    let marks: Vec<&Path> = marks.iter().map(|mark| mark.as_path()).collect();
    let mut kinds: BTreeMap<String, Kind> = BTreeMap::new();
    let (began, before) = (Instant::now(), processes::of(&marks));
    for look in 0..LOOKS {
        weigh(&marks, &mut kinds);
        sleep((plan.idle * (look + 1) / LOOKS).saturating_sub(began.elapsed())).await;
    }
    let (window, after) = (began.elapsed(), processes::of(&marks));
    let ended = before.keys().filter(|pid| !after.contains_key(pid)).count();
    for (pid, process) in &after {
        let kind = kinds.entry(kind_of(process)).or_default();
        let earlier = before.get(pid);
        kind.cpu_s += (process.cpu - earlier.map_or_else(Default::default, |earlier| earlier.cpu))
            .as_secs_f64();
        let reaped = earlier.map_or_else(Default::default, |earlier| earlier.reaped_cpu);
        kind.reaped_cpu_s += (process.reaped_cpu - reaped).as_secs_f64();
    }
    render(&kinds, window.as_secs_f64(), ended)
}

/// One look at all of them.
fn weigh(marks: &[&Path], kinds: &mut BTreeMap<String, Kind>) {
    let mut now: BTreeMap<String, Vec<Memory>> = BTreeMap::new();
    for process in processes::of(marks).values() {
        if let Some(memory) = process.memory() {
            now.entry(kind_of(process)).or_default().push(memory);
        }
    }
    for (kind, memories) in now {
        let kind = kinds.entry(kind).or_default();
        kind.processes = memories.len();
        kind.pss_kib
            .push(memories.iter().map(|memory| memory.pss_kib).sum());
        kind.private_kib = memories.iter().map(|memory| memory.private_kib).collect();
    }
}

/// By what it is for, from its command line.
fn kind_of(process: &Process) -> String {
    let verb = process.argv.get(1).map_or("", String::as_str);
    match (process.program(), verb) {
        (DATABASE, _) => DATABASE.to_owned(),
        ("homeostat", "warden" | "controller") => verb.to_owned(),
        ("homeostat", "agent") => "agents".to_owned(),
        ("homeostat", "supervise") => "supervisors".to_owned(),
        ("homeostat", "keeper") => "keepers".to_owned(),
        ("homeostat", "forward") => "endpoints".to_owned(),
        ("shop", "web" | "load") => "tasks of the shop".to_owned(),
        _ => "probes and others".to_owned(),
    }
}

fn render(
    kinds: &BTreeMap<String, Kind>,
    window_s: f64,
    ended: usize,
) -> anyhow::Result<(String, Value)> {
    let mut text = format!(
        "Idle: checks every 5 s or less, no orders, over {window_s:.0} s\n  \
         {:<20}{:>4}{:>12}{:>14}{:>12}{:>14}\n",
        "kind", "n", "PSS MiB", "private MiB", "CPU %", "of children %"
    );
    let (mut pss, mut cpu) = (0.0, 0.0);
    let mut rows = Vec::new();
    for (name, kind) in kinds {
        // A look at which there was none of them counts as nothing.
        let looks = kind
            .pss_kib
            .iter()
            .copied()
            .chain(std::iter::repeat(0.0))
            .take(LOOKS as usize);
        let mib = Distribution::of(looks)
            .context("the memory was not looked at")?
            .median()
            / 1024.0;
        let private = Distribution::of(kind.private_kib.iter().map(|kib| kib / 1024.0));
        let (own, children) = (
            kind.cpu_s / window_s * 100.0,
            kind.reaped_cpu_s / window_s * 100.0,
        );
        let each = private.as_ref().map_or_else(String::new, |each| {
            format!("{:.1}-{:.1}", each.best(), each.worst())
        });
        text.push_str(&format!(
            "  {name:<20}{:>4}{mib:>12.1}{each:>14}{own:>12.2}{children:>14.2}\n",
            kind.processes
        ));
        rows.push(json!({
            "kind": name, "processes": kind.processes, "pss_mib": rounded(mib), "cpu_percent": rounded(own),
            "reaped_cpu_percent": rounded(children), "private_mib": private.map(|each| each.json()),
        }));
        if name != DATABASE {
            pss += mib;
            cpu += own + children;
        }
    }
    text.push_str(&format!(
        "  all but {DATABASE}: {pss:.1} MiB (target at most {TARGET_MIB:.0}: {}), {cpu:.2} % of one core (target at most \
         {TARGET_CPU_PERCENT:.0}: {})\n",
        verdict(pss, TARGET_MIB),
        verdict(cpu, TARGET_CPU_PERCENT),
    ));
    if ended > 0 {
        text.push_str(&format!("  {ended} processes that ran at the beginning had ended; their parents' children hold their CPU\n"));
    }
    let json = json!({"window_s": rounded(window_s), "pss_mib": rounded(pss), "cpu_percent": rounded(cpu), "kinds": rows});
    Ok((text, json))
}
