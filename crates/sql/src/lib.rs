//! SQL clusters: MariaDB and MySQL as services of a cell.
//!
//! | module | for |
//! |---|---|
//! | [`copy`] | a member's data, copied from a peer: how a member is rebuilt |
//! | [`keeper`] | the process of one member: parent, guard and only administrator of its server |
//! | [`mariadb`] | data folders, settings and statements of MariaDB; what the orders of a decider turn into |
//! | [`service`] | the admin server of a cluster: keepers placed and started, a decider's effects carried out |

pub mod copy;
pub mod keeper;
pub mod mariadb;
pub mod service;

pub use service::SqlServer;
