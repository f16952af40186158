//! What goes into the scheduler and what comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use homeostat_model::{
    Bytes, Generation, MachineName, MilliCpu, RackName, Resources, ServiceName, TaskName,
};

/// One task that should run somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub task: TaskName,
    pub service: ServiceName,
    pub resources: Resources,
    /// Ports with a number of their own; those that the machine picks are no concern here.
    pub fixed_ports: BTreeSet<u16>,
    pub apart: Apart,
    /// The highest generation under which this task was ever placed; zero for never. A new placement takes the next
    /// one, and supervisors refuse a lower one.
    pub last_generation: Generation,
    /// Where its data is from an earlier time: taken if that machine accepts it.
    pub home: Option<MachineName>,
}

/// How the tasks of one service keep their distance. Both kinds spread over racks as well as they can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apart {
    /// Never two on one machine, whatever waits for it.
    Always,
    /// As far as there is room.
    Preferably,
}

/// The machines, and what already has a place on them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pool {
    pub machines: BTreeMap<MachineName, PoolMachine>,
    /// Also those of tasks that nobody desires any more: they use their machine until they are gone.
    pub assignments: BTreeMap<TaskName, Assignment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolMachine {
    pub rack: RackName,
    pub capacity: Resources,
    pub readiness: Readiness,
}

/// Whether a machine takes new tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// `why` is for people: `its agent has not reported yet`.
    NotReady {
        why: String,
    },
}

/// A task's place, with what it holds there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    pub machine: MachineName,
    pub generation: Generation,
    pub service: ServiceName,
    pub resources: Resources,
    pub fixed_ports: BTreeSet<u16>,
    pub apart: Apart,
}

/// The plan: every task with a place, every task without one, and what led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// All of them: those found in the pool, unchanged, and the new ones.
    pub assignments: BTreeMap<TaskName, Assignment>,
    /// By task name.
    pub pending: Vec<Pending>,
    /// In the order in which it was decided.
    pub report: Vec<Note>,
}

/// A task that no machine takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    pub task: TaskName,
    /// All reasons of every machine; empty only when the pool has no machine.
    pub why: BTreeMap<MachineName, Vec<Refusal>>,
}

/// Why a machine does not take a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    NotReady {
        why: String,
    },
    Cpu {
        needs: MilliCpu,
        free: MilliCpu,
    },
    Memory {
        needs: Bytes,
        free: Bytes,
    },
    Port {
        port: u16,
        held_by: TaskName,
    },
    Sibling {
        task: TaskName,
    },
    /// Its data is on another machine, for which it waits.
    DataElsewhere {
        home: MachineName,
    },
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// It had a place and keeps it.
    Kept {
        task: TaskName,
        machine: MachineName,
    },
    /// It keeps its place although that machine is not ready, or is no longer in the pool.
    Stranded {
        task: TaskName,
        machine: MachineName,
        why: String,
    },
    /// Nobody desires it any more; it uses its machine until it is gone.
    Unwanted {
        task: TaskName,
        machine: MachineName,
    },
    /// It is new.
    Chosen {
        task: TaskName,
        machine: MachineName,
        because: String,
    },
    /// No machine takes it; see [`Placed::pending`].
    Pending { task: TaskName },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NotReady { why } => write!(f, "not ready: {why}"),
            Refusal::Cpu { needs, free } => {
                write!(f, "needs {needs}, {:.2} free", f64::from(free.0) / 1000.0)
            }
            Refusal::Memory { needs, free } => write!(f, "needs {needs} of memory, {free} free"),
            Refusal::Port { port, held_by } => write!(f, "port {port} is held by {held_by}"),
            Refusal::Sibling { task } => {
                write!(
                    f,
                    "{task} is there, and no two tasks of its service may share a machine"
                )
            }
            Refusal::DataElsewhere { home } => write!(f, "its data is on {home}"),
        }
    }
}

impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is pending", self.task)?;
        if self.why.is_empty() {
            return write!(f, ": the pool has no machine");
        }
        for (machine, refusals) in &self.why {
            let refusals: Vec<String> = refusals.iter().map(Refusal::to_string).collect();
            write!(f, "\n  {machine}: {}", refusals.join("; "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Kept { task, machine } => write!(f, "{task} stays on {machine}"),
            Note::Stranded { task, machine, why } => {
                write!(f, "{task} stays on {machine}, which is not ready: {why}")
            }
            Note::Unwanted { task, machine } => {
                write!(f, "{task} on {machine} is no longer wanted")
            }
            Note::Chosen {
                task,
                machine,
                because,
            } => write!(f, "{task} goes to {machine}: {because}"),
            Note::Pending { task } => write!(f, "no machine takes {task}"),
        }
    }
}
