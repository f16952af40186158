//! Switches that break one rule of the specification each, so that the simulator can show that the rule is needed and
//! that its checkers see what happens without it. They exist only in tests and under the `sim` feature; in a product
//! build [`Rules::broken`] is `false` at compile time.

/// One rule left out, each as far as this crate has the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutation {
    PromoteWithoutComplete,
    SkipBarrier,
    OpenBeforeServing,
    NoFence,
    EmptyReceivedAsZero,
    CompareBySequenceOnly,
    DropUnclosed,
    EnableAckerBeforeCas,
    LeaderDoesNotCasFirst,
    NoOrderSequence,
    NoIncarnation,
    StartWithoutSalvage,
    HolderRestartedWithWrongRole,
    AcceptLowerVersion,
    RepointWithoutDrain,
    ReconnectWithoutLocks,
    DivergedAcker,
    RevokedFromFewer,
    DownAckerComplete,
    LeaseFromGrant,
    NoDeadline,
    LeaseWithoutRead,
    StrictWithoutExpiry,
    /// Of the simulated keeper: its rule is in what it reports.
    #[cfg(any(test, feature = "sim"))]
    HangByWriteProbe,
    CutByStreamAlone,
    CutWithoutSomeAckers,
    BacklogBelieved,
    PromoteMustNot,
    EmptyAckerComplete,
}

#[cfg(any(test, feature = "sim"))]
impl Mutation {
    pub const ALL: [Mutation; 29] = [
        Mutation::PromoteWithoutComplete,
        Mutation::SkipBarrier,
        Mutation::OpenBeforeServing,
        Mutation::NoFence,
        Mutation::EmptyReceivedAsZero,
        Mutation::CompareBySequenceOnly,
        Mutation::DropUnclosed,
        Mutation::EnableAckerBeforeCas,
        Mutation::LeaderDoesNotCasFirst,
        Mutation::NoOrderSequence,
        Mutation::NoIncarnation,
        Mutation::StartWithoutSalvage,
        Mutation::HolderRestartedWithWrongRole,
        Mutation::AcceptLowerVersion,
        Mutation::RepointWithoutDrain,
        Mutation::ReconnectWithoutLocks,
        Mutation::DivergedAcker,
        Mutation::RevokedFromFewer,
        Mutation::DownAckerComplete,
        Mutation::LeaseFromGrant,
        Mutation::NoDeadline,
        Mutation::LeaseWithoutRead,
        Mutation::StrictWithoutExpiry,
        Mutation::HangByWriteProbe,
        Mutation::CutByStreamAlone,
        Mutation::CutWithoutSomeAckers,
        Mutation::BacklogBelieved,
        Mutation::PromoteMustNot,
        Mutation::EmptyAckerComplete,
    ];
}

#[cfg(any(test, feature = "sim"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules(pub Option<Mutation>);

#[cfg(not(any(test, feature = "sim")))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rules;

impl Rules {
    #[cfg(any(test, feature = "sim"))]
    pub const ALL_KEPT: Rules = Rules(None);

    #[cfg(not(any(test, feature = "sim")))]
    pub(crate) const ALL_KEPT: Rules = Rules;

    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn broken(self, rule: Mutation) -> bool {
        self.0 == Some(rule)
    }

    #[cfg(not(any(test, feature = "sim")))]
    pub(crate) const fn broken(self, _rule: Mutation) -> bool {
        false
    }
}
