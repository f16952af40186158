//! Everything that can happen to an agent, in one enum, so that one loop sees it in one order.

use homeostat_api::v1::{FromAgent, ToAgent};
use homeostat_model::TaskName;
use homeostat_supervisor::endpoint::protocol as endpoint;
use homeostat_supervisor::protocol::Message;
use tokio::sync::mpsc;

use crate::supervised::Found;

#[derive(Debug)]
pub(crate) enum Wake {
    /// The controller's stream is up; what is sent here goes to it.
    Linked(mpsc::Sender<FromAgent>),
    Unlinked,
    Order(Box<ToAgent>),
    /// A supervisor said something. `connection` tells it from what an earlier connection's said.
    Supervisor {
        task: TaskName,
        connection: u64,
        message: Message,
    },
    /// The connection to a supervisor ended, or could never be made.
    SupervisorGone {
        task: TaskName,
        connection: u64,
    },
    /// What became of a task whose supervisor cannot be spoken to.
    Buried {
        task: TaskName,
        connection: u64,
        found: Found,
    },
    /// The endpoint forwarder said something.
    Forwarder(endpoint::Message),
    ForwarderGone,
    /// SIGTERM: this agent ends, its tasks do not.
    Terminate,
}
