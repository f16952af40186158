//! Requests of agents, and orders among them: offered to the core, remembered, carried out, answered.

use std::time::Duration;

use homeostat_decider::{Decision, Kept, Order, OrderOutcome, Refusal, Verb as Ordered};
use homeostat_supervisor::protocol::{Answer, Phase, Request, Verb};
use tokio::time::Instant;

use super::looking::BETWEEN_ORDERS;
use super::{Asker, Guard, WAITING};
use crate::keeper::call::KeeperCall;
use crate::keeper::file::FileError;
use crate::keeper::fuse::boot_now;
use crate::keeper::orders::{Done, Job, carry_out, chain};
use crate::keeper::peers::PeerEvent;
use crate::mariadb::Driver;

impl Guard {
    pub(super) fn peer_event(&mut self, event: PeerEvent) {
        match event {
            PeerEvent::Left(peer) => self.peers.left(peer),
            PeerEvent::Unknown(peer, id) => {
                let why = "this keeper does not know that request".to_owned();
                self.peers.answer((peer, id), Answer::Refused { why });
            }
            PeerEvent::Asked(peer, Request { id, verb }) => match verb {
                Verb::Stop { grace_ms } => {
                    self.peers.answer((peer, id), Answer::Accepted);
                    self.stop(Duration::from_millis(grace_ms));
                }
                Verb::Kill => {
                    self.peers.answer((peer, id), Answer::Accepted);
                    self.stop(Duration::ZERO);
                }
                Verb::Call { body } => match serde_json::from_value::<KeeperCall>(body) {
                    Ok(KeeperCall::Order { order }) => self.ordered((peer, id), order),
                    Ok(KeeperCall::Grant { grant }) => self.granted((peer, id), &grant),
                    Ok(KeeperCall::Report) => self.report_asked((peer, id)),
                    Err(error) => {
                        let why = format!("this keeper does not know that call: {error}");
                        self.peers.answer((peer, id), Answer::Refused { why });
                    }
                },
            },
        }
    }

    /// Answered from a look that is begun after the question, where a server can be looked at.
    pub(super) fn report_asked(&mut self, asker: Asker) {
        if self.watcher.is_none() && self.look.is_none() {
            return self.answer(asker, &self.report());
        }
        if self.curious.len() >= WAITING {
            let why = "too many questions wait for this keeper".to_owned();
            return self.peers.answer(asker, Answer::Refused { why });
        }
        self.curious.push_back((asker, self.looks_begun + 1));
        self.next_look = Instant::now();
    }

    pub(super) fn answer_curious(&mut self, looks: u64) {
        while self
            .curious
            .front()
            .is_some_and(|(_, wanted)| *wanted <= looks)
        {
            if let Some((asker, _)) = self.curious.pop_front() {
                self.answer(asker, &self.report());
            }
        }
    }

    pub(super) fn answer(&mut self, asker: Asker, body: &impl serde::Serialize) {
        let answer = match serde_json::to_value(body) {
            Ok(body) => Answer::Called { body },
            Err(error) => Answer::Refused {
                why: format!("the answer cannot be written: {error}"),
            },
        };
        self.peers.answer(asker, answer);
    }

    pub(super) fn ordered(&mut self, asker: Asker, order: Order) {
        if !matches!(self.phase, Phase::Running { .. }) {
            let why = "this keeper is stopping".to_owned();
            return self.peers.answer(asker, Answer::Refused { why });
        }
        // Learning and killing need no look, and a server that hangs cannot be looked at.
        let blind = matches!(order.verb, Ordered::Learn | Ordered::Kill);
        if (self.fresh || blind || self.job.is_some()) && !self.has_to_wait(&order) {
            return self.offer(asker, order);
        }
        if self.waiting.len() >= WAITING {
            let why = "too many orders wait for this keeper".to_owned();
            return self.peers.answer(asker, Answer::Refused { why });
        }
        self.waiting.push_back((asker, order));
    }

    /// A holder steps down only when no barrier commit of the keeper's own is under way: its row would come after the
    /// position that is said to be the last.
    pub(super) fn has_to_wait(&self, order: &Order) -> bool {
        matches!(order.verb, Ordered::Demote { .. }) && self.living.keeping.is_some()
    }

    /// Offers an order to the core; persists, then acts.
    pub(super) fn offer(&mut self, asker: Asker, order: Order) {
        let now = boot_now();
        self.core.at(now);
        let (persist, verb) = match self.core.offer(&order, &self.state) {
            Decision::Refuse(reply) => {
                self.context
                    .note(&format!("refused {:?}: {:?}", order.verb, reply.outcome));
                return self.answer(asker, &reply);
            }
            Decision::Obey { persist, verb } => (persist, verb),
        };
        self.give_way();
        let beside = self.copies_give_way(&verb);
        if let Err(error) = self.remember(persist, &verb) {
            // Refused, not failed: whoever reads "failed" takes the record for remembered.
            let why = format!("nothing was done: {}", chain(&error));
            let outcome = OrderOutcome::Refused(Refusal::WrongServerState { why });
            // A server that an order was at work in is ended all the same: nothing of that order may outlive it.
            if let (Ordered::Kill, Some(server)) = (&verb, &self.server) {
                server.kill();
            }
            return self.reply(asker, outcome);
        }
        if let Err(outcome) = beside {
            return self.reply(asker, outcome);
        }
        self.known.source = self.file.source.clone();
        self.known.incomplete = self.file.incomplete.is_some();
        self.known.hearing = self.hearing();
        self.next_look = self.next_look.max(Instant::now() + BETWEEN_ORDERS);
        self.job_of = Some(asker);
        self.job_begun = now;
        self.job = Some(Box::pin(carry_out(Job {
            context: self.context.clone(),
            order,
            known: self.known.clone(),
            before: self.reading.take().filter(|_| self.fresh),
            // A kill that failed took the connection with it.
            driver: (self.driver.take()).or_else(|| self.login.clone().map(Driver::new)),
            server: self.server.clone(),
            last: self.file.server.clone(),
            progress: self.progress.0.clone(),
        })));
    }

    /// What an obeyed order finds under way is ended: only a kill is obeyed then, and the order's statements die with the
    /// server.
    fn give_way(&mut self) {
        self.job = None;
        if let Some(asker) = self.job_of.take() {
            let why = "the server is killed: this order is given up".to_owned();
            self.peers.answer(asker, Answer::Refused { why });
        }
    }

    pub(super) fn remember(
        &mut self,
        persist: Option<Kept>,
        verb: &Ordered,
    ) -> Result<(), FileError> {
        let mut file = self.file.clone();
        if let Some(kept) = &persist {
            // Out of A and of every epoch that may still need it: from here on nobody counts on what was lost.
            let member = &self.context.launch.task;
            let counted = kept.record.ackers.contains(member)
                || kept
                    .record
                    .unclosed
                    .iter()
                    .any(|unclosed| unclosed.ackers.contains(member));
            if !counted {
                file.incomplete = None;
            }
            file.kept = Some(kept.clone());
        }
        if let Ordered::Repoint { source, .. } = verb {
            file.source = Some(source.clone());
        }
        if file != self.file {
            self.memory.store(&file)?;
            self.file = file;
        }
        if let Some(kept) = persist {
            self.core.persisted(kept);
        }
        Ok(())
    }

    pub(super) fn order_over(&mut self, done: Done) {
        self.orders_over += 1;
        self.known = done.known;
        if self.server.is_some() {
            self.driver = done.driver;
            if let Some(driver) = &self.driver {
                self.login = Some(driver.login().clone());
            }
            self.begin_reading();
            self.watcher = match (self.watcher.take(), &self.driver, &self.look) {
                (None, Some(driver), None) => Some(Driver::new(driver.login().clone())),
                (watcher, _, _) => watcher,
            };
            // What the order saw spares the look that the next one would wait for.
            self.fresh = match done.seen {
                Some(seen) => self.saw(seen),
                None => false,
            };
            self.look_soon();
        }
        if let Some(asker) = self.job_of.take() {
            self.reply(asker, done.outcome);
        }
    }

    pub(super) fn reply(&mut self, asker: Asker, outcome: OrderOutcome) {
        match &outcome {
            OrderOutcome::Failed { why } => self.context.note(&format!("an order failed: {why}")),
            OrderOutcome::BarrierDone { epoch, .. } => {
                self.core.barrier_acknowledged(*epoch, self.job_begun);
            }
            OrderOutcome::Done
            | OrderOutcome::Started { .. }
            | OrderOutcome::Exited { .. }
            | OrderOutcome::Stopped { .. }
            | OrderOutcome::Drained { .. }
            | OrderOutcome::Demoted { .. }
            | OrderOutcome::Lent { .. }
            | OrderOutcome::Refused(_) => {}
        }
        if let Some(reply) = self.core.completed(outcome) {
            self.answer(asker, &reply);
        }
    }
}
