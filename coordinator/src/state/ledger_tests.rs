//! How a charge is divided, and that no money is made.

use super::*;
use crate::state::State;
use crate::state::apply::tests::{Member, credit, filled, key};
use crate::state::{Command, Outcome};

fn work(of: &[(&str, u64)]) -> Vec<Work> {
    let work = |(provider, units): &(&str, u64)| Work {
        provider: (!provider.is_empty()).then(|| (*provider).to_owned()),
        units: *units,
    };
    of.iter().map(work).collect()
}

/// What each gets, the tenant first and the platform last.
fn divided(charge: i64, fee: u32, of: &[(&str, u64)]) -> Vec<i64> {
    let lines = charge_lines(TenantId(1), NanoUsd(charge), BasisPoints(fee), &work(of));
    assert_eq!(sum(&lines), 0);
    assert_eq!(lines[0].0, Account::Tenant(TenantId(1)));
    lines.iter().map(|(_, amount)| amount.0).collect()
}

#[test]
fn a_charge_is_divided_by_work_and_the_platform_keeps_fee_and_remainder() {
    assert_eq!(divided(1_000, 1_000, &[("a", 1)]), [-1_000, 900, 100]);
    assert_eq!(
        divided(1_000, 1_000, &[("a", 1), ("b", 2)]),
        [-1_000, 300, 600, 100]
    );
    // 100 among three: a third each, rounded down, and what is over stays.
    let thirds = [("a", 1), ("b", 1), ("c", 1)];
    assert_eq!(divided(100, 0, &thirds), [-100, 33, 33, 33, 1]);
    // The fee is rounded for the platform too: of 9, nine tenths are 8.1.
    assert_eq!(divided(9, 1_000, &[("a", 1)]), [-9, 8, 1]);
    assert_eq!(divided(1, 1_000, &[("a", 1)]), [-1, 1], "nothing to share");
    assert_eq!(divided(1_000, 10_000, &[("a", 1)]), [-1_000, 1_000]);
    assert_eq!(divided(1_000, 0, &[("a", 1)]), [-1_000, 1_000]);
    // Nobody's machines are the platform's, as is what nobody worked for.
    assert_eq!(
        divided(1_000, 1_000, &[("", 1), ("a", 1)]),
        [-1_000, 450, 550]
    );
    assert_eq!(divided(1_000, 1_000, &[]), [-1_000, 1_000]);
    assert_eq!(divided(1_000, 1_000, &[("a", 0)]), [-1_000, 1_000]);
    // As large as it gets.
    let large = [("a", u64::MAX), ("b", u64::MAX)];
    let half = i64::MAX / 2;
    assert_eq!(divided(i64::MAX, 0, &large), [-i64::MAX, half, half, 1]);
}

/// Against the definition, in other words: nobody gets more than their part, and nobody lacks a whole
/// nano-dollar of it.
#[test]
fn shares_are_parts_rounded_down() {
    let mut chance = 99u64;
    let mut draw = |end: u64| {
        chance = chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (chance >> 33) % end
    };
    for _ in 0..2_000 {
        let charge = 1 + draw(1 << 30) as i64;
        let fee = draw(10_001) as u32;
        let units: Vec<u64> = (0..1 + draw(5)).map(|_| 1 + draw(1_000_000)).collect();
        let names = ["a", "b", "c", "d", "e"];
        let of: Vec<_> = names.into_iter().zip(units.iter().copied()).collect();
        let all: u64 = units.iter().sum();
        let lines = charge_lines(TenantId(1), NanoUsd(charge), BasisPoints(fee), &work(&of));
        assert_eq!(sum(&lines), 0);
        for (name, units) in of {
            let account = Account::Provider(name.into());
            let share = lines
                .iter()
                .find(|(a, _)| *a == account)
                .map_or(0, |(_, s)| s.0);
            // share <= (charge - fee) * units / all < share + 2: two roundings.
            let exact = i128::from(charge) * i128::from(10_000 - fee) * i128::from(units);
            let scale = 10_000 * i128::from(all);
            assert!(i128::from(share) * scale <= exact, "too much");
            assert!(exact < (i128::from(share) + 2) * scale, "too little");
        }
    }
}

#[test]
fn money_comes_from_outside_and_leaves_for_there() {
    let mut member = Member::default();
    member.ask(key("acme", 1));
    assert_eq!(member.ask(credit(1, 500)), Outcome::Posting(PostingId(1)));
    assert_eq!(member.ask(credit(1, -200)), Outcome::Posting(PostingId(2)));
    let state = &member.state;
    assert_eq!(state.balance(&Account::Tenant(TenantId(1))), NanoUsd(300));
    assert_eq!(state.balance(&Account::Funding), NanoUsd(-300));
    let posting = state.postings().next().unwrap();
    let (reason, by) = ("paid".into(), "unknown".into());
    assert_eq!(posting.kind, PostingKind::Credit { reason, by });
    assert_eq!(member.refused(credit(1, i64::MAX)), Refusal::BalanceRange);
    let nobody = Command::Payout {
        provider: "nobody".into(),
        amount: NanoUsd(1),
        reason: "r".into(),
    };
    assert_eq!(member.refused(nobody), Refusal::Overdraft);
    member.state.check().unwrap();
}

#[test]
fn old_postings_stand_in_the_opening_balances() {
    let mut state = filled().state;
    let before: Vec<_> = state.balances().map(|(a, b)| (a.clone(), b)).collect();
    let postings = state.ledger.postings.len();
    for most in (0..postings).rev() {
        state.ledger.trim(most, 1);
        assert_eq!(state.ledger.postings.len(), most);
        let after: Vec<_> = state.balances().map(|(a, b)| (a.clone(), b)).collect();
        assert_eq!(after, before);
        state.check().unwrap();
    }
    // Numbers go on.
    let lines = vec![
        (Account::Platform, NanoUsd(1)),
        (Account::Funding, NanoUsd(-1)),
    ];
    let number = RequestNumber(1);
    let id = state
        .ledger
        .post(1, PostingKind::Request { number }, lines)
        .unwrap();
    assert_eq!(id, PostingId(postings as u64 + 1));
}

#[test]
fn the_full_check_sees_what_no_posting_made() {
    let mut state = filled().state;
    state.ledger.balances.get_mut(&Account::Platform).unwrap().0 += 1;
    assert!(state.check().is_err());
    let mut state = filled().state;
    state.ledger.opening.insert(Account::Platform, NanoUsd(1));
    assert!(state.check().is_err());
    let mut state = filled().state;
    let mut row = state.requests().next().unwrap().clone();
    row.charged.0 -= 1;
    state.requests.put(row);
    assert!(
        state
            .check()
            .unwrap_err()
            .contains("differs from its postings")
    );
}

#[test]
#[should_panic(expected = "a posting sums to zero")]
fn a_posting_that_makes_money_is_never_written() {
    let mut state = State::default();
    let lines = vec![(Account::Platform, NanoUsd(1))];
    let number = RequestNumber(1);
    let _ = state.ledger.post(0, PostingKind::Request { number }, lines);
}

#[test]
fn months_sum_what_moved_each_account_and_outlive_postings() {
    const DAY_MS: u64 = 86_400_000;
    let mut member = filled();
    // Until here all was in January 1970. In March and then in April:
    for days in [60, 91] {
        member.now = days * DAY_MS / 1_000;
        member.ask(credit(1, 500));
        member.ask(credit(1, -100));
    }
    let acme = Account::Tenant(TenantId(1));
    let moved = |state: &State| -> Vec<_> {
        let months = state.movements(&acme);
        months
            .map(|(month, m)| (month, m.requests.0, m.credits.0, m.refunds.0, m.payouts.0))
            .collect()
    };
    let all = [
        (0, -3 * 440, 1_000_000, 40, 0),
        (2, 0, 400, 0, 0),
        (3, 0, 400, 0, 0),
    ];
    assert_eq!(moved(&member.state), all);
    let hosts = Account::Provider("hosts".into());
    let (_, earned) = member.state.movements(&hosts).next().unwrap();
    assert_eq!((earned.requests.0, earned.payouts.0), (3 * 330, -100));
    let january = 1_000_000 - 3 * 440 + 40;
    for (month, balance) in [(0, 0), (1, january), (2, january), (3, january + 400)] {
        let before = member.state.balance_before(&acme, month);
        assert_eq!(before, NanoUsd(balance), "month {month}");
    }
    member.state.ledger.trim(0, usize::MAX);
    assert_eq!(moved(&member.state), all, "without a posting");
    member.state.check().unwrap();
    let month = (acme.clone(), 2);
    member
        .state
        .ledger
        .months
        .rows
        .get_mut(&month)
        .unwrap()
        .credits
        .0 += 1;
    assert!(member.state.check().unwrap_err().contains("months"));
}

#[test]
fn what_is_too_much_is_forgotten_bit_by_bit() {
    let mut state = filled().state;
    let postings = state.ledger.postings.len();
    state.ledger.trim(1, 2);
    assert_eq!(state.ledger.postings.len(), postings - 2);
    state.check().unwrap();
}
