//! What the controller asks of an agent.

use std::time::Duration;

use homeostat_api::v1::{CallTask, ForgetTask, StartTask, ToAgent, Welcome, to_agent};
use homeostat_model::TaskName;
use homeostat_supervisor::protocol::{Request, Verb};

use super::folders::remove;
use super::{Agent, Flow, Grave, over};
use crate::AgentError;
use crate::looking::look_at;
use crate::prepare::{Preparing, write_private};
use crate::supervised::spawn;
use crate::talk::Patience;
use crate::wake::Wake;

/// It cuts off what is open at once, so this is generous. Shorter than the controller's patience with this agent.
const FORWARDER_ENDS_WITHIN: Duration = Duration::from_secs(2);

impl Agent {
    pub(super) fn order(&mut self, order: ToAgent) -> Flow {
        if self.controller.is_none() {
            // Of a leader that is not obeyed, or of a link that was given up: nobody would hear the answer.
            return Flow::Go;
        }
        let id = order.id;
        let result = match order.message {
            None => Err(AgentError::BadOrder("it is empty".into())),
            Some(to_agent::Message::Welcome(welcome)) => self.welcome(&welcome),
            Some(to_agent::Message::Start(start)) => {
                if self.must_wait(&start) {
                    self.wait(id, start);
                    return Flow::Go;
                }
                self.start(&start)
            }
            Some(to_agent::Message::Stop(stop)) => self.ask(
                &stop.task,
                stop.generation,
                Verb::Stop {
                    grace_ms: stop.grace_ms,
                },
            ),
            Some(to_agent::Message::Kill(kill)) => {
                self.ask(&kill.task, kill.generation, Verb::Kill)
            }
            Some(to_agent::Message::Call(call)) => match self.call(id, &call) {
                // Answered when the supervisor answers.
                Ok(()) => return Flow::Go,
                Err(error) => Err(error),
            },
            Some(to_agent::Message::Endpoints(endpoints)) => {
                self.forwarder.set(&endpoints.targets);
                Ok(Vec::new())
            }
            Some(to_agent::Message::Forget(forget)) => self.forget(&forget),
            Some(to_agent::Message::LookAt(look)) => {
                name(&look.task).map(|task| look_at(&self.layout, &task, look.lines))
            }
            Some(to_agent::Message::Shutdown(_)) => return self.shut_down(),
        };
        self.done(id, result);
        Flow::Go
    }

    pub(super) fn is_down(&self) -> bool {
        self.options.layout.down_mark().exists()
    }

    /// The agent ends with its forwarder; that its stream closes is the answer. It gives up on a forwarder that does not
    /// listen: the warden must not have to wait for it.
    pub(super) fn shut_down(&mut self) -> Flow {
        if !self.forwarder.stop() {
            return Flow::End;
        }
        let wakes = self.wakes.clone();
        tokio::spawn(async move {
            tokio::time::sleep(FORWARDER_ENDS_WITHIN).await;
            drop(wakes.send(Wake::Terminate).await);
        });
        Flow::Go
    }

    fn welcome(&mut self, welcome: &Welcome) -> Result<Vec<u8>, AgentError> {
        let term = welcome.term;
        if term < self.highest_term {
            self.controller = None;
            return Err(AgentError::OldTerm {
                asked: term,
                seen: self.highest_term,
            });
        }
        if term > self.highest_term {
            self.highest_term = term;
            write_private(&self.layout.state.join("term"), term.to_string().as_bytes())?;
        }
        self.takes_signs = welcome.takes_signs;
        Ok(Vec::new())
    }

    pub(super) fn start(&mut self, order: &StartTask) -> Result<Vec<u8>, AgentError> {
        let task = name(&order.task)?;
        if let Some(held) = self.tasks.get(&task) {
            let here = held.launch.generation.0;
            if order.generation < here {
                return Err(AgentError::OldGeneration {
                    task,
                    here,
                    asked: order.generation,
                });
            }
            if held.grave != Grave::Closed {
                // The same order again, or a newer placement while the old one still runs.
                return if order.generation == here {
                    Ok(Vec::new())
                } else {
                    Err(AgentError::StillRuns(task))
                };
            }
        }
        let taken = self
            .tasks
            .values()
            .filter(|held| held.launch.task != task)
            .flat_map(|held| held.launch.ports.values().copied())
            .collect();
        let shared = self.options.layout.shared();
        let launch = Preparing {
            cell: &self.options.cell,
            machine: &self.machine,
            layout: &self.layout,
            shared: &shared,
            taken,
        }
        .prepare(order)?;
        spawn(&self.options.program, &launch)?;
        self.hold(launch, Patience::JustStarted);
        self.report(&task);
        Ok(Vec::new())
    }

    /// Whether the task's end is known but its supervisor not yet out of the way.
    fn must_wait(&self, order: &StartTask) -> bool {
        name(&order.task)
            .ok()
            .and_then(|task| self.tasks.get(&task))
            .is_some_and(|held| {
                let ends = match held.grave {
                    Grave::Alive => over(&held.state),
                    Grave::Digging => true,
                    Grave::Closed => false,
                };
                ends && order.generation >= held.launch.generation.0
            })
    }

    /// Carried out, and answered, by `buried`. Of two waiting starts the newer one counts.
    fn wait(&mut self, id: u64, order: StartTask) {
        let Some(held) = name(&order.task)
            .ok()
            .and_then(|task| self.tasks.get_mut(&task))
        else {
            return;
        };
        if let Some((earlier, _)) = held.next.replace((id, order)) {
            self.done(
                earlier,
                Err(AgentError::BadOrder(
                    "a newer start replaced this one".into(),
                )),
            );
        }
    }

    fn ask(&mut self, task: &str, generation: u64, verb: Verb) -> Result<Vec<u8>, AgentError> {
        let task = name(task)?;
        let id = self.number();
        let held = self
            .tasks
            .get_mut(&task)
            .ok_or_else(|| AgentError::UnknownTask(task.clone()))?;
        let here = held.launch.generation.0;
        if generation < here {
            return Err(AgentError::OldGeneration {
                task,
                here,
                asked: generation,
            });
        }
        if over(&held.state) {
            return Ok(Vec::new());
        }
        let requests = held
            .requests
            .as_ref()
            .ok_or_else(|| AgentError::Unreachable(task.clone()))?;
        requests
            .try_send(Request { id, verb })
            .map_err(|_| AgentError::Unreachable(task))?;
        Ok(Vec::new())
    }

    fn call(&mut self, id: u64, call: &CallTask) -> Result<(), AgentError> {
        let task = name(&call.task)?;
        let body = serde_json::from_slice(&call.body).map_err(|error| {
            AgentError::BadOrder(format!("the call's body is not JSON: {error}"))
        })?;
        let number = self.number();
        let held = self
            .tasks
            .get_mut(&task)
            .ok_or_else(|| AgentError::UnknownTask(task.clone()))?;
        let requests = held
            .requests
            .as_ref()
            .ok_or_else(|| AgentError::Unreachable(task.clone()))?;
        requests
            .try_send(Request {
                id: number,
                verb: Verb::Call { body },
            })
            .map_err(|_| AgentError::Unreachable(task))?;
        held.calls.insert(number, id);
        Ok(())
    }

    fn forget(&mut self, order: &ForgetTask) -> Result<Vec<u8>, AgentError> {
        let task = name(&order.task)?;
        let held = self.tasks.get(&task);
        let here = held.map_or(0, |held| held.launch.generation.0);
        if order.generation != 0 && here > order.generation {
            return Err(AgentError::OldGeneration {
                task,
                here,
                asked: order.generation,
            });
        }
        if held.is_some_and(|held| held.grave != Grave::Closed) {
            return Err(AgentError::StillRuns(task));
        }
        let run = held.map(|held| held.launch.run.clone());
        let generation = here.max(order.generation);
        self.clear_folder(&task, generation, order.folder)?;
        // Last: it is by this folder that the next agent knows what is still to be done, should this one die here.
        if let Some(run) = run {
            remove(&run)?;
        }
        self.tasks.remove(&task);
        Ok(Vec::new())
    }
}

fn name(text: &str) -> Result<TaskName, AgentError> {
    TaskName::new(text).map_err(|error| AgentError::BadOrder(error.to_string()))
}
