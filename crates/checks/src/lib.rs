//! Production tests at work: reads a suite, runs it over live things, repairs what may be repaired, and says what came
//! of it.
//!
//! Floor 2, and it uses `probes` of its own floor. Its parts, in the way of a suite through them:
//! 1. [`Suite`] (`suite`): checks ready to be run, from `site.star` or a goss file;
//! 2. [`Selection`] (`select`): those that are asked for, and what they depend on;
//! 3. [`run`](run()) (`run`): the loop. `homeostat-prodtest` decides what to look at, what to believe and what to fix;
//!    `hands` carries it out; every [`Event`] goes to one [`Reporter`], and in the end there is a [`Report`];
//! 4. `report` and `graph`: what people and programs read.
//!
//! Invariants: each probe and fix has a time limit of its own and one around it; a run that ends, however it ends, leaves
//! nothing running; "not run" is never shown as a pass.

mod event;
mod graph;
mod hands;
mod history;
mod locks;
mod plan;
mod proofs;
mod report;
mod row;
mod run;
mod select;
mod suite;
mod watch;

pub use event::{Event, FixView, Reporter};
pub use graph::{Graph, Picture};
pub use history::HistoryError;
pub use homeostat_probes::prove::{Worker, inside as prove_inside};
pub use locks::LockFolder;
pub use plan::{Plan, PlannedFix, plan};
pub use proofs::{Found, ProofBook, ProofError, Proved, scratch_folder};
pub use report::{Colour, Json, Junit, Prometheus, Tap, Terminal};
pub use row::{Mark, Report, Row, Standing, Summary};
pub use run::{Doing, Ended, RunError, RunOptions, run};
pub use select::{Chosen, NothingChosen, Selection};
pub use suite::{Item, Suite, SuiteProblem, goss_to_site, judge};
