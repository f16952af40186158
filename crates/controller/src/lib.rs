//! The controller: one leader per cell. It holds the store, hears the agents, and wires planners and services to them.
//! It has no policy of its own and knows nothing of SQL: services are driven through the contract.
//!
//! It may be killed at any moment: everything that must not be forgotten is in the store, everything observed is told
//! again by the agents, operations are resumed from their journal.

mod agents;
mod budgets;
mod checks;
mod clock;
mod core;
mod drain;
mod error;
mod events;
mod handle;
mod hub;
mod keys;
mod leader;
mod machines;
mod packages;
mod people;
mod placements;
mod purge;
mod run;
mod services;
mod status;
mod turning;
mod values;
mod why;

pub use error::ControllerError;
pub use homeostat_store::OpenError;
pub use run::{ControllerOptions, run};
pub use services::ExternalAdmin;
