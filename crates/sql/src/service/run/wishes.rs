//! What is wished of the service, and the decider that makes it so.

use std::time::{SystemTime, UNIX_EPOCH};

use homeostat_api::{Refusal, RefusalKind};
use homeostat_decider::{Input, MemberReport, Note, NoteEvent};
use homeostat_model::{ServiceKind, ServiceSpec, SqlSpec, Term, UnixMillis};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Command, Heard, Loop, STUCK, Wish, until_done};
use crate::service::launch;
use crate::service::lead::Lead;
use crate::service::members::Seen;
use crate::service::story::{self, Told};
use crate::service::tell::{hold, prepare};
use crate::service::term;

impl Loop {
    pub(super) fn command(&mut self, command: Command) {
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

    pub(super) fn check_term(&mut self, term: u64) -> Result<(), Refusal> {
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
    pub(super) fn know(&mut self, spec: &ServiceSpec) -> Result<SqlSpec, Refusal> {
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
        let decided_by = |spec: &SqlSpec| (spec.profile, spec.reads);
        if (self.spec.as_ref()).is_some_and(|known| decided_by(known) != decided_by(sql)) {
            // A decider keeps what it began with: another one begins.
            self.resign();
        }
        self.spec = Some(sql.clone());
        Ok(sql.clone())
    }

    pub(super) fn wish_up(&mut self, spec: ServiceSpec) -> Result<(), Refusal> {
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

    pub(super) fn wish_down(&mut self) {
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

    pub(super) fn new_wish(&mut self) -> u64 {
        self.wish_calls = JoinSet::new();
        self.wishes += 1;
        self.wishes
    }

    // ---- deciding

    pub(super) fn resign(&mut self) {
        self.lead = None;
        self.numbering = None;
        self.stuck = None;
        self.story.interrupt();
    }

    /// Gets a decider going when there is none and there should be one.
    pub(super) fn lead_if_due(&mut self) {
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

    pub(super) fn begin_to_lead(&mut self, cell: u64, number: Term) {
        if cell != self.term || self.lead.is_some() || !matches!(self.wish, Wish::Up { .. }) {
            return;
        }
        self.numbering = None;
        self.leads += 1;
        let Some(spec) = &self.spec else { return };
        let config = launch::deciding(&self.own.service, &self.members, spec);
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

    pub(super) fn feed(&mut self, input: Input) {
        if let Some(lead) = &mut self.lead {
            let notes = lead.feed(input);
            self.tell_of(&notes);
        }
    }

    pub(super) fn tell_of(&mut self, notes: &[Note]) {
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

    pub(super) fn woken(&mut self) {
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
}

fn unix_now() -> UnixMillis {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UnixMillis(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}
