//! Everything that can happen to an agent, in one enum, so that one loop sees it in one order.

use homeostat_api::v1::{FromAgent, ToAgent};
use homeostat_model::{Generation, TaskName};
use homeostat_supervisor::endpoint::protocol as endpoint;
use homeostat_supervisor::protocol::Message;
use tokio::sync::mpsc;

#[derive(Debug)]
pub(crate) enum Wake {
    /// The controller's stream is up; what is sent here goes to it.
    Linked(mpsc::Sender<FromAgent>),
    Unlinked,
    Order(ToAgent),
    /// A supervisor said something. `generation` tells it from an earlier placement's, `connection` from an earlier
    /// connection's.
    Supervisor { task: TaskName, connection: u64, message: Message },
    /// The connection to a supervisor ended, or could never be made.
    SupervisorGone { task: TaskName, connection: u64 },
    /// What became of a dead supervisor's task, after everything of it was verified to be gone.
    Buried { task: TaskName, generation: Generation, state: homeostat_model::TaskState },
    /// The endpoint forwarder said something.
    Forwarder(endpoint::Message),
    ForwarderGone,
    /// SIGTERM: this agent ends, its tasks do not.
    Terminate,
}
