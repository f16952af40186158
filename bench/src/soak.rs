//! Random real faults, one after the other, under load: `make soak-failover`.
//!
//! After each: the cluster is whole again by itself, the epoch did what it may, and at the end every order that anybody was
//! acknowledged, through the endpoint or straight by a server, is there. Tallied by kind. A run that saw no loss in n
//! faults has shown no more than that less than 3/n of them lose something (at 95 %); that bound is printed, too.

mod direct;
mod faults;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use crate::cell::Cell;
use crate::chance::Chance;
use crate::failover::{after_repair, before_fault, endpoint};
use crate::load::Load;
use crate::stats::{Distribution, rounded};
use direct::Direct;
use faults::{Epoch, Fault};

/// Orders a second while the faults strike: so low that a small machine has time for the repair.
const PER_SECOND: f64 = 100.0;

#[derive(Default)]
struct Tally {
    outages: Vec<f64>,
    /// Until all members replicated again.
    repairs: Vec<f64>,
    false_failovers: u32,
}

/// Returns the text, the figures, and how many acknowledged orders were lost.
pub async fn run(
    faults: u32,
    cell: &Cell,
    chance: &mut Chance,
) -> anyhow::Result<(String, Value, u64)> {
    cell.customer_rate(0).await?;
    let (_held, door) = endpoint(cell).await?;
    let load = Load::start(door).await?;
    let direct = Direct::start(cell).await?;
    let mut tallies: BTreeMap<Fault, Tally> = BTreeMap::new();
    let mut order = Vec::new();
    for number in 1..=faults {
        if order.is_empty() {
            order = shuffled(chance);
        }
        let Some(fault) = order.pop() else { continue };
        let told = || format!("fault {number} ({})", fault.name());
        let before = cell.until_whole(0).await.with_context(told)?;
        before_fault(&load, PER_SECOND, chance).await;
        let struck = Instant::now();
        fault.strike(cell, chance).await.with_context(told)?;
        let after = match fault.epoch() {
            Epoch::Rises => before.epoch,
            Epoch::Stays | Epoch::Either => before.epoch.saturating_sub(1),
        };
        load.until_over().await.with_context(told)?;
        let now = cell.until_whole(after).await.with_context(told)?;
        let repaired = struck.elapsed();
        let outage = after_repair(&load).await.longest_ms();
        let tally = tallies.entry(fault).or_default();
        tally.outages.push(outage);
        tally.repairs.push(repaired.as_secs_f64() * 1e3);
        if fault.epoch() == Epoch::Stays && now.epoch != before.epoch {
            tally.false_failovers += 1;
        }
        eprintln!(
            "soak: {number} of {faults}: {}: longest gap {outage:.0} ms, whole after {:.1} s, epoch {} -> {}",
            fault.name(),
            repaired.as_secs_f64(),
            before.epoch,
            now.epoch
        );
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let acknowledged = (load.acknowledged(), direct.count());
    let lost = load.lost().await? + direct.lost().await?;
    Ok(render(faults, &tallies, acknowledged, lost))
}

/// Every kind once, in random order: so no kind is rare.
fn shuffled(chance: &mut Chance) -> Vec<Fault> {
    let mut kinds = Fault::ALL.to_vec();
    for last in (1..kinds.len()).rev() {
        let other = chance.below(last as u64 + 1) as usize;
        kinds.swap(last, other);
    }
    kinds
}

fn render(
    faults: u32,
    tallies: &BTreeMap<Fault, Tally>,
    acknowledged: (u64, u64),
    lost: u64,
) -> (String, Value, u64) {
    let false_failovers: u32 = tallies.values().map(|tally| tally.false_failovers).sum();
    let mut text = format!(
        "Soak: {faults} random faults under {PER_SECOND} orders/s\n  \
         {} orders acknowledged through the endpoint, {} straight by a server; lost: {lost}\n  \
         false failovers: {false_failovers}; no loss in {faults} faults bounds its rate by {:.2} % at 95 %\n  \
         {:>4}  {:>10}  {:>10}  {:>10}\n",
        acknowledged.0,
        acknowledged.1,
        300.0 / f64::from(faults.max(1)),
        "n",
        "gap ms",
        "worst ms",
        "whole ms",
    );
    let mut rows = Vec::new();
    for (fault, tally) in tallies {
        let (Some(outages), Some(repairs)) = (
            Distribution::of(tally.outages.iter().copied()),
            Distribution::of(tally.repairs.iter().copied()),
        ) else {
            continue;
        };
        text.push_str(&format!(
            "  {:>4}  {:>10.0}  {:>10.0}  {:>10.0}  {}\n",
            outages.count(),
            outages.median(),
            outages.worst(),
            repairs.median(),
            fault.name()
        ));
        rows.push(json!({
            "fault": fault.name(), "n": outages.count(), "gap_ms_median": rounded(outages.median()),
            "gap_ms_worst": rounded(outages.worst()), "whole_ms_median": rounded(repairs.median()),
            "false_failovers": tally.false_failovers,
        }));
    }
    let json = json!({
        "faults": faults, "acknowledged": acknowledged.0, "acknowledged_directly": acknowledged.1, "lost": lost,
        "false_failovers": false_failovers, "kinds": rows,
    });
    (text, json, lost)
}
