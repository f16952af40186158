//! What can be said of a member from its signs of life, and when that is a fault of the primary.
//!
//! Exits are facts and need no judgement. Hangs and cuts are judged, by silence for H, and always from two sides: what
//! the keeper says or does not say, and what the ackers hear by replication. One side alone is never enough:
//! - a primary that only the controllers cannot reach goes on serving, its ackers hear it;
//! - a commit that waits is not a hang: it may lack ackers, and the server answers reads.
//!
//! The ages are measured where the silence is, on the witness's own clock, so a decider that was itself held up draws no
//! conclusion from what it did not hear meanwhile. And what a witness says after a gap is not believed at once: when a cut
//! heals, the reports that its connection held back come in a row, and tell of silence that is over.

use std::time::Duration;

use super::Decider;
use super::member::Member;
use crate::rules::Mutation;
use crate::{Automatic, Evidence, MemberId, Phase, Pulse, Receiver, Record, ServerState, Wait};

/// What a member looks like now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// Its keeper cannot be reached, or was not heard for H.
    Silent,
    Down,
    Starting,
    /// Its server runs and answered no read for H.
    Hung,
    Well,
}

/// What a member of A says of the holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hearing {
    /// Something came from it lately, or the receiver has not tried for so long, or that is not known yet.
    Hears,
    /// It tries, and nothing came for long enough.
    Deaf,
    /// It cannot be asked, or does not listen.
    CannotSay,
}

impl Decider {
    pub(super) fn sight(&self, member: &MemberId) -> Sight {
        let Some(known) = self.members.get(member) else {
            return Sight::Silent;
        };
        let Some(report) = known.report.as_ref().filter(|_| known.reachable) else {
            return Sight::Silent;
        };
        if self
            .silent_for(member)
            .is_some_and(|silent| silent >= self.silence())
        {
            return Sight::Silent;
        }
        match &report.server {
            ServerState::Down { .. } => Sight::Down,
            ServerState::Starting { .. } => Sight::Starting,
            ServerState::Up { .. } => {
                let unanswered = report.pulse.and_then(|pulse| pulse.unanswered_ms);
                let hang = self.config.silence;
                let long = unanswered.is_some_and(|age| Duration::from_millis(age) >= hang);
                match long && self.is_steady(known) {
                    true => Sight::Hung,
                    false => Sight::Well,
                }
            }
        }
    }

    /// For how long its keeper was not heard; `None` for one that gives no signs of life. A member that this leader never
    /// heard of is silent since the leader began.
    pub(super) fn silent_for(&self, member: &MemberId) -> Option<Duration> {
        let known = self.members.get(member)?;
        match (&known.report, known.heard_at) {
            (Some(report), Some(at)) => report.pulse.map(|_| self.now.since(at)),
            (Some(_), None) | (None, _) => self.began.map(|began| self.now.since(began)),
        }
    }

    /// What a connection held back while it was cut arrives all at once: a moment later it is over.
    fn is_steady(&self, known: &Member) -> bool {
        known
            .steady_since
            .is_none_or(|since| self.now.since(since) >= self.config.pulse * 2)
    }

    /// What it says is of now.
    fn heard_lately(&self, member: &MemberId) -> bool {
        let lately = self.config.pulse * 3;
        self.members
            .get(member)
            .is_some_and(|known| known.reachable && self.is_steady(known))
            && self
                .silent_for(member)
                .is_none_or(|silent| silent <= lately)
    }

    /// After which a gap is a silence of H: what should have filled it may have been due a pulse later.
    pub(super) fn silence(&self) -> Duration {
        self.config.silence.saturating_add(self.config.pulse)
    }

    /// Looks again at the moment at which silence that goes on would become a fault.
    pub(super) fn watch_silence(&mut self) {
        let silence = self.silence();
        let next = self
            .members
            .keys()
            .filter_map(|member| silence.checked_sub(self.silent_for(member)?))
            .filter(|left| !left.is_zero())
            .min();
        if let Some(left) = next {
            self.wake_after(left);
        }
    }

    /// The members of A that are not in sight: each may be acknowledging for the holder.
    pub(super) fn ackers_out_of_sight(&self, record: &Record) -> Vec<MemberId> {
        let unseen = |member: &&MemberId| match self.sight(member) {
            Sight::Silent => true,
            Sight::Down | Sight::Starting | Sight::Hung | Sight::Well => false,
        };
        record.ackers.iter().filter(unseen).cloned().collect()
    }

    /// Is the holder hung or cut off, and may that be acted upon? Proven exits are judged elsewhere, at once.
    pub(super) fn holder_at_fault(&mut self, record: &Record) -> Option<Evidence> {
        let evidence = self.fault_of_holder(record)?;
        match self.config.automatic {
            Automatic::On => Some(evidence),
            Automatic::Off => {
                self.waits.push(Wait::AutomaticOff {
                    holder: record.holder.clone(),
                });
                None
            }
        }
    }

    fn fault_of_holder(&self, record: &Record) -> Option<Evidence> {
        let holder = record.holder.clone();
        // A hang is measured at the server; that its heartbeats stopped is the other side of it. A cut is measured there.
        let bound = match self.sight(&holder) {
            Sight::Hung => (self.config.silence / 2).max(self.config.pulse * 2),
            Sight::Silent | Sight::Down | Sight::Starting | Sight::Well => self.silence(),
        };
        let (deaf, hears) = self.hearings(record, bound);
        // While it is promoted nobody is served by it, and its ackers may not be connected yet: its own silence will do.
        let heard_elsewhere = match record.phase {
            Phase::Serving => !hears.is_empty() || deaf.is_empty(),
            Phase::Promoting | Phase::Revoking => false,
        };
        let pulse = self
            .members
            .get(&holder)
            .and_then(|known| known.report.as_ref()?.pulse);
        match self.sight(&holder) {
            Sight::Hung => {
                let no_answer_ms = pulse
                    .and_then(|pulse| pulse.unanswered_ms)
                    .unwrap_or_default();
                (!heard_elsewhere).then_some(Evidence::Hung {
                    holder,
                    no_answer_ms,
                    witnesses: deaf,
                })
            }
            Sight::Silent => {
                let silent = self.silent_for(&holder)?;
                // Without all of A the old holder could not be fenced: ending its epoch would stop it for nothing.
                // Just now: one on the other side of the same cut is not known to be silent a moment before the holder is.
                let fence = record.ackers.iter().all(|acker| self.heard_lately(acker))
                    || self.rules.broken(Mutation::CutWithoutSomeAckers);
                let heard_elsewhere =
                    heard_elsewhere && !self.rules.broken(Mutation::CutByStreamAlone);
                (silent >= self.silence() && fence && !heard_elsewhere).then(|| Evidence::CutOff {
                    holder,
                    silent_ms: u64::try_from(silent.as_millis()).unwrap_or(u64::MAX),
                    witnesses: deaf,
                })
            }
            Sight::Down | Sight::Starting | Sight::Well => None,
        }
    }

    fn hearings(&self, record: &Record, bound: Duration) -> (Vec<MemberId>, Vec<MemberId>) {
        let (mut deaf, mut hears) = (Vec::new(), Vec::new());
        for member in &record.ackers {
            match self.hearing(record, member, bound) {
                Hearing::Deaf => deaf.push(member.clone()),
                Hearing::Hears => hears.push(member.clone()),
                Hearing::CannotSay => {}
            }
        }
        (deaf, hears)
    }

    fn hearing(&self, record: &Record, member: &MemberId, bound: Duration) -> Hearing {
        match self.sight(member) {
            Sight::Silent | Sight::Down | Sight::Starting | Sight::Hung => {
                return Hearing::CannotSay;
            }
            Sight::Well => {}
        }
        let heard = self.heard_lately(member);
        let Some(known) = self.members.get(member).filter(|_| heard) else {
            return Hearing::CannotSay;
        };
        let listens = known.facts().is_some_and(|facts| match &facts.receiver {
            Receiver::Running { source, .. } => source.member == record.holder,
            Receiver::Stopped { .. } | Receiver::None => false,
        });
        let pulse = known.report.as_ref().and_then(|report| report.pulse);
        match pulse {
            Some(Pulse {
                source_ms: Some(age),
                ..
            }) if listens => match Duration::from_millis(age) >= bound {
                true => Hearing::Deaf,
                false => Hearing::Hears,
            },
            Some(_) | None => Hearing::CannotSay,
        }
    }
}
