//! What an export reads: the log of settlements.

use super::RequestStatus;
use crate::ids::*;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What one settlement added to its request. A request may be settled more than once: by its later
/// attempts under one idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SettlementReport {
    /// From 1, without gaps.
    pub sequence: SettlementSeq,
    /// Milliseconds since 1970.
    pub settled_at_ms: u64,
    /// Null, as its name, only where neither request nor key is kept any more.
    pub tenant: Option<TenantId>,
    pub tenant_name: Option<String>,
    pub key: KeyId,
    /// Null, as `request`, where the request is kept no longer.
    pub model: Option<String>,
    pub request: Option<RequestId>,
    /// The caller's own `x-request-id`, where there was one.
    pub caller_id: Option<RequestId>,
    /// How the request, or that attempt at it, ended.
    pub status: RequestStatus,
    /// Tokens that no earlier settlement had counted.
    pub prompt_tokens: u64,
    /// Those of `prompt_tokens` that were found in the KV cache.
    pub cached_tokens: u64,
    pub completion_tokens: u64,
    /// What was charged for them.
    pub charged_nano_usd: NanoUsd,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SettlementsPage {
    /// The cluster's identity, whose numbers these are. A restored cluster has another.
    pub cluster: String,
    /// The oldest that is kept, or the one that comes next where none is.
    pub oldest: SettlementSeq,
    /// The newest there is; 0 before the first.
    pub newest: SettlementSeq,
    /// Oldest first, without gaps.
    pub settlements: Vec<SettlementReport>,
}
