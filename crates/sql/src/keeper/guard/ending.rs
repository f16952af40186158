//! The end of a keeper: the server's first, then told, then its own.

use std::time::Duration;

use homeostat_model::ExitCause;
use homeostat_supervisor::protocol::{Event, Message, Phase};
use homeostat_supervisor::run::{ExitFile, now};
use tokio::time::Instant;

use super::Guard;
use crate::keeper::orders::chain;

/// How long an ended keeper waits for an agent to hear of it; the exit file says it to later ones.
const LINGER: Duration = Duration::from_secs(2);

impl Guard {
    /// Ends the server within `grace`, then this process.
    pub(super) fn stop(&mut self, grace: Duration) {
        match self.phase {
            Phase::Running { .. } | Phase::Starting | Phase::Stopping { .. } => {}
            Phase::Ended { .. } => return,
        }
        self.phase = Phase::Stopping { child: self.me };
        self.peers.tell_all(&Message::Event(Event::Phase {
            phase: self.phase.clone(),
        }));
        // An order on its way is given up: its statements die with the server.
        self.job = None;
        self.waiting.clear();
        self.copies.end();
        match &self.server {
            Some(server) if grace.is_zero() => server.kill(),
            Some(server) => {
                server.terminate();
                self.deadline = Some(Instant::now() + grace);
            }
            None => {}
        }
    }

    pub(super) fn out_of_time(&mut self) {
        self.deadline = None;
        if let Some(server) = &self.server {
            self.context
                .note("the server did not end in time and is killed");
            server.kill();
        }
    }

    /// Whether this process is to end. Tells it first, and stays a moment for agents to hear it.
    pub(super) fn over(&mut self) -> bool {
        match &self.phase {
            Phase::Starting | Phase::Running { .. } => false,
            Phase::Stopping { .. } if self.server.is_some() => false,
            Phase::Stopping { .. } => {
                let cause = ExitCause::Code { code: 0 };
                self.phase = Phase::Ended {
                    cause: cause.clone(),
                };
                let launch = &self.context.launch;
                let exit = ExitFile {
                    format: ExitFile::FORMAT,
                    task: launch.task.clone(),
                    generation: launch.generation,
                    boot_id: self.context.boot.0.clone(),
                    supervisor: self.me,
                    cause,
                    at: now(),
                };
                if let Err(error) = exit.store(&self.context.run_dir) {
                    self.context.note(&chain(&error));
                }
                self.report_changes();
                self.peers.tell_all(&Message::Event(Event::Phase {
                    phase: self.phase.clone(),
                }));
                self.deadline = Some(Instant::now() + LINGER);
                self.peers.is_empty()
            }
            Phase::Ended { .. } => self.peers.is_empty() || self.deadline.is_none(),
        }
    }
}
