//! Which machines are lost, judged by their silence. Pure.
//!
//! Silence proves nothing: a machine that is not heard may be dead, or the one who listens may be deaf. So when many
//! machines of a large cell fall silent the detector is suspected first, and nothing is done before a person has looked.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use homeostat_model::MachineName;

/// An agent is started again within milliseconds, and speaks at once. Silence for longer than this is something else.
pub const LOST_AFTER: Duration = Duration::from_secs(6);
/// Silence for this long counts when it is asked whether many are silent at once: they never fall silent in the same
/// instant, and the first of them must not be called lost before the others are noticed.
const SUSPECT_AFTER: Duration = Duration::from_secs(3);
/// From this many machines on, more than a third silent is held.
const MANY: usize = 10;

/// What silence means for a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// Silent for long enough to be called lost, and not so many that the listener must be suspected.
    pub lost: Vec<MachineName>,
    pub held: Option<Held>,
}

/// Nothing is called lost: too many are silent at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub silent: Vec<MachineName>,
    pub of: usize,
}

/// `silent`: for how long each machine of the cell has not been heard; zero for those that speak.
pub fn judge(silent: &BTreeMap<MachineName, Duration>) -> Judgement {
    let silent_for = |limit: Duration| -> Vec<MachineName> {
        silent
            .iter()
            .filter(|(_, silence)| **silence >= limit)
            .map(|(machine, _)| machine.clone())
            .collect()
    };
    let lost = silent_for(LOST_AFTER);
    let suspects = silent_for(SUSPECT_AFTER);
    let of = silent.len();
    if of >= MANY && suspects.len() * 3 > of {
        return Judgement {
            lost: Vec::new(),
            held: Some(Held {
                silent: suspects,
                of,
            }),
        };
    }
    Judgement { lost, held: None }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.silent.iter().map(MachineName::as_str).collect();
        write!(
            f,
            "{} of {} machines are silent ({}): so many at once that the fault may be here, and nothing is moved; \
             look at them",
            self.silent.len(),
            self.of,
            names.join(", ")
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn cell(machines: usize, silent: usize) -> BTreeMap<MachineName, Duration> {
        (0..machines)
            .map(|n| {
                let silence = if n < silent {
                    LOST_AFTER
                } else {
                    Duration::ZERO
                };
                (MachineName::new(format!("m{n}")).unwrap(), silence)
            })
            .collect()
    }

    #[test]
    fn long_silence_is_a_loss_and_short_silence_is_none() {
        let mut machines = cell(3, 1);
        assert_eq!(judge(&machines).lost, [MachineName::new("m0").unwrap()]);
        for silence in machines.values_mut() {
            *silence = silence.saturating_sub(Duration::from_millis(1));
        }
        assert_eq!(judge(&machines).lost, []);
    }

    #[test]
    fn the_first_of_many_is_not_lost_before_the_others_are_noticed() {
        let mut machines = cell(12, 5);
        for silence in machines.values_mut().skip(1).take(4) {
            *silence = SUSPECT_AFTER;
        }
        let judgement = judge(&machines);
        assert_eq!(judgement.lost, []);
        assert!(judgement.held.is_some());
    }

    #[test]
    fn many_at_once_in_a_large_cell_are_held() {
        assert_eq!(
            judge(&cell(9, 9)).lost.len(),
            9,
            "small cells have no majority to ask"
        );
        assert_eq!(
            judge(&cell(12, 4)).lost.len(),
            4,
            "a third is no more than a third"
        );
        let held = judge(&cell(12, 5));
        assert_eq!(held.lost, []);
        assert!(
            held.held
                .unwrap()
                .to_string()
                .starts_with("5 of 12 machines are silent (m0, m1, m2, m3, m4)")
        );
    }
}
