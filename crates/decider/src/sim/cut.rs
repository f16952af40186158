//! Cuts: between two places, in one direction or both. What is on its way arrives; what is sent meanwhile is held by the
//! sender's kernel and arrives after the cut, unless the connection was given up before.

use std::collections::BTreeMap;

use super::{Happening, Sim};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// Where controllers run.
    Site(usize),
    Machine(usize),
}

/// How many sites controllers are spread over.
pub(super) const SITES: usize = 2;

#[derive(Debug, Default)]
pub(super) struct Cuts {
    next: u64,
    now: BTreeMap<u64, Vec<(Place, Place)>>,
    /// What waits for a way to be free again.
    held: Vec<(Place, Place, Happening)>,
}

impl Cuts {
    pub(super) fn free(&self, from: Place, to: Place) -> bool {
        !self.now.values().flatten().any(|way| *way == (from, to))
    }

    pub(super) fn hold(&mut self, from: Place, to: Place, happening: Happening) {
        self.held.push((from, to, happening));
    }
}

pub(super) fn site_of(controller: usize) -> Place {
    Place::Site(controller % SITES)
}

impl Sim {
    pub(super) fn cut(&mut self, ways: Vec<(Place, Place)>, micros: u64) {
        self.say(|| format!("FAULT: cut for {micros} us: {ways:?}"));
        let cut = self.cuts.next;
        self.cuts.next += 1;
        self.cuts.now.insert(cut, ways);
        self.after(micros, Happening::CutHeals { cut });
        // Connections to keepers are given up some time later, or not at all.
        for controller in 0..self.controllers.len() {
            for member in 0..self.members.len() {
                let alive = self.controllers[controller].alive;
                if alive && !self.linked(controller, member) && self.chance.chance(600) {
                    let later = self.chance.between(50_000, 600_000);
                    self.after(later, Happening::LinkBreaks { controller, member });
                }
            }
        }
    }

    /// Is the way free in both directions?
    pub(super) fn linked(&self, controller: usize, member: usize) -> bool {
        let (site, machine) = (site_of(controller), Place::Machine(member));
        self.cuts.free(site, machine) && self.cuts.free(machine, site)
    }

    pub(super) fn cut_heals(&mut self, cut: u64) {
        if self.cuts.now.remove(&cut).is_none() {
            return;
        }
        self.say(|| format!("cut {cut} heals"));
        let held = std::mem::take(&mut self.cuts.held);
        for (from, to, happening) in held {
            if !self.cuts.free(from, to) {
                self.cuts.hold(from, to, happening);
                continue;
            }
            match happening {
                // In the order in which they were sent, and before what is sent from now on.
                Happening::Data { connection, .. } => {
                    let delay = self.delay();
                    let now = self.now;
                    let Some(ends) = self.connections.get_mut(&connection) else {
                        continue;
                    };
                    ends.last_data = ends.last_data.max(now + delay) + 1;
                    let at = ends.last_data;
                    self.at(at, happening);
                }
                Happening::Ack { connection, .. } => {
                    let delay = self.delay();
                    let now = self.now;
                    let Some(ends) = self.connections.get_mut(&connection) else {
                        continue;
                    };
                    ends.last_ack = ends.last_ack.max(now + delay) + 1;
                    let at = ends.last_ack;
                    self.at(at, happening);
                }
                other => self.release(other),
            }
        }
    }

    /// Of a controller and a keeper, that is.
    fn release(&mut self, happening: Happening) {
        let (controller, member) = match &happening {
            Happening::ReportArrives {
                controller, member, ..
            }
            | Happening::ReplyArrives {
                controller, member, ..
            }
            | Happening::LeaseArrives {
                controller, member, ..
            } => (*controller, *member),
            _ => {
                let delay = self.delay();
                self.after(delay, happening);
                return;
            }
        };
        let delay = self.delay();
        let now = self.now;
        let link = &mut self.controllers[controller].links[member];
        link.last = link.last.max(now + delay) + 1;
        let at = link.last;
        self.at(at, happening);
    }

    pub(super) fn heal_all(&mut self) {
        let cuts: Vec<u64> = self.cuts.now.keys().copied().collect();
        for cut in cuts {
            self.cut_heals(cut);
        }
    }
}
