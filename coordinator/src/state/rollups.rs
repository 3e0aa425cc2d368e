//! Sums of settled requests by the hour and by the day, and of earnings by the day: what questions
//! about usage are answered from, however many requests there were.
//!
//! Kept true: while all their requests are still there, they are the sums of those (`State::check`).
//! A request counts when it is settled, by the state's clock, and what is charged later counts then.

use super::codec::stored;
use super::meters::{day, hour};
use super::table::Table;
use std::ops::RangeInclusive;
use trireme_shared::ids::{KeyId, NanoUsd, TenantId, Tokens};
use trireme_shared::limits;
use wincode::{SchemaRead, SchemaWrite};

/// Sums over requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct UsageTotals {
    pub requests: u64,
    pub prompt: Tokens,
    /// Those of `prompt` that were found in the KV cache.
    pub cached: Tokens,
    pub completion: Tokens,
    /// What was charged.
    pub cost: NanoUsd,
}

impl UsageTotals {
    pub fn plus(self, other: Self) -> Self {
        let tokens = |a: Tokens, b: Tokens| Tokens(a.0.saturating_add(b.0));
        Self {
            requests: self.requests.saturating_add(other.requests),
            prompt: tokens(self.prompt, other.prompt),
            cached: tokens(self.cached, other.cached),
            completion: tokens(self.completion, other.completion),
            cost: NanoUsd(self.cost.0.saturating_add(other.cost.0)),
        }
    }
}

/// What usage is summed by. Ordered by tenant, then time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, SchemaRead, SchemaWrite)]
pub struct UsageKey {
    pub tenant: TenantId,
    /// The hour or the day, counted from 1970 in UTC.
    pub slot: u64,
    /// The name it was asked for by.
    pub model: String,
    pub key: KeyId,
}

impl UsageKey {
    /// Before all keys of that tenant and slot.
    fn first(tenant: TenantId, slot: u64) -> Self {
        Self {
            tenant,
            slot,
            model: String::new(),
            key: KeyId(0),
        }
    }
}

#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Rollups {
    /// Of the newest `limits::USAGE_HOURS_KEPT` hours of each tenant.
    pub hours: Table<UsageKey, UsageTotals>,
    pub days: Table<UsageKey, UsageTotals>,
    /// By provider and day.
    pub earnings: Table<(String, u64), NanoUsd>,
}

stored!(Rollups {
    hours,
    days,
    earnings
});

impl Rollups {
    /// `of.slot` is set here.
    pub fn add(&mut self, of: UsageKey, more: UsageTotals, now_ms: u64) {
        let tenant = of.tenant;
        for (table, slot) in [
            (&mut self.hours, hour(now_ms)),
            (&mut self.days, day(now_ms)),
        ] {
            let totals = table.or_default(UsageKey { slot, ..of.clone() });
            *totals = totals.plus(more);
        }
        let kept = hour(now_ms).saturating_sub(limits::USAGE_HOURS_KEPT);
        loop {
            let too_old = UsageKey::first(tenant, 0)..UsageKey::first(tenant, kept);
            let Some((oldest, _)) = self.hours.range(too_old).next() else {
                return;
            };
            let oldest = oldest.clone();
            self.hours.remove(&oldest);
        }
    }

    pub fn earn(&mut self, provider: &str, share: NanoUsd, now_ms: u64) {
        let earned = self.earnings.or_default((provider.to_owned(), day(now_ms)));
        earned.0 = earned.0.saturating_add(share.0);
    }

    /// A tenant's rows of those slots, in their order.
    pub fn of(
        table: &Table<UsageKey, UsageTotals>,
        tenant: TenantId,
        slots: RangeInclusive<u64>,
    ) -> impl Iterator<Item = (&UsageKey, &UsageTotals)> {
        let from = UsageKey::first(tenant, *slots.start());
        let rows = table.range(from..);
        rows.take_while(move |(key, _)| key.tenant == tenant && key.slot <= *slots.end())
    }
}

#[cfg(test)]
#[path = "rollups_tests.rs"]
mod tests;
