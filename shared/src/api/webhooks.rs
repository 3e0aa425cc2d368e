//! Where a tenant is told of its account. See the tables of routes above (`api`).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a webhook can be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum WebhookEvent {
    /// 50, 80 or 100 % of the month's budget are spent.
    #[serde(rename = "budget.threshold")]
    BudgetThreshold,
    /// A month has ended: nothing more comes to its statement.
    #[serde(rename = "statement.ready")]
    StatementReady,
}

/// Where events shall go, and which.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookRequest {
    /// `https://…`, at a public address.
    pub url: String,
    /// At least one.
    pub events: Vec<WebhookEvent>,
    /// Have another secret sign from now on.
    #[serde(default)]
    pub rotate: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WebhookReport {
    pub url: String,
    pub events: Vec<WebhookEvent>,
    pub created_at: u64,
    /// Events that wait to be delivered.
    pub waiting: u64,
    pub delivered: u64,
    /// When an event was last delivered.
    pub delivered_at: Option<u64>,
    /// Events that made room for newer ones, undelivered.
    pub dropped: u64,
    /// Events that were tried for three days, undelivered.
    pub given_up: u64,
    /// Since when no try went well; `null` where the last one did.
    pub failed_since: Option<u64>,
    /// Why the last try did not go well.
    pub last_error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WebhookSet {
    #[serde(flatten)]
    pub webhook: WebhookReport,
    /// What signs its events, as Standard Webhooks writes it (`whsec_…`): shown once, where it is new.
    pub secret: Option<String>,
}

/// An event that was made and is on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WebhookTested {
    /// The `webhook-id` that it comes with.
    pub id: String,
}
