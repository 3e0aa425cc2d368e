//! What one request is billed.
//!
//! Keeps true: a request is settled once, for at most the tokens that were delivered, and an answer does
//! not end before its settlement is durable. A request whose client left, or whose stream broke, is
//! settled by a task of its own, which keeps the request's place among the bounded number of requests
//! until it is done. A client to whom nothing generated was delivered pays nothing.

use super::desk::{About, Desk, Held, Live};
use super::error::ApiError;
use super::metrics::Metrics;
use super::server::Permit;
use crate::fleet::work::WorkLog;
use crate::state::{Counts, Ended, Final};
use serde_json::{Value, json};
use std::sync::Arc;
use trireme_shared::ids::{KeyId, NanoUsd, RequestId, TenantId, Tokens};
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
    /// SHA-256 of the caller's `Idempotency-Key` and of what was asked under it.
    pub idempotency: Option<[u8; 32]>,
}

/// A request that was let in.
pub struct Admitted {
    pub payer: Payer,
    /// The name it was asked for by.
    pub model: String,
    pub held: Held,
    /// Tokens reach the client as they are generated, so a broken answer is billed for them.
    pub streaming: bool,
    pub work: WorkLog,
    pub permit: Permit,
}

/// Counts one request's tokens and has them settled once.
pub struct Meter {
    desk: Desk,
    metrics: Metrics,
    live: Arc<Live>,
    held: Option<Held>,
    streaming: bool,
    /// A prompt entered a batch: there is something to tell.
    started: bool,
    settled: bool,
    /// How it ends where nothing else is said: its client left.
    ended: Ended,
    permit: Permit,
}

impl Meter {
    pub fn new(
        desk: Desk,
        metrics: Metrics,
        Admitted {
            payer,
            model,
            held,
            streaming,
            work,
            permit,
        }: Admitted,
    ) -> Self {
        let about = About {
            // Callers may use an id twice; a request is settled once.
            request: RequestId::random(),
            caller_id: payer.request,
            tenant: payer.tenant,
            key: payer.key,
            model,
            began_at_ms: unix_ms(),
            idempotency: payer.idempotency,
        };
        let live = Arc::new(Live::new(about, work));
        if streaming {
            desk.watch(&live);
        }
        Self {
            desk,
            metrics,
            live,
            held: Some(held),
            streaming,
            started: false,
            settled: false,
            ended: Ended::Disconnected,
            permit,
        }
    }

    /// A prompt entered a batch.
    pub fn prompt(&mut self, tokens: Tokens, cached: Tokens) {
        self.started = true;
        self.live.count(|counts| {
            counts.prompt.0 += tokens.0;
            counts.cached.0 += cached.0.min(tokens.0);
        });
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.live.counts()
    }

    pub fn completion(&mut self, tokens: Tokens) {
        self.live.count(|counts| counts.completion.0 += tokens.0);
    }

    /// Makes the final counts durable and gives them, and what they cost.
    pub async fn settle(&mut self, ended: Ended) -> Result<Usage, ApiError> {
        let counts = self.live.counts();
        // In a task of its own: a client that leaves now must not leave half a record.
        let recorded = self.record(counts, ended);
        match tokio::time::timeout(limits::USAGE_COMMIT_DEADLINE, recorded).await {
            Ok(Ok(Some(cost))) => Ok(Usage {
                prompt: counts.prompt,
                cached: counts.cached,
                completion: counts.completion,
                cost,
            }),
            _ => Err(ApiError::internal(
                "the usage of this request could not be recorded yet; see the coordinator's log.",
            )),
        }
    }

    /// We failed: what follows is no fault of the client's. Where nothing was delivered, nothing is billed.
    pub fn failed(&mut self) {
        self.ended = Ended::Failed;
    }

    /// What was charged, once it is.
    fn record(&mut self, counts: Counts, ended: Ended) -> tokio::task::JoinHandle<Option<NanoUsd>> {
        self.settled = true;
        let last = Final {
            progress: self.live.progress(counts),
            ended,
        };
        let (desk, metrics) = (self.desk.clone(), self.metrics.clone());
        let (held, permit) = (self.held.take(), self.permit.clone());
        tokio::spawn(async move {
            let (model, id) = (last.progress.model.clone(), last.progress.caller_id.clone());
            let charged = desk.settle(last, held).await;
            match charged {
                Some(cost) => {
                    metrics.billed(&model, u64::try_from(cost.0).unwrap_or(0));
                    metrics.billable(
                        &model,
                        counts.prompt.0,
                        counts.cached.0,
                        counts.completion.0,
                    );
                }
                None => tracing::error!(request_id = ?id, "usage was not recorded"),
            }
            // Last: who waits for all permits then sees all records and their metrics.
            drop(permit);
            charged
        })
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        // Without a runtime the process is ending, and so has the state.
        if self.settled || !self.started || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let counts = self.live.counts();
        let delivered = match self.streaming && counts.completion.0 > 0 {
            true => counts,
            false => Counts::default(),
        };
        drop(self.record(delivered, self.ended));
    }
}
