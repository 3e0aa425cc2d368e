//! What a tenant is told of itself: balance, limits, usage, requests, statements. See the tables of routes
//! above (`api`).

use super::{PostingType, PriceList, PriceReport};
use crate::ids::*;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How a request ended, or that it has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RequestStatus {
    Running,
    /// As the model or the caller's bounds had it.
    Finished,
    /// What was held for it was used up.
    Exhausted,
    /// The caller left.
    Disconnected,
    /// We failed.
    Failed,
    /// Its gateway died; it is charged for what was last told of it.
    GatewayLost,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RequestSummary {
    pub id: RequestId,
    /// The caller's own `x-request-id`, where there was one.
    pub caller_id: Option<RequestId>,
    pub status: RequestStatus,
    pub model: String,
    pub key: KeyId,
    pub began_at: u64,
    pub ended_at: Option<u64>,
    pub prompt_tokens: u64,
    /// Those of `prompt_tokens` that were found in the KV cache.
    pub cached_tokens: u64,
    pub completion_tokens: u64,
    /// By its prices; of one that runs, as far as it is known.
    pub cost_nano_usd: NanoUsd,
    pub charged_nano_usd: NanoUsd,
    /// What was given back of that.
    pub refunded_nano_usd: NanoUsd,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RequestsPage {
    /// Newest first; those that run come before all others.
    pub requests: Vec<RequestSummary>,
    /// Asks for what comes next; `null` at the end.
    pub next_cursor: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PricedPart {
    Input,
    CachedInput,
    Output,
}

/// Tokens of one kind and what they come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PricePart {
    pub part: PricedPart,
    pub tokens: u64,
    /// For a million of them.
    pub price_nano_usd: NanoUsd,
    /// Tokens times price, exactly: in millionths of a nano-dollar.
    #[schema(value_type = i64)]
    pub amount_femto_usd: i128,
}

/// How a request's price came about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HowPriced {
    pub parts: Vec<PricePart>,
    #[schema(value_type = i64)]
    pub sum_femto_usd: i128,
    /// The sum, rounded up to the next nano-dollar.
    pub rounded_nano_usd: NanoUsd,
    /// The least that it costs: 0 before any generated token.
    pub minimum_nano_usd: NanoUsd,
    pub cost_nano_usd: NanoUsd,
}

/// A posting, as the tenant's account has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OwnPosting {
    pub id: PostingId,
    pub posted_at: u64,
    #[serde(rename = "type")]
    pub kind: PostingType,
    pub amount_nano_usd: NanoUsd,
    pub reason: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RequestReport {
    pub request: RequestSummary,
    pub how_priced: HowPriced,
    /// Charges and refunds that are kept, in their order.
    pub postings: Vec<OwnPosting>,
    /// Later tries under its idempotency key, which are charged with it.
    pub attempts: Vec<RequestId>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct Balance {
    /// Below zero it is owed.
    pub balance_nano_usd: NanoUsd,
    /// What may be owed; 0 for a prepaid account.
    pub credit_limit_nano_usd: NanoUsd,
    /// Set aside for requests under way and about to begin.
    pub lent_nano_usd: NanoUsd,
    /// Balance and credit, without what is lent.
    pub available_nano_usd: NanoUsd,
}

/// Sums over requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageSums {
    pub requests: u64,
    pub prompt_tokens: u64,
    /// Those of `prompt_tokens` that were found in the KV cache.
    pub cached_tokens: u64,
    pub completion_tokens: u64,
    /// What was charged.
    pub cost_nano_usd: NanoUsd,
}

/// The fields that it was grouped by, and the sums.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageRow {
    /// Seconds since 1970, where it was grouped by hour or day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begins_at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    pub requests: u64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub completion_tokens: u64,
    pub cost_nano_usd: NanoUsd,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct UsagePage {
    pub from_at: u64,
    /// The first second after it.
    pub to_at: u64,
    /// `hour`, `day`, `model`, `key`.
    pub group_by: Vec<String>,
    pub rows: Vec<UsageRow>,
    /// Over all pages.
    pub total: UsageSums,
    /// Asks for what comes next; `null` at the end.
    pub next_cursor: Option<String>,
}

/// A limit, and what is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LimitReport {
    pub limit: u64,
    pub left: u64,
    /// When all of it is there again if nothing more is used; `null` where that is when requests end.
    pub resets_at: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BudgetReport {
    pub limit_nano_usd: NanoUsd,
    pub spent_nano_usd: NanoUsd,
    pub left_nano_usd: NanoUsd,
    pub resets_at: u64,
}

/// What bounds a tenant or a key; `null` is no such bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Bounds {
    pub requests_per_minute: Option<LimitReport>,
    pub tokens_per_minute: Option<LimitReport>,
    pub tokens_per_day: Option<LimitReport>,
    pub concurrency: Option<LimitReport>,
    pub monthly_budget: Option<BudgetReport>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LimitsReport {
    pub tenant: Bounds,
    /// Of the key that asks, in common with those it replaced.
    pub key: Bounds,
}

/// A model that the key may use, and its prices.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ModelPrices {
    pub model: String,
    /// Whether it is served now.
    pub served: bool,
    pub in_force: PriceList,
    /// Those to come, by their second.
    pub announced: Vec<PriceReport>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatementMonth {
    /// `yyyy-mm`, in UTC.
    pub month: String,
    /// The month has not ended: more may come.
    pub provisional: bool,
    pub opening_nano_usd: NanoUsd,
    pub closing_nano_usd: NanoUsd,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModelUsage {
    pub model: String,
    #[serde(flatten)]
    pub usage: UsageSums,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyUsage {
    pub key: KeyId,
    pub name: String,
    #[serde(flatten)]
    pub usage: UsageSums,
}

/// A tenant's month: `opening - charges + credits + refunds = closing`, to the nano-dollar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Statement {
    pub cluster: String,
    pub tenant: TenantId,
    pub tenant_name: String,
    /// `yyyy-mm`, in UTC.
    pub month: String,
    pub begins_at: u64,
    /// The first second after it.
    pub ends_at: u64,
    /// The month has not ended: more may come.
    pub provisional: bool,
    pub opening_nano_usd: NanoUsd,
    /// What was charged for requests.
    pub charges_nano_usd: NanoUsd,
    /// What was paid in, less what was taken back.
    pub credits_nano_usd: NanoUsd,
    pub refunds_nano_usd: NanoUsd,
    pub closing_nano_usd: NanoUsd,
    pub models: Vec<ModelUsage>,
    pub keys: Vec<KeyUsage>,
}
