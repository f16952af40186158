//! Figure 3: `kill -9` of the primary's server under load, against the floor.
//!
//! Cell, floor and the bare floor take turns, and who begins changes each time, so that whatever else the machine does hits
//! all alike. The target is for the floor: the same statements, sent by hand with no pauses.
//! Each round: the load runs at half of the throughput measured before, the primary's server is killed, and the longest
//! gap between acknowledged orders is the outage, counted until all members replicate again. The load is the same code
//! with the same rate on both; only the way to the primary differs.

use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::cell::Cell;
use crate::chance::Chance;
use crate::floor::{Floor, Statements};
use crate::load::{self, CONNECTIONS, Gap, Load, Rate};
use crate::plan::Plan;
use crate::stats::{Distribution, rounded, verdict};
use crate::steps::Steps;

const TARGET_RATIO: f64 = 1.5;
/// The load runs for so long before a fault, and a little longer by chance: checks and renewals have rhythms of their
/// own, which the faults must not fall into.
const BEFORE_FAULT: Duration = Duration::from_millis(1000);
const LONGER_BY_MS: u64 = 1000;
/// The load runs on for so long after all members replicate again: what the repair does to it counts.
const AFTER_REPAIR: Duration = Duration::from_millis(300);

/// A door that always leads to the cell's endpoint.
pub async fn endpoint(
    cell: &Cell,
) -> anyhow::Result<(watch::Sender<Option<mysql_async::Opts>>, load::Door)> {
    let opts = load::application(&cell.dsn().await?)?;
    let (sender, door) = watch::channel(Some(opts));
    Ok((sender, door))
}

/// Runs the load up to a fault.
pub async fn before_fault(load: &Load, per_second: f64, chance: &mut Chance) {
    load.set_rate(Rate::PerSecond(per_second));
    sleep(BEFORE_FAULT + Duration::from_millis(chance.below(LONGER_BY_MS))).await;
    load.watch_gaps();
}

/// Stops the load after a fault that was repaired.
pub async fn after_repair(load: &Load) -> Gap {
    sleep(AFTER_REPAIR).await;
    let gap = load.gap();
    load.set_rate(Rate::Idle);
    gap
}

/// What one side of the comparison saw.
#[derive(Default)]
struct Side {
    gaps: Vec<Gap>,
    steps: Steps,
}

#[derive(Clone, Copy)]
enum Turn {
    Cell,
    Floor(Statements),
}

const TURNS: [Turn; 3] = [
    Turn::Cell,
    Turn::Floor(Statements::Same),
    Turn::Floor(Statements::Bare),
];

pub async fn measure(
    plan: &Plan,
    cell: &Cell,
    floor: &mut Floor,
    chance: &mut Chance,
) -> anyhow::Result<(String, Value, u64)> {
    cell.customer_rate(0).await?;
    let (_held, door) = endpoint(cell).await?;
    let loads = (Load::start(door).await?, Load::start(floor.door()).await?);
    let (most, per_second) = half_of_throughput(plan, &loads).await?;
    let (mut own, mut by_hand, mut bare) = (Side::default(), Side::default(), Side::default());
    let mut decided = Vec::new();
    for round in 1..=plan.kills {
        let mut turns = TURNS;
        turns.rotate_left(round as usize % TURNS.len());
        for turn in turns {
            match turn {
                Turn::Cell => {
                    before_fault(&loads.0, per_second, chance).await;
                    let took = kill_primary(cell, &loads.0, &mut own.steps).await;
                    decided.push(took.with_context(|| format!("failover {round} of the cell"))?);
                    own.gaps.push(after_repair(&loads.0).await);
                }
                Turn::Floor(statements) => {
                    let side = match statements {
                        Statements::Same => &mut by_hand,
                        Statements::Bare => &mut bare,
                    };
                    before_fault(&loads.1, per_second, chance).await;
                    let done = floor.fail_over(statements, &mut side.steps).await;
                    done.with_context(|| format!("failover {round} of the floor"))?;
                    loads.1.until_over().await?;
                    side.gaps.push(after_repair(&loads.1).await);
                }
            }
        }
        let last = |side: &Side| side.gaps.last().map_or(0.0, Gap::longest_ms);
        eprintln!(
            "failover: {round} of {}: {:.1} ms, floor {:.1} ms, bare {:.1} ms",
            plan.kills,
            last(&own),
            last(&by_hand),
            last(&bare)
        );
    }
    // What was under way when the load went idle has to be in the books.
    sleep(AFTER_REPAIR).await;
    let lost = (loads.0.lost().await?, loads.1.lost().await?);
    let orders = (loads.0.acknowledged(), loads.1.acknowledged());
    let (text, json) = Report {
        most,
        per_second,
        own,
        by_hand,
        bare,
        decided,
        lost,
        orders,
    }
    .render()?;
    Ok((text, json, lost.0))
}

/// What cell and floor can do, and half of it; the floor's only where the floor is the slower one.
async fn half_of_throughput(
    plan: &Plan,
    loads: &(Load, Load),
) -> anyhow::Result<((f64, f64), f64)> {
    let most = (
        loads.0.throughput(plan.warm_up, plan.throughput).await,
        loads.1.throughput(plan.warm_up, plan.throughput).await,
    );
    let (cell, floor, half) = (most.0, most.1, most.0.min(most.1) / 2.0);
    if half < 1.0 {
        bail!("hardly any order is acknowledged ({cell:.1} and {floor:.1} per second)");
    }
    eprintln!(
        "failover: throughput {cell:.0}/s, of the floor {floor:.0}/s; the load is {half:.0}/s"
    );
    Ok((most, half))
}

/// Kills the cell's primary and waits until all is well again. Returns how long the decider took by its own account,
/// in ms.
async fn kill_primary(cell: &Cell, load: &Load, steps: &mut Steps) -> anyhow::Result<Option<f64>> {
    let before = cell.until_whole(0).await?;
    let pid = i32::try_from(before.primary_pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("the primary's pid is no pid")?;
    load.watch_gaps();
    kill_process(pid, Signal::KILL)
        .with_context(|| format!("kill the server of {}", before.primary))?;
    // Nobody asks the cell anything until the customers are served again: asking costs time on a small machine.
    load.until_over().await?;
    cell.until_whole(before.epoch).await?;
    let change = cell.last_change().await?;
    steps.add_change(&change);
    Ok(change["took_us"].as_f64().map(|us| us / 1e3))
}

struct Report {
    most: (f64, f64),
    per_second: f64,
    own: Side,
    by_hand: Side,
    bare: Side,
    /// Of each failover of the cell; `None` where its account is not complete.
    decided: Vec<Option<f64>>,
    lost: (u64, u64),
    orders: (u64, u64),
}

impl Report {
    /// Of each round: the cell's outage over the other's.
    fn ratios(&self, other: &Side) -> anyhow::Result<Distribution> {
        let pairs = self.own.gaps.iter().zip(&other.gaps);
        let ratios = pairs.map(|(own, other)| own.longest_ms() / other.longest_ms());
        Distribution::of(ratios).context("no failover was measured")
    }

    fn render(self) -> anyhow::Result<(String, Value)> {
        let outages = |side: &Side| {
            Distribution::of(side.gaps.iter().map(Gap::longest_ms))
                .context("no failover was measured")
        };
        let errors = |side: &Side| side.gaps.iter().map(|gap| gap.errors).sum::<u64>();
        let (own, by_hand) = (outages(&self.own)?, outages(&self.by_hand)?);
        let (ratios, bare_ratios) = (self.ratios(&self.by_hand)?, self.ratios(&self.bare)?);
        let bare = outages(&self.bare)?;
        let of_medians = own.median() / by_hand.median();
        let bound = ratios
            .median_interval()
            .map_or(f64::INFINITY, |(_, high)| high);
        let told_interval = |ratios: &Distribution| match ratios.median_interval() {
            Some((low, high)) => format!("95 % interval {low:.2} to {high:.2} (order statistics)"),
            None => "too few rounds for a 95 % interval".to_owned(),
        };
        let (interval, bare_interval) = (told_interval(&ratios), told_interval(&bare_ratios));
        let rest = self.own.gaps.iter().zip(&self.decided);
        let rest = rest.filter_map(|(gap, decided)| Some(gap.longest_ms() - (*decided)?));
        let (rest, decided) = (
            Distribution::of(rest),
            Distribution::of(self.decided.iter().flatten().copied()),
        );
        let told = |of: &Option<Distribution>| {
            of.as_ref()
                .map_or_else(|| "unknown".to_owned(), Distribution::to_string)
        };
        let text = format!(
            "Failover: kill -9 of the primary's server, {CONNECTIONS} connections, {:.0} orders/s (throughput {:.0}/s, of the \
             floor {:.0}/s)\n  \
             longest gap between acknowledged orders, in ms\n  \
             cell   {own}\n  floor  {by_hand}\n  bare   {bare}\n  \
             to the floor: median of the pairs' ratios {:.2}, {interval} (target at most {TARGET_RATIO}: {}); ratio of the medians {of_medians:.2}\n  \
             to the bare floor: median of the pairs' ratios {:.2}, {bare_interval}\n  \
             attempts that failed: {} (floor {}) of {} orders (floor {}); acknowledged orders lost: {} (floor {})\n  \
             the cell by its own account, from the evidence to the open endpoint, in ms\n         {}\n  \
             the rest: seeing that the server ended, and the customers' way back, in ms\n         {}\n  \
             steps of the cell, medians in ms since the evidence\n{}  \
             steps of the floor, medians in ms since the kill\n{}  \
             steps of the bare floor\n{}",
            self.per_second,
            self.most.0,
            self.most.1,
            ratios.median(),
            verdict(bound, TARGET_RATIO),
            bare_ratios.median(),
            errors(&self.own),
            errors(&self.by_hand),
            self.orders.0,
            self.orders.1,
            self.lost.0,
            self.lost.1,
            told(&decided),
            told(&rest),
            self.own.steps.table(),
            self.by_hand.steps.table(),
            self.bare.steps.table(),
        );
        let json = json!({
            "connections": CONNECTIONS, "orders_per_s": rounded(self.per_second),
            "throughput_per_s": rounded(self.most.0), "floor_throughput_per_s": rounded(self.most.1),
            "outage_ms": own.json(), "floor_outage_ms": by_hand.json(), "bare_outage_ms": bare.json(), "ratio_of_medians": rounded(of_medians),
            "pair_ratios": ratios.json(), "pair_ratio_median_interval_95": ratios.median_interval().map(|(low, high)| [rounded(low), rounded(high)]),
            "bare_pair_ratios": bare_ratios.json(), "bare_pair_ratio_median_interval_95": bare_ratios.median_interval().map(|(low, high)| [rounded(low), rounded(high)]),
            "errors": errors(&self.own), "floor_errors": errors(&self.by_hand),
            "orders": self.orders.0, "floor_orders": self.orders.1, "lost": self.lost.0, "floor_lost": self.lost.1,
            "decided_ms": decided.map(|decided| decided.json()), "rest_ms": rest.map(|rest| rest.json()),
            "steps": self.own.steps.json(), "floor_steps": self.by_hand.steps.json(),
            "bare_steps": self.bare.steps.json(),
        });
        Ok((text, json))
    }
}
