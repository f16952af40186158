//! The failover core of a SQL cluster, as failover.md specifies it. Pure: no IO, no clock, no async, no locks.
//!
//! Two state machines and the words they exchange:
//! - the **decider** ([`Record`] + what keepers reported → effects), run by the controller, one per cluster;
//! - the **keeper core** (what was persisted + an [`Order`] → obey or refuse), run beside each member's server.
//!
//! The real keeper (`homeostat-sql`) and the simulated world of the tests drive the same two.

mod config;
mod decider;
mod io;
mod keeper;
mod lease;
mod order;
mod position;
mod proof;
mod record;
mod report;
mod rules;
#[cfg(any(test, feature = "sim"))]
pub mod sim;

pub use config::{Automatic, Config, LEASE, Now, Promotion};
pub use decider::Decider;
pub use io::{
    CasOutcome, Effect, Evidence, Input, MemberView, Note, NoteEvent, RebuildNote, RebuildReason,
    RebuildStage, SwitchoverRefused, View, Wait,
};
pub use keeper::{Decision, KeeperCore, Kept};
pub use lease::{BootTime, LeaseGrant, LeaseRequest};
pub use order::{
    Acker, CopyOffer, CopyToken, Former, KeeperIncarnation, Order, OrderHeader, OrderOutcome,
    OrderReply, Recovery, Refusal, Source, Verb,
};
pub use position::{BadGtid, Gtid, LogEnd, LogOrder};
pub use proof::{CompleteProof, FenceProof};
pub use record::{MemberId, Phase, Record, Unclosed};
pub use report::{
    BootId, MemberReport, Pulse, RebuildState, Receiver, ServerFacts, ServerIncarnation,
    ServerState,
};
#[cfg(any(test, feature = "sim"))]
pub use rules::{Mutation, Rules};
