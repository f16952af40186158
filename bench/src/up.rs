//! Figure 1: from a built binary to all checks passing.
//!
//! Cold: nothing is there, so the servers' template is made first. Warm: a new cell, with the template of an earlier one
//! put into its state folder. The time is that of `homeostat up --detach`, from its start to its return.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::cell::Cell;
use crate::plan::Plan;
use crate::programs::Programs;
use crate::stats::{Distribution, rounded, verdict};

const TARGET_S: f64 = 10.0;

pub async fn measure(
    plan: &Plan,
    programs: &Programs,
    file: &Path,
    folder: &Path,
) -> anyhow::Result<(String, Value)> {
    let kept = folder.join("template");
    let (cell, cold) = Cell::up(programs, file, &folder.join("cold")).await?;
    copy(&folder.join("cold/shared"), &kept)?;
    cell.down().await?;
    eprintln!("up: cold {:.1} s", cold.as_secs_f64());
    let mut warm = Vec::new();
    for round in 1..=plan.ups {
        let state = folder.join(format!("warm-{round}"));
        std::fs::create_dir(&state).with_context(|| format!("make {}", state.display()))?;
        open(&state)?;
        copy(&kept, &state.join("shared"))?;
        let (cell, took) = Cell::up(programs, file, &state).await?;
        cell.down().await?;
        eprintln!(
            "up: warm {round} of {}: {:.1} s",
            plan.ups,
            took.as_secs_f64()
        );
        warm.push(took.as_secs_f64());
    }
    let warm = Distribution::of(warm).context("no warm start was measured")?;
    let text = format!(
        "Up: from a built binary to all checks passing, in s\n  \
         cold, the template is made   {:>9.1}\n  \
         warm, the template is there  {warm}\n  \
         target: median at most {TARGET_S:.0} s with a template: {}\n",
        cold.as_secs_f64(),
        verdict(warm.median(), TARGET_S),
    );
    Ok((
        text,
        json!({"cold_s": rounded(cold.as_secs_f64()), "warm_s": warm.json()}),
    ))
}

/// With its owners and modes: the tasks' user owns the template.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let status = Command::new("cp")
        .args(["-a", "--sparse=always"])
        .arg(from)
        .arg(to)
        .status()
        .context("run cp")?;
    if !status.success() {
        bail!("cannot copy {} to {}", from.display(), to.display());
    }
    Ok(())
}

/// The tasks' user passes through.
pub fn open(folder: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711))
        .with_context(|| format!("open the way through {}", folder.display()))
}
