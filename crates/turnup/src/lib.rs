//! Turnup and turndown of a cell's services: an operation whose steps are the layers of the dependency graph, each a
//! group of admin-server calls in parallel.
//!
//! A service's own verbs (a switchover) are operations of one step ([`act`]); emptying a machine is one too
//! ([`drain()`]).
//!
//! [`plan`] is pure. [`TurnProcedure`] carries a plan out through the public contract and nothing else; what the cell
//! itself has to prepare (agents, packages) comes in through [`Cell`].

mod act;
mod drain;
mod plan;
mod procedure;

pub use act::{Act, ActProcedure};
pub use drain::{Door, DrainProcedure, Landlord, Tenant, drain, drain_procedure, drained_machine};
pub use plan::{
    Keep, PROCEDURE_VERSION, is_whole, layers, turndown, turndown_procedure, turndown_some, turnup,
    turnup_procedure,
};
pub use procedure::{Cell, Direction, TurnProcedure};
