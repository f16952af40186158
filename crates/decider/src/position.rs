//! Positions in a replicated log, and why they have no maximum.
//!
//! Logs compare by (epoch of the last barrier row, GTID), never by sequence number alone: a former primary's
//! unacknowledged tail may carry larger sequence numbers than the history that replaced it (failover.md section 3).

use std::fmt;
use std::str::FromStr;

use homeostat_model::Epoch;
use serde::{Deserialize, Serialize};

/// A MariaDB global transaction id, `domain-server-sequence`. This project uses one domain per cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Gtid {
    pub domain: u32,
    pub server: u32,
    pub sequence: u64,
}

impl fmt::Display for Gtid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.domain, self.server, self.sequence)
    }
}

/// A text is not a GTID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a GTID (domain-server-sequence)")]
pub struct BadGtid(String);

impl FromStr for Gtid {
    type Err = BadGtid;
    fn from_str(text: &str) -> Result<Self, BadGtid> {
        let mut parts = text.trim().split('-');
        let mut next = || parts.next().ok_or_else(|| BadGtid(text.to_owned()));
        let (domain, server, sequence) = (next()?, next()?, next()?);
        let bad = |_| BadGtid(text.to_owned());
        let gtid = Self {
            domain: domain.parse().map_err(bad)?,
            server: server.parse().map_err(bad)?,
            sequence: sequence.parse().map_err(bad)?,
        };
        if parts.next().is_some() { Err(BadGtid(text.to_owned())) } else { Ok(gtid) }
    }
}

/// Where a log ends: the last barrier row in it and the last event. `None`: the log has no event at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEnd {
    /// The epoch of the last barrier row contained; 0 where there is none yet.
    pub barrier: Epoch,
    pub last: Option<Gtid>,
}

/// How one log stands to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogOrder {
    Same,
    /// The left log is a proper prefix of the right one.
    Behind,
    /// The right log is a proper prefix of the left one.
    Ahead,
    /// Each has something that the other lacks, or it cannot be told.
    Diverged,
}
