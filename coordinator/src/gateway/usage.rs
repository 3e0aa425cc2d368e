//! What one request is billed.
//!
//! Keeps true: a request is recorded at most once, for at most the tokens that were delivered, and
//! an answer does not end before its record is durable. A request whose client left, or whose
//! stream broke, is recorded by a task of its own, which keeps the request's place among the
//! bounded number of requests until it is done.

use super::error::ApiError;
use super::metrics::Metrics;
use super::server::Permit;
use crate::raft::group::Group;
use crate::state::{Deployment, UsageRecord};
use serde_json::{Value, json};
use trireme_shared::ids::{KeyId, NanoUsd, RequestId, TenantId, Tokens};
use trireme_shared::limits;

/// Token counts and cost of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub prompt: Tokens,
    pub cached: Tokens,
    pub completion: Tokens,
    pub cost: NanoUsd,
}

impl Usage {
    /// OpenAI's `usage` object, with our `cost_nano_usd`.
    pub fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt.0,
            "completion_tokens": self.completion.0,
            "total_tokens": self.prompt.0.saturating_add(self.completion.0),
            "prompt_tokens_details": {"cached_tokens": self.cached.0},
            "cost_nano_usd": self.cost.0,
        })
    }
}

/// Who pays for a request.
#[derive(Clone, Debug)]
pub struct Payer {
    pub request: RequestId,
    pub tenant: TenantId,
    pub key: KeyId,
}

/// Counts one request's tokens and records them once.
pub struct Meter {
    group: Group,
    metrics: Metrics,
    payer: Payer,
    deployment: Deployment,
    prompt: Tokens,
    cached: Tokens,
    completion: Tokens,
    /// Tokens reach the client as they are generated, so a broken answer is billed for them.
    streaming: bool,
    settled: bool,
    permit: Permit,
}

impl Meter {
    pub fn new(
        group: Group,
        metrics: Metrics,
        payer: Payer,
        deployment: Deployment,
        streaming: bool,
        permit: Permit,
    ) -> Self {
        Self {
            group,
            metrics,
            payer,
            deployment,
            prompt: Tokens(0),
            cached: Tokens(0),
            completion: Tokens(0),
            streaming,
            settled: false,
            permit,
        }
    }

    /// A prompt entered a batch.
    pub fn prompt(&mut self, tokens: Tokens, cached: Tokens) {
        self.prompt.0 += tokens.0;
        self.cached.0 += cached.0.min(tokens.0);
    }

    pub fn completion(&mut self, tokens: Tokens) {
        self.completion.0 += tokens.0;
    }

    fn usage(&self, completion: Tokens) -> Usage {
        Usage {
            prompt: self.prompt,
            cached: self.cached,
            completion,
            cost: self
                .deployment
                .price
                .cost(self.prompt, self.cached, completion),
        }
    }

    /// Makes the record durable and gives the final counts.
    pub async fn settle(&mut self) -> Result<Usage, ApiError> {
        let usage = self.usage(self.completion);
        // In a task of its own: a client that leaves now must not leave half a record.
        match self.record(usage).await {
            Ok(true) => Ok(usage),
            _ => Err(ApiError::internal(
                "the usage of this request could not be recorded; see the coordinator's log.",
            )),
        }
    }

    /// The answer failed before anything was delivered: nothing is billed.
    pub fn forgive(&mut self) {
        self.settled = true;
    }

    fn record(&mut self, usage: Usage) -> tokio::task::JoinHandle<bool> {
        self.settled = true;
        let record = UsageRecord {
            request: self.payer.request.clone(),
            tenant: self.payer.tenant,
            key: self.payer.key,
            deployment: self.deployment.id,
            prompt: usage.prompt,
            cached: usage.cached,
            completion: usage.completion,
            cost: usage.cost,
        };
        let group = self.group.clone();
        let metrics = self.metrics.clone();
        let model = self.deployment.spec.model.name.clone();
        let permit = self.permit.clone();
        tokio::spawn(async move {
            let request = record.request.clone();
            let cost = u64::try_from(record.cost.0).unwrap_or(0);
            let work = group.record_usage(record);
            let done = tokio::time::timeout(limits::USAGE_COMMIT_DEADLINE, work).await;
            let recorded = match done {
                Ok(Ok(())) => {
                    metrics.billed(&model, cost);
                    true
                }
                Ok(Err(error)) => {
                    tracing::error!(request_id = %request, %error, "usage was not recorded");
                    false
                }
                Err(_) => {
                    tracing::error!(request_id = %request, "usage was not recorded in time");
                    false
                }
            };
            // Last: who waits for all permits then sees all records and their metrics.
            drop(permit);
            recorded
        })
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        // Without a runtime the process is ending, and so has the state.
        if self.settled || self.prompt.0 == 0 || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let delivered = if self.streaming {
            self.completion
        } else {
            Tokens(0)
        };
        let usage = self.usage(delivered);
        drop(self.record(usage));
    }
}
