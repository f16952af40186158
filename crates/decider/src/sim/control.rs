//! The controllers and the store: deciders are given their inputs here, and their effects are carried out.

use super::clock::Clock;
use super::server::Disk;
use super::words::{brief, short};
use super::{Controller, Happening, Link, Sim};
use crate::{CasOutcome, Decider, Effect, Input, Record};

impl Sim {
    pub(super) fn controller_starts(&mut self) {
        self.term = self.term.next();
        let decider = Decider::new(self.config(), self.term).breaking(self.plan.rules);
        let links = self
            .members
            .iter()
            .map(|_| Link {
                number: 0,
                up: false,
                last: 0,
                keeper: 0,
                outstanding: None,
            })
            .collect();
        let clock = Clock::random(&mut self.world);
        self.controllers.push(Controller {
            decider,
            term: self.term,
            alive: true,
            links,
            woken: None,
            clock,
        });
        let controller = self.controllers.len() - 1;
        self.say(|| format!("controller {controller} starts"));
        self.tell(controller, Input::Tick);
        for member in 0..self.members.len() {
            self.link_heals(controller, member);
        }
    }

    /// Gives a decider an input and carries its effects out.
    pub(super) fn tell(&mut self, controller: usize, input: Input) {
        if !self.controllers[controller].alive {
            return;
        }
        self.say(|| format!("controller {controller} <- {}", short(&input)));
        let now = self.controllers[controller].clock.now(self.now);
        let effects = self.controllers[controller].decider.handle(now, input);
        for effect in effects {
            self.carry_out(controller, effect);
        }
        let wake = self.controllers[controller].decider.wake_at();
        if wake.is_some() && wake != self.controllers[controller].woken {
            self.controllers[controller].woken = wake;
            if let Some(at) = wake {
                let left = self.controllers[controller].clock.until(at.0, self.now);
                self.after(left.max(1), Happening::WakeUp { controller, at });
            }
        }
    }

    pub(super) fn carry_out(&mut self, controller: usize, effect: Effect) {
        match effect {
            Effect::ReadRecord => {
                let delay = self.delay();
                self.after(delay, Happening::ReadArrives { controller });
            }
            Effect::Cas {
                attempt,
                expected,
                new,
            } => {
                self.say(|| format!("controller {controller} CAS {}", brief(&new)));
                let delay = self.delay();
                let answered = self.calm() || !self.net.chance(30);
                if !answered {
                    // It may be carried out before or after the caller hears that nobody knows.
                    let later = self.net.between(1, 40_000);
                    let outcome = CasOutcome::Unknown;
                    self.after(
                        later,
                        Happening::CasDone {
                            controller,
                            attempt,
                            outcome,
                        },
                    );
                    if self.net.chance(300) {
                        return;
                    }
                }
                let slow = if answered { 0 } else { self.net.below(40_000) };
                self.after(
                    delay + slow,
                    Happening::CasArrives {
                        controller,
                        attempt,
                        expected,
                        new,
                        answered,
                    },
                );
            }
            Effect::Order {
                member,
                order,
                timeout,
            } => {
                let Some(member) = self.names.iter().position(|name| *name == member) else {
                    return;
                };
                self.say(|| format!("controller {controller} -> {member}: {:?}", order.verb));
                self.send_order(controller, member, order, timeout);
            }
            Effect::Endpoint {
                epoch,
                version,
                target,
            } => {
                if (epoch, version) >= (self.endpoint.0, self.endpoint.1) {
                    let target = target
                        .and_then(|target| self.names.iter().position(|name| *name == target));
                    self.endpoint = (epoch, version, target);
                }
            }
            Effect::GrantLease { member, grant } => {
                if let Some(member) = self.names.iter().position(|name| *name == member) {
                    self.send_grant(controller, member, grant);
                }
            }
            Effect::Note(note) => self.noted(&note),
            Effect::SwitchoverDone { .. } => {
                self.say(|| format!("controller {controller}: {effect:?}"))
            }
        }
    }

    pub(super) fn cas_arrives(
        &mut self,
        controller: usize,
        attempt: u64,
        expected: Option<Record>,
        new: Record,
        answered: bool,
    ) {
        let outcome = if self.store == expected {
            self.say(|| format!("record: {}", brief(&new)));
            self.store = Some(new);
            let disks: Vec<&Disk> = self.members.iter().map(|member| &member.disk).collect();
            self.checker
                .record_changed(&disks, &self.names, self.store.as_ref());
            CasOutcome::Committed
        } else {
            CasOutcome::Lost {
                current: self.store.clone(),
            }
        };
        if answered {
            let delay = self.delay();
            self.after(
                delay,
                Happening::CasDone {
                    controller,
                    attempt,
                    outcome,
                },
            );
        }
    }
}
