//! Buckets that fill and calendars that turn.

use super::*;

#[test]
fn a_bucket_fills_up_evenly_in_a_minute() {
    let mut bucket = Bucket::default();
    assert_eq!(bucket.left(60, 5_000), 60, "full at first");
    bucket.take(60, 60, 5_000);
    assert_eq!(bucket.left(60, 5_000), 0);
    assert_eq!(bucket.left(60, 5_999), 0);
    assert_eq!(bucket.left(60, 6_000), 1);
    assert_eq!(bucket.left(60, 35_000), 30);
    assert_eq!(bucket.left(60, 65_000), 60);
    assert_eq!(bucket.left(60, u64::MAX), 60, "never more than full");
    assert_eq!(bucket.wait_ms(1, 60, 5_000), Some(1_000));
    assert_eq!(bucket.wait_ms(1, 60, 5_400), Some(600));
    assert_eq!(bucket.wait_ms(60, 60, 5_000), Some(60_000));
    assert_eq!(bucket.wait_ms(61, 60, 5_000), None);
    assert_eq!(bucket.wait_ms(1, 0, 5_000), None);
    // What was not used goes back, and does not overflow.
    bucket.put_back(10);
    assert_eq!(bucket.left(60, 5_000), 10);
    bucket.put_back(1_000);
    assert_eq!(bucket.left(60, 5_000), 60);
    // Taken beyond what is there: a debt, which time pays first.
    bucket.take(90, 60, 5_000);
    assert_eq!(bucket.left(60, 35_000), 0);
    assert_eq!(bucket.left(60, 36_000), 1);
    // A clock that stands still or goes back fills nothing.
    assert_eq!(bucket.left(60, 1), 0);
}

/// However it is taken, over any span no more comes out than it holds and what filled in.
#[test]
fn no_more_comes_out_than_goes_in() {
    let mut bucket = Bucket::default();
    let (mut taken, mut now, mut chance) = (0, 1_000, 7u64);
    for _ in 0..10_000 {
        chance = chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        now += chance >> 56;
        let wish = (chance >> 40) % 5;
        let units = wish.min(bucket.left(100, now));
        bucket.take(units, 100, now);
        taken += units;
        assert!(taken * 60_000 <= 100 * 60_000 + 100 * (now - 1_000));
    }
    assert!(taken > 1_000);
}

#[test]
fn days_and_months_turn_at_midnight_of_utc() {
    let mut meter = Meter::default();
    // 2024-02-29T23:59:59.999Z
    let leap = 1_709_251_199_999;
    assert_eq!(month(leap), (2024 - 1970) * 12 + 1);
    assert_eq!(month(leap + 1), (2024 - 1970) * 12 + 2);
    assert_eq!((month(0), day(0), hour(HOUR_MS)), (0, 0, 1));
    assert_eq!((until_tomorrow_ms(leap), until_next_month_ms(leap)), (1, 1));
    assert_eq!(until_next_month_ms(leap + 1), 31 * DAY_MS);
    assert_eq!(until_tomorrow_ms(leap + 1), DAY_MS);
    meter.use_tokens(Tokens(5), leap);
    meter.use_tokens(Tokens(6), leap);
    meter.spend(NanoUsd(7), leap);
    assert_eq!(
        (meter.day_tokens(leap), meter.month_spend(leap)),
        (Tokens(11), NanoUsd(7))
    );
    let next = leap + 1;
    assert_eq!(
        (meter.day_tokens(next), meter.month_spend(next)),
        (Tokens(0), NanoUsd(0))
    );
    meter.spend(NanoUsd(1), next);
    assert_eq!(meter.month_spend(next), NanoUsd(1));
}

/// Against the lengths of the months, one after the other.
#[test]
fn months_are_those_of_the_calendar() {
    let (mut days, mut months) = (0, 0);
    for year in 1970..2200u64 {
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let february = if leap { 29 } else { 28 };
        for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            assert_eq!(month(days * DAY_MS), months, "day {days}");
            days += length;
            assert_eq!(month(days * DAY_MS - 1), months, "day {days}");
            months += 1;
        }
    }
}
