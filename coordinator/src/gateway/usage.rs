//! What one request is billed.
//!
//! Keeps true: a request is recorded at most once, for at most the tokens that were delivered, and
//! an answer does not end before its record is durable. A request whose client left, or whose
//! stream broke, is recorded by a task of its own, which keeps the request's place among the
//! bounded number of requests until it is done.

use super::error::ApiError;
use super::life::Life;
use super::metrics::Metrics;
use super::server::Permit;
use crate::fleet::work::WorkLog;
use crate::state::{Counts, Deployment, Ended, Final, Outcome, Progress, Report, State};
use serde_json::{Value, json};
use trireme_shared::ids::{GatewayLife, KeyId, NanoUsd, RequestId, TenantId, Tokens};
use trireme_shared::limits;
use trireme_shared::wall_clock::unix_ms;

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

/// Counts one request's tokens and has them settled once.
pub struct Meter {
    life: Life,
    metrics: Metrics,
    payer: Payer,
    deployment: Deployment,
    /// Milliseconds since 1970.
    began_at_ms: u64,
    counts: Counts,
    /// Tokens reach the client as they are generated, so a broken answer is billed for them.
    streaming: bool,
    settled: bool,
    work: WorkLog,
    permit: Permit,
}

impl Meter {
    pub fn new(
        life: Life,
        metrics: Metrics,
        payer: Payer,
        deployment: Deployment,
        streaming: bool,
        work: WorkLog,
        permit: Permit,
    ) -> Self {
        Self {
            life,
            metrics,
            payer,
            deployment,
            began_at_ms: unix_ms(),
            counts: Counts::default(),
            streaming,
            settled: false,
            work,
            permit,
        }
    }

    /// A prompt entered a batch.
    pub fn prompt(&mut self, tokens: Tokens, cached: Tokens) {
        self.counts.prompt.0 += tokens.0;
        self.counts.cached.0 += cached.0.min(tokens.0);
    }

    pub fn completion(&mut self, tokens: Tokens) {
        self.counts.completion.0 += tokens.0;
    }

    /// Makes the final counts durable and gives them, and what they cost.
    pub async fn settle(&mut self) -> Result<Usage, ApiError> {
        // In a task of its own: a client that leaves now must not leave half a record.
        match self.record(self.counts, Ended::Finished).await {
            Ok(Some(cost)) => Ok(Usage {
                prompt: self.counts.prompt,
                cached: self.counts.cached,
                completion: self.counts.completion,
                cost,
            }),
            _ => Err(ApiError::internal(
                "the usage of this request could not be recorded; see the coordinator's log.",
            )),
        }
    }

    /// The answer failed before anything was delivered: nothing is billed.
    pub fn forgive(&mut self) {
        self.settled = true;
    }

    /// What was charged, once it is.
    fn record(&mut self, counts: Counts, ended: Ended) -> tokio::task::JoinHandle<Option<NanoUsd>> {
        self.settled = true;
        // Callers may use an id twice; a request is settled once.
        let request = RequestId::random();
        let progress = Progress {
            request,
            caller_id: Some(self.payer.request.clone()),
            tenant: self.payer.tenant,
            key: self.payer.key,
            model: self.deployment.spec.model.name.clone(),
            began_at_ms: self.began_at_ms,
            idempotency: None,
            counts,
            work: self.work.so_far(),
        };
        let life = self.life.clone();
        let metrics = self.metrics.clone();
        let permit = self.permit.clone();
        let id = self.payer.request.clone();
        tokio::spawn(async move {
            let model = progress.model.clone();
            let work = settle(&life, Final { progress, ended });
            let done = tokio::time::timeout(limits::USAGE_COMMIT_DEADLINE, work).await;
            let recorded = match done {
                Ok(Ok(cost)) => {
                    metrics.billed(&model, u64::try_from(cost.0).unwrap_or(0));
                    Some(cost)
                }
                Ok(Err(error)) => {
                    tracing::error!(request_id = %id, %error, "usage was not recorded");
                    None
                }
                Err(_) => {
                    tracing::error!(request_id = %id, "usage was not recorded in time");
                    None
                }
            };
            // Last: who waits for all permits then sees all records and their metrics.
            drop(permit);
            recorded
        })
    }
}

/// Settles a request and gives what it was charged.
async fn settle(life: &Life, last: Final) -> Result<NanoUsd, String> {
    let request = last.progress.request.clone();
    let report = Report {
        finals: vec![last],
        ..Report::new(GatewayLife(0))
    };
    let outcome = life.report(report).await.map_err(|e| e.to_string())?;
    if let Outcome::Refused(why) = outcome {
        return Err(why.to_string());
    }
    let charged = |state: &State| state.request_by_id(&request).map(|row| row.charged);
    let charged = life.group().read(charged);
    charged.ok_or_else(|| "its key does not exist".to_owned())
}

impl Drop for Meter {
    fn drop(&mut self) {
        // Without a runtime the process is ending, and so has the state.
        if self.settled
            || self.counts.prompt.0 == 0
            || tokio::runtime::Handle::try_current().is_err()
        {
            return;
        }
        let mut delivered = self.counts;
        if !self.streaming {
            delivered.completion = Tokens(0);
        }
        drop(self.record(delivered, Ended::Disconnected));
    }
}
