//! What the admin sets and sees of accounts: tenants, keys, prices, money, providers. See the tables of
//! routes above (`api`).

use super::{HowPriced, RequestSummary};
use crate::ids::*;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Bounds on what a tenant or a key may use; absent or null is no bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Requests begun in any minute.
    pub requests_per_minute: Option<u64>,
    /// Prompt and generated tokens in any minute.
    pub tokens_per_minute: Option<u64>,
    /// Prompt and generated tokens in a day of UTC.
    pub tokens_per_day: Option<u64>,
    /// Requests that run at once.
    pub concurrency: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TenantStatus {
    #[default]
    Active,
    /// Its keys let nobody in; what runs is finished and charged.
    Suspended,
}

/// When a tenant pays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Payment {
    /// Its balance never falls below zero.
    Prepaid,
    /// Its balance never falls below minus the limit.
    Credit { limit_nano_usd: NanoUsd },
}

/// All that is set for a tenant. What is left out is not bounded; nothing is kept of the settings before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantSettings {
    #[serde(default)]
    pub status: TenantStatus,
    pub payment: Payment,
    /// What it may be charged in a month of UTC.
    #[serde(default)]
    pub monthly_budget_nano_usd: Option<NanoUsd>,
    /// Its share of the machines against other tenants', where they wait or run, from 1.
    #[serde(default = "one")]
    pub weight: u32,
    #[serde(default)]
    pub limits: Limits,
}

fn one() -> u32 {
    1
}

/// What is left of bounds, beside what is lent to requests under way; `null` is no such bound. Below zero
/// for money where a bound was lowered meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Left {
    /// Of balance and credit; `null` for a key, which spends its tenant's.
    pub funds_nano_usd: Option<NanoUsd>,
    pub monthly_budget_nano_usd: Option<NanoUsd>,
    pub requests_per_minute: Option<u64>,
    pub tokens_per_minute: Option<u64>,
    pub tokens_per_day: Option<u64>,
    pub concurrency: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TenantReport {
    pub id: TenantId,
    pub name: String,
    pub created_at: u64,
    pub settings: TenantSettings,
    /// Below zero it owes.
    pub balance_nano_usd: NanoUsd,
    /// Charged in this month of UTC.
    pub month_spend_nano_usd: NanoUsd,
    pub left: Left,
}

/// What a key opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// `/v1`
    Inference,
    /// `/billing/v1`
    Billing,
}

fn all_scopes() -> Vec<Scope> {
    vec![Scope::Inference, Scope::Billing]
}

/// All that is set for a key. What is left out is not bounded; nothing is kept of the settings before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeySettings {
    /// For people.
    #[serde(default)]
    pub name: String,
    /// Seconds since 1970; it works before this second.
    #[serde(default)]
    pub expires_at: Option<u64>,
    /// Both where it is left out.
    #[serde(default = "all_scopes")]
    pub scopes: Vec<Scope>,
    /// Names of the models it may use; `null` is all.
    #[serde(default)]
    pub models: Option<Vec<String>>,
    /// Within its tenant's, and in common with the keys it replaced.
    #[serde(default)]
    pub limits: Limits,
    /// What it may be charged in a month of UTC, in common with the keys it replaced.
    #[serde(default)]
    pub monthly_budget_nano_usd: Option<NanoUsd>,
}

impl Default for KeySettings {
    fn default() -> Self {
        Self {
            name: String::new(),
            expires_at: None,
            scopes: all_scopes(),
            models: None,
            limits: Limits::default(),
            monthly_budget_nano_usd: None,
        }
    }
}

/// A new key: its tenant, and what `KeySettings` has.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyRequest {
    /// Created if it does not exist.
    pub tenant: String,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub expires_at: Option<u64>,
    #[serde(default = "all_scopes")]
    pub scopes: Vec<Scope>,
    #[serde(default)]
    pub models: Option<Vec<String>>,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub monthly_budget_nano_usd: Option<NanoUsd>,
}

impl KeyRequest {
    pub fn new(tenant: String, settings: KeySettings) -> Self {
        Self {
            tenant,
            name: settings.name,
            expires_at: settings.expires_at,
            scopes: settings.scopes,
            models: settings.models,
            limits: settings.limits,
            monthly_budget_nano_usd: settings.monthly_budget_nano_usd,
        }
    }

    /// The tenant, and what is set for the key.
    pub fn split(self) -> (String, KeySettings) {
        let settings = KeySettings {
            name: self.name,
            expires_at: self.expires_at,
            scopes: self.scopes,
            models: self.models,
            limits: self.limits,
            monthly_budget_nano_usd: self.monthly_budget_nano_usd,
        };
        (self.tenant, settings)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct KeyCreated {
    pub tenant: TenantId,
    pub key_id: KeyId,
    /// Shown once; only its hash is kept.
    pub key: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeyStatus {
    Works,
    Expired,
    Revoked,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct KeyReport {
    pub id: KeyId,
    pub tenant: TenantId,
    pub tenant_name: String,
    pub status: KeyStatus,
    pub created_at: u64,
    pub revoked_at: Option<u64>,
    /// The key it was made to take the place of.
    pub replaces: Option<KeyId>,
    pub settings: KeySettings,
    /// Charged in this month of UTC, the keys it replaced included.
    pub month_spend_nano_usd: NanoUsd,
    pub left: Left,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateRequest {
    /// For how long both keys work.
    #[serde(default)]
    pub overlap_seconds: u64,
}

/// What a model's requests cost. Prices are for a million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PriceList {
    /// Prompt tokens that were computed.
    pub input_nano_usd: NanoUsd,
    /// Prompt tokens that were found in the KV cache.
    pub cached_input_nano_usd: NanoUsd,
    /// Generated tokens.
    pub output_nano_usd: NanoUsd,
    /// The least that a request costs of which any generated token was delivered.
    pub minimum_nano_usd: NanoUsd,
}

/// A list and since when it is in force, in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PriceReport {
    pub model: String,
    pub effective_from: u64,
    pub prices: PriceList,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PricesReport {
    /// In force for a model without a list, and before its first.
    pub default: PriceList,
    pub lists: Vec<PriceReport>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PriceRequest {
    /// A second since 1970 that is yet to come; the next one where it is left out.
    #[serde(default)]
    pub effective_from: Option<u64>,
    pub input_nano_usd: NanoUsd,
    pub cached_input_nano_usd: NanoUsd,
    pub output_nano_usd: NanoUsd,
    #[serde(default)]
    pub minimum_nano_usd: NanoUsd,
}

/// What the platform keeps of every charge from now on.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Fee {
    /// Hundredths of a percent.
    pub basis_points: BasisPoints,
}

/// Money to be moved, and why.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoneyRequest {
    pub amount_nano_usd: NanoUsd,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PostingType {
    /// A charge for a request.
    Request,
    /// Money that was paid in, or taken back.
    Credit,
    /// Part of a charge, given back.
    Refund,
    /// Earnings that were paid out.
    Payout,
}

/// One account's part of a posting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PostingLine {
    /// `tenant:NAME`, `provider:NAME`, `platform` or `funding` (the world outside).
    pub account: String,
    /// What it gets, or gives below zero.
    pub amount_nano_usd: NanoUsd,
}

/// One movement of money. Its lines sum to zero.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PostingReport {
    pub id: PostingId,
    pub posted_at: u64,
    #[serde(rename = "type")]
    pub kind: PostingType,
    /// What it is for, while that is kept.
    pub request: Option<RequestId>,
    pub reason: Option<String>,
    pub by: Option<String>,
    pub lines: Vec<PostingLine>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LedgerPage {
    /// Oldest first.
    pub postings: Vec<PostingReport>,
    /// What to ask for as `after` next; `null` at the end.
    pub next_after: Option<PostingId>,
}

/// What a provider's workers did for a request.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WorkReport {
    /// `null` for machines that are the platform's own.
    pub provider: Option<String>,
    /// Of a unit that is the same within one request.
    pub units: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AdminRequestReport {
    pub tenant: TenantId,
    pub tenant_name: String,
    pub request: RequestSummary,
    pub how_priced: HowPriced,
    pub postings: Vec<PostingReport>,
    pub attempts: Vec<RequestId>,
    pub work: Vec<WorkReport>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProviderReport {
    pub name: String,
    /// What it is owed.
    pub balance_nano_usd: NanoUsd,
    /// Earned in this month of UTC.
    pub month_earned_nano_usd: NanoUsd,
    /// Its workers that are members now.
    pub workers: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DayEarned {
    /// `yyyy-mm-dd`, in UTC.
    pub day: String,
    pub earned_nano_usd: NanoUsd,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Earnings {
    pub provider: String,
    pub from_at: u64,
    /// The first second after it.
    pub to_at: u64,
    /// Days with earnings, oldest first.
    pub days: Vec<DayEarned>,
    pub total_nano_usd: NanoUsd,
}

/// A provider's month: `opening + earned - paid_out = closing`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProviderStatement {
    pub provider: String,
    /// `yyyy-mm`, in UTC.
    pub month: String,
    /// The month has not ended: more may come.
    pub provisional: bool,
    pub opening_nano_usd: NanoUsd,
    pub earned_nano_usd: NanoUsd,
    pub paid_out_nano_usd: NanoUsd,
    pub closing_nano_usd: NanoUsd,
    pub days: Vec<DayEarned>,
}
