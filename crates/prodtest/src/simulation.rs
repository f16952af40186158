//! The engine in a world of its own: random graphs, faults, flakes, slow and lost probes, on a virtual clock.
//!
//! `world` makes things happen, `checkers` watches from outside and knows nothing of how the engine works. A run is a
//! function of its seed. Safety is checked after every step; liveness in calm phases at the end, in which nothing
//! new happens and the verdicts have to become exactly the truth.

mod checkers;
mod world;

use crate::rules::{Rule, Rules};
use world::World;

/// Enough that each broken rule is noticed many times over.
const SEEDS: u64 = 1000;

/// Runs one world to its end.
fn simulate(seed: u64, rules: Rules) -> Result<u64, String> {
    let mut world = World::new(seed, rules);
    world.chaos()?;
    world.calm_with_nothing_broken()?;
    world.calm_with_something_broken()?;
    world.calm_with_nothing_broken()?;
    Ok(world.trace_hash())
}

#[test]
fn all_rules_hold_in_all_worlds() {
    for seed in 0..SEEDS {
        if let Err(violation) = simulate(seed, Rules::ALL_HOLD) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn breaking_any_rule_is_noticed() {
    for rule in Rule::ALL {
        let noticed = (0..SEEDS).find_map(|seed| simulate(seed, Rules::without(rule)).err());
        let violation = noticed.unwrap_or_else(|| panic!("nobody notices when {rule:?} is broken"));
        println!("{rule:?}: {violation}");
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
