//! The end-to-end harness: real cells, of real processes, from the program that people run.
//!
//! A test declares a cell in the text of a cell file and speaks to it as a person does, through the command line, or as
//! misfortune does, through SIGKILL. Nothing here links the product: what it does not print or leave on the disk, a test
//! cannot see.
//!
//! - [`Home`]: a folder of its own for everything of one cell, so that whatever mentions it belongs to that cell.
//! - [`Cell`]: one cell in such a folder. When it is dropped it is taken down and purged, and then it is *verified* that
//!   nothing is left: no process, no cgroup, no file, no mount. A test that leaves something behind fails.
//! - [`Status`]: `homeostat status --json`, which is a documented interface.
//! - [`process`]: what runs, as /proc tells it.
//! - [`wait`]: bounded waits for conditions. No test sleeps for a while and then hopes.
//! - [`begin`]: one test at a time, and how long each took.

mod cell;
mod command;
mod home;
mod leftovers;
pub mod net;
pub mod process;
mod programs;
mod status;
mod turn;
pub mod wait;

pub use cell::Cell;
pub use command::{Ran, Running};
pub use home::{Home, NOBODY, is_root};
pub use programs::{homeostat, shop};
pub use status::{Pids, Status};
pub use turn::{Turn, begin};
