//! What a decider is told once, when it begins: the fixed membership and the bounds of its waits.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::Duration;

use homeostat_model::{Profile, RackName, Reads, ServiceName};
use serde::{Deserialize, Serialize};

use crate::MemberId;

/// L where nobody says otherwise; keepers are given the same ([`crate::KeeperCore::with_lease`]).
pub const LEASE: Duration = Duration::from_secs(5);

/// Six in H, and not so rare that they would add much to it.
fn pulse_of(profile: Profile) -> Duration {
    (profile.hang() / 6).min(Duration::from_millis(100))
}

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
    /// How long the rest is left alone after a new primary was opened: starting servers and pointing them anew takes the
    /// processor and the disk just when all clients connect again.
    pub settle: Duration,
    /// How long an acker may be away before another member takes its place in A.
    pub replace_acker_after: Duration,
    /// How long after a failed copy another one is begun.
    pub rebuild_retry: Duration,
    /// An empty member of the first epoch with fewer transactions than this replicates them all instead of being copied.
    pub short_log: u64,
    /// Bytes a second at which a *holder* lends a copy: it has clients. Replicas lend as fast as they can.
    pub holder_pace: Option<NonZeroU64>,
    /// H: how long a server may answer no read, or a keeper's stream and replication be silent, before that is a fault.
    /// What is *proved* never waits for it.
    pub silence: Duration,
    /// How often keepers report and servers send heartbeats to their replicas. Silence counts only beyond it, so that a stall
    /// shorter than H is never taken for one of H.
    pub pulse: Duration,
    /// L: how long a holder's server stays open after the last renewal of its lease.
    pub lease: Duration,
    /// What a keeper may need from the end of its lease until its server is gone.
    pub kill_time: Duration,
    /// Who may become primary; members that are not named are neutral.
    pub promotion: BTreeMap<MemberId, Promotion>,
    pub automatic: Automatic,
    /// Whether a new primary waits until nobody can read at the old one any more.
    pub reads: Reads,
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
            settle: Duration::from_millis(300),
            replace_acker_after: Duration::from_secs(30),
            rebuild_retry: Duration::from_secs(5),
            short_log: 1_000,
            holder_pace: NonZeroU64::new(256 << 20),
            silence: Profile::Steady.hang(),
            pulse: pulse_of(Profile::Steady),
            lease: LEASE,
            kill_time: Duration::from_millis(500),
            promotion: BTreeMap::new(),
            automatic: Automatic::On,
            reads: Reads::Bounded,
        }
    }

    pub(crate) fn promotion_of(&self, member: &MemberId) -> Promotion {
        self.promotion
            .get(member)
            .copied()
            .unwrap_or(Promotion::Neutral)
    }

    /// With H by a profile: `steady` is what [`Config::mariadb`] gives, since virtual machines do stall for a second or two.
    #[must_use]
    pub fn profile(self, profile: Profile) -> Self {
        Self {
            silence: profile.hang(),
            pulse: pulse_of(profile),
            ..self
        }
    }

    /// How long after the revocation a former holder may still be open: its lease by a clock that runs up to 1 % slow,
    /// and the kill.
    pub(crate) fn expiry(&self) -> Duration {
        self.lease
            .saturating_add(self.lease / 100)
            .saturating_add(self.kill_time)
    }
}

/// Whether a member may become primary. The first comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Promotion {
    Prefer,
    Neutral,
    /// Never, also not when nobody else has every acknowledged write: it is then waited for whoever may. For members that
    /// are too weak or too far, and for those that apply late on purpose. They are the last to become ackers.
    MustNot,
}

/// What happens at a fault of the primary without a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Automatic {
    On,
    /// The role does not move by itself. A primary whose server exited is started again in place, under a new epoch.
    Off,
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
