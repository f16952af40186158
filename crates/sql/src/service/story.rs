//! The story of the last changes of epoch: what set each off, by which proofs, who was chosen and why, and how long every
//! step took. Told by the decider's notes as they come; kept for `explain` and, after the fact, in the store.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::time::Duration;

use homeostat_decider::{Evidence, MemberId, Note, NoteEvent, Now, Phase, RebuildNote};
use homeostat_model::UnixMillis;
use serde::{Deserialize, Serialize};

/// Changes remembered; with [`STEPS`] this keeps `history` well below the store's largest value (1 MiB).
const CHANGES: usize = 16;
/// Steps remembered of one change; a change that is tried again and again repeats itself.
const STEPS: usize = 200;
const FORMAT: u32 = 1;

/// One change of epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub began_unix_ms: UnixMillis,
    /// The epoch it ended (0: none).
    pub epoch_before: u64,
    /// The epoch that was opened; the highest tried while it is not finished.
    pub epoch: u64,
    pub primary_before: Option<MemberId>,
    pub primary: Option<MemberId>,
    pub evidence: Evidence,
    /// The proof that the old primary can acknowledge nothing more.
    pub fence: Option<String>,
    /// The proofs that the new one has every acknowledged write.
    pub complete: Vec<String>,
    /// Who was not chosen, and why.
    pub others: BTreeMap<MemberId, String>,
    pub steps: Vec<Step>,
    /// Steps that were not kept.
    pub steps_dropped: u32,
    /// From the evidence to the open endpoint; `null` while it is not finished, or was overtaken by another change.
    pub took_us: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// When it was over, since the change began.
    pub at_us: u64,
    /// How long it took, where that is known.
    pub took_us: Option<u64>,
    pub what: String,
}

/// `history` in the store, version 1: fields are only added.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stored {
    format: u32,
    changes: VecDeque<Change>,
}

/// The last changes, oldest first.
#[derive(Debug, Default)]
pub(super) struct Story {
    changes: VecDeque<Change>,
    /// The last one is not finished; it began then.
    running: Option<Now>,
}

/// What a note does to the story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    InBetween,
    /// A change is finished: worth keeping.
    Finished,
}

impl Story {
    /// What an earlier leader told. Told changes of this one come after.
    pub(super) fn remember(&mut self, bytes: &[u8]) {
        let Ok(stored) = serde_json::from_slice::<Stored>(bytes) else {
            return;
        };
        if stored.format > FORMAT || !self.changes.is_empty() {
            return;
        }
        self.changes = stored.changes;
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&Stored {
            format: FORMAT,
            changes: self.changes.clone(),
        })
        .unwrap_or_default()
    }

    pub(super) fn changes(&self) -> impl DoubleEndedIterator<Item = &Change> {
        self.changes.iter()
    }

    /// The decider that told of the running change is gone; the next one tells of its own.
    pub(super) fn interrupt(&mut self) {
        self.running = None;
    }

    pub(super) fn take(&mut self, note: &Note, unix: UnixMillis) -> Told {
        if let NoteEvent::Evidence { evidence } = &note.event {
            self.begin(note, evidence, unix);
            return Told::InBetween;
        }
        let (Some(began), Some(change)) = (self.running, self.changes.back_mut()) else {
            return Told::InBetween;
        };
        let at = note.at.since(began);
        change.epoch = change.epoch.max(note.epoch.0);
        match &note.event {
            NoteEvent::Record { record } => {
                let phase = match record.phase {
                    Phase::Revoking => {
                        format!("record: epoch {} begins, nobody holds it yet", record.epoch)
                    }
                    Phase::Promoting => format!("record: {} is being promoted", record.holder),
                    Phase::Serving => format!("record: {} serves", record.holder),
                };
                change.step(at, None, phase);
            }
            NoteEvent::Fence { proof } => {
                change.fence = Some(proof.clone());
                change.step(at, None, "the old primary is proved fenced".to_owned());
            }
            NoteEvent::Choice {
                chosen,
                complete,
                others,
            } => {
                change.complete = complete.clone();
                change.others = others.clone();
                change.step(at, None, format!("{chosen} is chosen"));
            }
            NoteEvent::OrderDone {
                member,
                order,
                took,
                outcome,
            } => {
                change.step(at, Some(*took), format!("{member}: {order}: {outcome}"));
            }
            NoteEvent::Opened { holder, took } => {
                change.primary = Some(holder.clone());
                change.took_us = Some(micros(*took));
                change.step(at, None, format!("endpoints lead to {holder}"));
                self.running = None;
                return Told::Finished;
            }
            // An order's end says both; waits are told elsewhere.
            NoteEvent::OrderSent { .. } | NoteEvent::Waiting { .. } | NoteEvent::Rebuild { .. } => {
            }
            NoteEvent::Leading { .. } | NoteEvent::Evidence { .. } => {}
            NoteEvent::Superseded { .. } => self.running = None,
        }
        Told::InBetween
    }

    fn begin(&mut self, note: &Note, evidence: &Evidence, unix: UnixMillis) {
        let (epoch_before, primary_before) = match evidence {
            Evidence::ServerExited { holder }
            | Evidence::ServerReplaced { holder }
            | Evidence::Hung { holder, .. }
            | Evidence::CutOff { holder, .. }
            | Evidence::SwitchoverAsked { holder, .. } => (note.epoch.0, Some(holder.clone())),
            Evidence::FirstStart => (0, None),
            // The record names the new epoch already, and who held the one before it is in an earlier story.
            Evidence::Resumed { .. } => (note.epoch.0.saturating_sub(1), None),
        };
        self.changes.push_back(Change {
            began_unix_ms: unix,
            epoch_before,
            epoch: note.epoch.0,
            primary_before,
            primary: None,
            evidence: evidence.clone(),
            fence: None,
            complete: Vec::new(),
            others: BTreeMap::new(),
            steps: Vec::new(),
            steps_dropped: 0,
            took_us: None,
        });
        while self.changes.len() > CHANGES {
            self.changes.pop_front();
        }
        self.running = Some(note.at);
    }
}

impl Change {
    fn step(&mut self, at: Duration, took: Option<Duration>, what: String) {
        if self.steps.len() >= STEPS {
            self.steps_dropped = self.steps_dropped.saturating_add(1);
            return;
        }
        self.steps.push(Step {
            at_us: micros(at),
            took_us: took.map(micros),
            what,
        });
    }

    /// For people.
    pub(super) fn text(&self, service: &str) -> String {
        let mut text = format!("{service}: ");
        let roles = match (&self.primary_before, &self.primary) {
            (Some(before), Some(now)) if before == now => format!("{now} is primary again"),
            (Some(before), Some(now)) => format!("the primary role went from {before} to {now}"),
            (None, Some(now)) => format!("{now} became primary"),
            (Some(before), None) => format!("the primary role leaves {before}"),
            (None, None) => "a primary is being found".to_owned(),
        };
        let end = match self.took_us {
            Some(took) => format!("took {}", ms(took)),
            None => "is not finished, or was overtaken".to_owned(),
        };
        line(
            &mut text,
            &format!(
                "epoch {} -> {}, {roles}; it began at {} and {end}",
                self.epoch_before,
                self.epoch,
                clock(self.began_unix_ms)
            ),
        );
        line(
            &mut text,
            &format!("  evidence    {}", because(&self.evidence)),
        );
        if let Some(fence) = &self.fence {
            line(&mut text, &format!("  fence       {fence}"));
        }
        for proof in &self.complete {
            line(&mut text, &format!("  complete    {proof}"));
        }
        for (member, why) in &self.others {
            line(&mut text, &format!("  not chosen  {member}: {why}"));
        }
        line(
            &mut text,
            "  steps       (when it was over since the beginning, how long it took)",
        );
        for step in &self.steps {
            let took = step.took_us.map(ms).unwrap_or_default();
            line(
                &mut text,
                &format!("  {:>12} {took:>12}  {}", ms(step.at_us), step.what),
            );
        }
        if self.steps_dropped > 0 {
            line(
                &mut text,
                &format!("  and {} more steps", self.steps_dropped),
            );
        }
        text.truncate(text.trim_end().len());
        text
    }
}

fn line(text: &mut String, line: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn ms(us: u64) -> String {
    format!("{}.{} ms", us / 1000, us % 1000 / 100)
}

/// The time of day, in UTC.
fn clock(at: UnixMillis) -> String {
    let of_day = at.0 % 86_400_000;
    let (s, ms) = (of_day / 1000, of_day % 1000);
    format!(
        "{:02}:{:02}:{:02}.{ms:03} UTC",
        s / 3600,
        s / 60 % 60,
        s % 60
    )
}

/// What set a change of epoch off.
pub(super) fn because(evidence: &Evidence) -> String {
    match evidence {
        Evidence::ServerExited { holder } => {
            format!("{holder}'s keeper reports that its server has ended")
        }
        Evidence::ServerReplaced { holder } => {
            format!("{holder}'s server is not the one that opened this epoch")
        }
        Evidence::Hung {
            holder,
            no_answer_ms,
            witnesses,
        } => format!(
            "{holder}'s server answered no read for {no_answer_ms} ms, and {}",
            deaf(witnesses)
        ),
        Evidence::CutOff {
            holder,
            silent_ms,
            witnesses,
        } => format!(
            "{holder}'s keeper was not heard for {silent_ms} ms, and {}",
            deaf(witnesses)
        ),
        Evidence::SwitchoverAsked {
            holder,
            to: Some(to),
        } => format!("a switchover from {holder} to {to} was asked for"),
        Evidence::SwitchoverAsked { holder, to: None } => {
            format!("a switchover away from {holder} was asked for")
        }
        Evidence::FirstStart => "the first start of the cluster".to_owned(),
        Evidence::Resumed {
            phase: Phase::Revoking,
        } => "an earlier leader had begun to end the epoch".to_owned(),
        Evidence::Resumed {
            phase: Phase::Promoting,
        } => "an earlier leader had begun a promotion".to_owned(),
        Evidence::Resumed {
            phase: Phase::Serving,
        } => "an earlier leader's work goes on".to_owned(),
    }
}

/// What the ackers say of it.
fn deaf(witnesses: &[MemberId]) -> String {
    match witnesses {
        [] => "no acker can say whether it lives".to_owned(),
        [one] => format!("{one}, which acknowledges for it, hears nothing from it"),
        [first @ .., last] => {
            let first: Vec<&str> = first.iter().map(MemberId::as_str).collect();
            format!(
                "{} and {last}, which acknowledge for it, hear nothing from it",
                first.join(", ")
            )
        }
    }
}

fn rebuild(member: &MemberId, what: &RebuildNote) -> String {
    match what {
        RebuildNote::Needed { reason } => format!("{member} has to be rebuilt: {reason}"),
        RebuildNote::Done { source, took } => {
            let took = ms(micros(*took));
            format!("{member} is a copy of {source} now, after {took}")
        }
        RebuildNote::Failed { why } => format!("the copy for {member} failed: {why}"),
    }
}

/// A note as an event for people: its kind and its text. `None`: too small to tell, or told in other ways.
pub(super) fn event(note: &Note) -> Option<(&'static str, String)> {
    let epoch = note.epoch;
    Some(match &note.event {
        NoteEvent::Leading { term } => (
            "sql",
            format!("epoch {epoch}: decisions are made under term {term} now"),
        ),
        NoteEvent::Evidence { evidence } => {
            ("failover", format!("epoch {epoch}: {}", because(evidence)))
        }
        NoteEvent::Fence { proof } => ("failover", format!("epoch {epoch}: fenced: {proof}")),
        NoteEvent::Choice {
            chosen, complete, ..
        } => (
            "failover",
            format!(
                "epoch {epoch}: {chosen} is chosen ({})",
                complete.join("; ")
            ),
        ),
        NoteEvent::Opened { holder, took } => (
            "failover",
            format!(
                "epoch {epoch}: {holder} is primary, open after {}",
                ms(micros(*took))
            ),
        ),
        NoteEvent::OrderDone {
            member,
            order,
            outcome,
            ..
        } if outcome.starts_with("failed") || outcome.starts_with("refused") => {
            ("sql", format!("{member}: {order}: {outcome}"))
        }
        NoteEvent::Rebuild { member, what } => ("rebuild", rebuild(member, what)),
        NoteEvent::Superseded { by } => ("sql", format!("a newer leader (term {by}) decides")),
        NoteEvent::Record { .. }
        | NoteEvent::OrderSent { .. }
        | NoteEvent::OrderDone { .. }
        | NoteEvent::Waiting { .. } => {
            return None;
        }
    })
}

#[cfg(test)]
mod tests;
