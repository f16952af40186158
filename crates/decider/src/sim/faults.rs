//! What goes wrong, and when. Half of all faults follow closely on another one, and most strike the primary or whoever
//! the record names: that is where a change of epoch is under way.

use homeostat_model::Epoch;

use super::{Happening, Sim};
use crate::Input;

impl Sim {
    pub(super) fn fault(&mut self) {
        if self.faults_over {
            return;
        }
        let next = if self.chance.chance(550) {
            self.chance.between(500, 70_000)
        } else {
            self.chance.between(70_000, 900_000)
        };
        self.after(next, Happening::Fault);
        let member = self.victim();
        match self.chance.below(100) {
            0..=29 => {
                self.say(|| format!("FAULT: server {member} is killed"));
                self.kill_server(member);
                self.report(member);
            }
            30..=44 => {
                self.say(|| format!("FAULT: keeper {member} is killed"));
                self.kill_keeper(member);
                let lost = self.chance.chance(60);
                if lost {
                    self.say(|| format!("FAULT: and its file is lost at {member}"));
                    self.members[member].kept = None;
                }
                let back = self.chance.between(1_000, 40_000);
                self.after(back, Happening::KeeperBack { member });
            }
            45..=56 => self.power(member),
            57..=60 => {
                for member in 0..self.members.len() {
                    self.power(member);
                }
            }
            61..=72 => self.controller_fault(),
            73..=82 => {
                let live: Vec<usize> = (0..self.controllers.len())
                    .filter(|controller| self.controllers[*controller].alive)
                    .collect();
                for controller in live {
                    if self.chance.chance(700) {
                        self.link_breaks(controller, member);
                        let heals = self.chance.between(1_000, 300_000);
                        self.after(heals, Happening::LinkHeals { controller, member });
                    }
                }
            }
            _ => self.switchover_asked(),
        }
    }

    /// The primary, a member of A, or anybody.
    fn victim(&mut self) -> usize {
        let all = self.members.len() as u64;
        let anybody = usize::try_from(self.chance.below(all)).unwrap_or(0);
        let Some(record) = &self.store else {
            return anybody;
        };
        let index = |name| self.names.iter().position(|other| other == name);
        match self.chance.below(100) {
            0..=49 => index(&record.holder).unwrap_or(anybody),
            50..=79 => {
                let pick = self.chance.below(record.ackers.len() as u64);
                let named = record.ackers.iter().nth(usize::try_from(pick).unwrap_or(0));
                named.and_then(index).unwrap_or(anybody)
            }
            _ => anybody,
        }
    }

    /// The machine loses power: keeper and server at once, and another boot afterwards.
    fn power(&mut self, member: usize) {
        self.say(|| format!("FAULT: power of {member}"));
        self.kill_keeper(member);
        self.members[member].boot += 1;
        let back = self.chance.between(5_000, 700_000);
        self.after(back, Happening::KeeperBack { member });
    }

    /// The leader dies, or another believes so while it still acts.
    fn controller_fault(&mut self) {
        let live: Vec<usize> = (0..self.controllers.len())
            .filter(|controller| self.controllers[*controller].alive)
            .collect();
        for controller in live {
            if self.chance.chance(500) {
                self.say(|| format!("FAULT: controller {controller} is killed"));
                self.controllers[controller].alive = false;
            } else {
                let dies = self.chance.between(1_000, 800_000);
                self.after(dies, Happening::ControllerDies { controller });
            }
        }
        let starts = self.chance.between(100, 60_000);
        self.after(starts, Happening::ControllerStarts);
    }

    pub(super) fn switchover_asked(&mut self) {
        let request = self.id();
        let anybody = self.chance.below(self.members.len() as u64 * 2);
        let to = usize::try_from(anybody)
            .ok()
            .and_then(|to| self.names.get(to))
            .cloned();
        if self.endpoint.0 > Epoch(0)
            && let Some(controller) = self
                .controllers
                .iter()
                .rposition(|controller| controller.alive)
        {
            self.tell(controller, Input::Switchover { request, to });
        }
    }
}
