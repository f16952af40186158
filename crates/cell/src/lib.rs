//! The embedded cell: a controller and one agent per machine, as processes of this host, kept alive by one small
//! process that does nothing else.
//!
//! - [`home`]: where a cell lives; made once, found again.
//! - [`warden`]: the process that starts the others and starts them again.

pub mod home;
pub mod warden;
