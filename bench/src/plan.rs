//! How much is measured.

use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Plan {
    /// Warm starts.
    pub ups: u32,
    pub kills: u32,
    pub switchovers: u32,
    /// The idle cell is watched for so long, after it settled for so long.
    pub idle: Duration,
    pub settle: Duration,
    /// Throughput is measured for so long, after a load of so long that does not count.
    pub throughput: Duration,
    pub warm_up: Duration,
}

impl Plan {
    /// Enough for figures that can be quoted.
    pub fn full() -> Self {
        Self {
            ups: 5,
            kills: 30,
            switchovers: 20,
            idle: Duration::from_secs(300),
            settle: Duration::from_secs(15),
            throughput: Duration::from_secs(10),
            warm_up: Duration::from_secs(2),
        }
    }

    /// Enough to see that it works.
    pub fn quick() -> Self {
        Self {
            ups: 2,
            kills: 4,
            switchovers: 3,
            idle: Duration::from_secs(30),
            settle: Duration::from_secs(5),
            throughput: Duration::from_secs(2),
            warm_up: Duration::from_secs(1),
        }
    }
}
