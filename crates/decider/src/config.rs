//! What a decider is told once, when it begins: the fixed membership and the bounds of its waits.

use std::collections::BTreeMap;
use std::time::Duration;

use homeostat_model::{RackName, ServiceName};
use serde::{Deserialize, Serialize};

use crate::MemberId;

/// One cluster, as a decider sees it. There is no `Default`: each bound is a decision of whoever wires the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub cluster: ServiceName,
    /// All members, sorted; fixed for the life of a decider.
    pub members: Vec<MemberId>,
    /// Where a member stands; may be empty. Ackers are chosen in racks other than the holder's where possible.
    pub racks: BTreeMap<MemberId, RackName>,
    /// How many receipts make an acknowledgement. MariaDB: 1.
    pub k: u8,
    /// How many ackers a holder should have. MariaDB: 2 (all replicas of a cluster of three).
    pub ackers: usize,
    /// A switchover that took longer reinstates the old holder.
    pub switchover_bound: Duration,
    /// How long an order may take before its outcome is called unknown. Salvage and crash recovery take `slow_order`.
    pub order_timeout: Duration,
    /// The same for `Start` and `Drain`.
    pub slow_order: Duration,
    /// How long an order that was refused or failed is left alone before it is tried again.
    pub retry: Duration,
    /// How long an acker may be away before another member takes its place in A.
    pub replace_acker_after: Duration,
}

impl Config {
    /// The bounds used in production, for the given cluster. MariaDB: k = 1, two ackers.
    pub fn mariadb(
        cluster: ServiceName,
        mut members: Vec<MemberId>,
        racks: BTreeMap<MemberId, RackName>,
    ) -> Self {
        members.sort();
        members.dedup();
        Self {
            cluster,
            members,
            racks,
            k: 1,
            ackers: 2,
            switchover_bound: Duration::from_secs(10),
            order_timeout: Duration::from_secs(5),
            slow_order: Duration::from_secs(120),
            retry: Duration::from_millis(200),
            replace_acker_after: Duration::from_secs(30),
        }
    }
}

/// Elapsed time since the decider's process began; never a wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Now(pub Duration);

impl Now {
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(wait))
    }

    /// How long ago `earlier` was; zero when it is not earlier.
    pub fn since(self, earlier: Now) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}
