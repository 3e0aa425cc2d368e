//! What may be lent of a subject, and to whom how much of it is.

use super::leases::{Amounts, Bounds, Leases, Subject};
use super::meters::{Bucket, until_next_month_ms, until_tomorrow_ms};
use super::settings::Limits;
use crate::planted::{self, Bug};
use trireme_shared::ids::{GatewayLife, NanoUsd, Tokens};
use trireme_shared::limits;
use wincode::{SchemaRead, SchemaWrite};

/// A gateway's wish to be lent something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Ask {
    pub subject: Subject,
    /// What it needs now: it gets that or nothing.
    pub least: Amounts,
    /// What it can use soon: it gets some of that where there is plenty.
    pub most: Amounts,
}

/// What came of an `Ask`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Answer {
    /// So much more is the life's now.
    Granted(Amounts),
    Denied {
        why: Shortage,
        /// Milliseconds until there may be enough, as far as that is a matter of time.
        retry_after_ms: Option<u64>,
    },
}

/// What there was not enough of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Shortage {
    /// The tenant is suspended or unknown, the key revoked, expired or unknown.
    Closed,
    /// Balance and credit.
    Funds,
    MonthlyBudget,
    RequestsPerMinute,
    TokensPerMinute,
    TokensPerDay,
    Concurrency,
}

/// What is left of a subject's bounds beside what is lent; `None` where it has no such bound. Below
/// zero for money where a bound was lowered meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Balance and credit.
    pub funds: Option<i128>,
    pub monthly_budget: Option<i128>,
    pub requests_per_minute: Option<u64>,
    pub tokens_per_minute: Option<Tokens>,
    pub tokens_per_day: Option<Tokens>,
    pub concurrency: Option<u64>,
}

impl Left {
    /// What can still be charged; `None` where nothing bounds it.
    pub fn money(&self) -> Option<i128> {
        match (self.funds, self.monthly_budget) {
            (Some(funds), Some(budget)) => Some(funds.min(budget)),
            (funds, budget) => funds.or(budget),
        }
    }
}

/// When a subject's bounds are whole again if nothing more is used, milliseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resets {
    pub requests_ms: u64,
    pub tokens_ms: u64,
    /// The next day of UTC.
    pub day_ms: u64,
    /// The next month of UTC.
    pub month_ms: u64,
}

impl Leases {
    pub fn resets(&self, subject: Subject, bounds: &Bounds<'_>, now_ms: u64) -> Resets {
        let (meter, of) = (self.meter(subject), bounds.limits);
        let requests = of.requests_per_minute.unwrap_or_default();
        let tokens = of.tokens_per_minute.unwrap_or_default().0;
        let requests_ms = meter.requests.wait_ms(requests, requests, now_ms);
        let tokens_ms = meter.tokens.wait_ms(tokens, tokens, now_ms);
        Resets {
            requests_ms: now_ms.saturating_add(requests_ms.unwrap_or_default()),
            tokens_ms: now_ms.saturating_add(tokens_ms.unwrap_or_default()),
            day_ms: now_ms.saturating_add(until_tomorrow_ms(now_ms)),
            month_ms: now_ms.saturating_add(until_next_month_ms(now_ms)),
        }
    }

    pub fn left(&self, subject: Subject, bounds: &Bounds<'_>, now_ms: u64) -> Left {
        let mut lent = self.lent(subject);
        if planted::is(Bug::CheckThenIncrement) {
            lent = Amounts::default();
        }
        let (meter, of) = (self.meter(subject), bounds.limits);
        let money = |sum: i128| sum - i128::from(lent.money.0);
        let budget = |budget: NanoUsd| {
            let spent = meter.month_spend(now_ms);
            money(i128::from(budget.0) - i128::from(spent.0))
        };
        let today = |limit: Tokens| {
            let used = meter.day_tokens(now_ms).0.saturating_add(lent.tokens.0);
            Tokens(limit.0.saturating_sub(used))
        };
        let minute = |limit: Tokens| Tokens(meter.tokens.left(limit.0, now_ms));
        Left {
            funds: bounds.funds.map(money),
            monthly_budget: bounds.monthly_budget.map(budget),
            requests_per_minute: of
                .requests_per_minute
                .map(|limit| meter.requests.left(limit, now_ms)),
            tokens_per_minute: of.tokens_per_minute.map(minute),
            tokens_per_day: of.tokens_per_day.map(today),
            concurrency: of.concurrency.map(|limit| limit.saturating_sub(lent.slots)),
        }
    }

    /// What there is not enough of for `least`, and in how many milliseconds there may be, as far as that
    /// is a matter of time.
    pub fn shortage(
        &self,
        subject: Subject,
        left: &Left,
        least: &Amounts,
        bounds: &Bounds<'_>,
        now_ms: u64,
    ) -> Option<(Shortage, Option<u64>)> {
        let why = shortage(left, least)?;
        let (meter, of) = (self.meter(subject), bounds.limits);
        let retry_after_ms = match why {
            Shortage::MonthlyBudget => Some(until_next_month_ms(now_ms)),
            Shortage::TokensPerDay => Some(until_tomorrow_ms(now_ms)),
            Shortage::RequestsPerMinute => {
                let limit = of.requests_per_minute.unwrap_or_default();
                meter.requests.wait_ms(least.requests, limit, now_ms)
            }
            Shortage::TokensPerMinute => {
                let limit = of.tokens_per_minute.unwrap_or_default();
                meter.tokens.wait_ms(least.tokens.0, limit.0, now_ms)
            }
            Shortage::Closed | Shortage::Funds | Shortage::Concurrency => None,
        };
        Some((why, retry_after_ms))
    }

    /// Lends what is asked for, or says what there is not enough of.
    pub fn grant(
        &mut self,
        life: GatewayLife,
        ask: &Ask,
        bounds: &Bounds<'_>,
        now_ms: u64,
    ) -> Answer {
        let left = self.left(ask.subject, bounds, now_ms);
        let (least, most) = (ask.least.sound(), ask.most.sound());
        if let Some(short) = self.shortage(ask.subject, &left, &least, bounds, now_ms) {
            let (why, retry_after_ms) = short;
            return Answer::Denied {
                why,
                retry_after_ms,
            };
        }
        let money = left.money().map(|m| u64::try_from(m).unwrap_or(0));
        let tokens = [left.tokens_per_minute, left.tokens_per_day];
        let tokens = tokens.into_iter().flatten().min().map(|t| t.0);
        let money = portion(money, least.money.0 as u64, most.money.0 as u64);
        let granted = Amounts {
            // At most `i64::MAX`, as both ends of the wish are.
            money: NanoUsd(i64::try_from(money).unwrap_or(i64::MAX)),
            requests: portion(left.requests_per_minute, least.requests, most.requests),
            tokens: Tokens(portion(tokens, least.tokens.0, most.tokens.0)),
            slots: portion(left.concurrency, least.slots, most.slots),
        };
        self.lend(ask.subject, life, granted, bounds.limits, now_ms);
        Answer::Granted(granted)
    }

    /// What a life may charge a subject: what it was lent, and what is lent to nobody.
    pub fn chargeable(
        &self,
        subject: Subject,
        life: GatewayLife,
        bounds: &Bounds<'_>,
        now_ms: u64,
    ) -> i128 {
        let lease = i128::from(self.lease(subject, life).money.0);
        match self.left(subject, bounds, now_ms).money() {
            Some(free) => lease + free.max(0),
            None => i128::MAX,
        }
    }
}

/// One rate a minute, as a caller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub limit: u64,
    /// Beside what is lent.
    pub left: u64,
    /// Milliseconds until all of it is there again.
    pub full_in_ms: u64,
}

/// A subject's rates; `None` where it has no such limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    pub requests: Option<Rate>,
    pub tokens: Option<Rate>,
}

impl Leases {
    pub fn rates(&self, subject: Subject, of: &Limits, now_ms: u64) -> Rates {
        let meter = self.meter(subject);
        let rate = |bucket: Bucket, limit: u64| Rate {
            limit,
            left: bucket.left(limit, now_ms),
            full_in_ms: bucket.wait_ms(limit, limit, now_ms).unwrap_or(0),
        };
        Rates {
            requests: of.requests_per_minute.map(|l| rate(meter.requests, l)),
            tokens: of.tokens_per_minute.map(|l| rate(meter.tokens, l.0)),
        }
    }
}

/// The first bound that has not the least.
fn shortage(left: &Left, least: &Amounts) -> Option<Shortage> {
    let money = i128::from(least.money.0);
    let short = |left: Option<u64>, least: u64| left.is_some_and(|left| left < least);
    let tokens = |left: Option<Tokens>| short(left.map(|t| t.0), least.tokens.0);
    [
        (left.funds.is_some_and(|m| m < money), Shortage::Funds),
        (
            left.monthly_budget.is_some_and(|m| m < money),
            Shortage::MonthlyBudget,
        ),
        (
            short(left.requests_per_minute, least.requests),
            Shortage::RequestsPerMinute,
        ),
        (tokens(left.tokens_per_minute), Shortage::TokensPerMinute),
        (tokens(left.tokens_per_day), Shortage::TokensPerDay),
        (short(left.concurrency, least.slots), Shortage::Concurrency),
    ]
    .into_iter()
    .find_map(|(short, why)| short.then_some(why))
}

/// The most where there is plenty or no bound, and less the less there is; at least `least`, which is
/// there.
fn portion(left: Option<u64>, least: u64, most: u64) -> u64 {
    let most = most.max(least);
    match left {
        Some(left) => (left / limits::LEASE_PARTS).clamp(least, most),
        None => most,
    }
}
