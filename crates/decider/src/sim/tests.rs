//! Many seeds, the same trace twice, and every broken rule caught.

use super::*;
use crate::Mutation;

#[test]
fn seeds_hold() {
    for seed in 0..1_500 {
        let outcome = Plan::seeded(seed).run();
        let replay = "cargo run --release -p homeostat-decider --features sim --example sim -- --trace --seed";
        assert_eq!(outcome.broken, None, "replay: {replay} {seed}");
        assert!(
            outcome.writes > 0 && outcome.last_epoch > Epoch(0),
            "seed {seed} did nothing: {outcome:?}"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    assert_eq!(Plan::seeded(7).run(), Plan::seeded(7).run());
    assert_ne!(Plan::seeded(7).run().hash, Plan::seeded(8).run().hash);
}

/// Leaves each rule out in turn: some seed within the budget must break a checker.
#[test]
fn every_broken_rule_is_caught() {
    for rule in Mutation::ALL {
        let caught = (0..3_000).find(|seed| {
            Plan {
                rules: Rules(Some(rule)),
                ..Plan::seeded(*seed)
            }
            .run()
            .broken
            .is_some()
        });
        assert!(caught.is_some(), "nothing went wrong without {rule:?}");
    }
}
