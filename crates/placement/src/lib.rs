//! The scheduler: which task goes to which machine.
//!
//! A pure function of what is desired and what is observed: no IO, no clock, no randomness, no hidden state. Called
//! again with its own answer it changes nothing ([`place`] explains why), so the controller may call it at every event.
//!
//! What it promises, and [`lint`] checks of every plan:
//! - a task that has a machine keeps it (this first cut never moves anything; draining comes as an operation);
//! - no machine is given more than its capacity, nor two tasks that want the same fixed port;
//! - two tasks that must be apart ([`Apart::Always`]: the members of one SQL cluster) never share a machine;
//! - nothing new goes to a machine that is not ready;
//! - a task is pending only if every machine refuses it, and each refusal says why, in numbers.
//!
//! Among the machines that accept a task it takes the one whose rack, then itself, holds the fewest tasks of the same
//! service, then the least loaded, then the first by name. Names decide ties, so that the same question has the same answer
//! on every controller.

mod lint;
mod place;
mod types;

pub use lint::{Violation, lint};
pub use place::place;
pub use types::{
    Apart, Assignment, Note, Pending, Placed, Pool, PoolMachine, Readiness, Refusal, Request,
};
