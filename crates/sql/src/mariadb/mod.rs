//! What is particular to MariaDB: how its data folder is made, which settings it runs with, and the statements that
//! an order of a decider turns into.
//!
//! Three things about its logs carry the rest and are worth knowing before reading on:
//! - **The epoch is in the sequence number** ([`gtid`]): a barrier commit jumps the GTID sequence to the start of its
//!   epoch's span, so the end of any log, applied or merely received, names the epoch of the last barrier in it.
//! - **A member that receives has another server id than one that writes** ([`Peer::receiving_id`]): otherwise it would
//!   skip its own writes when it gets them back, and lose them without a word.
//! - **Nothing is ever "received" by hope**: what a relay log holds is read from its files ([`relay`]), and what was
//!   received but not applied when a server stopped is applied from there ([`salvage`]) before replication may start
//!   again, because a plain `START SLAVE` would purge it.

pub mod accounts;
mod driver;
mod facts;
pub mod gtid;
mod holder;
mod receiver;
pub mod relay;
pub mod salvage;
pub mod settings;
pub mod template;

pub use driver::{Driver, Login, SqlError, text};
pub use facts::{Known, Reading, read};
pub use holder::{
    Application, admit, barrier, demote, expel, forget_source, keep_alive, open, take_over,
};
pub use receiver::{Hearing, drain, receive, repoint, stop_receiving};

use std::time::Duration;

use homeostat_decider::{MemberId, Record};

use crate::keeper::config::{KeeperConfig, Peer};

/// The longest a statement that changes no data may take before its connection is killed.
pub const STATEMENT: Duration = Duration::from_secs(5);

/// What carrying out an order needs besides the connection.
pub struct Member<'a> {
    pub config: &'a KeeperConfig,
    pub member: &'a MemberId,
    /// The order's record.
    pub record: &'a Record,
    pub data: &'a std::path::Path,
    pub run: &'a std::path::Path,
}

impl Member<'_> {
    /// This member's entry in its configuration.
    fn own(&self) -> Result<&Peer, SqlError> {
        let own = self.config.members.get(self.member);
        own.ok_or_else(|| {
            SqlError::Condition(format!("{} is not in its own configuration", self.member))
        })
    }
}
