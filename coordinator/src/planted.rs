//! Faults that the simulator must find: each stands at the place where somebody could make it. They
//! exist only with the feature `planted-bugs`, and take effect only on a thread that chose one.

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A command is answered before it is on disk.
    AckBeforeSync,
    /// Outcomes go to the waiting proposers by their order, not by their ids.
    AnswerByPosition,
    /// A proposal that was applied before is applied again.
    ApplyTwice,
    /// A member stands for election without asking first whether it could win.
    SkipPreVote,
    /// Term and vote are not kept over a restart.
    LoseHardState,
    /// A snapshot lacks the entry it names as its last.
    SnapshotWithoutLastEntry,
    /// Epochs of removed plans are given again.
    EpochReused,
    /// Outcomes are remembered for a moment only.
    ForgetProposal,
    /// A leader answers reads because it believes that it still leads.
    ReadWithoutQuorum,
    /// What a former leader logged is told as never logged.
    DoubtDenied,
    /// A member that started again names its reads as before.
    ReadNameReused,
    /// That a change of the members is committed is not kept over a restart.
    ForgetMembers,
    /// What a retry delivered is added to what was settled before.
    CountTwiceOnRetry,
    /// What is there is lent without a look at what is lent already.
    CheckThenIncrement,
    /// The leases of a gateway that is gone stay lent.
    LeaseNotReturned,
    /// A charge is divided in floating point.
    FloatRounding,
    /// A request whose caller left is not settled.
    LoseOnDisconnect,
    /// That a tenant was told of a threshold of its budget is forgotten.
    TellTwice,
}

impl Bug {
    pub const ALL: [Self; 18] = [
        Self::AckBeforeSync,
        Self::AnswerByPosition,
        Self::ApplyTwice,
        Self::SkipPreVote,
        Self::LoseHardState,
        Self::SnapshotWithoutLastEntry,
        Self::EpochReused,
        Self::ForgetProposal,
        Self::ReadWithoutQuorum,
        Self::DoubtDenied,
        Self::ReadNameReused,
        Self::ForgetMembers,
        Self::CountTwiceOnRetry,
        Self::CheckThenIncrement,
        Self::LeaseNotReturned,
        Self::FloatRounding,
        Self::LoseOnDisconnect,
        Self::TellTwice,
    ];
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static CURRENT: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Makes this thread behave as if the fault were in the code; `None` mends it.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    CURRENT.set(bug);
}

/// Whether this thread has that fault.
#[cfg(feature = "planted-bugs")]
pub fn is(bug: Bug) -> bool {
    CURRENT.get() == Some(bug)
}

/// Whether this thread has that fault: never, in this build.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub const fn is(_: Bug) -> bool {
    false
}
