//! The lifecycle of a machine, as the cell sees it.
//!
//! Two things are asked of a machine: is it *there* (its agent speaks), and is it *on duty* (it takes tasks)? Somebody
//! may empty a machine that then falls silent, and a machine that comes back is still to be emptied; so the one never
//! overwrites the other.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether tasks may be placed on a machine. Changed by people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Duty {
    Serving,
    /// Its tasks are being moved off.
    Draining,
    /// Nothing is on it, and nothing will be.
    Drained,
}

/// Where a machine is in its life. Changed by what is seen of its agent; [`Duty`] is kept through all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "presence")]
pub enum MachineState {
    Present {
        duty: Duty,
    },
    /// Its agent was silent for longer than the limit. What it ran may run still: only that nobody hears of it is
    /// certain. Its tasks are placed elsewhere under higher generations.
    Lost {
        duty: Duty,
    },
    /// Its agent speaks again. It takes nothing before what it still ran under older generations is stopped.
    Returning {
        duty: Duty,
    },
}

/// What happens to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineEvent {
    /// Its agent was silent for longer than the limit.
    Silence,
    /// Its agent has told what it runs.
    Spoke,
    /// Nothing of an older generation is on it any more.
    Emptied,
    DrainAsked,
    /// The last task is off it.
    DrainDone,
    UndrainAsked,
}

/// A pair of state and event that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a machine that is {state} cannot be {event}")]
pub struct IllegalMove {
    pub state: &'static str,
    pub event: &'static str,
}

impl MachineState {
    pub const READY: Self = MachineState::Present {
        duty: Duty::Serving,
    };

    pub fn duty(self) -> Duty {
        match self {
            MachineState::Present { duty }
            | MachineState::Lost { duty }
            | MachineState::Returning { duty } => duty,
        }
    }

    fn with(self, duty: Duty) -> Self {
        match self {
            MachineState::Present { .. } => MachineState::Present { duty },
            MachineState::Lost { .. } => MachineState::Lost { duty },
            MachineState::Returning { .. } => MachineState::Returning { duty },
        }
    }

    /// One word for tables.
    pub fn word(self) -> &'static str {
        match self {
            MachineState::Present {
                duty: Duty::Serving,
            } => "ready",
            MachineState::Present {
                duty: Duty::Draining,
            } => "draining",
            MachineState::Present {
                duty: Duty::Drained,
            } => "drained",
            MachineState::Lost { .. } => "lost",
            MachineState::Returning { .. } => "returning",
        }
    }

    /// The state after an event. Repeating an event changes nothing.
    ///
    /// # Errors
    /// [`IllegalMove`]: draining is done only where it was asked for.
    pub fn after(self, event: MachineEvent) -> Result<Self, IllegalMove> {
        let duty = self.duty();
        match (event, self) {
            (MachineEvent::Silence, _) => Ok(MachineState::Lost { duty }),
            (MachineEvent::Spoke, MachineState::Lost { .. }) => {
                Ok(MachineState::Returning { duty })
            }
            (
                MachineEvent::Spoke,
                MachineState::Present { .. } | MachineState::Returning { .. },
            ) => Ok(self),
            (
                MachineEvent::Emptied,
                MachineState::Returning { .. } | MachineState::Present { .. },
            ) => Ok(MachineState::Present { duty }),
            // Nobody can know that of a machine which is silent.
            (MachineEvent::Emptied, MachineState::Lost { .. }) => Err(self.refuses("emptied")),
            (MachineEvent::DrainAsked, _) => Ok(match duty {
                Duty::Serving | Duty::Draining => self.with(Duty::Draining),
                Duty::Drained => self,
            }),
            (MachineEvent::DrainDone, _) => match duty {
                Duty::Draining | Duty::Drained => Ok(self.with(Duty::Drained)),
                Duty::Serving => Err(self.refuses("drained: nobody asked for it")),
            },
            (MachineEvent::UndrainAsked, _) => Ok(self.with(Duty::Serving)),
        }
    }

    fn refuses(self, event: &'static str) -> IllegalMove {
        IllegalMove {
            state: self.word(),
            event,
        }
    }
}

impl fmt::Display for MachineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use MachineEvent::{DrainAsked, DrainDone, Emptied, Silence, Spoke, UndrainAsked};

    fn story(events: &[MachineEvent]) -> Vec<&'static str> {
        let mut state = MachineState::READY;
        let mut words = vec![state.word()];
        for event in events {
            state = state.after(*event).unwrap();
            words.push(state.word());
        }
        words
    }

    #[test]
    fn a_lost_machine_comes_back_empty_and_then_ready() {
        assert_eq!(
            story(&[Silence, Spoke, Emptied]),
            ["ready", "lost", "returning", "ready"]
        );
    }

    #[test]
    fn a_machine_lost_while_it_is_drained_goes_on_draining() {
        assert_eq!(
            story(&[DrainAsked, Silence, DrainDone, Spoke, Emptied, UndrainAsked]),
            [
                "ready",
                "draining",
                "lost",
                "lost",
                "returning",
                "drained",
                "ready"
            ]
        );
    }

    #[test]
    fn repeating_an_event_changes_nothing() {
        for events in [
            &[Silence][..],
            &[DrainAsked],
            &[DrainAsked, DrainDone],
            &[Silence, Spoke],
        ] {
            let mut state = MachineState::READY;
            for event in events {
                state = state.after(*event).unwrap();
                assert_eq!(state.after(*event), Ok(state), "{event:?} twice");
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(MachineState::READY.after(DrainDone).is_err());
        let lost = MachineState::READY.after(Silence).unwrap();
        assert_eq!(
            lost.after(Emptied).unwrap_err().to_string(),
            "a machine that is lost cannot be emptied"
        );
    }
}
