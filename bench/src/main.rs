//! Measures a cell: `cargo run --release -p homeostat-bench -- cell`; and torments one: `… -- soak` ([`soak`]).
//!
//! Four figures, a module each: how long a cell takes to come up ([`up`]), what it costs when nothing happens
//! ([`idle`]), how long its customers wait when the primary's server is killed ([`failover`], against the [`floor`]) and
//! when the primary is changed on purpose ([`switchover`]). Each prints its distribution, not a lone number, together
//! with commit, machine, filesystem and load average, and all go to a file as one line of JSON.
//!
//! These are figures, not tests: a target that is not met is printed as such and fails nothing, because on a busy
//! machine that would say nothing. An acknowledged order that was lost does fail the run.
//!
//! Everything runs on loopback, in a folder of its own, and is gone at the end, also after Ctrl-C: each part is taken
//! down when its owner is dropped, and dropping is how every way out ends.

mod cell;
mod chance;
mod failover;
mod floor;
mod idle;
mod load;
mod machine;
mod plan;
mod processes;
mod programs;
mod soak;
mod stats;
mod steps;
mod switchover;
mod up;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use cell::Cell;
use chance::Chance;
use floor::Floor;
use machine::Machine;
use plan::Plan;
use programs::Programs;

#[derive(Parser)]
#[command(version, about = "Measures homeostat")]
enum Bench {
    /// A whole cell: coming up, idling, failing over, switching over
    Cell(Options),
    /// Random real faults under load: nothing acknowledged is lost, and nobody is replaced without cause
    Soak(SoakOptions),
}

#[derive(clap::Args)]
struct SoakOptions {
    /// So many faults, each kind as often as the others
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    faults: u32,
    #[command(flatten)]
    place: Place,
}

/// Where a run happens, and what is written down.
#[derive(clap::Args)]
struct Place {
    /// Keep the state below this folder: its filesystem is the one that is measured
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    dir: PathBuf,
    /// Append the figures to this file, as one line of JSON [default: bench-cell.jsonl in the target folder]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// For what is left to chance
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

#[derive(clap::Args)]
struct Options {
    /// Measure this alone
    #[arg(long, value_enum)]
    only: Option<Figure>,
    /// Few rounds and short windows: to see that it works
    #[arg(long)]
    quick: bool,
    /// Kills of the primary's server, each followed by one of the floor's [default: 30]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    kills: Option<u32>,
    /// Changes of primary on purpose [default: 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    switchovers: Option<u32>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Figure {
    Up,
    Idle,
    Failover,
    Switchover,
}

fn main() -> ExitCode {
    let bench = Bench::parse();
    // The figures run on this thread (children are tied to it); the load has one of its own.
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")
        .and_then(|runtime| runtime.block_on(until_interrupted(&bench)));
    match outcome {
        Ok(0) => ExitCode::SUCCESS,
        Ok(lost) => {
            eprintln!("error: {lost} acknowledged orders are lost");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn until_interrupted(bench: &Bench) -> anyhow::Result<u64> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen to SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
    tokio::select! {
        lost = run(bench) => lost,
        _ = interrupt.recv() => bail!("interrupted; everything was taken down"),
        _ = terminate.recv() => bail!("terminated; everything was taken down"),
    }
}

/// Returns how many acknowledged orders were lost.
async fn run(bench: &Bench) -> anyhow::Result<u64> {
    let (name, place) = match bench {
        Bench::Cell(options) => ("cell", &options.place),
        Bench::Soak(options) => ("soak", &options.place),
    };
    let programs = Programs::find()?;
    let folder = tempfile::Builder::new()
        .prefix("homeostat-bench-")
        .tempdir_in(&place.dir)
        .with_context(|| format!("make a folder in {}", place.dir.display()))?;
    up::open(folder.path())?;
    let file = cell::write_cell_file(&programs, folder.path())?;
    let machine = Machine::look(&programs, folder.path(), place.seed)?;
    println!("{}", machine.text());
    let mut json =
        json!({"format": 1, "bench": name, "at_unix_s": unix_s(), "machine": machine.json()});
    let mut chance = Chance::new(place.seed);
    let scene = Scene {
        programs: &programs,
        file: &file,
        folder: folder.path(),
    };
    let lost = match bench {
        Bench::Cell(options) => figures(options, &scene, &mut chance, &mut json).await?,
        Bench::Soak(options) => {
            let (cell, _) = Cell::up(&programs, &file, &folder.path().join("cell")).await?;
            let (text, tallies, lost) = soak::run(options.faults, &cell, &mut chance).await?;
            tell(&mut json, "soak", (text, tallies));
            cell.down().await?;
            lost
        }
    };
    let path = json_path(place)?;
    append(&path, &json)?;
    eprintln!("the figures were added to {}", path.display());
    Ok(lost)
}

/// With what a cell is turned up, and where.
struct Scene<'a> {
    programs: &'a Programs,
    file: &'a Path,
    folder: &'a Path,
}

async fn figures(
    options: &Options,
    scene: &Scene<'_>,
    chance: &mut Chance,
    json: &mut Value,
) -> anyhow::Result<u64> {
    let plan = plan(options);
    json["quick"] = Value::from(options.quick);
    let wanted = |figure: Figure| options.only.is_none_or(|only| only == figure);
    let mut lost = 0;
    if wanted(Figure::Up) {
        let up = up::measure(&plan, scene.programs, scene.file, scene.folder).await?;
        tell(json, "up", up);
    }
    if options.only != Some(Figure::Up) {
        let (cell, _) = Cell::up(scene.programs, scene.file, &scene.folder.join("cell")).await?;
        if wanted(Figure::Idle) {
            tell(json, "idle", idle::measure(&plan, &cell).await?);
        }
        if wanted(Figure::Failover) {
            let model = cell.until_whole(0).await?.primary_pid;
            let mut floor = Floor::start(scene.programs, scene.folder, model).await?;
            let (text, figures, of_these) =
                failover::measure(&plan, &cell, &mut floor, chance).await?;
            tell(json, "failover", (text, figures));
            lost += of_these;
        }
        if wanted(Figure::Switchover) {
            let (text, figures, of_these) = switchover::measure(&plan, &cell, chance).await?;
            tell(json, "switchover", (text, figures));
            lost += of_these;
        }
        cell.down().await?;
    }
    Ok(lost)
}

fn plan(options: &Options) -> Plan {
    let mut plan = if options.quick {
        Plan::quick()
    } else {
        Plan::full()
    };
    plan.kills = options.kills.unwrap_or(plan.kills);
    plan.switchovers = options.switchovers.unwrap_or(plan.switchovers);
    plan
}

/// Each figure is printed as soon as it is there.
fn tell(json: &mut Value, figure: &str, (text, figures): (String, Value)) {
    println!("{text}");
    json[figure] = figures;
}

fn json_path(place: &Place) -> anyhow::Result<PathBuf> {
    if let Some(path) = &place.json {
        return Ok(path.clone());
    }
    let own = std::env::current_exe().context("find this program")?;
    // target/PROFILE/homeostat-bench
    let target = own
        .ancestors()
        .nth(2)
        .context("this program lies in no target folder")?;
    Ok(target.join("bench-cell.jsonl"))
}

fn append(path: &Path, json: &Value) -> anyhow::Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    let mut file = file.with_context(|| format!("open {}", path.display()))?;
    writeln!(file, "{json}").with_context(|| format!("write {}", path.display()))
}

fn unix_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
