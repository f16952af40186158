//! The agent: one process per machine. It starts supervisors, tells the controller what it sees, and carries calls to
//! supervisors. It decides nothing: which task runs here is the controller's word, what a task is now is its
//! supervisor's.
//!
//! - One loop owns all state ([`agent`]); everything else sends it [`wake::Wake`]s.
//! - It may be killed at any moment: tasks and the endpoint forwarder go on, and the next agent finds them again by
//!   their sockets ([`supervised`]), never by a bare pid.
//! - It refuses a controller of a lower term than one it has obeyed.
//!
//! Absent on purpose: restart policies (the service's admin server has them), access to the store.

mod agent;
mod error;
mod forwarder;
mod link;
mod looking;
mod prepare;
mod supervised;
mod talk;
mod users;
mod wake;

pub use agent::{AgentOptions, run};
pub use error::AgentError;
