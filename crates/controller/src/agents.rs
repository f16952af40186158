//! The agents' streams.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use homeostat_api::PROTOCOL;
use homeostat_api::v1::agents_server::Agents;
use homeostat_api::v1::{FromAgent, TaskEvent, ToAgent, Welcome, from_agent, to_agent};
use homeostat_model::{MachineName, TaskName, TaskState};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::core::Core;
use crate::hub::AGENT_QUEUE;
use crate::machines::{Stray, stray};

pub(crate) struct AgentLinks(pub Arc<Core>);

#[tonic::async_trait]
impl Agents for AgentLinks {
    type LinkStream = Pin<Box<dyn Stream<Item = Result<ToAgent, Status>> + Send>>;

    async fn link(
        &self,
        request: Request<Streaming<FromAgent>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let core = Arc::clone(&self.0);
        let (orders, outgoing) = mpsc::channel(AGENT_QUEUE);
        // Answered at once: an agent cannot speak before its stream is open.
        tokio::spawn(async move { listen(&core, request.into_inner(), orders).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

type Orders = mpsc::Sender<Result<ToAgent, Status>>;

async fn listen(core: &Arc<Core>, mut stream: Streaming<FromAgent>, orders: Orders) {
    let Ok(Some(FromAgent {
        message: Some(from_agent::Message::Hello(hello)),
    })) = stream.message().await
    else {
        drop(orders.try_send(Err(Status::invalid_argument(
            "an agent begins with its hello",
        ))));
        return;
    };
    let machine = match accept(core, &hello.machine, hello.protocol, hello.highest_term) {
        Ok(machine) => machine,
        Err(status) => {
            eprintln!(
                "agent of {} is refused: {}",
                hello.machine,
                status.message()
            );
            drop(orders.try_send(Err(status)));
            return;
        }
    };
    let welcome = ToAgent {
        id: 0,
        message: Some(to_agent::Message::Welcome(Welcome {
            term: core.term.0,
            takes_signs: true,
        })),
    };
    drop(orders.try_send(Ok(welcome)));
    let number = core.hub.connected(machine.clone(), hello, orders);
    core.events
        .add("machine", machine.as_str(), "agent connected");
    let mut strays = BTreeSet::new();
    let mut named = BTreeSet::new();
    while let Ok(Some(FromAgent {
        message: Some(message),
    })) = stream.message().await
    {
        match message {
            from_agent::Message::Hello(_) => break,
            from_agent::Message::Task(event) if !is_placed(core, &event) => {
                named.insert(event.task.clone());
                let made_of_it = stray(core, &machine, &event);
                if made_of_it == Stray::Unknown && strays.insert(event.task.clone()) {
                    let text = format!(
                        "is on {machine} with generation {}, but has no such place",
                        event.generation
                    );
                    core.events.add("task", event.task, text);
                }
            }
            from_agent::Message::Task(event) if !event.sign.is_empty() => {
                core.hub.sign(&machine, number, &event);
            }
            from_agent::Message::Task(event) => {
                let before = core.hub.observed(&machine, number, event.clone());
                tell_change(core, before.as_ref(), &event);
                // Its place may have been given up in the same moment; then nobody else would see it.
                if !is_placed(core, &event)
                    && let Ok(task) = TaskName::new(event.task.clone())
                {
                    core.hub.take(&task, event.generation);
                    stray(core, &machine, &event);
                }
            }
            from_agent::Message::Done(done) => core.hub.answered(&machine, number, done),
            from_agent::Message::Synced(_) => {
                core.machines
                    .keep_stale(&machine, &std::mem::take(&mut named));
                core.hub
                    .synced(&machine, number, &core.placements.on(&machine));
            }
            from_agent::Message::Forwarder(report) => {
                if !report.error.is_empty() {
                    core.events.add(
                        "endpoint",
                        report.service.clone(),
                        format!("{machine}: {}", report.error),
                    );
                }
                core.hub.forwarder(&machine, report);
            }
        }
    }
    core.hub.disconnected(&machine, number);
    core.events
        .add("machine", machine.as_str(), "agent disconnected");
}

fn accept(
    core: &Core,
    machine: &str,
    protocol: u32,
    highest_term: u64,
) -> Result<MachineName, Status> {
    if protocol != PROTOCOL {
        return Err(Status::failed_precondition(format!(
            "it speaks protocol {protocol}, this controller {PROTOCOL}"
        )));
    }
    if highest_term > core.term.0 {
        return Err(Status::failed_precondition(format!(
            "it obeys term {highest_term}, this controller has {}",
            core.term
        )));
    }
    let name =
        MachineName::new(machine).map_err(|error| Status::invalid_argument(error.to_string()))?;
    if core.identity.machine(&name).is_none() {
        return Err(Status::not_found(format!(
            "{name} is not a machine of this cell"
        )));
    }
    Ok(name)
}

/// Whether the task was given this place.
fn is_placed(core: &Core, event: &TaskEvent) -> bool {
    let place = TaskName::new(event.task.clone())
        .ok()
        .and_then(|task| core.placements.of(&task));
    place.is_some_and(|place| {
        place.machine.as_str() == event.machine
            && place.service.as_str() == event.service
            && place.generation.0 == event.generation
    })
}

/// Tells people about starts and ends; the rest of a task's events is for its service.
fn tell_change(core: &Core, before: Option<&TaskEvent>, now: &TaskEvent) {
    if before.is_some_and(|before| before.state_json == now.state_json) {
        return;
    }
    let Ok(state) = serde_json::from_str::<TaskState>(&now.state_json) else {
        return;
    };
    let text = match &state {
        TaskState::Running { pid } => format!("runs on {} (pid {pid})", now.machine),
        TaskState::Exited { cause } => format!("ended on {}: {cause}", now.machine),
        TaskState::Lost => format!("lost on {}: its supervisor died with it", now.machine),
        TaskState::Pending { .. } | TaskState::Starting | TaskState::Stopping { .. } => return,
    };
    core.events.add("task", now.task.clone(), text);
}
