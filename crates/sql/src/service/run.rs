//! The loop: owner of all state, one place where events become actions. It awaits nothing but the next event.
//!
//! Events of tasks are taken before results of calls. A keeper says what it sees before it answers an order, and the cell
//! keeps that order, so this is all it takes for an answer never to be followed by an older report.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use homeostat_api::v1::{
    Apart, Launch, PlaceRequest, PlaceTask, StartRequest, StopRequest, TaskEvent,
};
use homeostat_api::{Refusal, RefusalKind, TaskEvents};
use homeostat_decider::{Config, Input, MemberId, MemberReport, Note, NoteEvent, Now, Wait};
use homeostat_model::{ServiceKind, ServiceSpec, SqlSpec, TaskName, TaskState, Term, UnixMillis};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::launch::{self, grace_ms, resources};
use super::lead::{Lead, Switched};
use super::members::{Action, Said, Seen, Wanted, next};
use super::own::Own;
use super::story::{self, Change, Story, Told};
use super::tell::{Attached, Tellers, attach, hold, prepare};
use super::term;
use super::view::{Looks, Situation, Wished, look};

/// Before something that was accepted is asked again, should no event tell of it.
const AGAIN: Duration = Duration::from_millis(200);
/// Before something that was refused is asked again.
const REFUSED: Duration = Duration::from_secs(1);
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
            self.publish();
            tokio::select! {
                biased;
                event = next_event(&mut events) => match event {
                    Some(event) => self.seen(&event),
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

    fn seen(&mut self, event: &TaskEvent) {
        if event.synced {
            self.synced = true;
            return;
        }
        let now = self.now();
        let Ok(name) = TaskName::new(event.task.clone()) else {
            return;
        };
        let Ok(state) = serde_json::from_str::<TaskState>(&event.state_json) else {
            return;
        };
        let task = self.tasks.entry(name.clone()).or_insert_with(Seen::new);
        task.became(state, now);
        if !event.machine.is_empty() {
            task.machine.clone_from(&event.machine);
            task.placed = Some(event.generation);
        }
        let input = match said(task, &name, event) {
            News::None => return,
            News::Gone => Input::KeeperGone { member: name },
            News::Report(report) => Input::Report(*report),
            News::Unreadable(why) => {
                self.tell.note(
                    name.as_str(),
                    "sql",
                    format!("what {name}'s keeper says cannot be read: {why}"),
                    None,
                );
                Input::KeeperGone { member: name }
            }
        };
        self.feed(input);
    }

    // ---- wishes

    fn command(&mut self, command: Command) {
        match command {
            Command::Up { spec, term, answer } => {
                let done = self.check_term(term).and_then(|()| self.wish_up(*spec));
                drop(answer.send(done.map(|()| self.wishes)));
            }
            Command::Down { term, answer } => {
                let done = self.check_term(term).map(|()| self.wish_down());
                drop(answer.send(done.map(|()| self.wishes)));
            }
            Command::SwitchOver { to, answer } => {
                if let Some(lead) = &mut self.lead {
                    let notes = lead.switch_over(to, answer);
                    self.tell_of(&notes);
                }
            }
            Command::Explain { answer } => {
                drop(answer.send(self.story.changes().cloned().collect()))
            }
        }
    }

    fn check_term(&mut self, term: u64) -> Result<(), Refusal> {
        if term < self.term {
            let why = format!(
                "it comes from a controller of term {term}; one of term {} was seen",
                self.term
            );
            return Err(Refusal::new(RefusalKind::Stale, why));
        }
        Ok(())
    }

    /// Takes a specification in; what its cluster cannot become is refused.
    fn know(&mut self, spec: &ServiceSpec) -> Result<SqlSpec, Refusal> {
        let ServiceKind::Sql(sql) = &spec.kind else {
            return Err(Refusal::bad_request(format!(
                "{} is not a SQL cluster",
                spec.name
            )));
        };
        let members = launch::members(&self.own.service, sql)?;
        if !self.members.is_empty() && self.members != members {
            let why = format!(
                "{} has {} members; a cluster cannot be given {} yet",
                self.own.service,
                self.members.len(),
                members.len()
            );
            return Err(Refusal::bad_request(why));
        }
        self.members = members;
        self.spec = Some(sql.clone());
        Ok(sql.clone())
    }

    fn wish_up(&mut self, spec: ServiceSpec) -> Result<(), Refusal> {
        let sql = self.know(&spec)?;
        for member in &self.members {
            self.tasks.entry(member.clone()).or_insert_with(Seen::new);
        }
        let wish = self.new_wish();
        // Keepers that run go on with what they were started with; those started from here on get the new one.
        let launch = match std::mem::replace(&mut self.wish, Wish::Nothing) {
            Wish::Up { launch } => launch,
            Wish::Nothing | Wish::Down { .. } => None,
        };
        self.wish = Wish::Up { launch };
        let (own, results, members) =
            (self.own.clone(), self.results.clone(), self.members.clone());
        self.wish_calls.spawn(async move {
            let launch = until_done(&results, || prepare(&own, &spec, &sql, &members)).await;
            drop(
                results
                    .send(Heard::Prepared {
                        wish,
                        launch: Box::new(launch),
                    })
                    .await,
            );
        });
        Ok(())
    }

    fn wish_down(&mut self) {
        let wish = self.new_wish();
        self.wish = Wish::Down { held: None };
        // First: an end of the primary is no failure now.
        self.resign();
        let (own, results) = (self.own.clone(), self.results.clone());
        self.wish_calls.spawn(async move {
            let holder = until_done(&results, || hold(&own)).await;
            drop(results.send(Heard::Held { wish, holder }).await);
        });
    }

    fn new_wish(&mut self) -> u64 {
        self.wish_calls = JoinSet::new();
        self.wishes += 1;
        self.wishes
    }

    // ---- deciding

    fn resign(&mut self) {
        self.lead = None;
        self.numbering = None;
        self.stuck = None;
        self.story.interrupt();
    }

    /// Gets a decider going when there is none and there should be one.
    fn lead_if_due(&mut self) {
        let wanted = matches!(self.wish, Wish::Up { .. }) && self.synced;
        if !wanted || self.lead.is_some() || self.numbering.is_some() {
            return;
        }
        let (own, results, cell) = (self.own.clone(), self.results.clone(), self.term);
        let mut call = JoinSet::new();
        call.spawn(async move {
            let number = until_done(&results, || term::take(&own, cell)).await;
            drop(results.send(Heard::Numbered { cell, number }).await);
        });
        self.numbering = Some(call);
    }

    fn begin_to_lead(&mut self, cell: u64, number: Term) {
        if cell != self.term || self.lead.is_some() || !matches!(self.wish, Wish::Up { .. }) {
            return;
        }
        self.numbering = None;
        self.leads += 1;
        // Where members stand is not told by the contract, so all count as equally far apart; the scheduler has spread them.
        let config = Config::mariadb(
            self.own.service.clone(),
            self.members.clone(),
            BTreeMap::new(),
        );
        let lead = Lead::begin(
            self.leads,
            config,
            number,
            self.own.clone(),
            self.began,
            self.results.clone(),
        );
        self.lead = Some(lead);
        self.feed(Input::Tick);
        let reports: Vec<MemberReport> = self
            .tasks
            .values()
            .filter_map(|task| task.said.as_ref())
            .map(|said| said.report.clone())
            .collect();
        for report in reports {
            self.feed(Input::Report(report));
        }
    }

    fn feed(&mut self, input: Input) {
        if let Some(lead) = &mut self.lead {
            let notes = lead.feed(input);
            self.tell_of(&notes);
        }
    }

    fn tell_of(&mut self, notes: &[Note]) {
        for note in notes {
            if let NoteEvent::Waiting { waits } = &note.event {
                self.stuck = (!waits.is_empty()).then(|| (Instant::now() + STUCK, waits.clone()));
                continue;
            }
            if let Some((kind, text)) = story::event(note) {
                self.tell
                    .note(self.own.service.as_str(), kind, text, Some(&note.event));
            }
            match self.story.take(note, unix_now()) {
                Told::Finished => self.tell.history(self.story.to_bytes()),
                Told::InBetween => {}
            }
        }
    }

    fn woken(&mut self) {
        if let Some((_, waits)) = self.stuck.take_if(|(at, _)| *at <= Instant::now()) {
            let words: Vec<String> = waits.iter().map(ToString::to_string).collect();
            let text = format!("waits for {}", words.join("; "));
            self.tell.note(
                self.own.service.as_str(),
                "sql",
                text,
                Some(&NoteEvent::Waiting { waits }),
            );
        }
        self.feed(Input::Tick);
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

    fn finished(&mut self, member: MemberId, outcome: Outcome) {
        let Some(task) = self.tasks.get_mut(&member) else {
            return;
        };
        match outcome {
            Outcome::Placed {
                generation,
                machine,
            } => {
                task.placed = Some(generation);
                task.machine = machine;
                task.busy = false;
            }
            Outcome::Pending(why) => {
                task.state = TaskState::Pending { why };
                self.rest(member, REFUSED);
            }
            Outcome::Accepted => self.rest(member, AGAIN),
            Outcome::Refused(refusal) => {
                if task.over() {
                    task.state = TaskState::Pending {
                        why: refusal.message,
                    };
                }
                self.rest(member, REFUSED);
            }
            Outcome::Rested => task.busy = false,
        }
    }

    /// Keeps a task quiet for a moment, or until its next event.
    fn rest(&mut self, member: MemberId, pause: Duration) {
        let Some(task) = self.tasks.get_mut(&member) else {
            return;
        };
        // An event that came meanwhile has told more already.
        if !task.busy {
            return;
        }
        let results = self.results.clone();
        self.calls.spawn(async move {
            sleep(pause).await;
            drop(
                results
                    .send(Heard::Member {
                        member,
                        outcome: Outcome::Rested,
                    })
                    .await,
            );
        });
    }

    // ---- tasks

    /// Sets everything due going; says when to look again though nothing happened.
    fn act(&mut self) -> Option<Instant> {
        while self.calls.try_join_next().is_some() {}
        self.lead_if_due();
        let mut wake = self.lead.as_ref().and_then(Lead::wake_at);
        let mut sooner = |at: Instant| wake = Some(wake.map_or(at, |wake| wake.min(at)));
        if let Some((at, _)) = &self.stuck {
            sooner(*at);
        }
        let wanted = match &self.wish {
            Wish::Up { launch: Some(_) } if self.synced => Wanted::Up(&self.members),
            Wish::Down { held: Some(holder) } if self.synced => Wanted::Down {
                holder: holder.as_ref(),
            },
            Wish::Nothing | Wish::Up { .. } | Wish::Down { .. } => Wanted::Nothing,
        };
        let mut actions = Vec::new();
        for action in next(wanted, &self.tasks, self.now()) {
            match action {
                Action::LookAgain(at) => sooner(self.began + at.0),
                Action::Place(_) | Action::Start(_) | Action::Stop(_) => actions.push(action),
            }
        }
        for action in actions {
            self.perform(action);
        }
        wake
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::LookAgain(_) => {}
            Action::Place(members) => self.place(members),
            Action::Start(member) => {
                let Wish::Up {
                    launch: Some(launch),
                } = &self.wish
                else {
                    return;
                };
                let launch = Some((**launch).clone());
                let Some((service, generation)) = self.occupy(&member) else {
                    return;
                };
                let cell = self.own.cell.clone();
                self.call(member, async move |task| {
                    cell.start(StartRequest {
                        service,
                        task,
                        generation,
                        launch,
                    })
                    .await
                    .map(drop)
                });
            }
            Action::Stop(member) => {
                let Some((service, generation)) = self.occupy(&member) else {
                    return;
                };
                if let Some(task) = self.tasks.get_mut(&member) {
                    task.ending = true;
                }
                let cell = self.own.cell.clone();
                self.call(member, async move |task| {
                    let grace_ms = grace_ms();
                    cell.stop(StopRequest {
                        service,
                        task,
                        generation,
                        grace_ms,
                    })
                    .await
                    .map(drop)
                });
            }
        }
    }

    fn occupy(&mut self, member: &MemberId) -> Option<(String, u64)> {
        let task = self.tasks.get_mut(member)?;
        task.busy = true;
        Some((
            self.own.service.to_string(),
            task.placed.unwrap_or_default(),
        ))
    }

    fn call<F: Future<Output = Result<(), Refusal>> + Send + 'static>(
        &mut self,
        member: MemberId,
        call: impl FnOnce(String) -> F,
    ) {
        let (results, asked) = (self.results.clone(), call(member.to_string()));
        self.calls.spawn(async move {
            let outcome = match asked.await {
                Ok(()) => Outcome::Accepted,
                Err(refusal) => Outcome::Refused(refusal),
            };
            drop(results.send(Heard::Member { member, outcome }).await);
        });
    }

    fn place(&mut self, members: Vec<MemberId>) {
        let Some(spec) = &self.spec else { return };
        let wanted = members.iter().map(|member| PlaceTask {
            task: member.to_string(),
            resources: Some(resources(spec)),
            fixed_ports: Vec::new(),
            apart: Apart::NeverTogether as i32,
        });
        let request = PlaceRequest {
            service: self.own.service.to_string(),
            tasks: wanted.collect(),
        };
        for member in &members {
            self.occupy(member);
        }
        let (own, results) = (self.own.clone(), self.results.clone());
        self.calls.spawn(async move {
            let reply = own.cell.place(request).await;
            for member in members {
                let outcome = match &reply {
                    Err(refusal) => Outcome::Refused(refusal.clone()),
                    Ok(reply) => {
                        let placed = reply
                            .placed
                            .iter()
                            .find(|placed| placed.task == member.as_str());
                        let pending = reply
                            .pending
                            .iter()
                            .find(|pending| pending.task == member.as_str());
                        match (placed, pending) {
                            (Some(placed), _) => Outcome::Placed {
                                generation: placed.generation,
                                machine: placed.machine.clone(),
                            },
                            (None, Some(pending)) => Outcome::Pending(pending.why.clone()),
                            (None, None) => {
                                Outcome::Pending("the scheduler said nothing about it".into())
                            }
                        }
                    }
                };
                drop(results.send(Heard::Member { member, outcome }).await);
            }
        });
    }

    // ---- what others see

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

enum News {
    None,
    Gone,
    Report(Box<MemberReport>),
    Unreadable(String),
}

/// Whether an event brings something that its keeper had not said before.
fn said(task: &mut Seen, member: &MemberId, event: &TaskEvent) -> News {
    if !event.reachable {
        return if task.said.take().is_some() {
            News::Gone
        } else {
            News::None
        };
    }
    let known = task
        .said
        .as_ref()
        .is_some_and(|said| said.bytes == event.service_event);
    if event.service_event.is_empty() || known {
        return News::None;
    }
    match serde_json::from_slice::<MemberReport>(&event.service_event) {
        Ok(report) if report.member == *member => {
            task.said = Some(Said {
                bytes: event.service_event.clone(),
                report: report.clone(),
            });
            News::Report(Box::new(report))
        }
        Ok(report) => {
            task.said = None;
            News::Unreadable(format!("it speaks for {}", report.member))
        }
        Err(error) => {
            task.said = None;
            News::Unreadable(error.to_string())
        }
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

fn unix_now() -> UnixMillis {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UnixMillis(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}
