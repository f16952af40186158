//! Figure 4: a planned change of primary under load.

use anyhow::Context;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::cell::Cell;
use crate::chance::Chance;
use crate::failover::{after_repair, before_fault, endpoint};
use crate::load::{CONNECTIONS, Gap, Load};
use crate::plan::Plan;
use crate::stats::{Distribution, rounded, verdict};
use crate::steps::Steps;

const TARGET_MS: f64 = 200.0;

pub async fn measure(
    plan: &Plan,
    cell: &Cell,
    chance: &mut Chance,
) -> anyhow::Result<(String, Value, u64)> {
    cell.customer_rate(0).await?;
    let (_held, door) = endpoint(cell).await?;
    let load = Load::start(door).await?;
    let most = load.throughput(plan.warm_up, plan.throughput).await;
    let per_second = (most / 2.0).max(1.0);
    let mut steps = Steps::default();
    let mut gaps: Vec<Gap> = Vec::new();
    for round in 1..=plan.switchovers {
        let before = cell.until_whole(0).await?;
        before_fault(&load, per_second, chance).await;
        cell.switchover()
            .await
            .with_context(|| format!("switchover {round}"))?;
        load.until_over().await?;
        cell.until_whole(before.epoch).await?;
        steps.add_change(&cell.last_change().await?);
        let gap = after_repair(&load).await;
        eprintln!(
            "switchover: {round} of {}: {:.1} ms",
            plan.switchovers,
            gap.longest_ms()
        );
        gaps.push(gap);
    }
    sleep(plan.warm_up).await;
    let lost = load.lost().await?;
    let outages =
        Distribution::of(gaps.iter().map(Gap::longest_ms)).context("no switchover was measured")?;
    let errors: u64 = gaps.iter().map(|gap| gap.errors).sum();
    let text = format!(
        "Switchover: {CONNECTIONS} connections, {per_second:.0} orders/s (throughput {most:.0}/s)\n  \
         longest gap between acknowledged orders, in ms\n  cell   {outages}\n  \
         target: median at most {TARGET_MS:.0} ms: {}\n  \
         attempts that failed: {errors} of {} orders; acknowledged orders lost: {lost}\n  \
         steps, medians in ms since it was asked for\n{}",
        verdict(outages.median(), TARGET_MS),
        load.acknowledged(),
        steps.table(),
    );
    let json = json!({
        "connections": CONNECTIONS, "orders_per_s": rounded(per_second), "throughput_per_s": rounded(most),
        "outage_ms": outages.json(), "errors": errors, "orders": load.acknowledged(), "lost": lost, "steps": steps.json(),
    });
    Ok((text, json, lost))
}
