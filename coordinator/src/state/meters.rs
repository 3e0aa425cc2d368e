//! What a tenant or a key has used of its limits: token buckets for minutes, counters for the day and
//! the month of UTC. Integers only; time comes in as milliseconds since 1970.

use trireme_shared::ids::{NanoUsd, Tokens};
use wincode::{SchemaRead, SchemaWrite};

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 86_400_000;

/// A token bucket (the algorithm of rate limiting, not of models) that holds a limit's worth and fills
/// up evenly in a minute. Kept as what is missing from it, so that a limit may change at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(super) struct Bucket {
    /// Missing units times 60,000, so that a millisecond fills in `limit` of it.
    missing: u64,
    /// When that was so, milliseconds since 1970.
    at_ms: u64,
}

impl Bucket {
    /// What is in it, in whole units.
    pub fn left(&self, limit: u64, now_ms: u64) -> u64 {
        let full = limit.saturating_mul(MINUTE_MS);
        full.saturating_sub(self.missing_at(limit, now_ms)) / MINUTE_MS
    }

    fn missing_at(&self, limit: u64, now_ms: u64) -> u64 {
        let filled = limit.saturating_mul(now_ms.saturating_sub(self.at_ms));
        self.missing.saturating_sub(filled)
    }

    /// Takes units out, whether they are there or not.
    pub fn take(&mut self, units: u64, limit: u64, now_ms: u64) {
        self.missing = self
            .missing_at(limit, now_ms)
            .saturating_add(units.saturating_mul(MINUTE_MS));
        self.at_ms = self.at_ms.max(now_ms);
    }

    /// Puts units back that were taken and not used.
    pub fn put_back(&mut self, units: u64) {
        self.missing = self.missing.saturating_sub(units.saturating_mul(MINUTE_MS));
    }

    /// Milliseconds until that many units are in it; `None` where they never will be.
    pub fn wait_ms(&self, units: u64, limit: u64, now_ms: u64) -> Option<u64> {
        let spare = limit.checked_sub(units)?.saturating_mul(MINUTE_MS);
        let short = self.missing_at(limit, now_ms).saturating_sub(spare);
        match limit {
            0 => Some(0),
            limit => Some(short.div_ceil(limit)),
        }
    }
}

/// What a subject has used. All zero for one that used nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(super) struct Meter {
    pub requests: Bucket,
    pub tokens: Bucket,
    /// The day of `day_tokens`, counted from 1970.
    day: u64,
    /// Used on that day, what is lent not counted.
    day_tokens: Tokens,
    /// The month of `month_spend`, counted from January 1970.
    month: u64,
    /// Charged in that month, what is lent not counted.
    month_spend: NanoUsd,
}

impl Meter {
    pub fn day_tokens(&self, now_ms: u64) -> Tokens {
        match self.day == day(now_ms) {
            true => self.day_tokens,
            false => Tokens(0),
        }
    }

    pub fn month_spend(&self, now_ms: u64) -> NanoUsd {
        match self.month == month(now_ms) {
            true => self.month_spend,
            false => NanoUsd(0),
        }
    }

    pub fn use_tokens(&mut self, tokens: Tokens, now_ms: u64) {
        self.day_tokens = Tokens(self.day_tokens(now_ms).0.saturating_add(tokens.0));
        self.day = day(now_ms);
    }

    pub fn spend(&mut self, charge: NanoUsd, now_ms: u64) {
        self.month_spend = NanoUsd(self.month_spend(now_ms).0.saturating_add(charge.0));
        self.month = month(now_ms);
    }
}

/// Hours since 1970.
pub(super) fn hour(now_ms: u64) -> u64 {
    now_ms / HOUR_MS
}

/// `2026-11` of a month since January 1970.
pub fn month_name(month: u64) -> String {
    format!("{:04}-{:02}", 1_970 + month / 12, month % 12 + 1)
}

/// Days since 1970.
pub(super) fn day(now_ms: u64) -> u64 {
    now_ms / DAY_MS
}

/// Months since January 1970 of a day since 1970.
pub(super) fn month_of_day(day: u64) -> u64 {
    month(day.saturating_mul(DAY_MS))
}

/// Milliseconds until the next day of UTC.
pub(super) fn until_tomorrow_ms(now_ms: u64) -> u64 {
    DAY_MS - now_ms % DAY_MS
}

/// Milliseconds until the next month of UTC.
pub(super) fn until_next_month_ms(now_ms: u64) -> u64 {
    let (this, mut next) = (month(now_ms), now_ms - now_ms % DAY_MS);
    while month(next) == this {
        next = next.saturating_add(DAY_MS);
    }
    next - now_ms
}

/// Months since January 1970 in UTC, by the proleptic Gregorian calendar. The algorithm is Howard
/// Hinnant's `civil_from_days`, which counts years from March so that leap days come last.
pub(super) fn month(now_ms: u64) -> u64 {
    let days = day(now_ms) + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    // Months since March of year 0, less those to January 1970 (1969 years and 10 months).
    (era * 400 + year) * 12 + from_march - (1_969 * 12 + 10)
}

#[cfg(test)]
#[path = "meters_tests.rs"]
mod tests;
