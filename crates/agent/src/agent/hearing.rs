//! What supervisors and keepers say, and what becomes of those that say nothing any more.

use homeostat_model::{TaskName, TaskState};
use homeostat_supervisor::launch::LaunchFile;
use homeostat_supervisor::process;
use homeostat_supervisor::protocol::{Answer, Event, Hello, Message, Phase, Request, Verb};

use super::{Agent, Grave, over};
use crate::AgentError;
use crate::supervised::{bury, connect};
use crate::talk::Patience;
use crate::wake::Wake;

impl Agent {
    pub(super) fn heard(&mut self, task: &TaskName, connection: u64, message: Message) {
        let Some(held) = self
            .tasks
            .get_mut(task)
            .filter(|held| held.connection == connection)
        else {
            return;
        };
        match message {
            Message::Hello(hello) => {
                if !is_same(&hello, &held.launch) {
                    eprintln!("{task}: somebody else answers at its socket: {hello:?}");
                    // An earlier placement that was believed to be gone is in the way of this one.
                    if let Some(requests) = held.requests.take()
                        && hello.task == held.launch.task
                        && hello.generation < held.launch.generation
                        && requests
                            .try_send(Request {
                                id: 0,
                                verb: Verb::Kill,
                            })
                            .is_err()
                    {
                        eprintln!("{task}: the earlier supervisor cannot be told to end");
                    }
                    return;
                }
                held.grave = Grave::Alive;
                held.supervisor = Some(hello.supervisor);
                held.state = state_of(&hello.phase);
                let refused = if over(&held.state) {
                    None
                } else {
                    held.next.take()
                };
                self.report(task);
                if let Some((id, _)) = refused {
                    self.done(id, Err(AgentError::StillRuns(task.clone())));
                }
            }
            Message::Event(Event::Phase { phase }) => {
                held.state = state_of(&phase);
                self.report(task);
            }
            Message::Event(Event::Service { body }) => {
                held.service_event = serde_json::to_vec(&body).unwrap_or_default();
                self.report(task);
            }
            Message::Event(Event::Sign { body }) => {
                let sign = serde_json::to_vec(&body).unwrap_or_default();
                self.pass_on(task, sign);
            }
            Message::Reply { id, answer } => {
                let Some(call) = held.calls.remove(&id) else {
                    return;
                };
                let result = match answer {
                    Answer::Called { body } => Ok(serde_json::to_vec(&body).unwrap_or_default()),
                    Answer::Accepted => Ok(Vec::new()),
                    Answer::Refused { why } => Err(AgentError::BadOrder(why)),
                };
                self.done(call, result);
            }
        }
    }

    pub(super) fn gone(&mut self, task: &TaskName, connection: u64) {
        let Some(held) = self
            .tasks
            .get_mut(task)
            .filter(|held| held.connection == connection)
        else {
            return;
        };
        held.requests = None;
        held.service_event.clear();
        held.grave = Grave::Digging;
        let calls = std::mem::take(&mut held.calls);
        let (run, generation) = (held.launch.run.clone(), held.launch.generation);
        for (_, call) in calls {
            self.done(call, Err(AgentError::Unreachable(task.clone())));
        }
        self.report(task);
        let (wakes, task) = (self.wakes.clone(), task.clone());
        tokio::task::spawn_blocking(move || {
            let found = bury(&run, generation);
            drop(wakes.blocking_send(Wake::Buried {
                task,
                connection,
                found,
            }));
        });
    }

    /// A supervisor that only closed the connection, or was slow to listen, is spoken to again.
    pub(super) fn reconnect(&mut self, task: &TaskName, before: u64) {
        let connection = self.number();
        let wakes = self.wakes.clone();
        if let Some(held) = self
            .tasks
            .get_mut(task)
            .filter(|held| held.connection == before)
        {
            held.connection = connection;
            held.requests = Some(connect(
                task.clone(),
                connection,
                &held.launch.run,
                Patience::ShouldListen,
                wakes,
            ));
        }
    }

    pub(super) fn buried(&mut self, task: &TaskName, connection: u64, state: TaskState) {
        let Some(held) = self
            .tasks
            .get_mut(task)
            .filter(|held| held.connection == connection)
        else {
            return;
        };
        held.supervisor = None;
        held.grave = Grave::Closed;
        held.state = state;
        let next = held.next.take();
        self.report(task);
        if let Some((id, order)) = next {
            let result = self.start(&order);
            self.done(id, result);
        }
    }
}

/// A socket path is reused; a supervisor is the one we mean only if it names the task and generation, and the process
/// it says it is exists with that start time.
fn is_same(hello: &Hello, launch: &LaunchFile) -> bool {
    hello.task == launch.task
        && hello.generation == launch.generation
        && process::alive(hello.supervisor)
}

fn state_of(phase: &Phase) -> TaskState {
    match phase {
        Phase::Starting => TaskState::Starting,
        Phase::Running { child } => TaskState::Running { pid: child.pid },
        Phase::Stopping { child } => TaskState::Stopping { pid: child.pid },
        Phase::Ended { cause } => TaskState::Exited {
            cause: cause.clone(),
        },
    }
}
