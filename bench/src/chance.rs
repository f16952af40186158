//! Seeded chance: a run's waits can be repeated, its machine cannot.

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

pub struct Chance(Pcg64Mcg);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(Pcg64Mcg::seed_from_u64(seed))
    }

    /// 0 ≤ result < `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64() % bound.max(1)
    }
}
