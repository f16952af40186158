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
        if parts.next().is_some() {
            Err(BadGtid(text.to_owned()))
        } else {
            Ok(gtid)
        }
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

impl LogEnd {
    /// An empty log.
    pub const EMPTY: LogEnd = LogEnd {
        barrier: Epoch(0),
        last: None,
    };

    /// How this log stands to `other`, from their ends alone.
    ///
    /// Two logs that end in the same epoch are both prefixes of the one log that this epoch's holder wrote, so the
    /// sequence decides; another server in the last event means that somebody else wrote there. Logs that end in
    /// different epochs are told apart only when both members are known to be prefixes of the same holder's log: use
    /// [`LogEnd::compare_prefixes`] there. Here the answer is `Diverged` ("cannot be told"), which lets nothing happen.
    pub fn compare(&self, other: &LogEnd) -> LogOrder {
        match (self.last, other.last) {
            (None, None) => LogOrder::Same,
            (None, Some(_)) => LogOrder::Behind,
            (Some(_), None) => LogOrder::Ahead,
            (Some(a), Some(b)) => {
                if self.barrier != other.barrier || a.domain != b.domain || a.server != b.server {
                    return LogOrder::Diverged;
                }
                match a.sequence.cmp(&b.sequence) {
                    std::cmp::Ordering::Less => LogOrder::Behind,
                    std::cmp::Ordering::Equal => LogOrder::Same,
                    std::cmp::Ordering::Greater => LogOrder::Ahead,
                }
            }
        }
    }

    /// How two logs stand to each other that are both prefixes of one holder's log: members of the same A, whose
    /// received logs that holder contained when A was named (failover.md section 4, step 4), and that holder itself.
    ///
    /// An older barrier then means less log. Its sequence must be lower too: where it is not, the premise is wrong.
    pub fn compare_prefixes(&self, other: &LogEnd) -> LogOrder {
        let (Some(a), Some(b)) = (self.last, other.last) else {
            return self.compare(other);
        };
        match self.barrier.cmp(&other.barrier) {
            std::cmp::Ordering::Equal => self.compare(other),
            std::cmp::Ordering::Less if a.sequence < b.sequence => LogOrder::Behind,
            std::cmp::Ordering::Greater if a.sequence > b.sequence => LogOrder::Ahead,
            std::cmp::Ordering::Less | std::cmp::Ordering::Greater => LogOrder::Diverged,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(barrier: u64, server: u32, sequence: u64) -> LogEnd {
        LogEnd {
            barrier: Epoch(barrier),
            last: Some(Gtid {
                domain: 0,
                server,
                sequence,
            }),
        }
    }

    #[test]
    fn logs_of_one_epoch_compare_by_sequence() {
        assert_eq!(end(3, 1, 5).compare(&end(3, 1, 5)), LogOrder::Same);
        assert_eq!(end(3, 1, 5).compare(&end(3, 1, 6)), LogOrder::Behind);
        assert_eq!(end(3, 1, 7).compare(&end(3, 1, 6)), LogOrder::Ahead);
        assert_eq!(end(3, 1, 5).compare(&end(3, 2, 6)), LogOrder::Diverged);
        assert_eq!(LogEnd::EMPTY.compare(&end(3, 2, 6)), LogOrder::Behind);
    }

    #[test]
    fn a_larger_sequence_of_an_older_epoch_is_no_advantage() {
        assert_eq!(end(3, 1, 900).compare(&end(4, 2, 6)), LogOrder::Diverged);
        assert_eq!(
            end(3, 1, 900).compare_prefixes(&end(4, 2, 6)),
            LogOrder::Diverged
        );
        assert_eq!(
            end(3, 1, 5).compare(&end(4, 2, 6)),
            LogOrder::Diverged,
            "it cannot be told from the ends"
        );
        assert_eq!(
            end(3, 1, 5).compare_prefixes(&end(4, 2, 6)),
            LogOrder::Behind
        );
    }
}
