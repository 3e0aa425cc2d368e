//! What requests cost, and that no money is made.

use super::*;
use crate::state::apply::tests::{Member, key, usage};
use crate::state::{Command, State};

#[test]
fn usage_moves_money_from_its_tenant_to_the_platform() {
    let mut member = Member {
        now: 3,
        ..Member::default()
    };
    member.ask(key("acme", 1));
    for _ in 0..3 {
        assert_eq!(member.ask(usage(1)), Outcome::Done);
    }
    let (_, total) = member.state.usage().next().unwrap();
    assert_eq!((total.requests, total.prompt), (3, Tokens(30)));
    assert_eq!(total.cost, NanoUsd(1_800));
    let tenant = Account::Tenant(TenantId(1));
    assert_eq!(member.state.balance(&tenant), NanoUsd(-1_800));
    assert_eq!(member.state.balance(&Account::Platform), NanoUsd(1_800));
    let posting = member.state.postings().next_back().unwrap();
    assert_eq!((posting.id, posting.at_ms), (3, 3_999));
    assert_eq!(posting.reason, "same-for-all");
    let why = member.refused(usage(2));
    assert_eq!(why, Refusal::UnknownKey(KeyId(2)));
    for (cost, expected) in [
        (-1, Refusal::NegativeCost),
        (i64::MAX, Refusal::BalanceRange),
    ] {
        let Command::RecordUsage { usage: mut odd } = usage(1) else {
            unreachable!()
        };
        odd.cost = NanoUsd(cost);
        let why = member.refused(Command::RecordUsage { usage: odd });
        assert_eq!(why, expected);
    }
    assert_eq!(
        crate::billing::usage::lines(&member.state, TenantId(1)).len(),
        1
    );
    member.state.check().unwrap();
    // The full check sees a balance that no posting made.
    let wrong = member.state.ledger.balances.get_mut(&Account::Platform);
    wrong.unwrap().0 += 1;
    assert!(member.state.check().is_err());
}

#[test]
#[should_panic(expected = "a posting sums to zero")]
fn a_posting_that_makes_money_is_never_written() {
    let mut state = State::default();
    let lines = vec![(Account::Platform, NanoUsd(1))];
    let _ = state.ledger.post(0, "from nothing", lines);
}
