//! The scheduler: which task goes to which machine; when a machine is lost; how much of a service may be disturbed.
//!
//! - [`place`], [`lint`]: the scheduler and its judge;
//! - [`silence`]: which machines are called lost;
//! - [`budget`]: the one budget per service that drains, rollouts and rebuilds share.
//!
//! The scheduler is a pure function of what is desired and what is observed: no IO, no clock, no randomness, no hidden state. Called
//! again with its own answer it changes nothing ([`place`] explains why), so the controller may call it at every event.
//!
//! What it promises, and [`lint`] checks of every plan:
//! - a task that has a machine keeps it: one that is to move is handed in without its old place;
//! - no machine is given more than its capacity, nor two tasks that want the same fixed port;
//! - two tasks that must be apart ([`Apart::Always`]: the members of one SQL cluster) never share a machine;
//! - nothing new goes to a machine that is not ready;
//! - a task is pending only if every machine refuses it, and each refusal says why, in numbers.
//!
//! Among the machines that accept a task it takes the one whose rack, then itself, holds the fewest tasks of the same
//! service, then the least loaded, then the first by name. Names decide ties, so that the same question has the same answer
//! on every controller.

pub mod budget;
mod lint;
mod place;
pub mod silence;
mod types;

pub use lint::{Violation, lint};
pub use place::place;
pub use types::{
    Apart, Assignment, Note, Pending, Placed, Pool, PoolMachine, Readiness, Refusal, Request,
};
