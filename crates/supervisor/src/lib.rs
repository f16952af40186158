//! One small process per task: parent of the task, owner of its logs and limits, found again by agents that come
//! and go. Synchronous on purpose (no async runtime): its private memory is counted for every task of a cell.
//!
//! | module | for |
//! |---|---|
//! | [`supervise`] | the body of `homeostat supervise RUN_DIR` |
//! | [`endpoint`] | the body of `homeostat endpoint RUN_DIR`: the forwarder by which clients reach services |
//! | [`launch`], [`protocol`], [`line`] | what agents and supervisors tell each other; frozen |
//! | [`find`], [`leftovers`] | the agent's side: who is there, and cleaning up after one that died |
//! | [`beneath`] | files in the folder of a task that is nobody's friend |
//! | [`run`], [`spawn`], [`cgroup`], [`logs`], [`process`] | the parts, also of use to keepers |

pub mod beneath;
pub mod cgroup;
mod control;
pub mod endpoint;
pub mod find;
pub mod launch;
pub mod leftovers;
pub mod line;
pub mod logs;
pub mod process;
pub mod protocol;
pub mod run;
mod signals;
pub mod spawn;
mod supervise;

pub use control::{Credentials, credentials, may_order};
pub use supervise::{SuperviseError, supervise};
