//! The loop: asks the engine what is due, has it done, and tells what changed.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use homeostat_model::CheckName;
use homeostat_prodtest::{
    Applied, Attempt, Change, CheckId, Engine, EngineConfig, Fence, FixOutcome, FixRun, Moment,
    Observation, Rounds, Run, SuiteError, Unknown, Verdict,
};
use tokio::task::{AbortHandle, JoinSet};

use crate::event::{Event, FixView, Reporter};
use crate::hands::Hands;
use crate::history::{History, HistoryError};
use crate::locks::LockFolder;
use crate::row::{Beside, Report, Row, Summary, row};
use crate::select::Chosen;
use crate::suite::Item;
use crate::watch::Watcher;

/// What a run may do about what it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    Look,
    /// Apply the fixes of what was asked for; not of what was only drawn in.
    Repair,
}

#[derive(Debug, Clone)]
pub struct RunOptions {
    pub doing: Doing,
    pub rounds: Rounds,
    pub most_at_once: NonZeroUsize,
    pub most_per_target: NonZeroUsize,
    pub most_fixes_at_once: NonZeroUsize,
    /// Between two looks at a failure that is not confirmed.
    pub retry: Duration,
    pub back_off: Duration,
    pub longest_back_off: Duration,
    pub seed: u64,
    pub locks: LockFolder,
    /// Where it is remembered from run to run how flaky checks are; none: nowhere.
    pub history: Option<PathBuf>,
}

impl RunOptions {
    /// For one machine and one person.
    pub fn usual(doing: Doing, rounds: Rounds, seed: u64) -> Self {
        const fn most(number: usize) -> NonZeroUsize {
            NonZeroUsize::new(number).expect("a number above zero")
        }
        Self {
            doing,
            rounds,
            most_at_once: most(64),
            most_per_target: most(16),
            most_fixes_at_once: most(4),
            retry: Duration::from_millis(200),
            back_off: Duration::from_secs(2),
            longest_back_off: Duration::from_secs(300),
            seed,
            locks: LockFolder::usual(),
            history: None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Suite(#[from] SuiteError),
    #[error("cannot write what was found")]
    Output(#[source] io::Error),
    #[error(transparent)]
    History(#[from] HistoryError),
    /// Ours.
    #[error("a check crashed the program that runs it: {0}")]
    Crashed(String),
}

/// How a run came to its end, and what it found until then.
#[derive(Debug)]
pub struct Ended {
    pub report: Report,
    /// Somebody stopped it.
    pub stopped: bool,
}

/// What was carried out.
enum Done {
    Looked(Run, Observation),
    Repaired(FixRun, Applied, Duration),
}

/// What the loop knows of a check beside the engine.
struct Slot {
    item: Arc<Item>,
    asked: bool,
    fixes: u32,
    fix_said: Option<String>,
}

struct Loop<'a> {
    engine: Engine,
    slots: BTreeMap<CheckId, Slot>,
    hands: Arc<Hands>,
    reporter: &'a mut dyn Reporter,
    tasks: JoinSet<Done>,
    looking: BTreeMap<Attempt, AbortHandle>,
    repairing: BTreeMap<Fence, AbortHandle>,
    clock: Clock,
}

/// The engine's time, and that of people.
struct Clock {
    began: Instant,
    began_at: jiff::Timestamp,
}

impl Clock {
    fn now(&self) -> Moment {
        let since = self.began.elapsed().as_millis();
        Moment::from_millis(u64::try_from(since).unwrap_or(u64::MAX))
    }

    fn instant(&self, moment: Moment) -> Instant {
        // Half a day at most: nobody is woken later anyway, and no clock overflows.
        const LONGEST_MS: u64 = 12 * 3_600_000;
        let longest = self.began.elapsed() + Duration::from_millis(LONGEST_MS);
        self.began + Duration::from_millis(moment.as_millis()).min(longest)
    }

    fn wall(&self, moment: Moment) -> String {
        let since = Duration::from_millis(moment.as_millis());
        match self.began_at.checked_add(since) {
            Ok(at) => format!("{at:.3}"),
            Err(_) => self.began_at.to_string(),
        }
    }
}

/// Runs the checks that were chosen: one round, or until `stop` is done. What it started has ended when it returns.
///
/// # Errors
/// [`RunError`], when they cannot be run, or nobody reads what is found.
pub async fn run(
    chosen: &Chosen,
    options: &RunOptions,
    reporter: &mut dyn Reporter,
    stop: impl Future<Output = ()>,
) -> Result<Ended, RunError> {
    let history = options.history.as_deref().map(History::read).transpose()?;
    let mut run = Loop::new(chosen, options, reporter)?;
    if let Some(history) = &history {
        run.recall(history);
    }
    let ended = run.until_the_end(chosen, options, stop).await;
    run.tasks.shutdown().await;
    crate::hands::reapers_are_done().await;
    let stopped = ended?;
    if let (Some(mut history), Some(path)) = (history, &options.history) {
        run.remember(&mut history);
        history.write(path)?;
    }
    let report = run.report(&chosen.suite.skipped);
    run.reporter
        .event(&Event::Ended(&report))
        .map_err(RunError::Output)?;
    Ok(Ended { report, stopped })
}

impl<'a> Loop<'a> {
    fn new(
        chosen: &Chosen,
        options: &RunOptions,
        reporter: &'a mut dyn Reporter,
    ) -> Result<Self, RunError> {
        let may_fix = |item: &Item| match options.doing {
            Doing::Look => false,
            Doing::Repair => chosen.asked.contains(&item.name),
        };
        let suite = homeostat_prodtest::Suite::new(chosen.suite.checks(may_fix))?;
        let mut slots = BTreeMap::new();
        for item in &chosen.suite.items {
            if let Some(id) = suite.id(&item.name) {
                let slot = Slot {
                    asked: chosen.asked.contains(&item.name),
                    item: Arc::new(item.clone()),
                    fixes: 0,
                    fix_said: None,
                };
                slots.insert(id, slot);
            }
        }
        let clock = Clock {
            began: Instant::now(),
            began_at: jiff::Timestamp::now(),
        };
        let config = EngineConfig {
            most_at_once: options.most_at_once,
            most_per_target: options.most_per_target,
            most_fixes_at_once: options.most_fixes_at_once,
            retry: options.retry,
            back_off: options.back_off,
            longest_back_off: options.longest_back_off,
            rounds: options.rounds,
            seed: options.seed,
            fence: Fence(0),
        };
        Ok(Self {
            engine: Engine::new(suite, config, clock.now()),
            slots,
            hands: Arc::new(Hands::new(options.locks.clone())),
            reporter,
            tasks: JoinSet::new(),
            looking: BTreeMap::new(),
            repairing: BTreeMap::new(),
            clock,
        })
    }

    fn recall(&mut self, history: &History) {
        for (id, slot) in &self.slots {
            if let Some(remembered) = history.of(&slot.item.name) {
                self.engine.recall(*id, remembered);
            }
        }
    }

    fn remember(&self, history: &mut History) {
        for (id, slot) in &self.slots {
            history.note(slot.item.name.clone(), self.engine.remembered(*id));
        }
    }

    /// Whether it was stopped.
    async fn until_the_end(
        &mut self,
        chosen: &Chosen,
        options: &RunOptions,
        stop: impl Future<Output = ()>,
    ) -> Result<bool, RunError> {
        let mut watcher = self.watcher(options.rounds)?;
        self.tell(&Event::Began {
            checks: self.slots.len(),
            drawn_in: &chosen.drawn_in,
        })?;
        tokio::pin!(stop);
        loop {
            self.start_what_is_due()?;
            let wake = self.engine.wake_at().map(|at| self.clock.instant(at));
            if wake.is_none() && !self.engine.is_under_way() {
                return Ok(false);
            }
            tokio::select! {
                biased;
                () = &mut stop => return Ok(true),
                Some(done) = self.tasks.join_next() => {
                    self.take_in(done)?;
                    while let Some(done) = self.tasks.try_join_next() {
                        self.take_in(done)?;
                    }
                }
                changed = watcher.changed() => {
                    for check in changed {
                        self.engine.look_again(check, self.clock.now());
                    }
                }
                () = until(wake) => {}
            }
        }
    }

    fn watcher(&mut self, rounds: Rounds) -> Result<Watcher, RunError> {
        match rounds {
            Rounds::One => Ok(Watcher::nothing()),
            Rounds::Endless => {
                let paths = self
                    .slots
                    .iter()
                    .filter_map(|(id, slot)| Some((*id, slot.item.watched.as_deref()?)));
                match Watcher::of(paths) {
                    Ok(watcher) => Ok(watcher),
                    Err(error) => {
                        let text =
                            format!("files are polled, because they cannot be watched: {error}");
                        self.tell(&Event::Remark(&text))?;
                        Ok(Watcher::nothing())
                    }
                }
            }
        }
    }

    fn start_what_is_due(&mut self) -> Result<(), RunError> {
        let due = self.engine.due(self.clock.now());
        for run in &due.given_up {
            if let Some(handle) = self.looking.remove(&run.attempt) {
                handle.abort();
            }
        }
        for run in &due.fixes_given_up {
            if let Some(handle) = self.repairing.remove(&run.fence) {
                handle.abort();
            }
        }
        self.announce(&due.changes)?;
        for run in due.fixes {
            self.repair(run)?;
        }
        for run in due.runs {
            self.look(run);
        }
        Ok(())
    }

    fn look(&mut self, run: Run) {
        let Some(slot) = self.slots.get(&run.check) else {
            return;
        };
        let (hands, item) = (Arc::clone(&self.hands), Arc::clone(&slot.item));
        let attempt = run.attempt;
        let handle = self.tasks.spawn(async move {
            let observation = hands.look(&item, run.timeout).await;
            Done::Looked(run, observation)
        });
        self.looking.insert(attempt, handle);
    }

    fn repair(&mut self, run: FixRun) -> Result<(), RunError> {
        let Some(slot) = self.slots.get_mut(&run.check) else {
            return Ok(());
        };
        let (hands, item) = (Arc::clone(&self.hands), Arc::clone(&slot.item));
        let Some(fix) = item.fix.clone() else {
            return Ok(());
        };
        slot.fixes += 1;
        let summary = fix.summary();
        let view = FixView {
            check: &slot.item.name,
            summary: &summary,
            attempt: run.attempt,
        };
        self.reporter
            .event(&Event::FixBegan(view))
            .map_err(RunError::Output)?;
        let fence = run.fence;
        let handle = self.tasks.spawn(async move {
            let began = Instant::now();
            let applied = hands.repair(&item, &fix, run.timeout).await;
            Done::Repaired(run, applied, began.elapsed())
        });
        self.repairing.insert(fence, handle);
        Ok(())
    }

    fn take_in(&mut self, done: Result<Done, tokio::task::JoinError>) -> Result<(), RunError> {
        match done {
            Ok(Done::Looked(run, observation)) => {
                self.looking.remove(&run.attempt);
                // A late one was given up, which is on record.
                match self.engine.finished(&run, observation, self.clock.now()) {
                    Ok(changes) => self.announce(&changes),
                    Err(_) => Ok(()),
                }
            }
            Ok(Done::Repaired(run, applied, took)) => {
                self.repairing.remove(&run.fence);
                self.tell_of_fix(&run, &applied, took)?;
                match self.engine.fix_finished(&run, applied, self.clock.now()) {
                    Ok(changes) => self.announce(&changes),
                    Err(_) => Ok(()),
                }
            }
            Err(error) if error.is_cancelled() => Ok(()),
            Err(error) => Err(RunError::Crashed(error.to_string())),
        }
    }

    fn tell_of_fix(
        &mut self,
        run: &FixRun,
        applied: &Applied,
        took: Duration,
    ) -> Result<(), RunError> {
        let Some(slot) = self.slots.get_mut(&run.check) else {
            return Ok(());
        };
        slot.fix_said = Some(applied.said.clone());
        let summary = slot
            .item
            .fix
            .as_ref()
            .map(|fix| fix.summary())
            .unwrap_or_default();
        let event = Event::FixEnded {
            fix: FixView {
                check: &slot.item.name,
                summary: &summary,
                attempt: run.attempt,
            },
            outcome: match applied.outcome {
                FixOutcome::Changed => "changed",
                FixOutcome::Unchanged => "unchanged",
                FixOutcome::Failed => "failed",
            },
            said: &applied.said,
            took,
        };
        self.reporter.event(&event).map_err(RunError::Output)
    }

    /// That a turn has come is no news.
    fn announce(&mut self, changes: &[Change]) -> Result<(), RunError> {
        for change in changes {
            match &change.is {
                Verdict::Unknown(Unknown::Due | Unknown::Waiting) => continue,
                Verdict::Unknown(Unknown::NotRun { .. } | Unknown::Lost { .. })
                | Verdict::Pass(_)
                | Verdict::Flaky { .. }
                | Verdict::Fail(_)
                | Verdict::Fixing(_)
                | Verdict::GaveUp(_)
                | Verdict::Blocked(_) => {}
            }
            if let Some(row) = self.row(change.check) {
                let event = Event::Changed {
                    was: change.was.word(),
                    row: &row,
                    at: &self.clock.wall(change.at),
                };
                self.reporter.event(&event).map_err(RunError::Output)?;
            }
        }
        Ok(())
    }

    fn tell(&mut self, event: &Event<'_>) -> Result<(), RunError> {
        self.reporter.event(event).map_err(RunError::Output)
    }

    fn row(&self, id: CheckId) -> Option<Row> {
        let slot = self.slots.get(&id)?;
        let beside = Beside {
            item: &slot.item,
            asked: slot.asked,
            fixes: slot.fixes,
            fix_said: slot.fix_said.clone(),
            wall: &|moment| self.clock.wall(moment),
        };
        Some(row(&self.engine, id, beside))
    }

    fn report(&self, skipped: &[CheckName]) -> Report {
        let mut checks: Vec<Row> = self.slots.keys().filter_map(|id| self.row(*id)).collect();
        checks.extend(skipped.iter().cloned().map(Row::skipped));
        Report {
            summary: Summary::of(&checks),
            checks,
            took_ms: self.clock.began.elapsed().as_secs_f64() * 1000.0,
        }
    }
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
