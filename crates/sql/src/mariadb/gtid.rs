//! How the epoch of a barrier is told from a GTID.
//!
//! Logs compare by (epoch of the last barrier row, GTID), but a keeper must say where a *received* log ends too, whose
//! last barrier row may not have been applied yet. Reading it from the relay log, event by event, would cost a scan at
//! the worst moment. So the barrier says it itself: the first event of epoch `e` is its barrier, and it is given the
//! sequence number `e * SPAN`. The sequence only has to rise (`gtid_strict_mode`), gaps are legal, and only the keeper's
//! account may set `gtid_seq_no` (`BINLOG REPLAY`). Between the start of an epoch and its barrier nothing else is
//! written: the server is read_only and the keeper's own changes are unlogged. Hence, for every event of such a log,
//! `sequence / SPAN` is the epoch of the last barrier at or before it; 0 where there was none.
//!
//! An unacknowledged tail of epoch `e` cannot reach into the numbers of `e + 1`: it would take 10^12 transactions in one
//! epoch (three years at ten thousand a second); then the next barrier fails loudly instead of being misread.

use homeostat_decider::{Gtid, LogEnd};
use homeostat_model::Epoch;

/// Sequence numbers per epoch. Decimal, so that people can read it: `0-2-3000000000042` is event 42 of epoch 3.
pub const SPAN: u64 = 1_000_000_000_000;

/// The one replication domain of every cluster.
pub const DOMAIN: u32 = 0;

/// A position that this project's servers cannot have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the position '{0}' is not one GTID of domain 0")]
pub struct BadPosition(String);

/// The sequence number of an epoch's barrier; `None` when the epoch is beyond what 64 bits number.
pub fn first_of(epoch: Epoch) -> Option<u64> {
    epoch.0.checked_mul(SPAN)
}

/// The epoch of the last barrier at or before an event.
pub fn epoch_of(gtid: Gtid) -> Epoch {
    Epoch(gtid.sequence / SPAN)
}

/// How many events of its epoch come after the barrier, up to and including this one.
pub fn after_barrier(gtid: Gtid) -> u64 {
    gtid.sequence % SPAN
}

/// The end of a log whose last event is `last`.
pub fn log_end(last: Option<Gtid>) -> LogEnd {
    LogEnd {
        barrier: last.map_or(Epoch(0), epoch_of),
        last,
    }
}

/// Reads `gtid_binlog_pos` and its like: empty, or one GTID, since there is one domain.
///
/// # Errors
/// [`BadPosition`] for anything else: several domains mean that somebody wrote with a `gtid_domain_id` of their own.
pub fn position(text: &str) -> Result<Option<Gtid>, BadPosition> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<Gtid>() {
        Ok(gtid) if gtid.domain == DOMAIN => Ok(Some(gtid)),
        Ok(_) | Err(_) => Err(BadPosition(text.to_owned())),
    }
}

/// Whether `left` has events after `right`, given that one is a prefix of the other.
pub fn beyond(left: Option<Gtid>, right: Option<Gtid>) -> bool {
    left.map_or(0, |gtid| gtid.sequence) > right.map_or(0, |gtid| gtid.sequence)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn positions_name_the_epoch_of_the_last_barrier() {
        assert_eq!(
            log_end(position("").unwrap()),
            LogEnd {
                barrier: Epoch(0),
                last: None
            }
        );
        let before = position("0-1-17").unwrap();
        assert_eq!(log_end(before).barrier, Epoch(0));
        let barrier = position("0-1-3000000000000").unwrap();
        assert_eq!(log_end(barrier).barrier, Epoch(3));
        assert_eq!(first_of(Epoch(3)), Some(barrier.unwrap().sequence));
        assert!(beyond(barrier, before) && beyond(before, None) && !beyond(before, before));
    }

    #[test]
    fn foreign_positions_are_refused() {
        for bad in ["1-1-1", "0-1-1,1-1-1", "x"] {
            assert!(position(bad).is_err(), "{bad} was accepted");
        }
        assert_eq!(first_of(Epoch(u64::MAX)), None);
    }
}
