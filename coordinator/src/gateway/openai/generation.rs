//! One request's sequences, running: dispatches them, merges their events and counts what they use.
//!
//! Keeps true: dropping a `Generation` cancels every sequence and records what was delivered.

use super::job::Job;
use super::render::{Renderer, finish_reason};
use crate::fleet::dispatch::SequenceRequest;
use crate::fleet::work::WorkLog;
use crate::gateway::desk::Held;
use crate::gateway::envelope::RequestContext;
use crate::gateway::error::ApiError;
use crate::gateway::metrics::{Ended, Metrics, Served};
use crate::gateway::server::GatewayState;
use crate::gateway::session::{self, ChoiceEvent, ChoiceIndex};
use crate::gateway::traces::{Generated, Traces};
use crate::gateway::usage::{Admitted, Meter, Payer, Usage};
use crate::state;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use trireme_shared::ids::{RequestId, TenantId, Tokens};
use trireme_shared::limits;
use trireme_shared::wire::generate::FinishReason;

/// What is known of one choice.
#[derive(Clone, Copy, Default)]
struct Progress {
    ended: bool,
    last_token: Option<Instant>,
}

pub struct Generation {
    events: mpsc::Receiver<(ChoiceIndex, ChoiceEvent)>,
    /// Aborted on drop.
    _sessions: JoinSet<()>,
    peeked: Option<(ChoiceIndex, ChoiceEvent)>,
    choices: Vec<Progress>,
    /// Of each prompt: its length until its first choice started.
    prompts: Vec<Option<Tokens>>,
    choices_per_prompt: usize,
    meter: Meter,
    metrics: Metrics,
    traces: Traces,
    /// What the caller says it is part of.
    trace: opentelemetry::Context,
    tenant: TenantId,
    model: String,
    request: RequestId,
    arrived: Instant,
    dispatched: Instant,
    first_token: Option<Duration>,
    operation: &'static str,
    /// No choice may be longer, because no more could be held for it.
    shortened: Option<u32>,
    /// A choice ended for that.
    exhausted: bool,
    finish_reasons: Vec<&'static str>,
    /// What it came to, once that is durable; before, why it did not end well.
    outcome: Result<Usage, &'static str>,
}

impl Generation {
    /// Dispatches every choice of `job`. Refused where one finds no room.
    pub fn start(
        gateway: &GatewayState,
        context: RequestContext,
        payer: Payer,
        mut job: Job,
        held: Held,
    ) -> Result<(Self, Renderer), ApiError> {
        let shortened = held.shortened;
        if let Some(longest) = shortened {
            for prompt in &mut job.prompts {
                prompt.max_tokens = prompt.max_tokens.min(longest);
            }
        }
        let (send, events) = mpsc::channel(limits::SESSION_EVENTS_MAX);
        let stop_tokens = job.stop_tokens();
        let n = job.shape.choices_per_prompt;
        let mut sessions = JoinSet::new();
        let work = WorkLog::default();
        let weight = gateway.weight(payer.tenant);
        for (p, prompt) in job.prompts.iter().enumerate() {
            for i in 0..n {
                let mut sampling = job.common.sampling.clone();
                sampling.seed = sampling.seed.wrapping_add(i as u64);
                let stream = gateway.dispatcher.generate(SequenceRequest {
                    request: context.id.clone(),
                    tenant: payer.tenant,
                    weight,
                    priority: job.common.tier.unwrap_or_default(),
                    deployment: job.deployment.id,
                    prompt: prompt.ids.clone(),
                    max_tokens: prompt.max_tokens,
                    sampling,
                    stop_tokens: stop_tokens.clone(),
                    logprobs: job.logprobs,
                    prompt_logprobs: job.prompt_logprobs,
                    work: work.clone(),
                })?;
                sessions.spawn(session::run(
                    p * n + i,
                    job.shape.text.clone(),
                    job.common.stop.clone(),
                    stop_tokens.clone(),
                    stream,
                    send.clone(),
                ));
            }
        }
        let choices = job.prompts.len() * n;
        let tenant = payer.tenant;
        let generation = Self {
            events,
            _sessions: sessions,
            peeked: None,
            choices: vec![Progress::default(); choices],
            prompts: job
                .prompts
                .iter()
                .map(|prompt| Some(Tokens(prompt.ids.len() as u64)))
                .collect(),
            choices_per_prompt: n,
            meter: Meter::new(
                gateway.desk.clone(),
                gateway.metrics.clone(),
                Admitted {
                    payer,
                    model: job.deployment.spec.model.name.clone(),
                    held,
                    streaming: job.shape.stream,
                    work,
                    permit: context.permit,
                },
            ),
            metrics: gateway.metrics.clone(),
            traces: gateway.traces.clone(),
            trace: context.trace,
            tenant,
            model: job.shape.model.clone(),
            request: context.id,
            arrived: context.arrived,
            dispatched: Instant::now(),
            first_token: None,
            operation: job.shape.api.operation(),
            shortened,
            exhausted: false,
            finish_reasons: Vec::new(),
            outcome: Err("client_disconnected"),
        };
        Ok((generation, Renderer::new(job.shape, choices)))
    }

    /// Waits up to `wait` for the first event, so that a failure before it can still be a status.
    pub async fn first(&mut self, wait: Duration) -> Result<(), ApiError> {
        let Ok(first) = tokio::time::timeout(wait, self.events.recv()).await else {
            return Ok(());
        };
        match first {
            Some((_, ChoiceEvent::Failed(error))) => Err(error),
            first => {
                self.peeked = first;
                Ok(())
            }
        }
    }

    /// The next event of any choice; `None` once all have ended. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<(ChoiceIndex, ChoiceEvent)>, ApiError> {
        if self.choices.iter().all(|choice| choice.ended) {
            return Ok(None);
        }
        let next = match self.peeked.take() {
            Some(peeked) => Some(peeked),
            None => self.events.recv().await,
        };
        match next {
            Some((_, ChoiceEvent::Failed(error))) => Err(error),
            Some((index, event)) => {
                self.count(index, &event);
                Ok(Some((index, event)))
            }
            // Sessions end without a last event only where this side read too slowly.
            None => Err(ApiError::unavailable(
                "client_too_slow",
                "The stream was read too slowly and was given up.",
                1,
            )),
        }
    }

    fn count(&mut self, index: ChoiceIndex, event: &ChoiceEvent) {
        let now = Instant::now();
        let model = self.model.as_str();
        match event {
            ChoiceEvent::Started { cached_tokens } => {
                // Choices of one prompt share it: it is counted once.
                if let Some(prompt) = self.prompts[index / self.choices_per_prompt].take() {
                    let cached = u64::from(*cached_tokens).min(prompt.0);
                    self.meter.prompt(prompt, Tokens(cached));
                    self.metrics.prompt(model, prompt.0, cached);
                }
            }
            ChoiceEvent::Delta { tokens, .. } if *tokens > 0 => {
                let tokens = u64::from(*tokens);
                self.meter.completion(Tokens(tokens));
                self.metrics.generated(model, tokens);
                match self.choices[index].last_token.replace(now) {
                    None => {
                        let first = now - self.arrived;
                        self.first_token.get_or_insert(first);
                        self.metrics.first_token(model, first);
                    }
                    Some(last) => self.metrics.next_token(model, now - last),
                }
            }
            ChoiceEvent::Finished(reason) => {
                self.choices[index].ended = true;
                self.exhausted |= self.shortened.is_some() && *reason == FinishReason::Length;
                let how = match reason {
                    FinishReason::Stop => Ended::Stop,
                    FinishReason::Length => Ended::Length,
                };
                self.metrics.ended(model, how, now - self.arrived);
                self.finish_reasons.push(finish_reason(*reason));
            }
            _ => {}
        }
    }

    /// Makes the usage durable and gives it.
    pub async fn settle(&mut self) -> Result<Usage, ApiError> {
        let ended = match self.exhausted {
            true => state::Ended::Exhausted,
            false => state::Ended::Finished,
        };
        let last_token = Instant::now();
        let settled = self.meter.settle(ended).await;
        let usage = settled.inspect_err(|error| self.outcome = Err(class(error)))?;
        self.outcome = Ok(usage);
        self.metrics.served(&Served {
            operation: self.operation,
            model: &self.model,
            prompt: usage.prompt.0,
            completion: usage.completion.0,
            took: self.arrived.elapsed(),
            overhead: (self.dispatched - self.arrived) + last_token.elapsed(),
            first_token: self.first_token,
        });
        tracing::info!(
            request_id = %self.request,
            gen_ai.operation.name = self.operation,
            gen_ai.request.model = self.model,
            gen_ai.usage.input_tokens = usage.prompt.0,
            gen_ai.usage.output_tokens = usage.completion.0,
            cached_tokens = usage.cached.0,
            cost_nano_usd = usage.cost.0,
            choices = self.choices.len(),
            ms = self.arrived.elapsed().as_millis() as u64,
            "generated"
        );
        Ok(usage)
    }

    /// We failed. What was delivered by then is billed.
    pub fn failed(&mut self, error: &ApiError) {
        self.outcome = Err(class(error));
        self.meter.failed();
    }

    /// What the client is told where a choice ended because no more could be held for it.
    pub fn billing_note(&self) -> Option<String> {
        let longest = self.shortened.filter(|_| self.exhausted)?;
        Some(format!(
            "This answer ended after {longest} tokens because no more of them were covered by what is \
             left of the account's balance, budget or limits."
        ))
    }
}

/// Of errors, for traces.
fn class(error: &ApiError) -> &'static str {
    error.code.unwrap_or(error.kind)
}

impl Drop for Generation {
    fn drop(&mut self) {
        for _ in self.choices.iter().filter(|choice| !choice.ended) {
            self.metrics
                .ended(&self.model, Ended::Abort, self.arrived.elapsed());
        }
        let counts = self.meter.counts();
        self.traces.generated(
            &self.trace,
            &Generated {
                operation: self.operation,
                model: &self.model,
                request_id: self.request.as_str(),
                tenant: self.tenant,
                took: self.arrived.elapsed(),
                first_token: self.first_token,
                finish_reasons: &self.finish_reasons,
                counts,
                cost_nano_usd: self.outcome.ok().map(|usage| usage.cost.0),
                error: self.outcome.err(),
            },
        );
    }
}
