//! The engine in a world of its own: random graphs, faults, flakes, slow and lost probes, and fixes of every kind, on a
//! virtual clock.
//!
//! `world` makes things happen, `crew` applies fixes, `checkers` and `repairs` watch from outside and know nothing of
//! how the engine works. A run is a
//! function of its seed. Safety is checked after every step; liveness in calm phases at the end, in which nothing
//! new happens and the verdicts have to become exactly the truth.

mod checkers;
mod crew;
mod flakes;
mod repairs;
mod world;

use crate::Rounds;
use crate::rules::{Rule, Rules};
use world::{Tally, World};

/// Enough that each broken rule is noticed many times over. More are run by building the test with HOMEOSTAT_SEEDS set.
const SEEDS: u64 = 400;

/// How many worlds to run, as asked for when this was compiled.
fn seeds() -> u64 {
    let asked = option_env!("HOMEOSTAT_SEEDS").and_then(|text| text.parse().ok());
    asked.unwrap_or(SEEDS)
}

/// Runs one world to its end.
fn simulate(seed: u64, rules: Rules) -> Result<u64, String> {
    simulate_and_count(seed, rules, &mut Tally::default())
}

fn simulate_and_count(seed: u64, rules: Rules, tally: &mut Tally) -> Result<u64, String> {
    let mut world = World::new(seed, rules, Rounds::Endless);
    world.chaos()?;
    world.calm_with_nothing_broken()?;
    world.calm_with_something_broken()?;
    world.calm_with_nothing_broken()?;
    tally.add(&world.tally);
    Ok(world.trace_hash())
}

#[test]
fn all_rules_hold_in_all_worlds() {
    let mut tally = Tally::default();
    for seed in 0..seeds() {
        if let Err(violation) = simulate_and_count(seed, Rules::ALL_HOLD, &mut tally) {
            panic!("seed {seed}: {violation}");
        }
    }
    println!(
        "{} worlds, {} evaluations, {} fixes",
        seeds(),
        tally.evaluations,
        tally.fixes
    );
    for ((was, is), count) in &tally.transitions {
        println!("{was:>8} -> {is:<8} {count:>10}");
    }
    assert!(tally.fixes > 1000, "{tally:?}");
}

#[test]
fn breaking_any_rule_is_noticed() {
    // Needless fixes are counted for the quarantine: `flakes` sees to it.
    let rules = Rule::ALL
        .iter()
        .filter(|rule| **rule != Rule::CountNeedlessFixes);
    for &rule in rules {
        let noticed = (0..SEEDS).find_map(|seed| simulate(seed, Rules::without(rule)).err());
        let violation = noticed.unwrap_or_else(|| panic!("nobody notices when {rule:?} is broken"));
        println!("{rule:?}: {violation}");
    }
}

#[test]
fn one_round_has_an_end_and_leaves_nothing_open() {
    for seed in 0..SEEDS * 10 {
        let mut world = World::new(seed, Rules::ALL_HOLD, Rounds::One);
        if let Err(violation) = world.one_round() {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn same_seed_same_trace() {
    for seed in 0..20 {
        assert_eq!(
            simulate(seed, Rules::ALL_HOLD),
            simulate(seed, Rules::ALL_HOLD),
            "seed {seed}"
        );
    }
    assert_ne!(simulate(1, Rules::ALL_HOLD), simulate(2, Rules::ALL_HOLD));
}
