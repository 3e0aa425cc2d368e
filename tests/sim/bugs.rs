//! Planted bugs: a check that cannot fail proves nothing. Each must be caught within a few seeds.

use crate::scenario::{Plan, live};
use trireme_coordinator::planted::Bug;

/// Seeds within which each bug must be caught.
const SEEDS: u64 = 400;

fn caught(bug: Bug) {
    let plan = Plan {
        bug: Some(bug),
        ..Plan::default()
    };
    for seed in 1..=SEEDS {
        if let Err(violation) = live(seed, plan) {
            eprintln!("{bug:?} is caught by seed {seed}: {}", violation.0);
            return;
        }
    }
    panic!("{bug:?} was not caught by {SEEDS} seeds");
}

macro_rules! bugs {
    ($($test:ident: $bug:ident),+ $(,)?) => {
        $(
            #[test]
            fn $test() {
                caught(Bug::$bug);
            }
        )+

        #[test]
        fn every_bug_has_its_test() {
            assert_eq!([$(Bug::$bug),+], Bug::ALL);
        }
    };
}

bugs! {
    acknowledging_before_the_sync_is_caught: AckBeforeSync,
    answering_by_position_is_caught: AnswerByPosition,
    applying_twice_is_caught: ApplyTwice,
    skipping_pre_vote_is_caught: SkipPreVote,
    losing_the_hard_state_is_caught: LoseHardState,
    a_snapshot_without_its_last_entry_is_caught: SnapshotWithoutLastEntry,
    reusing_an_epoch_is_caught: EpochReused,
    forgetting_a_proposal_is_caught: ForgetProposal,
    reading_without_a_quorum_is_caught: ReadWithoutQuorum,
    denying_what_is_in_doubt_is_caught: DoubtDenied,
    reusing_the_names_of_reads_is_caught: ReadNameReused,
    forgetting_the_members_is_caught: ForgetMembers,
    counting_twice_on_a_retry_is_caught: CountTwiceOnRetry,
    checking_then_incrementing_is_caught: CheckThenIncrement,
    not_returning_a_lease_is_caught: LeaseNotReturned,
    rounding_in_floating_point_is_caught: FloatRounding,
    losing_a_request_on_disconnect_is_caught: LoseOnDisconnect,
    telling_twice_of_a_budget_is_caught: TellTwice,
}
