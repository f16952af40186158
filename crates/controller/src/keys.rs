//! The store's keys, in one place.

use homeostat_model::{MachineName, ServiceName, TaskName};

/// The fencing number of the last leader.
pub(crate) const TERM: &str = "/cell/term";
/// The cell as applied last, with the builds of its packages.
pub(crate) const SPEC: &str = "/cell/spec";
/// Service to the port its endpoint has on every machine.
pub(crate) const PORTS: &str = "/cell/endpoint-ports";
pub(crate) const PLACEMENTS: &str = "/placements/";
pub(crate) const ENDPOINTS: &str = "/endpoints/";
pub(crate) const EVENTS: &str = "/events/";
/// Services that should be up; those without a key should be down.
pub(crate) const WANTED: &str = "/wanted/";

/// What is known of a machine beyond what its agent says.
pub(crate) const MACHINES: &str = "/machines/";
/// Which tasks of a service are out of service on purpose.
pub(crate) const DISTURBED: &str = "/disturbed/";
/// Where a task had its place before it was freed, and its generation.
pub(crate) const FORMER: &str = "/former/";
/// Services that were turned down and are to be purged.
pub(crate) const TURNED_DOWN: &str = "/turned-down/";

pub(crate) fn machine(name: &MachineName) -> String {
    format!("{MACHINES}{name}")
}

pub(crate) fn disturbed(service: &ServiceName) -> String {
    format!("{DISTURBED}{service}")
}

pub(crate) fn former(task: &TaskName) -> String {
    format!("{FORMER}{task}")
}

pub(crate) fn turned_down(service: &ServiceName) -> String {
    format!("{TURNED_DOWN}{service}")
}

pub(crate) fn placement(task: &TaskName) -> String {
    format!("{PLACEMENTS}{task}")
}

pub(crate) fn endpoint(service: &ServiceName) -> String {
    format!("{ENDPOINTS}{service}")
}

pub(crate) fn wanted(service: &ServiceName) -> String {
    format!("{WANTED}{service}")
}

pub(crate) fn event(number: u64) -> String {
    format!("{EVENTS}{number:016}")
}

/// A service's own keys: nobody else writes below this.
pub(crate) fn own(service: &ServiceName, key: &str) -> String {
    format!("/service/{service}/{key}")
}
