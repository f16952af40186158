//! The keepers' tasks: what is heard of them, and the calls that place, start and stop them.

use std::time::Duration;

use homeostat_api::Refusal;
use homeostat_api::v1::{Apart, PlaceRequest, PlaceTask, StartRequest, StopRequest, TaskEvent};
use homeostat_decider::{Input, MemberId, MemberReport};
use homeostat_model::{TaskName, TaskState};
use tokio::time::{Instant, sleep};

use super::{AGAIN, Heard, Loop, Outcome, REFUSED, Wish};
use crate::keeper::KeeperSign;
use crate::service::launch::{grace_ms, resources};
use crate::service::lead::Lead;
use crate::service::members::{Action, Said, Seen, Wanted, next};

impl Loop {
    pub(super) fn seen(&mut self, event: &TaskEvent) {
        if event.synced {
            self.synced = true;
            return;
        }
        if !event.sign.is_empty() {
            return self.signed(event);
        }
        let now = self.now();
        let Ok(name) = TaskName::new(event.task.clone()) else {
            return;
        };
        let Ok(state) = serde_json::from_str::<TaskState>(&event.state_json) else {
            return;
        };
        let task = self.tasks.entry(name.clone()).or_insert_with(Seen::new);
        task.became(state, now);
        if !event.machine.is_empty() {
            task.machine.clone_from(&event.machine);
            task.placed = Some(event.generation);
        }
        let input = match said(task, &name, event) {
            News::None => return,
            News::Gone => Input::KeeperGone { member: name },
            News::Report(report) => Input::Report(*report),
            News::Unreadable(why) => {
                self.tell.note(
                    name.as_str(),
                    "sql",
                    format!("what {name}'s keeper says cannot be read: {why}"),
                    None,
                );
                Input::KeeperGone { member: name }
            }
        };
        self.feed(input);
    }

    /// A keeper lives: its last report stands, with this pulse.
    fn signed(&mut self, event: &TaskEvent) {
        let Ok(sign) = serde_json::from_slice::<KeeperSign>(&event.sign) else {
            return;
        };
        let Some(said) = TaskName::new(event.task.clone())
            .ok()
            .and_then(|name| self.tasks.get_mut(&name)?.said.as_mut())
        else {
            return;
        };
        if !sign.renews(&mut said.report) {
            return;
        }
        let member = said.report.member.clone();
        let asked = sign.lease.filter(|asked| asked.member == member);
        self.feed(Input::Alive {
            member,
            incarnation: sign.incarnation,
            pulse: sign.pulse,
        });
        if let Some(asked) = asked {
            self.feed(Input::LeaseAsked(asked));
        }
    }

    /// Sets everything due going; says when to look again though nothing happened.
    pub(super) fn act(&mut self) -> Option<Instant> {
        while self.calls.try_join_next().is_some() {}
        self.lead_if_due();
        let mut wake = self.lead.as_ref().and_then(Lead::wake_at);
        let mut sooner = |at: Instant| wake = Some(wake.map_or(at, |wake| wake.min(at)));
        if let Some((at, _)) = &self.stuck {
            sooner(*at);
        }
        let wanted = match &self.wish {
            Wish::Up { launch: Some(_) } if self.synced => Wanted::Up(&self.members),
            Wish::Down { held: Some(holder) } if self.synced => Wanted::Down {
                holder: holder.as_ref(),
            },
            Wish::Nothing | Wish::Up { .. } | Wish::Down { .. } => Wanted::Nothing,
        };
        let mut actions = Vec::new();
        for action in next(wanted, &self.tasks, self.now()) {
            match action {
                Action::LookAgain(at) => sooner(self.began + at.0),
                Action::Place(_) | Action::Start(_) | Action::Stop(_) => actions.push(action),
            }
        }
        for action in actions {
            self.perform(action);
        }
        wake
    }

    pub(super) fn perform(&mut self, action: Action) {
        match action {
            Action::LookAgain(_) => {}
            Action::Place(members) => self.place(members),
            Action::Start(member) => {
                let Wish::Up {
                    launch: Some(launch),
                } = &self.wish
                else {
                    return;
                };
                let launch = Some((**launch).clone());
                let Some((service, generation)) = self.occupy(&member) else {
                    return;
                };
                let cell = self.own.cell.clone();
                self.call(member, async move |task| {
                    cell.start(StartRequest {
                        service,
                        task,
                        generation,
                        launch,
                    })
                    .await
                    .map(drop)
                });
            }
            Action::Stop(member) => {
                let Some((service, generation)) = self.occupy(&member) else {
                    return;
                };
                if let Some(task) = self.tasks.get_mut(&member) {
                    task.ending = true;
                }
                let cell = self.own.cell.clone();
                self.call(member, async move |task| {
                    let grace_ms = grace_ms();
                    cell.stop(StopRequest {
                        service,
                        task,
                        generation,
                        grace_ms,
                    })
                    .await
                    .map(drop)
                });
            }
        }
    }

    pub(super) fn occupy(&mut self, member: &MemberId) -> Option<(String, u64)> {
        let task = self.tasks.get_mut(member)?;
        task.busy = true;
        Some((
            self.own.service.to_string(),
            task.placed.unwrap_or_default(),
        ))
    }

    pub(super) fn call<F: Future<Output = Result<(), Refusal>> + Send + 'static>(
        &mut self,
        member: MemberId,
        call: impl FnOnce(String) -> F,
    ) {
        let (results, asked) = (self.results.clone(), call(member.to_string()));
        self.calls.spawn(async move {
            let outcome = match asked.await {
                Ok(()) => Outcome::Accepted,
                Err(refusal) => Outcome::Refused(refusal),
            };
            drop(results.send(Heard::Member { member, outcome }).await);
        });
    }

    pub(super) fn place(&mut self, members: Vec<MemberId>) {
        let Some(spec) = &self.spec else { return };
        let wanted = members.iter().map(|member| PlaceTask {
            task: member.to_string(),
            resources: Some(resources(spec)),
            fixed_ports: Vec::new(),
            apart: Apart::NeverTogether as i32,
            leaving: 0,
        });
        let request = PlaceRequest {
            service: self.own.service.to_string(),
            tasks: wanted.collect(),
        };
        for member in &members {
            self.occupy(member);
        }
        let (own, results) = (self.own.clone(), self.results.clone());
        self.calls.spawn(async move {
            let reply = own.cell.place(request).await;
            for member in members {
                let outcome = match &reply {
                    Err(refusal) => Outcome::Refused(refusal.clone()),
                    Ok(reply) => {
                        let placed = reply
                            .placed
                            .iter()
                            .find(|placed| placed.task == member.as_str());
                        let pending = reply
                            .pending
                            .iter()
                            .find(|pending| pending.task == member.as_str());
                        match (placed, pending) {
                            (Some(placed), _) => Outcome::Placed {
                                generation: placed.generation,
                                machine: placed.machine.clone(),
                            },
                            (None, Some(pending)) => Outcome::Pending(pending.why.clone()),
                            (None, None) => {
                                Outcome::Pending("the scheduler said nothing about it".into())
                            }
                        }
                    }
                };
                drop(results.send(Heard::Member { member, outcome }).await);
            }
        });
    }

    pub(super) fn finished(&mut self, member: MemberId, outcome: Outcome) {
        let Some(task) = self.tasks.get_mut(&member) else {
            return;
        };
        match outcome {
            Outcome::Placed {
                generation,
                machine,
            } => {
                task.placed = Some(generation);
                task.machine = machine;
                task.busy = false;
            }
            Outcome::Pending(why) => {
                task.state = TaskState::Pending { why };
                self.rest(member, REFUSED);
            }
            Outcome::Accepted => self.rest(member, AGAIN),
            Outcome::Refused(refusal) => {
                if task.over() {
                    task.state = TaskState::Pending {
                        why: refusal.message,
                    };
                }
                self.rest(member, REFUSED);
            }
            Outcome::Rested => task.busy = false,
        }
    }

    /// Keeps a task quiet for a moment, or until its next event.
    pub(super) fn rest(&mut self, member: MemberId, pause: Duration) {
        let Some(task) = self.tasks.get_mut(&member) else {
            return;
        };
        // An event that came meanwhile has told more already.
        if !task.busy {
            return;
        }
        let results = self.results.clone();
        self.calls.spawn(async move {
            sleep(pause).await;
            drop(
                results
                    .send(Heard::Member {
                        member,
                        outcome: Outcome::Rested,
                    })
                    .await,
            );
        });
    }
}

enum News {
    None,
    Gone,
    Report(Box<MemberReport>),
    Unreadable(String),
}

/// Whether an event brings something that its keeper had not said before.
fn said(task: &mut Seen, member: &MemberId, event: &TaskEvent) -> News {
    if !event.reachable {
        return if task.said.take().is_some() {
            News::Gone
        } else {
            News::None
        };
    }
    let known = task
        .said
        .as_ref()
        .is_some_and(|said| said.bytes == event.service_event);
    if event.service_event.is_empty() || known {
        return News::None;
    }
    match serde_json::from_slice::<MemberReport>(&event.service_event) {
        Ok(report) if report.member == *member => {
            task.said = Some(Said {
                bytes: event.service_event.clone(),
                report: report.clone(),
            });
            News::Report(Box::new(report))
        }
        Ok(report) => {
            task.said = None;
            News::Unreadable(format!("it speaks for {}", report.member))
        }
        Err(error) => {
            task.said = None;
            News::Unreadable(error.to_string())
        }
    }
}
