//! Carries one order out. Whether it may be is decided already and what had to be remembered is on disk.
//!
//! An order ends in one of four ways: done; its server found gone, which is exact; failed, with nothing of it still at
//! work in the server (the driver sees to that); or dropped with the whole keeper.

use std::cell::RefCell;
use std::error::Error;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use homeostat_decider::{
    BootId, CopyOffer, Former, MemberId, Order, OrderOutcome, Record, ServerIncarnation, Verb,
};
use homeostat_supervisor::cgroup::TaskGroup;
use homeostat_supervisor::launch::LaunchFile;
use homeostat_supervisor::logs::Log;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::config::{KeeperConfig, PORT};
use super::server::{Paths, Server};
use super::start::start;
use crate::copy::{self, Offered};
use crate::mariadb::{self, Driver, Known, Member, Reading, SqlError, template};

/// One `Drain`; a long one is ordered again and goes on where it was.
const DRAIN: Duration = Duration::from_secs(60);
/// SIGKILL works at once unless the process sits in an uninterruptible wait.
const KILL: Duration = Duration::from_secs(10);
/// Between the loss of the connection and the server's exit.
const DYING: Duration = Duration::from_millis(500);

/// What does not change while a keeper lives.
pub(crate) struct Context {
    pub launch: LaunchFile,
    pub config: KeeperConfig,
    pub run_dir: PathBuf,
    pub paths: Paths,
    pub group: Rc<TaskGroup>,
    pub boot: BootId,
    pub log: Rc<RefCell<Log>>,
}

impl Context {
    pub(crate) fn note(&self, text: &str) {
        self.log
            .borrow_mut()
            .write(format!("[keeper] {text}\n").as_bytes());
    }

    pub(crate) fn port(&self) -> u16 {
        // `KeeperConfig::of` has refused a launch file without it.
        self.launch
            .ports
            .iter()
            .find(|(name, _)| name.as_str() == PORT)
            .map_or(0, |(_, port)| *port)
    }
}

/// One order on its way.
pub(crate) struct Job {
    pub context: Rc<Context>,
    pub order: Order,
    pub known: Known,
    /// The server as it was seen last, where no order was carried out since.
    pub before: Option<Reading>,
    pub driver: Option<Driver>,
    pub server: Option<Server>,
    /// The last server, for the answer to a `Kill` of none.
    pub last: Option<ServerIncarnation>,
    pub progress: mpsc::UnboundedSender<Progress>,
}

/// What the guard must know before the order is over.
pub(crate) enum Progress {
    Spawned(Server),
    Ended(ServerIncarnation),
    Seen(Box<Reading>),
    /// A copy is offered: somebody may fetch it.
    Lends(Box<Lent>),
    /// This member is to become a copy.
    Rebuilds(Box<Rebuild>),
}

pub(crate) struct Lent {
    pub to: MemberId,
    pub offered: Offered,
    pub bytes_per_second: Option<NonZeroU64>,
}

pub(crate) struct Rebuild {
    pub record: Record,
    pub source: MemberId,
    pub offer: CopyOffer,
    pub former: Former,
}

pub(crate) struct Done {
    pub driver: Option<Driver>,
    pub known: Known,
    /// The server as the order left it, where the order looked.
    pub seen: Option<Reading>,
    pub outcome: OrderOutcome,
}

/// Why an order failed that was not only statements.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error(transparent)]
    Template(#[from] template::TemplateError),
    #[error("cannot {what}")]
    Io {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}")]
    Condition(String),
}

pub(super) fn io_error(what: &'static str) -> impl FnOnce(std::io::Error) -> OrderError {
    move |source| OrderError::Io { what, source }
}

pub(crate) async fn carry_out(mut job: Job) -> Done {
    let mut seen = None;
    let outcome = match &job.order.verb {
        Verb::Learn => OrderOutcome::Done,
        Verb::Start { recovery } => {
            let recovery = *recovery;
            match start(&mut job, recovery).await {
                Ok(server) => OrderOutcome::Started { server },
                Err(error) => failed(&error),
            }
        }
        Verb::Kill => kill(&mut job).await,
        Verb::Lend {
            to,
            bytes_per_second,
        } => lend(&job, to, *bytes_per_second).await,
        Verb::Rebuild {
            source,
            offer,
            former,
        } => {
            let rebuild = Rebuild {
                record: job.order.header.record.clone(),
                source: source.clone(),
                offer: offer.clone(),
                former: *former,
            };
            // The guard is what receives this; without it nobody asks for the outcome either.
            let _ = job.progress.send(Progress::Rebuilds(Box::new(rebuild)));
            OrderOutcome::Done
        }
        Verb::StopReceiving
        | Verb::Drain
        | Verb::Repoint { .. }
        | Verb::Receive
        | Verb::TakeOver
        | Verb::Admit { .. }
        | Verb::Expel { .. }
        | Verb::Barrier
        | Verb::Open
        | Verb::Demote { .. }
        | Verb::Reinstate => ask_server(&mut job, &mut seen).await,
    };
    Done {
        driver: job.driver,
        known: job.known,
        seen,
        outcome,
    }
}

async fn lend(job: &Job, to: &MemberId, bytes_per_second: Option<NonZeroU64>) -> OrderOutcome {
    match copy::offer(&job.context.launch.address).await {
        Ok(offered) => {
            let offer = offered.offer().clone();
            let lent = Lent {
                to: to.clone(),
                offered,
                bytes_per_second,
            };
            // As above.
            let _ = job.progress.send(Progress::Lends(Box::new(lent)));
            OrderOutcome::Lent { offer }
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &(dyn Error + 'static)) -> OrderOutcome {
    OrderOutcome::Failed { why: chain(error) }
}

/// An error with all that caused it, on one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        next = error.source();
    }
    text
}

/// The orders that are statements. A lost connection is followed by the server's exit, if that is why it was lost.
async fn ask_server(job: &mut Job, seen: &mut Option<Reading>) -> OrderOutcome {
    let Some(mut server) = job.server.clone() else {
        return OrderOutcome::Exited {
            server: job.last.clone(),
        };
    };
    let Some(mut driver) = job.driver.take() else {
        return OrderOutcome::Failed {
            why: "there is no way to reach the server".into(),
        };
    };
    let outcome = match statements(job, &mut driver, seen).await {
        Ok(outcome) => outcome,
        Err(error) => match timeout(
            if error.lost() { DYING } else { Duration::ZERO },
            server.end(),
        )
        .await
        {
            Ok(_) => OrderOutcome::Exited {
                server: Some(server.incarnation.clone()),
            },
            Err(_) => failed(&error),
        },
    };
    job.driver = Some(driver);
    outcome
}

async fn statements(
    job: &mut Job,
    driver: &mut Driver,
    seen: &mut Option<Reading>,
) -> Result<OrderOutcome, SqlError> {
    let context = job.context.clone();
    let member = Member {
        config: &context.config,
        member: &context.launch.task,
        record: &job.order.header.record,
        data: &context.launch.data,
        run: &context.run_dir,
    };
    let before = job.before.take();
    let known = &mut job.known;
    Ok(match &job.order.verb {
        Verb::StopReceiving => {
            let reading = mariadb::stop_receiving(driver, known.hearing).await?;
            let facts = reading.facts(&context.config, known);
            let all_applied = facts.received == Some(facts.applied) && !facts.needs_salvage;
            *seen = Some(reading);
            OrderOutcome::Stopped {
                received: facts.received,
                drained: all_applied.then_some(facts.applied),
            }
        }
        Verb::Drain => {
            let applied = mariadb::drain(driver, &member, known, DRAIN).await?;
            if known.incomplete {
                let why = "all that is left of what it received is applied, but the machine was booted anew and \
                    sync_relay_log is 0: it may have acknowledged more than it has";
                return Err(SqlError::Condition(why.into()));
            }
            OrderOutcome::Drained { applied }
        }
        Verb::Repoint { source, acker } => {
            *seen = Some(mariadb::repoint(driver, &member, known, before, source, *acker).await?);
            // The relay log is empty now, and what it was as a holder is over.
            known.relay = None;
            known.barrier = None;
            OrderOutcome::Done
        }
        Verb::Receive => {
            *seen = Some(mariadb::receive(driver, known, before).await?);
            OrderOutcome::Done
        }
        Verb::TakeOver => {
            *seen = Some(mariadb::take_over(driver, &member, known, before).await?);
            known.relay = None;
            OrderOutcome::Done
        }
        Verb::Admit { member: other } => {
            *seen = Some(mariadb::admit(driver, &member, other).await?);
            OrderOutcome::Done
        }
        Verb::Expel { member: other } => {
            mariadb::expel(driver, &member, other).await?;
            OrderOutcome::Done
        }
        Verb::Barrier => {
            let barrier = mariadb::barrier(driver, &member).await?;
            known.barrier = Some(member.record.epoch);
            known.application = barrier.application;
            OrderOutcome::BarrierDone {
                epoch: member.record.epoch,
                at: barrier.at,
            }
        }
        Verb::Open | Verb::Reinstate => {
            let opened = mariadb::open(driver, &member, known).await?;
            *seen = Some(match opened.source {
                None => opened,
                Some(_) => {
                    // Told before the order is over: that is what lets clients in.
                    let _ = job.progress.send(Progress::Seen(Box::new(opened)));
                    mariadb::forget_source(driver).await?
                }
            });
            OrderOutcome::Done
        }
        Verb::Demote { patience_ms } => {
            let position =
                mariadb::demote(driver, &member, Duration::from_millis(*patience_ms)).await?;
            OrderOutcome::Demoted { position }
        }
        Verb::Learn
        | Verb::Start { .. }
        | Verb::Kill
        | Verb::Lend { .. }
        | Verb::Rebuild { .. } => {
            return Err(SqlError::Condition(
                "this order is not one of statements".into(),
            ));
        }
    })
}

async fn kill(job: &mut Job) -> OrderOutcome {
    job.driver = None;
    let Some(mut server) = job.server.clone() else {
        return OrderOutcome::Exited {
            server: job.last.clone(),
        };
    };
    server.kill();
    match timeout(KILL, server.end()).await {
        Ok(_) => OrderOutcome::Exited {
            server: Some(server.incarnation),
        },
        Err(_) => OrderOutcome::Failed {
            why: "the server was sent SIGKILL and has not ended".into(),
        },
    }
}
