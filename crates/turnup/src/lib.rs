//! Turnup and turndown of a cell's services: an operation whose steps are the layers of the dependency graph, each a
//! group of admin-server calls in parallel.
//!
//! [`plan`] is pure. [`TurnProcedure`] carries a plan out through the public contract and nothing else; what the cell
//! itself has to prepare (agents, packages) comes in through [`Cell`].

mod plan;
mod procedure;

pub use plan::{PROCEDURE_VERSION, layers, turndown, turndown_procedure, turnup, turnup_procedure};
pub use procedure::{Cell, Direction, TurnProcedure};
