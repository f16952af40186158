//! The server as it is seen: started, looked at, ended.

use std::time::Duration;

use homeostat_decider::ServerState;
use homeostat_supervisor::protocol::Process;
use homeostat_supervisor::run::{RunError, RunRecord};
use tokio::time::Instant;

use super::Guard;
use crate::keeper::orders::{Progress, chain};
use crate::keeper::server::Server;
use crate::mariadb::{self, Driver, Reading, SqlError};

/// Looks come quickly after a change and slowly when nothing moves: an idle member costs next to nothing.
pub(super) const QUICK: Duration = Duration::from_millis(20);
/// Orders of one failover follow each other in less than this, and each says what it saw.
pub(super) const BETWEEN_ORDERS: Duration = Duration::from_millis(100);
const MOVING: Duration = Duration::from_secs(1);
const SLOW: Duration = Duration::from_secs(4);

impl Guard {
    pub(super) fn progressed(&mut self, progress: Progress) {
        match progress {
            Progress::Seen(reading) => {
                self.saw(*reading);
            }
            Progress::Lends(lent) => self.lends(*lent),
            Progress::Rebuilds(rebuild) => self.rebuilds(*rebuild),
            Progress::Spawned(server) => self.spawned(server),
            Progress::Ended(incarnation) => {
                if self
                    .server
                    .as_ref()
                    .is_none_or(|server| server.incarnation != incarnation)
                {
                    return;
                }
                self.context
                    .note(&format!("the server (pid {}) ended", incarnation.pid));
                if self.fuse.has_blown() {
                    self.context
                        .note("it was killed: its serving lease had ended");
                }
                self.fuse.watches(None);
                self.core.server_ended();
                self.living.ended();
                self.server = None;
                self.driver = None;
                self.login = None;
                self.watcher = None;
                self.look = None;
                self.known.barrier = None;
                self.known.relay = None;
                self.reading = None;
                self.state = ServerState::Down {
                    initialised: true,
                    last: Some(incarnation),
                };
                self.fresh = true;
                self.answer_curious(u64::MAX);
                self.offer_waiting();
            }
        }
    }

    pub(super) fn spawned(&mut self, mut server: Server) {
        let incarnation = server.incarnation.clone();
        self.state = ServerState::Starting {
            incarnation: incarnation.clone(),
        };
        match server.handle() {
            Ok(handle) => self.fuse.watches(Some(handle)),
            Err(error) => self.context.note(&format!(
                "nothing could end the server by itself: no handle of it: {error}"
            )),
        }
        self.server = Some(server.clone());
        let progress = self.progress.0.clone();
        tokio::task::spawn_local(async move {
            server.end().await;
            // The guard may be gone: then nobody has to know.
            let _ = progress.send(Progress::Ended(server.incarnation));
        });
        self.file.server = Some(incarnation);
        // Neither is needed for safety: an orphan of a dead keeper is dead, and found by other traces.
        if let Err(error) = self.memory.store(&self.file) {
            self.context.note(&chain(&error));
        }
        if let Err(error) = self.write_run_record() {
            self.context.note(&chain(&error));
        }
    }

    pub(super) fn write_run_record(&self) -> Result<(), RunError> {
        let launch = &self.context.launch;
        let child = self.server.as_ref().map(|server| &server.incarnation);
        RunRecord {
            format: RunRecord::FORMAT,
            task: launch.task.clone(),
            generation: launch.generation,
            boot_id: self.context.boot.0.clone(),
            supervisor: self.me,
            child: child.map(|server| Process {
                pid: server.pid,
                start_ticks: server.start_ticks,
            }),
            uid: launch
                .user
                .map_or(rustix::process::geteuid().as_raw(), |user| user.uid),
            cgroups: self.context.group.paths().to_vec(),
        }
        .store(&self.context.run_dir)
    }

    pub(super) fn look_soon(&mut self) {
        self.pace = QUICK;
        self.next_look = match self.fresh {
            true => Instant::now() + BETWEEN_ORDERS,
            false => Instant::now(),
        };
    }

    /// Takes over what an order saw at its end. Says whether that is the server as it is now.
    pub(super) fn saw(&mut self, reading: Reading) -> bool {
        let Some(server) = &self.server else {
            return false;
        };
        self.state = ServerState::Up {
            incarnation: server.incarnation.clone(),
            facts: reading.facts(&self.context.config, &self.known),
        };
        self.know_source(&reading);
        self.reading = Some(reading);
        true
    }

    /// Takes a look when one is due.
    pub(super) fn begin_look(&mut self) {
        if self.look.is_some() || Instant::now() < self.next_look {
            return;
        }
        let Some(mut driver) = self.watcher.take() else {
            return;
        };
        self.look_begun_at = self.orders_over;
        self.looks_begun += 1;
        self.look = Some(Box::pin(async move {
            let seen = mariadb::read(&mut driver).await;
            (driver, seen)
        }));
    }

    pub(super) fn looked(&mut self, driver: Driver, seen: Result<Reading, SqlError>) {
        let Some(server) = &self.server else { return };
        self.watcher = Some(driver);
        let newer = self.look_begun_at == self.orders_over && self.job.is_none();
        match seen {
            // An order that ended since knows better.
            Ok(_) if self.look_begun_at != self.orders_over => {}
            Ok(reading) => {
                self.know_source(&reading);
                let facts = reading.facts(&self.context.config, &self.known);
                let state = ServerState::Up {
                    incarnation: server.incarnation.clone(),
                    facts,
                };
                self.pace = match (state == self.state, self.pace < MOVING) {
                    (_, true) => self.pace * 2,
                    (false, false) => MOVING,
                    (true, false) => (self.pace * 2).min(SLOW),
                };
                self.state = state;
                self.reading = Some(reading).filter(|_| newer);
            }
            Err(error) => {
                // It may be on its way out, or hang: what was seen last stays, and orders find out for themselves.
                self.pace = MOVING;
                self.context
                    .note(&format!("cannot look at the server: {}", chain(&error)));
            }
        }
        self.answer_curious(self.looks_begun);
        self.next_look = if self.curious.is_empty() {
            Instant::now() + self.pace
        } else {
            Instant::now()
        };
        if newer {
            self.fresh = true;
            self.offer_waiting();
        } else if self.job.is_none() {
            // It was begun before the last order was over: look again.
            self.next_look = Instant::now();
        }
    }

    pub(super) fn offer_waiting(&mut self) {
        // The first becomes the order under way; the core answers the others that it is busy.
        while let Some((_, order)) = self.waiting.front() {
            if self.has_to_wait(order) {
                return;
            }
            if let Some((asker, order)) = self.waiting.pop_front() {
                self.offer(asker, order);
            }
        }
    }
}
