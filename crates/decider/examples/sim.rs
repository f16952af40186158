//! Runs seeds of the simulated cluster. `--seeds N [--from S]`, or `--seed S --trace` to look at one.

use std::time::Instant;

use homeostat_decider::sim::{Plan, Trace};
use homeostat_decider::{Mutation, Rules};

fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut from, mut seeds, mut trace, mut rules) = (0, 1000, Trace::Silent, Rules::ALL_KEPT);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse::<u64>().ok());
        match argument.as_str() {
            "--seeds" => seeds = number().unwrap_or(seeds),
            "--from" => from = number().unwrap_or(from),
            "--seed" => (from, seeds) = (number().unwrap_or(from), 1),
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
                eprintln!("usage: sim [--seeds N] [--from S] [--seed S] [--trace] [--break RULE]");
                return std::process::ExitCode::from(2);
            }
        }
    }
    let begun = Instant::now();
    let (mut events, mut writes, mut epochs, mut rebuilt, mut failures) = (0, 0, 0, 0, 0);
    for seed in from..from + seeds {
        let outcome = Plan {
            rules,
            trace,
            ..Plan::seeded(seed)
        }
        .run();
        events += outcome.events;
        writes += outcome.writes;
        epochs += outcome.last_epoch.0;
        rebuilt += outcome.rebuilt;
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
        "{seeds} seeds from {from}: {failures} failures, {events} events, {writes} writes, {epochs} epochs, {rebuilt} rebuilt; {seconds:.1} s, {:.0} events/s",
        events as f64 / seconds
    );
    if failures == 0 {
        std::process::ExitCode::SUCCESS
    } else {
        std::process::ExitCode::FAILURE
    }
}
