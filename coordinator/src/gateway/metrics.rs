//! Prometheus metrics: vLLM's names where the meaning is the same, OpenTelemetry's for generative AI
//! (`gen_ai.*` of its semantic conventions, written as Prometheus names), `trireme_` for our own.
//!
//! Keeps true: every label's values are bounded (models that are served, our routes, statuses).

use prometheus::{
    Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use trireme_shared::wire::control::EngineStats;

const TTFT_BUCKETS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0,
];
const ITL_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 10.0, 40.0, 80.0,
];
const E2E_BUCKETS: &[f64] = &[
    0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0,
];

/// Token counts in powers of four, and times, as OpenTelemetry's conventions advise.
const TOKEN_BUCKETS: &[f64] = &[
    1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0,
];
const DURATION_BUCKETS: &[f64] = &[
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];
const OVERHEAD_BUCKETS: &[f64] = &[
    0.000_1, 0.000_2, 0.000_3, 0.000_4, 0.000_6, 0.000_8, 0.001, 0.001_5, 0.002, 0.003, 0.005,
    0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0,
];

/// How a choice ended, for `vllm:request_success_total`.
#[derive(Clone, Copy, Debug)]
pub enum Ended {
    Stop,
    Length,
    Abort,
}

impl Ended {
    fn label(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
        }
    }
}

/// Every metric of this gateway. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    running: IntGaugeVec,
    waiting: IntGaugeVec,
    kv_usage: GaugeVec,
    replica_ready: IntGaugeVec,
    replica_preemptions: IntGaugeVec,
    replica_steps: IntGaugeVec,
    prompt_tokens: IntCounterVec,
    generation_tokens: IntCounterVec,
    cached_tokens: IntCounterVec,
    cost: IntCounterVec,
    success: IntCounterVec,
    ttft: HistogramVec,
    itl: HistogramVec,
    e2e: HistogramVec,
    token_usage: HistogramVec,
    duration: HistogramVec,
    time_to_first: HistogramVec,
    time_per_output: HistogramVec,
    billable: IntCounterVec,
    overhead: HistogramVec,
    http: IntCounterVec,
    /// One scrape at a time: it resets gauges before it sets them.
    scraping: Arc<Mutex<()>>,
}

const MODEL: &[&str] = &["model_name"];
const REPLICA: &[&str] = &["model_name", "replica"];
const GEN_AI: &[&str] = &["gen_ai_operation_name", "gen_ai_request_model"];
const GEN_AI_TOKENS: &[&str] = &[
    "gen_ai_operation_name",
    "gen_ai_request_model",
    "gen_ai_token_type",
];

/// A settled request, for OpenTelemetry's metrics.
pub struct Served<'a> {
    /// `chat` or `text_completion`.
    pub operation: &'a str,
    pub model: &'a str,
    pub prompt: u64,
    pub completion: u64,
    /// From its arrival to its end.
    pub took: Duration,
    /// Of this, what it spent in the gateway before its dispatch and after its last token.
    pub overhead: Duration,
    /// From its arrival to its first token, where there was one.
    pub first_token: Option<Duration>,
}

impl Metrics {
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let labelled = |name: &str, help: &str, buckets: &[f64], labels: &[&str]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let metric = HistogramVec::new(options, labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let histogram =
            |name: &str, help: &str, buckets: &[f64]| labelled(name, help, buckets, MODEL);
        let kv_usage = GaugeVec::new(
            Opts::new(
                "vllm:kv_cache_usage_perc",
                "Share of KV pages in use; 1 is all of them.",
            ),
            MODEL,
        )?;
        registry.register(Box::new(kv_usage.clone()))?;
        Ok(Self {
            running: gauge("vllm:num_requests_running", "Sequences in batches.", MODEL)?,
            waiting: gauge("vllm:num_requests_waiting", "Sequences waiting.", MODEL)?,
            kv_usage,
            replica_ready: gauge(
                "trireme_deployment_ready",
                "1 where a token came through every stage recently.",
                MODEL,
            )?,
            replica_preemptions: gauge(
                "trireme_replica_preemptions",
                "Sequences put back for want of KV pages, since the driver started.",
                REPLICA,
            )?,
            replica_steps: gauge(
                "trireme_replica_steps",
                "Steps run since the driver started.",
                REPLICA,
            )?,
            prompt_tokens: counter("vllm:prompt_tokens_total", "Prompt tokens.", MODEL)?,
            generation_tokens: counter("vllm:generation_tokens_total", "Generated tokens.", MODEL)?,
            cached_tokens: counter(
                "trireme_cached_prompt_tokens_total",
                "Prompt tokens found in the KV cache.",
                MODEL,
            )?,
            cost: counter(
                "trireme_billed_nano_usd_total",
                "Money billed, in thousand-millionths of a dollar.",
                MODEL,
            )?,
            success: counter(
                "vllm:request_success_total",
                "Choices that ended, by reason.",
                &["model_name", "finished_reason"],
            )?,
            ttft: histogram(
                "vllm:time_to_first_token_seconds",
                "From a request's arrival to its first token.",
                TTFT_BUCKETS,
            )?,
            itl: histogram(
                "vllm:inter_token_latency_seconds",
                "Between tokens of one choice.",
                ITL_BUCKETS,
            )?,
            e2e: histogram(
                "vllm:e2e_request_latency_seconds",
                "From a request's arrival to a choice's end.",
                E2E_BUCKETS,
            )?,
            token_usage: labelled(
                "gen_ai_client_token_usage",
                "Tokens of a request, by kind; as used, cached ones included.",
                TOKEN_BUCKETS,
                GEN_AI_TOKENS,
            )?,
            duration: labelled(
                "gen_ai_server_request_duration_seconds",
                "From a request's arrival to its end.",
                DURATION_BUCKETS,
                GEN_AI,
            )?,
            time_to_first: labelled(
                "gen_ai_server_time_to_first_token_seconds",
                "From a request's arrival to its first token.",
                DURATION_BUCKETS,
                GEN_AI,
            )?,
            time_per_output: labelled(
                "gen_ai_server_time_per_output_token_seconds",
                "Of a request's tokens after the first, on average.",
                ITL_BUCKETS,
                GEN_AI,
            )?,
            billable: counter(
                "trireme_billable_tokens_total",
                "Tokens that were billed, by kind: `input`, `cached_input`, `output`.",
                &["model_name", "kind"],
            )?,
            overhead: histogram(
                "trireme_gateway_overhead_seconds",
                "What a request spends in the gateway before its dispatch and after its last token.",
                OVERHEAD_BUCKETS,
            )?,
            http: counter(
                "trireme_http_requests_total",
                "HTTP answers by route and status.",
                &["route", "status"],
            )?,
            registry,
            scraping: Arc::default(),
        })
    }

    pub fn http(&self, route: &str, status: u16) {
        self.http
            .with_label_values(&[route, &status.to_string()])
            .inc();
    }

    /// A prompt entered a batch.
    pub fn prompt(&self, model: &str, tokens: u64, cached: u64) {
        self.prompt_tokens
            .with_label_values(&[model])
            .inc_by(tokens);
        self.cached_tokens
            .with_label_values(&[model])
            .inc_by(cached);
    }

    pub fn first_token(&self, model: &str, since_arrival: Duration) {
        self.ttft
            .with_label_values(&[model])
            .observe(since_arrival.as_secs_f64());
    }

    pub fn next_token(&self, model: &str, since_last: Duration) {
        self.itl
            .with_label_values(&[model])
            .observe(since_last.as_secs_f64());
    }

    pub fn generated(&self, model: &str, tokens: u64) {
        self.generation_tokens
            .with_label_values(&[model])
            .inc_by(tokens);
    }

    pub fn ended(&self, model: &str, how: Ended, since_arrival: Duration) {
        self.success.with_label_values(&[model, how.label()]).inc();
        if !matches!(how, Ended::Abort) {
            self.e2e
                .with_label_values(&[model])
                .observe(since_arrival.as_secs_f64());
        }
    }

    /// A request was answered and settled.
    pub fn served(&self, served: &Served<'_>) {
        let labels = [served.operation, served.model];
        let tokens = |kind: &str, tokens: u64| {
            let labels = [served.operation, served.model, kind];
            let usage = self.token_usage.with_label_values(&labels);
            usage.observe(tokens as f64);
        };
        tokens("input", served.prompt);
        tokens("output", served.completion);
        let took = served.took.as_secs_f64();
        self.duration.with_label_values(&labels).observe(took);
        if let Some(first) = served.first_token {
            let first = first.as_secs_f64();
            self.time_to_first.with_label_values(&labels).observe(first);
            if served.completion > 1 {
                let each = (took - first) / (served.completion - 1) as f64;
                self.time_per_output
                    .with_label_values(&labels)
                    .observe(each);
            }
        }
        self.overhead
            .with_label_values(&[served.model])
            .observe(served.overhead.as_secs_f64());
    }

    /// Tokens of a settled request, whether it was answered to its end or not.
    pub fn billable(&self, model: &str, prompt: u64, cached: u64, completion: u64) {
        let fresh = prompt.saturating_sub(cached);
        for (kind, tokens) in [
            ("input", fresh),
            ("cached_input", cached),
            ("output", completion),
        ] {
            let labels = [model, kind];
            self.billable.with_label_values(&labels).inc_by(tokens);
        }
    }

    pub fn billed(&self, model: &str, nano_usd: u64) {
        self.cost.with_label_values(&[model]).inc_by(nano_usd);
    }

    /// Prometheus's text format, with the engines' gauges of now: (model, replica, counters) of each
    /// driver, and for each model whether it is ready.
    pub fn scrape(
        &self,
        stats: &[(String, u16, EngineStats)],
        ready: &[(String, bool)],
    ) -> Result<String, prometheus::Error> {
        let _one = self.scraping.lock().unwrap_or_else(PoisonError::into_inner);
        self.engines(stats, ready);
        let mut out = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut out)?;
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    fn engines(&self, stats: &[(String, u16, EngineStats)], ready: &[(String, bool)]) {
        for gauge in [
            &self.running,
            &self.waiting,
            &self.replica_ready,
            &self.replica_preemptions,
            &self.replica_steps,
        ] {
            gauge.reset();
        }
        self.kv_usage.reset();
        for (model, ready) in ready {
            let model = [model.as_str()];
            self.replica_ready
                .with_label_values(&model)
                .set(i64::from(*ready));
            let (mut used, mut total) = (0u64, 0u64);
            for (_, replica, one) in stats.iter().filter(|(name, _, _)| name == model[0]) {
                let replica = replica.to_string();
                let labels = [model[0], replica.as_str()];
                self.running
                    .with_label_values(&model)
                    .add(i64::from(one.running));
                self.waiting
                    .with_label_values(&model)
                    .add(i64::from(one.waiting));
                self.replica_preemptions
                    .with_label_values(&labels)
                    .set(one.preemptions as i64);
                self.replica_steps
                    .with_label_values(&labels)
                    .set(one.steps as i64);
                used += u64::from(one.kv_pages_used);
                total += u64::from(one.kv_pages_total);
            }
            self.kv_usage
                .with_label_values(&model)
                .set(used as f64 / total.max(1) as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_gauges_add_up_over_replicas_and_forget_old_ones() {
        let metrics = Metrics::new().unwrap();
        let stats = EngineStats {
            running: 2,
            waiting: 1,
            kv_pages_total: 10,
            kv_pages_used: 5,
            ..EngineStats::default()
        };
        let of = |replica| ("m".to_owned(), replica, stats);
        let text = metrics
            .scrape(&[of(0), of(1)], &[("m".into(), true)])
            .unwrap();
        assert!(
            text.contains("vllm:num_requests_running{model_name=\"m\"} 4"),
            "{text}"
        );
        assert!(text.contains("vllm:kv_cache_usage_perc{model_name=\"m\"} 0.5"));
        assert!(text.contains("trireme_replica_steps{model_name=\"m\",replica=\"1\"} 0"));
        let text = metrics.scrape(&[], &[]).unwrap();
        assert!(!text.contains("vllm:num_requests_running{"));
    }
}
