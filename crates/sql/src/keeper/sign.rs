//! Signs of life: what a keeper says at every pulse, changed or not. Short, since it is said ten times a second: what is
//! wrong with a member is judged by the decider, from the newest report with the newest pulse in it.

use homeostat_decider::{KeeperIncarnation, LeaseRequest, MemberReport, Pulse};
use serde::{Deserialize, Serialize};

/// The body of the supervisor protocol's `Event::Sign`, version 1: fields are only added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperSign {
    pub incarnation: KeeperIncarnation,
    pub pulse: Pulse,
    /// A renewal of the serving lease is asked for, by this very sign. Answered with `KeeperCall::Grant`, or not at all.
    #[serde(default)]
    pub lease: Option<LeaseRequest>,
}

impl KeeperSign {
    /// The report made anew. `false`: it is another keeper's, and changes nothing.
    pub fn renews(&self, report: &mut MemberReport) -> bool {
        let same = report.incarnation == self.incarnation;
        if same {
            report.pulse = Some(self.pulse);
        }
        same
    }
}
