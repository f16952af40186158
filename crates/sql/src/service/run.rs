//! The loop: owner of all state, one place where events become actions. It awaits nothing but the next event.
//!
//! Events of tasks are taken before results of calls. A keeper says what it sees before it answers an order, and the cell
//! keeps that order, so this is all it takes for an answer never to be followed by an older report.

mod tasks;
mod wishes;

use std::collections::BTreeMap;
use std::time::Duration;

use homeostat_api::v1::{Launch, TaskEvent};
use homeostat_api::{Refusal, TaskEvents};
use homeostat_decider::{Input, MemberId, Now, Wait};
use homeostat_model::{ServiceSpec, SqlSpec, Term};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::lead::{Lead, Switched};
use super::members::Seen;
use super::own::Own;
use super::story::{Change, Story};
use super::tell::{Attached, Tellers, attach};
use super::view::{Looks, Situation, Wished, look};

/// Before something that was accepted is asked again, should no event tell of it.
const AGAIN: Duration = Duration::from_millis(200);
/// Before something that was refused is asked again.
const REFUSED: Duration = Duration::from_secs(1);
/// How late others see what signs of life alone have changed.
const SIGNS_SHOWN_AFTER: Duration = Duration::from_millis(250);
/// Results that may wait for the loop.
pub(super) const QUEUE: usize = 256;
/// Waits are told as an event when they have stood for this long: shorter ones are its work.
const STUCK: Duration = Duration::from_secs(2);

pub(super) enum Command {
    /// Answered with the number of the wish.
    Up {
        spec: Box<ServiceSpec>,
        term: u64,
        answer: oneshot::Sender<Result<u64, Refusal>>,
    },
    Down {
        term: u64,
        answer: oneshot::Sender<Result<u64, Refusal>>,
    },
    /// Not answered when nobody leads, or no longer.
    SwitchOver {
        to: Option<MemberId>,
        answer: oneshot::Sender<Switched>,
    },
    /// The changes remembered, oldest first.
    Explain {
        answer: oneshot::Sender<Vec<Change>>,
    },
}

/// What calls bring back.
pub(super) enum Heard {
    Attached(Box<Attached>),
    /// What keepers are started with; the wish is saved.
    Prepared {
        wish: u64,
        launch: Box<Launch>,
    },
    /// A turndown is saved and its endpoint holds.
    Held {
        wish: u64,
        holder: Option<MemberId>,
    },
    /// A decider's fencing number, for a controller of the given term.
    Numbered {
        cell: u64,
        number: Term,
    },
    /// For the decider of that instance and no other.
    Input {
        instance: u64,
        input: Box<Input>,
    },
    Member {
        member: MemberId,
        outcome: Outcome,
    },
    /// Something is tried again; this is why.
    Trouble(String),
}

/// How a call about one member's task went.
pub(super) enum Outcome {
    Placed {
        generation: u64,
        machine: String,
    },
    Pending(String),
    /// The task's next event tells the rest; without one it is asked again after a pause.
    Accepted,
    Refused(Refusal),
    /// The pause is over.
    Rested,
}

/// What others see of the loop.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Published {
    /// The cell answered and told of all tasks.
    pub attached: bool,
    /// The number of the last wish, and what it is.
    pub wish: u64,
    pub wished: Wished,
    pub looks: Looks,
}

/// What came since others were shown how things are.
#[derive(Clone, Copy)]
enum News {
    Signs,
    Much,
}

enum Wish {
    Nothing,
    Up {
        launch: Option<Box<Launch>>,
    },
    /// `held`: saved, the endpoint holds; the last holder is to end first.
    Down {
        held: Option<Option<MemberId>>,
    },
}

pub(super) struct Loop {
    own: Own,
    results: mpsc::Sender<Heard>,
    publish: watch::Sender<Published>,
    tell: Tellers,
    began: Instant,
    /// Of the controller attached to; 0: never attached.
    term: u64,
    /// Every task was told of by this controller.
    synced: bool,
    attaching: bool,
    wish: Wish,
    wishes: u64,
    spec: Option<SqlSpec>,
    members: Vec<MemberId>,
    tasks: BTreeMap<MemberId, Seen>,
    lead: Option<Lead>,
    leads: u64,
    /// On its way to a decider's number.
    numbering: Option<JoinSet<()>>,
    story: Story,
    stuck: Option<(Instant, Vec<Wait>)>,
    trouble: Option<String>,
    news: News,
    published_at: Instant,
    /// Calls that belong to the present wish: given up with it.
    wish_calls: JoinSet<()>,
    calls: JoinSet<()>,
}

impl Loop {
    pub(super) fn new(
        own: Own,
        results: mpsc::Sender<Heard>,
        publish: watch::Sender<Published>,
    ) -> Self {
        Self {
            tell: Tellers::begin(&own),
            own,
            results,
            publish,
            began: Instant::now(),
            term: 0,
            synced: false,
            attaching: false,
            wish: Wish::Nothing,
            wishes: 0,
            spec: None,
            members: Vec::new(),
            tasks: BTreeMap::new(),
            lead: None,
            leads: 0,
            numbering: None,
            story: Story::default(),
            stuck: None,
            trouble: None,
            news: News::Much,
            published_at: Instant::now(),
            wish_calls: JoinSet::new(),
            calls: JoinSet::new(),
        }
    }

    fn now(&self) -> Now {
        Now(self.began.elapsed())
    }

    /// Runs until the server is dropped.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut results: mpsc::Receiver<Heard>,
    ) {
        let mut events: Option<TaskEvents> = None;
        loop {
            if events.is_none() && !self.attaching {
                self.begin_attaching();
            }
            let wake = self.act();
            self.publish_what_is_new();
            tokio::select! {
                biased;
                event = next_event(&mut events) => match event {
                    Some(event) => {
                        self.news = if event.sign.is_empty() { News::Much } else { News::Signs };
                        self.seen(&event);
                        continue;
                    }
                    None => {
                        events = None;
                        self.synced = false;
                    }
                },
                Some(heard) = results.recv() => match heard {
                    Heard::Attached(attached) => events = Some(self.attached(*attached)),
                    other => self.heard(other),
                },
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                () = sleep_until(wake) => self.woken(),
            }
            self.news = News::Much;
        }
    }

    // ---- the cell

    fn begin_attaching(&mut self) {
        self.attaching = true;
        let (own, results) = (self.own.clone(), self.results.clone());
        self.calls.spawn(async move {
            let attached = until_done(&results, || attach(&own)).await;
            drop(results.send(Heard::Attached(Box::new(attached))).await);
        });
    }

    fn attached(&mut self, attached: Attached) -> TaskEvents {
        self.attaching = false;
        self.trouble = None;
        if attached.term != self.term {
            // Another controller: what this one's decider knew is void, and its number too low.
            self.resign();
            self.term = attached.term;
        }
        self.story.remember(&attached.history);
        if matches!(self.wish, Wish::Nothing)
            && let Some(wished) = attached.wished
        {
            let adopted = match wished.up {
                true => self.wish_up(wished.spec),
                false => self.know(&wished.spec).map(|_| self.wish_down()),
            };
            if let Err(refusal) = adopted {
                self.trouble = Some(format!(
                    "what was wished earlier cannot be carried out: {refusal}"
                ));
            }
        }
        attached.events
    }

    // ---- results

    fn heard(&mut self, heard: Heard) {
        if !matches!(heard, Heard::Trouble(_) | Heard::Member { .. }) {
            self.trouble = None;
        }
        match heard {
            // Taken by `run`, which owns the stream.
            Heard::Attached(_) => {}
            Heard::Trouble(why) => self.trouble = Some(why),
            Heard::Prepared { wish, launch } => {
                if let Wish::Up { launch: held } = &mut self.wish
                    && wish == self.wishes
                {
                    *held = Some(launch);
                }
            }
            Heard::Held { wish, holder } => {
                if let Wish::Down { held } = &mut self.wish
                    && wish == self.wishes
                {
                    *held = Some(holder);
                }
            }
            Heard::Numbered { cell, number } => self.begin_to_lead(cell, number),
            Heard::Input { instance, input } => {
                if self
                    .lead
                    .as_ref()
                    .is_some_and(|lead| lead.instance == instance)
                {
                    self.feed(*input);
                }
            }
            Heard::Member { member, outcome } => self.finished(member, outcome),
        }
    }

    // ---- what others see

    /// Keepers give signs of life all the time, and what they change is seldom anything that others see.
    fn publish_what_is_new(&mut self) {
        let due = match self.news {
            News::Much => true,
            News::Signs => self.published_at.elapsed() >= SIGNS_SHOWN_AFTER,
        };
        if due {
            self.published_at = Instant::now();
            self.publish();
        }
    }

    fn publish(&self) {
        let wished = match &self.wish {
            Wish::Nothing => Wished::Nothing,
            Wish::Up { .. } => Wished::Up,
            Wish::Down { .. } => Wished::Down,
        };
        let preparing = self.preparing();
        let view = self.lead.as_ref().map(Lead::view);
        let looks = look(&Situation {
            service: &self.own.service,
            wished,
            preparing: preparing.as_deref(),
            members: &self.members,
            tasks: &self.tasks,
            decider: view.as_ref(),
        });
        let new = Published {
            attached: self.synced,
            wish: self.wishes,
            wished,
            looks,
        };
        self.publish.send_if_modified(|current| {
            let changed = *current != new;
            *current = new;
            changed
        });
    }

    fn preparing(&self) -> Option<String> {
        let what = match &self.wish {
            Wish::Nothing => return None,
            Wish::Up { .. } | Wish::Down { .. } if !self.synced => "the cell to tell of its tasks",
            Wish::Up { launch: None } => "its specification and passwords to be kept",
            Wish::Up { launch: Some(_) } if self.lead.is_none() => "a decider to begin",
            Wish::Down { held: None } => "its endpoint to hold",
            Wish::Up { launch: Some(_) } | Wish::Down { held: Some(_) } => {
                return self.trouble.clone();
            }
        };
        Some(match &self.trouble {
            Some(trouble) => format!("{what} ({trouble})"),
            None => what.to_owned(),
        })
    }
}

/// Tries until it is done, saying why not.
async fn until_done<T, F: Future<Output = Result<T, Refusal>>>(
    results: &mpsc::Sender<Heard>,
    mut step: impl FnMut() -> F,
) -> T {
    loop {
        match step().await {
            Ok(done) => return done,
            Err(refusal) => drop(results.try_send(Heard::Trouble(refusal.message))),
        }
        sleep(AGAIN).await;
    }
}

async fn next_event(events: &mut Option<TaskEvents>) -> Option<TaskEvent> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
