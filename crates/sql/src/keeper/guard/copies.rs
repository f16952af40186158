//! Copies of the data, lent to a peer or fetched from one: they go on beside the orders, and never hold one up.

use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use homeostat_decider::{Former, MemberId, OrderOutcome, RebuildState, Record, ServerState, Verb};
use homeostat_model::{Bytes, UnixMillis};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Guard, Running};
use crate::copy::{
    CopyError, Fetch, Lend, Limits, Place, Progress, Received, Sent, Stage, folder, receive,
};
use crate::keeper::orders::{Context, Rebuild, chain};
use crate::mariadb::Login;

/// How often the progress of a copy is news.
const NEWS: Duration = Duration::from_secs(1);
const LEAST_MEMORY: Bytes = Bytes::mib(64);

#[derive(Default)]
pub(super) struct Copies {
    pub lending: Running<Result<Sent, CopyError>>,
    lends_to: Option<MemberId>,
    pub fetching: Running<Result<Received, CopyError>>,
    source: Option<MemberId>,
    /// As reports say it.
    rebuild: Option<RebuildState>,
    progress: Option<watch::Receiver<Progress>>,
    told: Option<Instant>,
}

impl Copies {
    pub(super) fn lends_to(&self) -> Option<MemberId> {
        self.lends_to.clone()
    }

    pub(super) fn rebuild(&self) -> Option<RebuildState> {
        self.rebuild.clone()
    }

    /// All of it ends: the keeper does.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    /// Takes the progress into the reports, now and then.
    pub(super) fn look(&mut self) {
        let due = self.told.is_none_or(|told| told.elapsed() >= NEWS);
        let (Some(progress), Some(source)) = (&self.progress, &self.source) else {
            return;
        };
        if !due {
            return;
        }
        self.told = Some(Instant::now());
        let progress = *progress.borrow();
        let source = source.clone();
        self.rebuild = Some(match progress.stage {
            Stage::Waiting | Stage::Copying => RebuildState::Copying {
                source,
                bytes: progress.bytes.0,
                of: progress.of.map(|bytes| bytes.0),
                bytes_per_second: progress.bytes_per_second,
            },
            Stage::Preparing => RebuildState::Preparing { source },
        });
    }

    fn fetched(&mut self, state: Option<RebuildState>) {
        self.fetching = None;
        self.source = None;
        self.progress = None;
        self.rebuild = state;
    }
}

impl Guard {
    /// What an order that is obeyed does to copies under way. An order that cannot be carried out beside one is answered.
    pub(super) fn copies_give_way(&mut self, verb: &Verb) -> Result<(), OrderOutcome> {
        match verb {
            // The member changes its role: a copy would hold that up, and may soon be of no use.
            Verb::StopReceiving | Verb::Repoint { .. } | Verb::TakeOver | Verb::Demote { .. } => {
                self.end_lending()
            }
            Verb::Kill => {
                self.end_lending();
                self.end_fetching("it was ended by an order");
            }
            Verb::Start { .. } if self.copies.fetching.is_some() => {
                let why = "its data folder is being made: a copy is under way".to_owned();
                return Err(OrderOutcome::Failed { why });
            }
            Verb::Start { .. } => self.copies.rebuild = None,
            Verb::Rebuild { .. } => self.end_fetching("it was begun anew"),
            Verb::Learn
            | Verb::Drain
            | Verb::Receive
            | Verb::Admit { .. }
            | Verb::Expel { .. }
            | Verb::Barrier
            | Verb::Open
            | Verb::Reinstate
            | Verb::Lend { .. } => {}
        }
        Ok(())
    }

    fn end_lending(&mut self) {
        if self.copies.lending.take().is_some() {
            self.context
                .note("the copy that was being lent is given up");
        }
        self.copies.lends_to = None;
    }

    fn end_fetching(&mut self, why: &str) {
        if self.copies.fetching.is_none() {
            return;
        }
        let source = self.copies.source.clone();
        let why = why.to_owned();
        self.context.note(&format!("the copy is given up: {why}"));
        self.copies
            .fetched(source.map(|source| RebuildState::Failed { source, why }));
    }

    /// The order to lend is carried out: somebody may come now.
    pub(super) fn lends(&mut self, lent: crate::keeper::orders::Lent) {
        let Some(login) = self.login.clone() else {
            return;
        };
        let lend = lend(&self.context, login, lent.bytes_per_second);
        self.copies.lends_to = Some(lent.to);
        let offered = lent.offered;
        self.copies.lending = Some(Box::pin(async move {
            let (progress, _) = watch::channel(Progress::BEGIN);
            offered.send(&lend, &progress).await
        }));
    }

    pub(super) fn lent(&mut self, sent: Result<Sent, CopyError>) {
        let to = self.copies.lends_to.take();
        let to = to.map(|to| to.to_string()).unwrap_or_default();
        self.context.note(&match sent {
            Ok(sent) => format!("lent {to} a copy of {} in {:.1?}", sent.bytes, sent.took),
            Err(error) => format!("the copy for {to} was not made: {}", chain(&error)),
        });
    }

    /// The order to become a copy is obeyed.
    pub(super) fn rebuilds(&mut self, rebuild: Rebuild) {
        let source = rebuild.source.clone();
        let fetch = fetch(&self.context, rebuild);
        let (progress, seen) = watch::channel(Progress::BEGIN);
        self.copies.source = Some(source);
        self.copies.progress = Some(seen);
        self.copies.told = None;
        self.copies.look();
        self.copies.fetching = Some(Box::pin(async move { receive(&fetch, &progress).await }));
    }

    pub(super) fn fetched(&mut self, received: Result<Received, CopyError>) {
        let source = self.copies.source.clone();
        let state = match received {
            Ok(received) => {
                let aside = received.aside.map_or(String::new(), |aside| {
                    format!("; the former data folder is {}", aside.display())
                });
                self.context.note(&format!(
                    "this member is a copy now: {} in {:.1?}, prepared in {:.1?}, its log ends at {}{aside}",
                    received.bytes, received.copied, received.prepared, received.at
                ));
                if let ServerState::Down { initialised, .. } = &mut self.state {
                    *initialised = true;
                }
                source.map(|source| RebuildState::Done { source })
            }
            Err(error) => {
                let why = chain(&error);
                self.context.note(&format!("the copy was not made: {why}"));
                source.map(|source| RebuildState::Failed { source, why })
            }
        };
        self.copies.fetched(state);
    }
}

fn place(context: &Context) -> Place {
    Place {
        user: context.launch.user,
        run: context.run_dir.clone(),
        group: context.group.clone(),
        temporary: context.launch.data.join("copy"),
    }
}

fn lend(context: &Rc<Context>, login: Login, per_second: Option<std::num::NonZeroU64>) -> Lend {
    Lend {
        programs: context.config.programs.copy.clone(),
        login,
        sql: context.paths.data.clone(),
        folder: context.paths.folder.clone(),
        place: place(context),
        per_second,
        limits: Limits::DEFAULT,
    }
}

fn fetch(context: &Rc<Context>, rebuild: Rebuild) -> Fetch {
    let half = Bytes(context.launch.memory_limit.map_or(0, |limit| limit.0) / 2);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let at = UnixMillis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    let Record { epoch, .. } = rebuild.record;
    Fetch {
        programs: context.config.programs.copy.clone(),
        offer: rebuild.offer,
        data: context.launch.data.clone(),
        place: place(context),
        memory: half.max(LEAST_MEMORY),
        at_least: epoch,
        former: match rebuild.former {
            Former::KeptAside => folder::Former::KeptAside { epoch, at },
            Former::Discarded => folder::Former::Discarded,
        },
        limits: Limits::DEFAULT,
    }
}
