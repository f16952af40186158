//! The rules of the engine, by name.
//!
//! In a build they all hold and cost nothing. In the simulation each can be broken in turn, to prove that its
//! absence would be noticed: a rule whose removal no test sees is either not needed or not tested.

/// A rule that the engine keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A check runs only while all it depends on pass, the last probe of each included.
    RunAfterDependencies,
    /// No more probes run at once than configured.
    BoundConcurrency,
    /// A failure changes the verdict only after `confirm` of them in a row.
    ConfirmFailures,
    /// A failure is confirmed only if everything directly beneath was seen to pass after it began.
    VerifyDependencies,
    /// What a probe reports is dropped if something it depends on stopped passing while it ran.
    DropSpoiledResults,
    /// A report is taken only for the attempt that is running.
    DropStaleReports,
    /// Blocked checks name the failing ones at the origin.
    NameRoots,
    /// An unconfirmed failure is looked at again soon, not after the whole interval.
    RetrySoon,
    /// What was blocked or waited is run as soon as it may.
    RunPromptlyWhenUnblocked,
    /// A probe that nobody reports is given up.
    GiveUpLostRuns,
    /// No more probes of one target run at once than configured.
    BoundPerTarget,
    /// No more fixes are applied at once than configured.
    BoundFixes,
    /// A resource is touched by one fix at a time.
    OneFixPerResource,
    /// A fix keeps its resource until its check has settled: others would judge what is still starting.
    HoldWhileSettling,
    /// Who waited for a resource looks again once it is free: the fix before may have repaired it, too.
    LookAgainAfterOthers,
    /// A check is fixed only while all it depends on pass.
    FixOnlyWithOpenGate,
    /// A check too flaky to be believed never triggers a fix.
    QuarantineFlaky,
    /// After its last attempt a fix is not applied again until the check has passed.
    LimitAttempts,
    /// A fix that is not proved to be repeatable has one attempt.
    LimitUnproved,
    /// Failures before the settle deadline say nothing about a fix.
    SettleFirst,
    /// After an attempt without success the next one waits.
    BackOff,
    /// A check that passes has all its attempts again.
    ForgetAttemptsOnPass,
    /// A fix that nobody reports is given up.
    GiveUpLostFixes,
    /// Each fix has a higher fencing number than all before it.
    RaiseFence,
    /// A report of a fix is taken only for the one that is being applied.
    DropStaleFixes,
    /// A failure that a fix found nothing to do about, and that is gone, was a flake.
    CountNeedlessFixes,
}

/// Which rules hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    #[cfg(test)]
    broken: Option<Rule>,
}

impl Rules {
    pub(crate) const ALL_HOLD: Self = Self {
        #[cfg(test)]
        broken: None,
    };

    #[cfg(test)]
    pub(crate) fn without(rule: Rule) -> Self {
        Self { broken: Some(rule) }
    }

    pub(crate) fn hold(self, rule: Rule) -> bool {
        self.broken() != Some(rule)
    }

    #[cfg(test)]
    fn broken(self) -> Option<Rule> {
        self.broken
    }

    #[cfg(not(test))]
    fn broken(self) -> Option<Rule> {
        None
    }
}

#[cfg(test)]
impl Rule {
    pub(crate) const ALL: [Rule; 26] = [
        Rule::RunAfterDependencies,
        Rule::BoundConcurrency,
        Rule::ConfirmFailures,
        Rule::VerifyDependencies,
        Rule::DropSpoiledResults,
        Rule::DropStaleReports,
        Rule::NameRoots,
        Rule::RetrySoon,
        Rule::RunPromptlyWhenUnblocked,
        Rule::GiveUpLostRuns,
        Rule::BoundPerTarget,
        Rule::BoundFixes,
        Rule::OneFixPerResource,
        Rule::HoldWhileSettling,
        Rule::LookAgainAfterOthers,
        Rule::FixOnlyWithOpenGate,
        Rule::QuarantineFlaky,
        Rule::LimitAttempts,
        Rule::LimitUnproved,
        Rule::SettleFirst,
        Rule::BackOff,
        Rule::ForgetAttemptsOnPass,
        Rule::GiveUpLostFixes,
        Rule::RaiseFence,
        Rule::DropStaleFixes,
        Rule::CountNeedlessFixes,
    ];
}
