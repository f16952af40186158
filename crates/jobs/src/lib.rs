//! The admin server of plain jobs: N equal tasks, an endpoint over those that run.
//!
//! It uses nothing but the public contract (`CellHandle`), exactly as a team's own admin server would. What to do
//! next is a pure function ([`reconcile`]), and so are how long a task rests after a failure ([`restart`]) and what is shown
//! ([`view`]); [`keeping`] carries it out and looks again; [`server`] is how the cell asks.

mod keeping;
mod launch;
mod order;
mod reconcile;
mod restart;
mod server;
mod view;

pub use server::JobServer;
