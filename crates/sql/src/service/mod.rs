//! The SQL service: the admin server of one replicated cluster.
//!
//! It is an ordinary client of the public contract: everything it does goes through [`CellHandle`], so it runs in the
//! controller or in a process of its own ([`serve_service`]) alike. What it decides is decided elsewhere, by pure
//! functions: who is primary by [`homeostat_decider::Decider`], which keepers to start by `members`. One loop owns all
//! state and never waits for anything: every call across the contract is a spawned task whose outcome comes back as a
//! message. That is what keeps a failover as fast as the servers are.
//!
//! | module | for |
//! |---|---|
//! | `server` | the contract's side: turnup, inspect, act |
//! | `run` | the loop |
//! | `lead` | carries a decider's effects out |
//! | `record` | the cluster's record in the store, by compare-and-set |
//! | `term` | the fencing number of each decider |
//! | `members` | which keepers to place, start and stop: pure |
//! | `launch`, `secrets` | what a keeper is told |
//! | `view` | what `status` shows: pure |
//! | `story` | what the last changes of epoch were, and why |
//! | `own` | the service's own keys |
//! | `tell` | calls of more than one request; notes and history |
//! | `remote` | the same in a process of its own |
//!
//! Own keys: `spec` (what is wished), `record`, `leader`, `history`, `secret/app-password` and `secret/dsn` (for those
//! who need the service), `private/replication` (for its keepers alone, so not a `${secret.…}`).
//!
//! [`CellHandle`]: homeostat_api::CellHandle

mod launch;
mod lead;
mod members;
mod own;
mod record;
mod remote;
mod run;
mod secrets;
mod server;
mod story;
mod tell;
mod term;
mod view;

pub use remote::{ServeError, serve_service};
pub use server::SqlServer;
pub use story::{Change, Step};
pub use view::{ClusterView, Copying, MemberRow, Role};
