//! One small process per task: parent of the task, owner of its logs and limits, found again by agents that come
//! and go. Synchronous on purpose (no async runtime): its private memory is counted for every task of a cell.

pub mod launch;
pub mod protocol;
