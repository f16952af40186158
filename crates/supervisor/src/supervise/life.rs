//! Where a task is in its life, as its supervisor drives it: finer than what agents are told.

use std::time::{Duration, Instant};

use homeostat_model::ExitCause;

use crate::protocol::{Phase, Process};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Life {
    Starting,
    Running {
        child: Process,
    },
    /// SIGTERM was sent.
    Asked {
        child: Process,
        kill_at: Instant,
    },
    /// SIGKILL was sent to everything.
    Killed {
        child: Process,
    },
    /// The task's own process is reaped, something of it still runs.
    Clearing {
        child: Process,
        cause: ExitCause,
        again_at: Instant,
        pause: Duration,
    },
    Ended {
        cause: ExitCause,
        /// When to stop waiting for somebody to hear it.
        until: Instant,
    },
}

impl Life {
    /// What agents are told.
    pub(super) fn phase(&self) -> Phase {
        match self {
            Life::Starting => Phase::Starting,
            Life::Running { child } => Phase::Running { child: *child },
            Life::Asked { child, .. } | Life::Killed { child } | Life::Clearing { child, .. } => {
                Phase::Stopping { child: *child }
            }
            Life::Ended { cause, .. } => Phase::Ended {
                cause: cause.clone(),
            },
        }
    }

    /// When something must be done even if nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Life::Starting | Life::Running { .. } | Life::Killed { .. } => None,
            Life::Asked { kill_at, .. } => Some(*kill_at),
            Life::Clearing { again_at, .. } => Some(*again_at),
            Life::Ended { until, .. } => Some(*until),
        }
    }
}
