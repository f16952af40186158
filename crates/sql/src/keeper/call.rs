//! What may be asked of a keeper through the supervisor protocol: the body of `Verb::Call`.

use homeostat_decider::{LeaseGrant, Order};
use serde::{Deserialize, Serialize};

/// Answered with `Answer::Called`. Unknown calls are refused, so that calls can be added.
#[allow(
    clippy::large_enum_variant,
    reason = "one at a time, and it is handed on at once"
)]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask")]
pub enum KeeperCall {
    /// Answered with an `OrderReply` when it is over, which may take minutes (`Start`, `Drain`) or be at once (refused).
    Order { order: Order },
    /// The serving lease that a [`super::KeeperSign`] asked for. Answered with nothing.
    Grant { grant: LeaseGrant },
    /// Answered with the `MemberReport` as of now. The same is pushed at every change, so this is for people and tests.
    Report,
}
