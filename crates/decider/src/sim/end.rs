//! After the last fault: everything must work again within the bound.

use super::server::{Io, Process};
use super::{Happening, Sim};
use crate::{Phase, Wait};

impl Sim {
    pub(super) fn faults_end(&mut self) {
        self.faults_over = true;
        self.scene_ends();
        self.promised_at_end_of_faults = self.checker.promised();
        self.say(|| "faults end".to_owned());
        self.heal_all();
        for member in 0..self.members.len() {
            self.wakes_anew(member);
        }
        for controller in &mut self.controllers {
            controller.alive = false;
        }
        self.controller_starts();
        for member in 0..self.members.len() {
            if self.members[member].keeper.is_none() {
                self.keeper_back(member);
            }
        }
        self.after(200_000, Happening::LastLook);
    }

    pub(super) fn last_look(&mut self) {
        let problem = self.not_well();
        let over = self.now > (self.plan.faults_ms + self.plan.recover_ms) * 1_000;
        match problem {
            None => {
                self.done = true;
                if let Some(holder) = self.holder() {
                    self.checker
                        .contains_all("the last primary's log", &self.members[holder].disk);
                }
            }
            Some(problem) if over => {
                let waits: Vec<String> = self
                    .controllers
                    .last()
                    .map(|controller| {
                        controller
                            .decider
                            .view()
                            .waits
                            .iter()
                            .map(Wait::to_string)
                            .collect()
                    })
                    .unwrap_or_default();
                self.checker
                    .liveness(format!("{problem}; waits for {}", waits.join(" | ")));
            }
            Some(_) => self.after(200_000, Happening::LastLook),
        }
    }

    pub(super) fn holder(&self) -> Option<usize> {
        let record = self
            .store
            .as_ref()
            .filter(|record| record.phase == Phase::Serving)?;
        self.names.iter().position(|name| *name == record.holder)
    }

    pub(super) fn not_well(&self) -> Option<String> {
        let Some(holder) = self.holder() else {
            return Some("nobody serves".to_owned());
        };
        let Some(process) = &self.members[holder].process else {
            return Some("the primary is down".to_owned());
        };
        if process.read_only {
            return Some("the primary is read-only".to_owned());
        }
        if self.endpoint.2 != Some(holder) {
            return Some("the endpoint leads elsewhere".to_owned());
        }
        if let Some(missing) = (0..self.members.len())
            .find(|member| *member != holder && !self.follows(*member, process))
        {
            return Some(format!("{missing} does not replicate"));
        }
        if self
            .store
            .as_ref()
            .is_some_and(|record| record.ackers.len() < 2)
        {
            return Some("too few ackers".to_owned());
        }
        (self.checker.promised() <= self.promised_at_end_of_faults)
            .then(|| "no write was acknowledged".to_owned())
    }

    pub(super) fn follows(&self, member: usize, source: &Process) -> bool {
        let connected = |process: &Process| {
            source.dumps.get(&member).is_some_and(|dump| {
                process.io
                    == Io::Connected {
                        connection: dump.connection,
                    }
            })
        };
        self.members[member].process.as_ref().is_some_and(connected)
    }
}
