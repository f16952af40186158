//! Runs seeds of the simulated cluster. `--seeds N [--from S]`, or `--seed S --trace` to look at one.

use std::time::Instant;

use homeostat_decider::sim::{Plan, Scene, Tally, Trace};
use homeostat_decider::{Mutation, Rules};

fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut from, mut seeds, mut trace, mut rules) = (0, 1000, Trace::Silent, Rules::ALL_KEPT);
    let mut scene = Scene::Anything;
    let mut first_only = false;
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse::<u64>().ok());
        match argument.as_str() {
            "--seeds" => seeds = number().unwrap_or(seeds),
            "--from" => from = number().unwrap_or(from),
            "--seed" => (from, seeds) = (number().unwrap_or(from), 1),
            "--scene" => {
                let name = arguments.next().unwrap_or_default();
                let Some(named) = Scene::ALL
                    .into_iter()
                    .find(|scene| format!("{scene:?}") == name)
                else {
                    eprintln!("no such scene: {name}; scenes: {:?}", Scene::ALL);
                    return std::process::ExitCode::from(2);
                };
                scene = named;
            }
            "--first" => first_only = true,
            "--trace" => trace = Trace::Print,
            "--break" => {
                let name = arguments.next().unwrap_or_default();
                let Some(rule) = Mutation::ALL
                    .into_iter()
                    .find(|rule| format!("{rule:?}") == name)
                else {
                    eprintln!("no such rule: {name}; rules: {:?}", Mutation::ALL);
                    return std::process::ExitCode::from(2);
                };
                rules = Rules(Some(rule));
            }
            _ => {
                eprintln!(
                    "usage: sim [--seeds N] [--from S] [--seed S] [--scene SCENE] [--first] [--trace] [--break RULE]"
                );
                return std::process::ExitCode::from(2);
            }
        }
    }
    #[expect(clippy::disallowed_methods, reason = "how fast it runs, for people")]
    let begun = Instant::now();
    let (mut events, mut writes, mut epochs, mut failures) = (0, 0, 0, 0);
    let mut tally = Tally::default();
    let mut ran = 0;
    for seed in from..from + seeds {
        if first_only && failures > 0 {
            break;
        }
        ran += 1;
        let outcome = Plan {
            rules,
            trace,
            scene,
            ..Plan::seeded(seed)
        }
        .run();
        events += outcome.events;
        writes += outcome.writes;
        epochs += outcome.last_epoch.0;
        tally.add(&outcome.tally);
        if let Some(broken) = outcome.broken {
            failures += 1;
            println!("seed {seed}: {broken}");
            println!(
                "  replay: cargo run --release -p homeostat-decider --features sim --example sim -- --seed {seed} --trace"
            );
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{ran} seeds from {from}: {failures} failures, {events} events, {writes} writes, {epochs} epochs; {seconds:.1} s, {:.0} events/s",
        events as f64 / seconds
    );
    println!("{tally}");
    if failures == 0 {
        std::process::ExitCode::SUCCESS
    } else {
        std::process::ExitCode::FAILURE
    }
}
