//! The fencing number of a decider.
//!
//! The cell's term numbers controllers. A decider needs more: each *instance* numbers its orders from one, and a keeper
//! refuses a sequence that it has seen in the same term. So two deciders of one controller (after a turndown that was
//! called back, or after a restart of the service's own process) must differ. Each takes its number from the key
//! `leader`, by compare-and-set: higher than every earlier one, and never for a controller older than the last.

use homeostat_api::{Refusal, RefusalKind};
use homeostat_model::Term;
use serde::{Deserialize, Serialize};

use super::own::{Changed, Own};

const KEY: &str = "leader";

/// Version 1: fields are only added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Leader {
    /// Of the controller that the last decider worked for.
    cell: u64,
    /// The last number taken.
    number: u64,
}

/// Takes the next number, for a controller of the given term.
pub(super) async fn take(own: &Own, cell: u64) -> Result<Term, Refusal> {
    let taken = own
        .update(KEY, |last: Option<Leader>| {
            next(last.as_ref(), cell).map(Changed::To)
        })
        .await?;
    Ok(Term(taken.number))
}

fn next(last: Option<&Leader>, cell: u64) -> Result<Leader, Refusal> {
    let Some(last) = last else {
        return Ok(Leader {
            cell,
            number: cell.max(1),
        });
    };
    if last.cell > cell {
        let why = format!(
            "a controller of term {} acts; this one has term {cell}",
            last.cell
        );
        return Err(Refusal::new(RefusalKind::Stale, why));
    }
    Ok(Leader {
        cell,
        number: last.number.saturating_add(1).max(cell),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_decider_gets_a_higher_number_and_an_old_controller_none() {
        let first = next(None, 7).unwrap();
        assert_eq!(first, Leader { cell: 7, number: 7 });
        let again = next(Some(&first), 7).unwrap();
        assert_eq!(again.number, 8);
        assert_eq!(
            next(Some(&again), 8).unwrap().number,
            9,
            "also when the cell's term has not caught up"
        );
        assert_eq!(next(Some(&again), 20).unwrap().number, 20);
        assert_eq!(next(Some(&again), 6).unwrap_err().kind, RefusalKind::Stale);
    }
}
