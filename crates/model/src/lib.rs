//! The nouns of a cell: names, units, lifecycles and what a person declares.
//!
//! Floor 0. No IO, no clock, nothing else of ours. Everything here is plain data that other rooms agree on.
//! These are *core* types; the wire has its own (`homeostat-api`) and conversion happens at the edge.

mod layout;
pub mod library;
mod machine;
mod names;
mod spec;
mod task;
mod template;
mod units;

pub use layout::{CellIdentity, CellLayout, LocalMachine, MachineLayout, STATE_FORMAT};
pub use machine::{Duty, IllegalMove, MachineEvent, MachineState};
pub use names::{
    BadName, CellName, CheckName, EndpointName, MachineName, OperationId, PackageName, PortName,
    ProcedureName, RackName, ServiceName, StepName, TaskName,
};
pub use spec::{
    CellKind, CellSpec, CheckSpec, CheckTarget, Durability, FileTemplate, Flavor, HttpProbe,
    JobSpec, MachineSpec, PackageSource, PackageSpec, ProbeSpec, Profile, Reads, RestartPolicy,
    ServiceKind, ServiceSpec, SqlSpec, TaskTemplate, TaskUser,
};
pub use task::{ExitCause, TaskState};
pub use template::{BadTemplate, Template, Variable};
pub use units::{
    BadUnit, Bytes, Epoch, Generation, MilliCpu, RecordVersion, Resources, Revision, Sequence,
    Term, UnixMillis, parse_duration,
};
