//! Distributions of what was measured. Everything is told with its spread: a lone median hides what hurts.

use std::fmt;

use serde_json::{Value, json};

/// At least one value, sorted.
#[derive(Debug, Clone)]
pub struct Distribution(Vec<f64>);

impl Distribution {
    /// `None` of nothing.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        (!sorted.is_empty()).then_some(Self(sorted))
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub fn best(&self) -> f64 {
        self.rank(1)
    }

    pub fn worst(&self) -> f64 {
        self.rank(self.0.len())
    }

    /// Of an even number the mean of the middle two.
    pub fn median(&self) -> f64 {
        let n = self.0.len();
        (self.rank(n.div_ceil(2)) + self.rank(n / 2 + 1)) / 2.0
    }

    /// The smallest value that at least 95 % do not exceed.
    pub fn p95(&self) -> f64 {
        self.rank((self.0.len() * 95).div_ceil(100))
    }

    /// An interval that holds the median of what was sampled with a confidence of at least 95 %: two order statistics,
    /// symmetric, by the binomial distribution of how many samples fall below the median. It assumes nothing of the
    /// distribution's shape. `None` below six samples: no such interval exists.
    pub fn median_interval(&self) -> Option<(f64, f64)> {
        let n = self.0.len();
        let mut below = 0.0;
        // The chance that exactly `k` of `n` fall below.
        let mut exactly = 0.5f64.powi(i32::try_from(n).ok()?);
        let mut outermost = 0;
        for k in 0..n / 2 {
            below += exactly;
            if below > 0.025 {
                break;
            }
            outermost = k + 1;
            exactly *= (n - k) as f64 / (k + 1) as f64;
        }
        (outermost > 0).then(|| (self.rank(outermost), self.rank(n + 1 - outermost)))
    }

    /// By rank, from 1.
    fn rank(&self, rank: usize) -> f64 {
        self.0[rank.clamp(1, self.0.len()) - 1]
    }

    pub fn json(&self) -> Value {
        json!({
            "n": self.count(), "best": rounded(self.best()), "median": rounded(self.median()),
            "p95": rounded(self.p95()), "worst": rounded(self.worst()),
            "sorted": self.0.iter().copied().map(rounded).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "median {:>9.1}   p95 {:>9.1}   worst {:>9.1}   best {:>9.1}   (n = {})",
            self.median(),
            self.p95(),
            self.worst(),
            self.best(),
            self.count()
        )
    }
}

/// To a thousandth: more digits are noise.
pub fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// Whether a figure is within its target, for people. Nothing fails because of it: a figure of a busy machine says
/// little.
pub fn verdict(value: f64, at_most: f64) -> &'static str {
    if value <= at_most { "met" } else { "NOT met" }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn up_to(n: u32) -> Distribution {
        Distribution::of((1..=n).rev().map(f64::from)).unwrap()
    }

    #[test]
    fn quantiles_are_of_the_sample() {
        assert!(Distribution::of([]).is_none());
        let one = up_to(1);
        assert_eq!(
            (one.best(), one.median(), one.p95(), one.worst()),
            (1.0, 1.0, 1.0, 1.0)
        );
        let even = up_to(20);
        assert_eq!(
            (even.median(), even.p95(), even.worst()),
            (10.5, 19.0, 20.0)
        );
        assert_eq!(up_to(5).median(), 3.0);
    }

    /// The ranks that tables of the sign test's interval give.
    #[test]
    fn the_interval_of_the_median_is_the_tables_one() {
        assert_eq!(up_to(5).median_interval(), None);
        assert_eq!(up_to(6).median_interval(), Some((1.0, 6.0)));
        assert_eq!(up_to(10).median_interval(), Some((2.0, 9.0)));
        assert_eq!(up_to(30).median_interval(), Some((10.0, 21.0)));
    }
}
