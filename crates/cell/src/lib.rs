//! The embedded cell: a controller and one agent per machine, as processes of this host, kept alive by one small
//! process that does nothing else.
//!
//! - [`home`]: where a cell lives; made once, found again.
//! - [`chaos`]: kills a machine of it, as a power cord would.
//! - [`warden`]: the process that starts the others and starts them again.

pub mod chaos;
pub mod home;
pub mod warden;
