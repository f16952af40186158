//! What goes wrong, and when. Half of all faults follow closely on another one, and most strike the primary or whoever
//! the record names: that is where a change of epoch is under way.

use homeostat_model::Epoch;

use super::cut::{Place, SITES};
use super::server::Disk;
use super::sleep::Sleep;
use super::{Happening, Scene, Sim};
use crate::{Input, Phase, Promotion, Record};

impl Sim {
    pub(super) fn fault(&mut self) {
        if self.faults_over {
            return;
        }
        if self.plan.scene != Scene::Anything {
            self.scene_strikes();
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
            0..=16 => {
                self.say(|| format!("FAULT: server {member} is killed"));
                self.tally.count("server-killed");
                self.kill_server(member);
                self.report(member);
            }
            17..=26 => {
                self.tally.count("keeper-killed");
                self.say(|| format!("FAULT: keeper {member} is killed"));
                self.kill_keeper(member);
                let lost = self.chance.chance(60);
                // Not what says that the rest was lost before: that would be two losses at once.
                let whole = self.members[member].kept.as_ref();
                if lost && whole.is_some_and(|kept| kept.incomplete.is_none()) {
                    self.say(|| format!("FAULT: and its file is lost at {member}"));
                    self.members[member].kept = None;
                }
                let back = self.chance.between(1_000, 40_000);
                self.after(back, Happening::KeeperBack { member });
            }
            27..=35 => {
                self.power(member);
                if self.disks.chance(200) {
                    self.disk_lost(member);
                }
            }
            36..=38 => {
                for member in 0..self.members.len() {
                    self.power(member);
                }
            }
            39..=48 => self.controller_fault(),
            49..=66 => self.stop_something(member),
            67..=84 => self.cut_something(member),
            85..=90 => {
                self.tally.count("links-broken");
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

    fn cut_something(&mut self, member: usize) {
        let machine = Place::Machine(member);
        let anybody = usize::try_from(self.chance.below(self.members.len() as u64)).unwrap_or(0);
        let site = Place::Site(usize::try_from(self.chance.below(SITES as u64)).unwrap_or(0));
        let (kind, ways) = match self.chance.below(100) {
            0..=29 => ("cut-from-all", self.isolate(member)),
            30..=49 => {
                let sites = (0..SITES).map(Place::Site);
                let ways = sites.flat_map(|site| [(site, machine), (machine, site)]);
                ("cut-from-controllers", ways.collect())
            }
            50..=59 => {
                let others = (0..self.members.len()).filter(|other| *other != member);
                let ways = others
                    .map(Place::Machine)
                    .flat_map(|other| [(other, machine), (machine, other)]);
                ("cut-from-machines", ways.collect())
            }
            60..=79 => {
                // On one side: the primary, and perhaps an acker or a site of controllers.
                let mut side = vec![machine, Place::Machine(anybody)];
                if self.chance.chance(300) {
                    side.push(site);
                }
                ("cut-in-two", self.in_two(&side))
            }
            80..=89 => ("cut-one-way", vec![(machine, Place::Machine(anybody))]),
            90..=94 => ("cut-one-way", vec![(Place::Machine(anybody), machine)]),
            95..=97 => ("cut-one-way", vec![(machine, site)]),
            _ => ("cut-one-way", vec![(site, machine)]),
        };
        let micros = match self.chance.below(100) {
            0..=29 => self.chance.between(1_000, 120_000),
            30..=84 => self.chance.between(120_000, 800_000),
            _ => self.chance.between(800_000, 2_500_000),
        };
        self.tally.count(kind);
        self.cut(ways, micros);
    }

    /// All ways between these places and the others.
    pub(super) fn in_two(&self, side: &[Place]) -> Vec<(Place, Place)> {
        let all = (0..self.members.len()).map(Place::Machine);
        let places: Vec<Place> = all.chain((0..SITES).map(Place::Site)).collect();
        let mut ways = Vec::new();
        for from in &places {
            let apart = places
                .iter()
                .filter(|to| side.contains(from) != side.contains(to));
            ways.extend(apart.map(|to| (*from, *to)));
        }
        ways
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

    /// With the power the disk went as well, or another machine stands in its place: nothing is left. One at a time, and only
    /// while A is whole: more at once may lose what was promised, and nobody could help that.
    fn disk_lost(&mut self, member: usize) {
        let whole = |record: &Record| {
            record.phase == Phase::Serving && record.unclosed.is_empty() && record.ackers.len() > 1
        };
        // Who must not be promoted and alone is complete could be caught up from, which the decider cannot do yet.
        let anybody = |rule: &Promotion| *rule != Promotion::MustNot;
        if !self.store.as_ref().is_some_and(whole)
            || !self.checker.all_disks_are_there()
            || !self.promotion.values().all(anybody)
        {
            return;
        }
        self.say(|| format!("FAULT: and the disk of {member} is lost"));
        self.tally.count("disk-lost");
        let own = &mut self.members[member];
        self.checker.disk_lost(member, &own.disk);
        own.disk = Disk::default();
        own.kept = None;
    }

    /// The machine loses power: keeper and server at once, and another boot afterwards.
    fn power(&mut self, member: usize) {
        self.say(|| format!("FAULT: power of {member}"));
        self.tally.count("power");
        self.kill_keeper(member);
        self.wakes_anew(member);
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

    /// SIGSTOP, or a virtual machine that stalls.
    pub(super) fn stop_something(&mut self, member: usize) {
        let who = match self.chance.below(100) {
            0..=44 => Sleep::Server,
            45..=59 => Sleep::Keeper,
            _ => Sleep::Machine,
        };
        let micros = match self.chance.below(100) {
            0..=34 => self.chance.between(1_000, 120_000),
            35..=84 => self.chance.between(120_000, 700_000),
            _ => self.chance.between(700_000, 2_500_000),
        };
        self.tally.count(match who {
            Sleep::Server => "server-stops",
            Sleep::Keeper => "keeper-stops",
            Sleep::Machine => "machine-stops",
        });
        self.falls_asleep(member, who, micros);
    }
}
