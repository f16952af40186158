//! What checks look at and fixes do, on a real machine.
//!
//! Floor 2. A [`Probe`] is *resolved*: no templates, no names of services, nothing left to look up but host names.
//! [`Prober::run`] carries it out and always comes back with an [`Observation`] about when its deadline says, whatever
//! the other side does: hang, answer garbage, answer for ever, fork and hide.
//!
//! Three outcomes are told apart. *Passed* and *failed* are about what is tested. *Not run* is about the prober: it had
//! no file descriptor or process left, and says nothing about the target.
//!
//! What is seen is shown to people in terminals and stored, and comes from programs that may be broken or hostile. So
//! it is cut to size and cleaned of control characters here, at the edge (`shown`).

mod accounts;
mod call;
mod clock;
mod command;
mod deadline;
mod dns;
mod execute;
mod family;
mod fix;
pub mod goss;
mod grpc;
mod http;
mod local;
mod log;
mod managed;
mod matcher;
mod metric;
mod probe;
mod program;
pub mod prove;
mod shown;
mod sql;
mod strays;
mod tcp;
mod value;
mod wants;

use std::error::Error;

pub use call::CallError;
pub use command::CommandProbe;
pub use execute::RunAs;
pub use fix::{Applied, AppliedOutcome, Fix, FixError, Ground};
pub use http::HttpProbe;
pub use matcher::{BadMatcher, Matcher};
pub use probe::{Probe, Prober};
pub use sql::{SqlProbe, SqlUrl};
pub use tcp::TcpProbe;
pub use wants::Wants;

/// Whether a probe failed for want of something on the prober's side.
fn is_our_own_trouble(error: &(dyn Error + 'static)) -> bool {
    use rustix::io::Errno;
    // AGAIN: fork, at the limit of processes. The others: no descriptor here or in the whole system, no memory.
    const OURS: [Errno; 4] = [Errno::AGAIN, Errno::MFILE, Errno::NFILE, Errno::NOMEM];
    let ours = |error: &(dyn Error + 'static)| {
        let code = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::raw_os_error);
        code.is_some_and(|code| OURS.iter().any(|ours| ours.raw_os_error() == code))
    };
    shown::chain(error).any(ours)
}
