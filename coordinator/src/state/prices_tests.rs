//! Costs to the nano-dollar, and which list is in force when.

use super::*;
use crate::state::apply::tests::Member;
use crate::state::{Command, Outcome};

fn counts(prompt: u64, cached: u64, completion: u64) -> Counts {
    Counts::new(prompt, cached, completion)
}

fn cost(prompt: u64, cached: u64, completion: u64) -> i64 {
    DEFAULT_PRICES.cost(&counts(prompt, cached, completion)).0
}

#[test]
fn each_kind_has_its_price() {
    assert_eq!(cost(1, 0, 0), 20);
    assert_eq!(cost(1, 1, 0), 5);
    assert_eq!(cost(0, 0, 1), 60);
    assert_eq!(cost(100, 40, 10), 60 * 20 + 40 * 5 + 10 * 60);
    assert_eq!(cost(0, 0, 0), 0);
}

#[test]
fn the_sum_is_rounded_up_once() {
    let odd = PriceList {
        input: NanoUsd(1),
        cached_input: NanoUsd(1),
        output: NanoUsd(999_999),
        minimum: NanoUsd(0),
    };
    // 1 + 1 + 999,999 millionths: 1.000001 nano-dollars.
    assert_eq!(odd.cost(&counts(2, 1, 1)), NanoUsd(2));
    // 1 + 999,999 millionths are exactly one.
    assert_eq!(odd.cost(&counts(1, 0, 1)), NanoUsd(1));
}

#[test]
fn the_minimum_is_for_requests_that_delivered_something() {
    let list = PriceList {
        minimum: NanoUsd(1_000),
        ..DEFAULT_PRICES
    };
    assert_eq!(list.cost(&counts(0, 0, 0)), NanoUsd(0));
    assert_eq!(list.cost(&counts(3, 0, 0)), NanoUsd(60), "a prompt alone");
    assert_eq!(list.cost(&counts(3, 0, 1)), NanoUsd(1_000));
    assert_eq!(list.cost(&counts(3, 0, 100)), NanoUsd(6_060));
}

#[test]
fn absurd_counts_neither_wrap_nor_turn_negative() {
    assert_eq!(cost(u64::MAX, 0, u64::MAX), i64::MAX);
    assert_eq!(cost(5, 100, 0), 25);
    let negative = PriceList {
        output: NanoUsd(-1),
        ..DEFAULT_PRICES
    };
    assert_eq!(negative.cost(&counts(0, 0, 9)), NanoUsd(0));
}

fn list(output: i64) -> PriceList {
    PriceList {
        output: NanoUsd(output),
        ..DEFAULT_PRICES
    }
}

fn put(effective_from: u64, output: i64) -> Command {
    Command::PutPrice {
        model: "m".into(),
        effective_from,
        list: list(output),
    }
}

#[test]
fn a_request_is_priced_by_the_list_in_force_when_it_began() {
    let mut member = Member {
        now: 100,
        ..Member::default()
    };
    let at = |member: &Member, second: u64| member.state.price("m", second).output.0;
    assert_eq!(at(&member, 100), DEFAULT_PRICES.output.0);
    // "Now" is the second after this one: what began before is not repriced.
    assert_eq!(member.ask(put(0, 1)), Outcome::Done);
    assert_eq!(member.ask(put(200, 2)), Outcome::Done);
    assert_eq!(at(&member, 100), DEFAULT_PRICES.output.0);
    assert_eq!((at(&member, 101), at(&member, 199)), (1, 1));
    assert_eq!((at(&member, 200), at(&member, u64::MAX)), (2, 2));
    assert_eq!(member.state.price("n", 300), DEFAULT_PRICES);
    // A list to come may be changed; one that is or was in force may not.
    assert_eq!(member.ask(put(200, 3)), Outcome::Done);
    assert_eq!(at(&member, 200), 3);
    member.now = 200;
    for second in [1, 100, 101, 200] {
        assert_eq!(member.refused(put(second, 9)), Refusal::PriceInForce);
    }
    assert_eq!((at(&member, 150), at(&member, 250)), (1, 3));
    assert_eq!(member.refused(put(0, -1)), Refusal::NegativePrice);
}

#[test]
fn the_fee_is_at_most_all() {
    let mut member = Member::default();
    assert_eq!(member.state.fee(), DEFAULT_FEE);
    let fee = |fee| Command::SetFee {
        fee: BasisPoints(fee),
    };
    assert_eq!(member.ask(fee(10_000)), Outcome::Done);
    assert_eq!(member.refused(fee(10_001)), Refusal::FeeRange);
    assert_eq!(member.state.fee(), BasisPoints(10_000));
}

/// The parts are the tokens', the sum is theirs, and the cost is the sum rounded up, or the minimum.
#[test]
fn a_cost_is_broken_down_into_what_it_is_made_of() {
    let list = PriceList {
        input: NanoUsd(1_500_001),
        cached_input: NanoUsd(250_000),
        output: NanoUsd(3_000_000),
        minimum: NanoUsd(100),
    };
    let of = list.break_down(&Counts::new(10, 4, 5));
    assert_eq!(of.input.tokens.0, 6);
    assert_eq!(of.cached_input.amount_femto_usd(), 4 * 250_000);
    let sum = 6 * 1_500_001 + 4 * 250_000 + 5 * 3_000_000;
    assert_eq!(of.sum_femto_usd(), sum);
    // 25.000006 nano-dollars.
    assert_eq!((of.rounded(), of.minimum), (NanoUsd(26), NanoUsd(100)));
    assert_eq!(of.cost(), NanoUsd(100));
    let none = list.break_down(&Counts::new(1, 9, 0));
    assert_eq!((none.input.tokens.0, none.cached_input.tokens.0), (0, 1));
    assert_eq!((none.minimum, none.cost()), (NanoUsd(0), NanoUsd(1)));
    let most = list.break_down(&Counts::new(u64::MAX, 0, u64::MAX));
    assert_eq!(most.cost(), NanoUsd(i64::MAX));
    let mut dates = Prices::default();
    dates.put("b", 20, list, 1).unwrap();
    dates.put("a", 30, list, 1).unwrap();
    dates.put("a", 10, DEFAULT_PRICES, 1).unwrap();
    let of: Vec<_> = dates.of("a").map(|(from, list)| (from, *list)).collect();
    assert_eq!(of, [(10, DEFAULT_PRICES), (30, list)]);
}
