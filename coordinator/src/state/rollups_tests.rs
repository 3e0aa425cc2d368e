//! Sums by the hour and the day.

use super::*;

const HOUR: u64 = 3_600_000;

fn of(tenant: u32, model: &str) -> UsageKey {
    UsageKey {
        tenant: TenantId(tenant),
        slot: 0,
        model: model.into(),
        key: KeyId(1),
    }
}

fn one() -> UsageTotals {
    UsageTotals {
        requests: 1,
        prompt: Tokens(2),
        cached: Tokens(1),
        completion: Tokens(3),
        cost: NanoUsd(4),
    }
}

fn requests(
    rows: &Table<UsageKey, UsageTotals>,
    tenant: u32,
    slots: RangeInclusive<u64>,
) -> Vec<(u64, u64)> {
    let rows = Rollups::of(rows, TenantId(tenant), slots);
    rows.map(|(of, sum)| (of.slot, sum.requests)).collect()
}

#[test]
fn usage_is_summed_by_hour_and_day_and_found_by_tenant() {
    let mut rollups = Rollups::default();
    for hour in [0, 0, 23, 24, 47, 48] {
        rollups.add(of(2, "a"), one(), hour * HOUR);
    }
    rollups.add(of(2, "b"), one(), 24 * HOUR);
    rollups.add(of(1, "a"), one(), 24 * HOUR);
    rollups.add(of(3, "a"), one(), 24 * HOUR);
    assert_eq!(
        requests(&rollups.hours, 2, 0..=24),
        [(0, 2), (23, 1), (24, 1), (24, 1)]
    );
    assert_eq!(
        requests(&rollups.days, 2, 0..=9),
        [(0, 3), (1, 2), (1, 1), (2, 1)]
    );
    assert_eq!(requests(&rollups.days, 2, 1..=1), [(1, 2), (1, 1)]);
    assert_eq!(requests(&rollups.days, 1, 0..=9), [(1, 1)]);
    assert_eq!(requests(&rollups.days, 4, 0..=9), []);
    let (_, sum) = Rollups::of(&rollups.days, TenantId(2), 0..=0)
        .next()
        .unwrap();
    let three = one().plus(one()).plus(one());
    assert_eq!(*sum, three);
    assert_eq!(
        (three.cached, three.completion, three.cost),
        (Tokens(3), Tokens(9), NanoUsd(12))
    );
}

#[test]
fn hours_are_kept_for_a_while_and_days_for_ever() {
    let mut rollups = Rollups::default();
    for hour in 0..limits::USAGE_HOURS_KEPT + 5 {
        rollups.add(of(1, "a"), one(), hour * HOUR);
        rollups.add(of(1, "b"), one(), hour * HOUR);
    }
    rollups.add(of(2, "a"), one(), 0);
    let kept = requests(&rollups.hours, 1, 0..=u64::MAX);
    assert_eq!(kept.first(), Some(&(4, 1)));
    assert_eq!(kept.len() as u64, 2 * (limits::USAGE_HOURS_KEPT + 1));
    assert_eq!(
        requests(&rollups.hours, 2, 0..=9),
        [(0, 1)],
        "another's stay"
    );
    assert_eq!(requests(&rollups.days, 1, 0..=0), [(0, 24), (0, 24)]);
}

#[test]
fn earnings_are_summed_by_provider_and_day() {
    let mut rollups = Rollups::default();
    for (provider, hour) in [("a", 0), ("a", 23), ("a", 24), ("b", 0)] {
        rollups.earn(provider, NanoUsd(5), hour * HOUR);
    }
    let earned: Vec<_> = rollups
        .earnings
        .iter()
        .map(|((p, d), s)| (p.as_str(), *d, s.0))
        .collect();
    assert_eq!(earned, [("a", 0, 10), ("a", 1, 5), ("b", 0, 5)]);
}
