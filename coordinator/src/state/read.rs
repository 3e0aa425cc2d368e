//! What readers ask the state about tenants, money and usage, and the invariants that tie these areas.

use super::billing;
use super::grants::{Rates, Shortage};
use super::leases::{Amounts, Gateway, Subject};
use super::ledger::{Account, Posting, PostingKind};
use super::meters::month_of_day;
use super::movements::Movements;
use super::requests::{OpenRequest, RequestRow};
use super::rollups::{Rollups, UsageKey, UsageTotals};
use super::settle::bounds;
use super::settlements::Settlement;
use super::{ApiKey, Left, PriceList, Resets, State, Tenant};
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::ops::RangeInclusive;
use trireme_shared::ids::{
    BasisPoints, GatewayLife, KeyId, NanoUsd, PostingId, RequestId, RequestNumber, SettlementSeq,
    TenantId, Tokens,
};

impl State {
    /// The newest time that a proposal brought, milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    pub fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.tenants.rows.values()
    }

    pub fn tenant(&self, id: TenantId) -> Option<&Tenant> {
        self.tenants.rows.get(&id)
    }

    pub fn tenant_named(&self, name: &str) -> Option<&Tenant> {
        self.tenant(*self.tenants.names.get(name)?)
    }

    /// Of all tenants.
    pub fn keys(&self) -> impl Iterator<Item = &ApiKey> {
        self.tenants.keys.values()
    }

    pub fn key(&self, id: KeyId) -> Option<&ApiKey> {
        self.tenants.keys.get(&id)
    }

    /// The key whose SHA-256 that is, whether it works or not.
    pub fn key_of(&self, key_hash: &[u8; 32]) -> Option<&ApiKey> {
        self.key(*self.tenants.key_hashes.get(key_hash)?)
    }

    /// The list by which a request of that model is priced that began in that second since 1970.
    pub fn price(&self, model: &str, at: u64) -> PriceList {
        self.prices.in_force(model, at)
    }

    /// All that were set: the model's name, and the second since 1970 from which on each is in force.
    pub fn prices(&self) -> impl Iterator<Item = (&str, u64, &PriceList)> {
        let lists = self.prices.lists.iter();
        lists.map(|((model, from), list)| (model.as_str(), *from, list))
    }

    /// Lists of one model, by the second since 1970 from which on each is in force.
    pub fn prices_of<'a>(
        &'a self,
        model: &str,
    ) -> impl Iterator<Item = (u64, &'a PriceList)> + use<'a> {
        self.prices.of(model)
    }

    /// What the platform keeps of every charge.
    pub fn fee(&self) -> BasisPoints {
        self.prices.fee
    }

    /// Oldest first; the newest `limits::LEDGER_POSTINGS_MAX`.
    pub fn postings(&self) -> impl DoubleEndedIterator<Item = &Posting> {
        self.ledger.postings.values()
    }

    /// Those that are kept after one, oldest first.
    pub fn postings_after(&self, id: PostingId) -> impl Iterator<Item = &Posting> {
        let newer = (Excluded(id), Unbounded);
        self.ledger
            .postings
            .range(newer)
            .map(|(_, posting)| posting)
    }

    pub fn posting(&self, id: PostingId) -> Option<&Posting> {
        self.ledger.postings.get(&id)
    }

    /// Zero for an account without postings.
    pub fn balance(&self, account: &Account) -> NanoUsd {
        self.ledger.balance(account)
    }

    pub fn balances(&self) -> impl Iterator<Item = (&Account, NanoUsd)> {
        self.ledger.balances.iter().map(|(a, b)| (a, *b))
    }

    /// A settled request.
    pub fn request(&self, number: RequestNumber) -> Option<&RequestRow> {
        self.requests.rows.get(&number)
    }

    /// A settled request, by the id its gateway drew for it or for a later attempt at it.
    pub fn request_by_id(&self, id: &RequestId) -> Option<&RequestRow> {
        self.requests.by_id(id)
    }

    /// The newest settled request of a tenant that its caller gave that id.
    pub fn request_by_caller(&self, tenant: TenantId, id: &RequestId) -> Option<&RequestRow> {
        self.requests.by_caller(tenant, id)
    }

    /// The settled request that a caller's idempotency key stands for.
    pub fn request_by_idempotency(&self, tenant: TenantId, hash: &[u8; 32]) -> Option<&RequestRow> {
        self.requests.by_idempotency(tenant, hash)
    }

    /// All settled requests, oldest first; the newest `limits::REQUEST_ROWS_MAX`.
    pub fn requests(&self) -> impl DoubleEndedIterator<Item = &RequestRow> {
        self.requests.rows.values()
    }

    /// A tenant's settled requests below a number, newest first: a page's last number asks for the next.
    pub fn requests_of(
        &self,
        tenant: TenantId,
        below: RequestNumber,
    ) -> impl Iterator<Item = &RequestRow> {
        self.requests.of_tenant(tenant, below)
    }

    /// Requests under way, as their gateways last told.
    pub fn open_requests(&self) -> impl Iterator<Item = &OpenRequest> {
        self.requests.open().values()
    }

    /// A tenant's, in the order of their ids.
    pub fn open_requests_of(&self, tenant: TenantId) -> impl Iterator<Item = &OpenRequest> {
        self.requests.open_of_tenant(tenant)
    }

    pub fn open_request(&self, id: &RequestId) -> Option<&OpenRequest> {
        self.requests.open().get(id)
    }

    /// What settlements added, oldest first, from that one on; of the newest `limits::SETTLEMENTS_KEPT`.
    pub fn settlements_from(&self, seq: SettlementSeq) -> impl Iterator<Item = &Settlement> {
        self.settlements.rows.range(seq..).map(|(_, row)| row)
    }

    /// The newest settlement's number; 0 before the first.
    pub fn settlement_last(&self) -> SettlementSeq {
        self.settlements.last
    }

    /// What moved an account's money: months since January 1970 (UTC), oldest first.
    pub fn movements(
        &self,
        account: &Account,
    ) -> impl DoubleEndedIterator<Item = (u64, &Movements)> {
        self.ledger.months.of(account)
    }

    /// What moved an account's money in that month since January 1970.
    pub fn movement(&self, account: &Account, month: u64) -> Movements {
        let of = (account.clone(), month);
        self.ledger
            .months
            .rows
            .get(&of)
            .copied()
            .unwrap_or_default()
    }

    /// What an account had when that month since January 1970 began.
    pub fn balance_before(&self, account: &Account, month: u64) -> NanoUsd {
        self.ledger.months.balance_before(account, month)
    }

    /// Whether the ledger's months are made: not yet in a state of version 2.
    pub fn keeps_months(&self) -> bool {
        self.ledger.months.kept
    }

    /// What a tenant used in those hours since 1970 (UTC), in the order of hour, model, key; of its
    /// newest `limits::USAGE_HOURS_KEPT` hours.
    pub fn usage_by_hour(
        &self,
        tenant: TenantId,
        hours: RangeInclusive<u64>,
    ) -> impl Iterator<Item = (&UsageKey, &UsageTotals)> {
        Rollups::of(&self.rollups.hours, tenant, hours)
    }

    /// What a tenant used in those days since 1970 (UTC), in the order of day, model, key.
    pub fn usage_by_day(
        &self,
        tenant: TenantId,
        days: RangeInclusive<u64>,
    ) -> impl Iterator<Item = (&UsageKey, &UsageTotals)> {
        Rollups::of(&self.rollups.days, tenant, days)
    }

    /// What all used, by tenant and day.
    pub fn usage(&self) -> impl Iterator<Item = (&UsageKey, &UsageTotals)> {
        self.rollups.days.iter()
    }

    /// What providers earned: name, day since 1970 (UTC), sum.
    pub fn earnings(&self) -> impl Iterator<Item = (&str, u64, NanoUsd)> {
        let earned = self.rollups.earnings.iter();
        earned.map(|((provider, day), sum)| (provider.as_str(), *day, *sum))
    }

    /// What one provider earned in those days since 1970 (UTC), by the day.
    pub fn earnings_of(
        &self,
        provider: &str,
        days: RangeInclusive<u64>,
    ) -> impl Iterator<Item = (u64, NanoUsd)> {
        let days = (provider.to_owned(), *days.start())..=(provider.to_owned(), *days.end());
        let earned = self.rollups.earnings.range(days);
        earned.map(|((_, day), sum)| (*day, *sum))
    }

    pub fn gateways(&self) -> impl Iterator<Item = &Gateway> {
        self.leases.gateways.values()
    }

    pub fn gateway(&self, life: GatewayLife) -> Option<&Gateway> {
        self.leases.gateways.get(&life)
    }

    /// What a gateway was lent of a subject and has neither used nor returned.
    pub fn lease(&self, subject: Subject, life: GatewayLife) -> Amounts {
        self.leases.lease(subject, life)
    }

    /// What all gateways together have of it.
    pub fn lent(&self, subject: Subject) -> Amounts {
        self.leases.lent(subject)
    }

    /// What could still be lent of a subject at that time (milliseconds since 1970), beside what is lent;
    /// `None` where there is no such subject.
    pub fn left(&self, subject: Subject, now_ms: u64) -> Option<Left> {
        let bounds = bounds(&self.tenants, &self.ledger, subject)?;
        Some(self.leases.left(subject, &bounds, now_ms))
    }

    /// What there is not enough of for that much more of a subject, and in how many milliseconds there may
    /// be, as far as that is a matter of time: what an `Ask` for it would be denied for.
    pub fn shortage(
        &self,
        subject: Subject,
        least: &Amounts,
        now_ms: u64,
    ) -> Option<(Shortage, Option<u64>)> {
        if billing::is_closed(self, subject) {
            return Some((Shortage::Closed, None));
        }
        let Some(bounds) = bounds(&self.tenants, &self.ledger, subject) else {
            return Some((Shortage::Closed, None));
        };
        let left = self.leases.left(subject, &bounds, now_ms);
        self.leases.shortage(subject, &left, least, &bounds, now_ms)
    }

    /// A subject's limits a minute, and what is left of them.
    pub fn rates(&self, subject: Subject, now_ms: u64) -> Rates {
        let bounds = bounds(&self.tenants, &self.ledger, subject);
        let rates = bounds.map(|b| self.leases.rates(subject, b.limits, now_ms));
        rates.unwrap_or_default()
    }

    /// When its bounds are whole again if nothing more is used; `None` where there is no such subject.
    pub fn resets(&self, subject: Subject, now_ms: u64) -> Option<Resets> {
        let bounds = bounds(&self.tenants, &self.ledger, subject)?;
        Some(self.leases.resets(subject, &bounds, now_ms))
    }

    /// What a subject was charged in the month (UTC) of that time, milliseconds since 1970.
    pub fn month_spend(&self, subject: Subject, now_ms: u64) -> NanoUsd {
        self.leases.meter(subject).month_spend(now_ms)
    }

    /// What a subject used on the day (UTC) of that time, milliseconds since 1970.
    pub fn day_tokens(&self, subject: Subject, now_ms: u64) -> Tokens {
        self.leases.meter(subject).day_tokens(now_ms)
    }

    pub(super) fn check_billing(&self) -> Result<(), String> {
        for tenant in self.tenants() {
            let left = self.left(Subject::Tenant(tenant.id), self.now_ms);
            let funds = left.and_then(|left| left.funds).unwrap_or_default();
            if funds < -i128::from(tenant.excused.0) {
                return Err(format!("tenant {} is overdrawn: {funds}", tenant.id));
            }
        }
        self.check_charges()?;
        self.check_months()?;
        self.check_usage()
    }

    /// What a request's row says is what its postings did, while they are kept.
    fn check_charges(&self) -> Result<(), String> {
        let mut sums = BTreeMap::<RequestNumber, [i64; 2]>::new();
        for posting in self.postings() {
            let (number, refund) = match posting.kind {
                PostingKind::Request { number } => (number, 0),
                PostingKind::Refund { number, .. } => (number, 1),
                PostingKind::Credit { .. } | PostingKind::Payout { .. } => continue,
            };
            let of_tenant = |(account, _): &&(Account, _)| matches!(account, Account::Tenant(_));
            let amount = posting.lines.iter().find(of_tenant).map_or(0, |(_, a)| a.0);
            sums.entry(number).or_default()[refund] += amount;
        }
        for row in self.requests() {
            let [charged, refunded] = sums.remove(&row.number).unwrap_or_default();
            let kept = row.postings.iter().all(|id| self.posting(*id).is_some());
            if kept && (-charged, refunded) != (row.charged.0, row.refunded.0) {
                return Err(format!("request {} differs from its postings", row.number));
            }
        }
        Ok(())
    }

    /// What usage by the day says was charged in a month is what the ledger says, where it knows of all
    /// of it.
    fn check_months(&self) -> Result<(), String> {
        let months = &self.ledger.months;
        if !months.kept || !months.before.is_empty() {
            return Ok(());
        }
        let mut used = BTreeMap::<(TenantId, u64), i64>::new();
        for (of, sum) in self.usage() {
            let charged = used.entry((of.tenant, month_of_day(of.slot))).or_default();
            *charged += sum.cost.0;
        }
        used.retain(|_, charged| *charged != 0);
        let charged = months.rows.iter().filter_map(|((account, month), m)| {
            let Account::Tenant(tenant) = account else {
                return None;
            };
            (m.requests.0 != 0).then_some(((*tenant, *month), -m.requests.0))
        });
        match charged.eq(used) {
            true => Ok(()),
            false => Err("usage by the day is not what was charged in the months".into()),
        }
    }

    /// The sums are those of the rows, where all of these are still there.
    fn check_usage(&self) -> Result<(), String> {
        let complete = self.requests.rows.len() as u64 == self.requests.last.0;
        if !complete || !self.ledger.opening.is_empty() {
            return Ok(());
        }
        let mut rows = BTreeMap::<(TenantId, &str), UsageTotals>::new();
        for row in self.requests() {
            let totals = rows.entry((row.tenant, &row.model)).or_default();
            *totals = totals.plus(UsageTotals {
                requests: 1,
                prompt: row.counts.prompt,
                cached: row.counts.cached,
                completion: row.counts.completion,
                cost: row.charged,
            });
        }
        let mut days = BTreeMap::<(TenantId, &str), UsageTotals>::new();
        for (of, sum) in self.usage() {
            let totals = days.entry((of.tenant, &of.model)).or_default();
            *totals = totals.plus(*sum);
        }
        match rows == days {
            true => Ok(()),
            false => Err("the sums of usage are not those of the requests".into()),
        }
    }
}
