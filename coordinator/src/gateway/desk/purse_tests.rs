use super::*;
use std::time::Duration;
use trireme_shared::ids::TenantId;

const LIFE: GatewayLife = GatewayLife(7);
const A: Subject = Subject::Tenant(TenantId(1));
const B: Subject = Subject::Tenant(TenantId(2));

fn money(nano: i64) -> Amounts {
    Amounts {
        money: NanoUsd(nano),
        ..Amounts::default()
    }
}

fn slots(slots: u64) -> Amounts {
    Amounts {
        slots,
        ..Amounts::default()
    }
}

fn need(subject: Subject, amounts: Amounts) -> Need {
    Need { subject, amounts }
}

fn open() -> (Purse, Instant) {
    let now = Instant::now();
    let mut purse = Purse::default();
    purse.begin(LIFE, now + Duration::from_secs(10));
    (purse, now)
}

fn asks(outcome: Result<Hold, Lacking>) -> Vec<Ask> {
    match outcome {
        Err(Lacking::Lease(asks)) => asks,
        other => panic!("{other:?}"),
    }
}

/// Nothing bounds anything.
fn plenty(_: Subject) -> Option<Left> {
    Some(Left::default())
}

#[test]
fn what_is_granted_can_be_held_once() {
    let (mut purse, now) = open();
    let needs = [need(A, money(100))];
    let ask = asks(purse.hold(&needs, now));
    assert_eq!(ask[0].least, money(100));
    purse.answered(LIFE, A, money(150));
    let hold = purse.hold(&needs, now).unwrap();
    // Fifty are free: it asks for what is missing, not for all.
    assert_eq!(asks(purse.hold(&needs, now))[0].least, money(50));
    purse.put_back(hold, money(30));
    assert_eq!(purse.free(A, now), money(120));
    assert!(purse.hold(&needs, now).is_ok());
}

#[test]
fn a_hold_takes_from_all_its_subjects_or_from_none() {
    let (mut purse, now) = open();
    purse.answered(LIFE, A, money(100));
    let needs = [need(A, money(100)), need(B, money(1))];
    assert_eq!(asks(purse.hold(&needs, now))[0].subject, B);
    assert_eq!(purse.free(A, now), money(100));
}

#[test]
fn nothing_is_given_out_of_a_life_that_may_be_over() {
    let (mut purse, now) = open();
    purse.answered(LIFE, A, money(100));
    let late = now + Duration::from_secs(10);
    let needs = [need(A, money(1))];
    assert_eq!(purse.hold(&needs, late), Err(Lacking::Life));
    assert_eq!(purse.free(A, late), money(0));
    purse.renewed(LIFE, late + Duration::from_secs(1));
    assert!(purse.hold(&needs, late).is_ok());
    // An older report's word comes later: it shortens nothing.
    purse.renewed(LIFE, now);
    assert!(purse.hold(&needs, late).is_ok());
}

#[test]
fn what_an_earlier_life_held_or_asked_for_is_gone_with_it() {
    let (mut purse, now) = open();
    purse.answered(LIFE, A, money(100));
    let hold = purse.hold(&[need(A, money(60))], now).unwrap();
    purse.end(LIFE);
    let next = GatewayLife(8);
    purse.begin(next, now + Duration::from_secs(10));
    purse.put_back(hold, money(0));
    purse.answered(LIFE, A, money(1_000));
    assert_eq!(purse.free(A, now), money(0));
    // An ask that waited for a life is answered under the new one.
    purse.answered(next, A, money(5));
    assert_eq!(purse.free(A, now), money(5));
}

#[test]
fn a_busy_subject_asks_beforehand_and_a_quiet_one_gives_all_back() {
    let (mut purse, now) = open();
    let needs = [need(A, money(10))];
    let ask = asks(purse.hold(&needs, now));
    assert_eq!(ask[0].most, money(20));
    purse.answered(LIFE, A, money(20));
    let first = purse.hold(&needs, now).unwrap();
    let second = purse.hold(&needs, now).unwrap();
    // It had to wait again: it keeps more.
    assert_eq!(asks(purse.hold(&needs, now))[0].most, money(30));
    purse.answered(LIFE, A, money(30));
    let third = purse.hold(&needs, now).unwrap();
    assert!(purse.ask_ahead(&needs).is_empty());
    let fourth = purse.hold(&needs, now).unwrap();
    assert!(purse.ask_ahead(&needs).is_empty());
    let fifth = purse.hold(&needs, now).unwrap();
    let ahead = purse.ask_ahead(&needs);
    assert_eq!((ahead[0].least, ahead[0].most), (money(0), money(20)));
    assert!(
        purse.ask_ahead(&needs).is_empty(),
        "it is asked for already"
    );
    purse.answered(LIFE, A, money(20));
    for hold in [first, second, third, fourth, fifth] {
        purse.put_back(hold, money(10));
    }
    let lease = |_, _| money(20);
    assert!(purse.returns(9, lease, plenty).is_empty());
    // Looks without a request: half of what is kept, each time.
    let mut given = 0;
    let mut left = 20;
    while left > 0 {
        for back in purse.returns(9, |_, _| money(left), plenty) {
            given += back.unneeded.money.0;
            left -= back.unneeded.money.0;
            purse.returned(LIFE, A);
        }
    }
    assert_eq!(given, 20);
    assert!(purse.returns(9, |_, _| money(0), plenty).is_empty());
    assert!(purse.pockets.is_empty());
}

#[test]
fn what_is_scarce_goes_back_as_soon_as_it_is_free() {
    let (mut purse, now) = open();
    let left = |_| {
        Some(Left {
            concurrency: Some(1),
            ..Left::default()
        })
    };
    let _ = asks(purse.hold(&[need(A, slots(1))], now));
    purse.answered(LIFE, A, slots(1));
    let hold = purse.hold(&[need(A, slots(1))], now).unwrap();
    assert!(purse.scarce([A].into_iter(), left).is_empty());
    purse.put_back(hold, slots(0));
    let back = purse.scarce([A].into_iter(), left);
    assert_eq!(back[0].unneeded, slots(1));
    assert_eq!(purse.free(A, now), slots(0));
    // Where there is plenty, it stays for the next request.
    let _ = asks(purse.hold(&[need(B, slots(1))], now));
    purse.answered(LIFE, B, slots(2));
    assert!(purse.scarce([B].into_iter(), plenty).is_empty());
}

#[test]
fn a_return_under_way_is_not_counted_again() {
    let (mut purse, now) = open();
    let _ = asks(purse.hold(&[need(A, money(10))], now));
    purse.answered(LIFE, A, money(100));
    // The state has not heard of the return: its word on the lease is older than ours.
    let mut given = 0;
    for _ in 0..3 {
        let back = purse.returns(9, |_, _| money(100), plenty);
        given += back.iter().map(|back| back.unneeded.money.0).sum::<i64>();
    }
    assert!(given >= 90, "{given}");
    assert_eq!(given + purse.free(A, now).money.0, 100);
}
