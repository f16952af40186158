//! What goes on at every pulse, whatever else is done or hangs: the sign of life, and the serving lease of a holder.
//!
//! The lease is renewed by the leader (`c` in the docs of the decider's lease) and, where no leader grants, by barrier
//! commits of this keeper's own (`h`). Those are written only when grants stay away, so that an idle cluster writes nothing.

use std::time::Duration;

use homeostat_decider::{BootTime, LeaseGrant, MemberReport, Pulse, Verb as Ordered};
use homeostat_model::Epoch;
use homeostat_supervisor::protocol::{Event, Message, Phase};
use tokio::time::Instant;

use super::{Asker, Guard, Running};
use crate::keeper::fuse::boot_now;
use crate::keeper::orders::chain;
use crate::keeper::reader::{Named, Reader};
use crate::keeper::sign::KeeperSign;
use crate::mariadb::{self, Driver, Hearing, Member, Reading, SqlError};

/// While a read is unanswered: the moment at which that is a hang must not wait for a pulse.
const WORRIED: Duration = Duration::from_millis(25);
/// Pulses without anything from the source.
const SILENT: u32 = 4;
/// The lease is renewed as often as this in its length.
const RENEWALS: u32 = 5;
/// Of which so many may stay away before commits of the keeper's own renew it.
const MISSED: u32 = 2;

/// A barrier commit of the keeper's own.
pub(super) struct Kept {
    driver: Driver,
    epoch: Epoch,
    begun: BootTime,
    result: Result<(), SqlError>,
}

/// What a guard needs for it.
pub(super) struct Living {
    pub next_beat: Instant,
    next_renewal: Instant,
    reader: Option<Reader>,
    pub keeping: Running<Kept>,
    /// For the next one.
    driver: Option<Driver>,
    /// The last one of its own was not acknowledged: said once.
    failing: bool,
    /// When the lease ends, as of the last look.
    lease_until: Option<BootTime>,
}

impl Living {
    pub(super) fn new() -> Self {
        Self {
            next_beat: Instant::now(),
            next_renewal: Instant::now(),
            reader: None,
            keeping: None,
            driver: None,
            failing: false,
            lease_until: None,
        }
    }

    /// The server is gone.
    pub(super) fn ended(&mut self) {
        self.reader = None;
        self.keeping = None;
        self.driver = None;
    }
}

impl Guard {
    /// The server is ready.
    pub(super) fn begin_reading(&mut self) {
        if let (None, Some(driver)) = (&self.living.reader, &self.driver) {
            let (login, pulse) = (driver.login().clone(), self.context.config.pulse());
            self.living.reader = Some(Reader::begin(login, pulse, self.watched.clone()));
        }
    }

    /// The server was looked at.
    pub(super) fn know_source(&self, reading: &Reading) {
        if let Some(reader) = &self.living.reader {
            reader.source(match reading.source {
                Some(_) => Named::Source,
                None => Named::None,
            });
        }
    }

    pub(super) fn pulse(&self) -> Pulse {
        // To be called at each beat also where no server runs: time is counted by it.
        self.watched.now();
        let silent = Pulse {
            unanswered_ms: None,
            source_ms: None,
        };
        (self.living.reader.as_ref()).map_or(silent, |reader| reader.pulse(&self.watched))
    }

    /// Heartbeats come once a pulse: where some have stayed away the source may be unreachable.
    pub(super) fn hearing(&self) -> Hearing {
        let long = self.context.config.pulse() * SILENT;
        match self.pulse().source_ms {
            Some(age) if Duration::from_millis(age) >= long => Hearing::Silent,
            Some(_) | None => Hearing::Heard,
        }
    }

    pub(super) fn beat(&mut self) {
        let (pulse, often) = (self.pulse(), self.context.config.pulse());
        let worried = (pulse.unanswered_ms).is_some_and(|age| Duration::from_millis(age) > often);
        self.living.next_beat = Instant::now() + if worried { WORRIED } else { often };
        let due = self.living.next_renewal <= Instant::now();
        self.copies.look();
        // Stamped now, so nothing may come between this and the sending.
        let lease = due.then(|| self.core.renewal(boot_now())).flatten();
        let sign = KeeperSign {
            incarnation: self.core.incarnation(),
            pulse,
            lease,
        };
        // Plain data: numbers and names.
        let body = serde_json::to_value(sign).unwrap_or_default();
        self.peers.pass(&Message::Event(Event::Sign { body }));
        if due {
            self.living.next_renewal = Instant::now() + self.context.config.lease() / RENEWALS;
            self.keep_alive();
        }
    }

    pub(super) fn granted(&mut self, asker: Asker, grant: &LeaseGrant) {
        self.core.granted(grant, boot_now());
        self.answer(asker, &());
    }

    /// Begins a barrier commit of the keeper's own, where one is needed and none is under way.
    fn keep_alive(&mut self) {
        let now = boot_now();
        let length = self.context.config.lease();
        let enough = length - length / RENEWALS * MISSED;
        let granted = (self.core.deadline())
            .is_some_and(|deadline| deadline.0.saturating_sub(now.0) >= enough);
        let mut waiting = self.waiting.iter();
        let steps_down = waiting.any(|(_, order)| matches!(order.verb, Ordered::Demote { .. }));
        let idle = self.living.keeping.is_none() && !steps_down;
        if granted || !idle || !self.core.commits_barriers(&self.state) {
            return;
        }
        let (Some(record), Some(login)) = (self.core.record().cloned(), self.login.clone()) else {
            return;
        };
        let context = self.context.clone();
        let mut driver = self
            .living
            .driver
            .take()
            .unwrap_or_else(|| Driver::new(login));
        self.living.keeping = Some(Box::pin(async move {
            let member = Member {
                config: &context.config,
                member: &context.launch.task,
                record: &record,
                data: &context.launch.data,
                run: &context.run_dir,
            };
            let result = mariadb::keep_alive(&mut driver, &member).await;
            Kept {
                driver,
                epoch: record.epoch,
                begun: now,
                result,
            }
        }));
    }

    pub(super) fn kept_alive(&mut self, kept: Kept) {
        self.living.driver = Some(kept.driver);
        match kept.result {
            Ok(()) => {
                self.core.barrier_acknowledged(kept.epoch, kept.begun);
                self.living.failing = false;
            }
            Err(error) => {
                if !self.living.failing {
                    let why = chain(&error);
                    self.context.note(&format!(
                        "the serving lease is not renewed by ackers: {why}"
                    ));
                }
                self.living.failing = true;
            }
        }
        if self.fresh {
            self.offer_waiting();
        }
    }

    /// When the server must be dead. One that was told to end closes its door at once, and gets the time it needs for the
    /// rest; that has a limit of its own.
    pub(super) fn lease_ends(&mut self) -> Option<BootTime> {
        match self.phase {
            Phase::Starting | Phase::Running { .. } => {}
            Phase::Stopping { .. } | Phase::Ended { .. } => return None,
        }
        let ends = match self.core.deadline() {
            // Still open in an earlier epoch than the one that it holds now: it is being reinstated, and until that has a
            // lease of its own the earlier one counts.
            Some(never) if never == BootTime::default() => self.living.lease_until.or(Some(never)),
            known => known,
        };
        self.living.lease_until = ends;
        ends
    }

    /// Without signs of life, which are news at every look.
    pub(super) fn facts(&self) -> MemberReport {
        MemberReport {
            member: self.context.launch.task.clone(),
            incarnation: self.core.incarnation(),
            boot: self.context.boot.clone(),
            host: self.context.launch.address.clone(),
            port: self.context.port(),
            record: self.core.record().cloned(),
            held: self.core.held(),
            pulse: None,
            incomplete: self.core.incomplete().max(self.file.incomplete),
            rebuild: self.copies.rebuild(),
            lends: self.copies.lends_to(),
            server: self.state.clone(),
        }
    }

    pub(super) fn report(&self) -> MemberReport {
        MemberReport {
            pulse: Some(self.pulse()),
            ..self.facts()
        }
    }
}
