//! Calm runs with one fault each, of which it is known what must follow, or that nothing may.

use super::cut::{Place, SITES, site_of};
use super::sleep::Sleep;
use super::{Happening, SILENCE, Scene, Sim};

impl Sim {
    /// The one fault of a scene.
    pub(super) fn scene_strikes(&mut self) {
        let Some(holder) = self.holder() else {
            self.checker
                .liveness("no primary before the scene's fault".to_owned());
            return;
        };
        self.struck = Some((self.now, holder));
        let long = 3_000_000;
        match self.plan.scene {
            Scene::Anything => {}
            Scene::PrimaryStops => self.falls_asleep(holder, Sleep::Server, long),
            Scene::PrimaryMachineStops => self.falls_asleep(holder, Sleep::Machine, long),
            Scene::PrimaryCutOff => {
                let ways = self.isolate(holder);
                self.cut(ways, long);
            }
            Scene::OldLeaderCutOff => {
                let ways = self.in_two(&[Place::Machine(holder), site_of(0)]);
                self.cut(ways, long);
                self.controller_starts();
            }
            Scene::LateGrant => {
                let machine = Place::Machine(holder);
                let (grants, others): (Vec<_>, Vec<_>) = self
                    .isolate(holder)
                    .into_iter()
                    .partition(|(from, to)| matches!(from, Place::Site(_)) && *to == machine);
                self.cut(others, long);
                let (late, moment) = (self.chance.between(230_000, 280_000), 10_000);
                self.cut(grants.clone(), late);
                let micros = long - late - moment;
                let again = Happening::CutBegins {
                    ways: grants,
                    micros,
                };
                self.after(late + moment, again);
            }
            Scene::OneAckerRevoked => {
                let (primary, sites) = (Place::Machine(holder), (0..SITES).map(Place::Site));
                let Some(acker) = self.an_acker().map(Place::Machine) else {
                    return;
                };
                let (between, others): (Vec<_>, Vec<_>) = self
                    .isolate(holder)
                    .into_iter()
                    .partition(|way| [(primary, acker), (acker, primary)].contains(way));
                self.cut(others, long);
                self.cut(between, 205_000);
                let orders = sites.map(|site| (site, acker)).collect();
                self.after(
                    150_000,
                    Happening::CutBegins {
                        ways: orders,
                        micros: long - 150_000,
                    },
                );
            }
            Scene::Backlog => {
                self.checker.nothing_may_happen(true);
                let (mut apart, mut late, mut primary) = (Vec::new(), Vec::new(), Vec::new());
                for from in 0..self.members.len() {
                    let machine = Place::Machine(from);
                    let others = (0..self.members.len()).filter(|to| *to != from);
                    apart.extend(others.map(|to| (machine, Place::Machine(to))));
                    for site in (0..SITES).map(Place::Site) {
                        let ways = if from == holder {
                            &mut primary
                        } else {
                            &mut late
                        };
                        ways.extend([(machine, site), (site, machine)]);
                    }
                }
                self.cut(apart, 205_000);
                self.cut(late, 290_000);
                self.cut(primary, long);
            }
            Scene::ControllersCutOff => {
                self.checker.nothing_may_happen(true);
                let mut ways = Vec::new();
                for machine in (0..self.members.len()).map(Place::Machine) {
                    for site in (0..SITES).map(Place::Site) {
                        ways.extend([(site, machine), (machine, site)]);
                    }
                }
                self.cut(ways, long);
            }
        }
    }

    /// Another primary opens: soon enough after the scene's fault?
    pub(super) fn scene_opens(&mut self, member: usize) {
        let Some((at, holder)) = self.struck else {
            return;
        };
        // The fence cannot be had before the acker is back.
        let unbounded = self.plan.scene == Scene::OneAckerRevoked;
        if member == holder || self.scene_over || unbounded {
            return;
        }
        self.scene_over = true;
        let took = self.now - at;
        if took > self.scene_bound() {
            self.checker
                .liveness(format!("a new primary opened only after {took} us"));
        }
    }

    pub(super) fn scene_ends(&mut self) {
        self.checker.nothing_may_happen(false);
        let replaced = match self.plan.scene {
            Scene::Anything
            | Scene::OneAckerRevoked
            | Scene::Backlog
            | Scene::ControllersCutOff => return,
            Scene::PrimaryStops
            | Scene::PrimaryMachineStops
            | Scene::PrimaryCutOff
            | Scene::OldLeaderCutOff
            | Scene::LateGrant => self.scene_over,
        };
        if !replaced {
            self.checker
                .liveness("nobody replaced the primary".to_owned());
        }
    }

    fn an_acker(&self) -> Option<usize> {
        let record = self.store.as_ref()?;
        let named = record.ackers.first()?;
        self.names.iter().position(|name| name == named)
    }

    /// The longest a scene's fault may keep clients waiting: H, and what the messages of a failover take here.
    fn scene_bound(&self) -> u64 {
        let strict = match self.reads {
            homeostat_model::Reads::Strict => 345_000,
            homeostat_model::Reads::Bounded => 0,
        };
        u64::try_from(SILENCE.as_micros()).unwrap_or(u64::MAX) + 350_000 + strict
    }
}
