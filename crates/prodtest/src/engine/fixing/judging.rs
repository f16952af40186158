//! What follows from a look at a check that has a fix: another attempt, a pause, the end, or a pass.

use std::time::Duration;

use crate::engine::believe::News;
use crate::engine::state::Phase;
use crate::engine::{Attempt, Engine};
use crate::rules::Rule;
use crate::suite::{CheckId, FixPolicy};
use crate::time::Moment;
use crate::verdict::{Evidence, Observation, Stage, Verdict};

/// What to do about a failure that is confirmed.
enum Answer {
    Report,
    GiveUp,
    BackOff {
        until: Moment,
    },
    /// The failure is older than the last fix of the same resource.
    LookAgain,
    Repair,
}

/// How many looks a settle curve has, about: the first pause is this power of two smaller than the whole.
const SETTLE_HALVINGS: u32 = 6;

impl Engine {
    /// A failure is confirmed: says what becomes of it, and when the next turn is.
    pub(in crate::engine) fn confirmed(
        &mut self,
        id: CheckId,
        attempt: Attempt,
        observation: Observation,
        news: &mut News,
    ) -> Moment {
        let evidence = Evidence::new(observation, news.now);
        let turn = self.next_turn(id, news.now);
        match self.answer(id, attempt, news.now) {
            Answer::Report => {
                self.set_verdict(id, Verdict::Fail(evidence), news);
                turn
            }
            Answer::GiveUp => {
                let repair = self.repair(id, evidence, Stage::Over);
                self.set_verdict(id, Verdict::GaveUp(repair), news);
                turn
            }
            Answer::BackOff { until } => {
                let repair = self.repair(id, evidence, Stage::BackingOff { until });
                self.set_verdict(id, Verdict::Fixing(repair), news);
                turn.min(until)
            }
            Answer::LookAgain => {
                let repair = self.repair(id, evidence, Stage::LookingAgain);
                self.set_verdict(id, Verdict::Fixing(repair), news);
                news.now
            }
            Answer::Repair => {
                let repair = self.repair(id, evidence, Stage::Queued);
                self.set_verdict(id, Verdict::Fixing(repair), news);
                if let Some(resource) = self.suite.resource(id) {
                    self.set_phase(id, Phase::Ready);
                    self.resources[resource.index()].waiting.insert(id);
                    self.offer(resource);
                }
                turn
            }
        }
    }

    fn answer(&self, id: CheckId, attempt: Attempt, now: Moment) -> Answer {
        let state = &self.states[id.index()];
        let (Some(policy), Some(fix)) = (&self.suite.check(id).fix, &state.fix) else {
            return Answer::Report;
        };
        if state.history.rate().is_too_high() && self.rules.hold(Rule::QuarantineFlaky) {
            return Answer::Report;
        }
        if fix.applied >= self.allowed(policy) && self.rules.hold(Rule::LimitAttempts) {
            return Answer::GiveUp;
        }
        if now < fix.not_before {
            return Answer::BackOff {
                until: fix.not_before,
            };
        }
        let is_stale = self.suite.resource(id).is_some_and(|resource| {
            let resource = &self.resources[resource.index()];
            attempt <= resource.released
        });
        if is_stale && self.rules.hold(Rule::LookAgainAfterOthers) {
            return Answer::LookAgain;
        }
        Answer::Repair
    }

    fn allowed(&self, policy: &FixPolicy) -> u32 {
        if self.rules.hold(Rule::LimitUnproved) {
            policy.allowed()
        } else {
            policy.attempts
        }
    }

    /// A failure of a check whose repair is under way; `None`: it is to be confirmed like any other.
    pub(in crate::engine) fn failed_while_fixing(
        &mut self,
        id: CheckId,
        observation: &Observation,
        news: &mut News,
    ) -> Option<Moment> {
        let (now, turn) = (news.now, self.next_turn(id, news.now));
        let started = self.states[id.index()].started;
        let settle_first = self.rules.hold(Rule::SettleFirst);
        let (policy, fix) = self.fix_of(id)?;
        let next = match fix.phase {
            Phase::Applying { .. } => turn,
            Phase::Ready => turn,
            Phase::Idle => {
                let waits = fix.applied > 0 && now < fix.not_before;
                let next = turn.min(fix.not_before);
                let fixing = matches!(self.verdict(id), Verdict::Fixing(_));
                (waits && fixing).then_some(next)?
            }
            Phase::Settling { until } => {
                if started.is_some_and(|started| started >= until) || !settle_first {
                    self.attempt_failed(id, observation.clone(), news)
                } else {
                    let first = policy.settle / (1 << SETTLE_HALVINGS);
                    let pause = first.max(Duration::from_millis(1)) * (1 << fix.looks.min(20));
                    fix.looks += 1;
                    now.after(pause).min(until).max(now)
                }
            }
        };
        if let Verdict::Fixing(repair) = &mut self.states[id.index()].verdict {
            repair.evidence = Evidence::new(observation.clone(), now);
        }
        Some(next)
    }

    /// It had all its time to settle, and fails. Whether that means another attempt or the end is decided by a failure
    /// that is confirmed after the pause.
    fn attempt_failed(&mut self, id: CheckId, observation: Observation, news: &mut News) -> Moment {
        self.release(id, news);
        let pause = self.back_off(id);
        let back_off = self.rules.hold(Rule::BackOff);
        let turn = self.next_turn(id, news.now);
        let retry = news.now.after(self.config.retry);
        let Some((policy, fix)) = self.fix_of(id) else {
            return turn;
        };
        fix.phase = Phase::Idle;
        let is_last = fix.applied >= policy.allowed();
        let (stage, next) = if is_last || !back_off {
            (Stage::LookingAgain, retry)
        } else {
            let until = news.now.after(pause);
            fix.not_before = until;
            (Stage::BackingOff { until }, turn.min(until))
        };
        if !matches!(self.verdict(id), Verdict::Fixing(_)) {
            // Something got in the way, and nothing is believed of it: the sooner the better.
            return retry;
        }
        let evidence = Evidence::new(observation, news.now);
        let repair = self.repair(id, evidence, stage);
        self.set_verdict(id, Verdict::Fixing(repair), news);
        next
    }

    /// The pause after the latest attempt: doubled with each, between a half and one and a half of that by chance.
    fn back_off(&self, id: CheckId) -> Duration {
        const MOST_DOUBLINGS: u32 = 20;
        let state = &self.states[id.index()];
        let applied = state.fix.as_ref().map_or(1, |fix| fix.applied);
        let doublings = applied.saturating_sub(1).min(MOST_DOUBLINGS);
        let whole = self.config.back_off.saturating_mul(1 << doublings);
        let whole = whole.min(self.config.longest_back_off);
        let chance = mixed(self.config.seed ^ state.phase ^ u64::from(applied));
        whole.mul_f64(0.5 + (chance >> 11) as f64 / (1_u64 << 53) as f64)
    }

    /// The check passes: whatever was under way is over. Says how many of its failures were flakes after all.
    pub(in crate::engine) fn passed_after_fix(&mut self, id: CheckId, news: &mut News) -> u32 {
        let confirm = self.suite.check(id).confirm;
        let count_needless = self.rules.hold(Rule::CountNeedlessFixes);
        let forget = self.rules.hold(Rule::ForgetAttemptsOnPass);
        self.unready(id);
        let Some((_, fix)) = self.fix_of(id) else {
            return 0;
        };
        let settling = match fix.phase {
            Phase::Settling { until } => Some(until),
            Phase::Idle | Phase::Ready | Phase::Applying { .. } => None,
        };
        let needless = settling.is_some() && fix.needless && count_needless;
        fix.phase = Phase::Idle;
        fix.needless = false;
        if forget {
            fix.applied = 0;
            fix.not_before = Moment::from_millis(0);
            fix.said.clear();
        }
        if let Some(until) = settling {
            self.timers.remove(&(until, id));
            self.release(id, news);
        }
        if needless { confirm } else { 0 }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): spreads neighbouring numbers over all of them.
fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
