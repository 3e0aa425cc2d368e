//! Traces: a span for each generation, sent by OTLP where the environment names a collector.
//!
//! Names follow OpenTelemetry's semantic conventions for generative AI
//! (<https://opentelemetry.io/docs/specs/semconv/gen-ai/>); what they have no name for begins with
//! `trireme.`. The variables are OpenTelemetry's own (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`,
//! `OTEL_TRACES_SAMPLER` and so on). Prompts and answers are in no span.
//!
//! Keeps true: no request waits for a collector. Spans wait in a bounded queue for a thread of their own;
//! what the queue has no room for is dropped.

use crate::state::Counts;
use axum::http::HeaderMap;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Span, SpanBuilder, SpanKind, Status, Tracer as _, TracerProvider};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_http::{Bytes, HeaderExtractor, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use std::time::{Duration, SystemTime};
use trireme_shared::ids::TenantId;
use trireme_shared::limits;
use ureq::Agent;

/// Either of them turns traces on.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

/// Sends spans, or drops them where no collector is named. Cheap to clone.
#[derive(Clone, Default)]
pub struct Traces(Option<Sending>);

#[derive(Clone)]
struct Sending {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// What a generation came to.
pub struct Generated<'a> {
    /// `chat` or `text_completion`.
    pub operation: &'static str,
    pub model: &'a str,
    pub request_id: &'a str,
    pub tenant: TenantId,
    /// From the request's arrival on.
    pub took: Duration,
    pub first_token: Option<Duration>,
    pub finish_reasons: &'a [&'static str],
    pub counts: Counts,
    pub cost_nano_usd: Option<i64>,
    /// A class of errors, such as `client_disconnected`.
    pub error: Option<&'static str>,
}

impl Traces {
    /// As the process's environment says.
    ///
    /// # Errors
    /// Where the environment names a collector in a way that cannot be used.
    pub fn from_environment() -> Result<Self, ExporterBuildError> {
        if ENDPOINTS
            .iter()
            .all(|name| std::env::var_os(name).is_none())
        {
            return Ok(Self::default());
        }
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::new())
            .with_protocol(Protocol::HttpBinary)
            .build()?;
        Ok(Self::sending_to(
            SdkTracerProvider::builder().with_batch_exporter(exporter),
        ))
    }

    fn sending_to(provider: opentelemetry_sdk::trace::TracerProviderBuilder) -> Self {
        let named = std::env::var_os("OTEL_SERVICE_NAME").is_some();
        let resource = Resource::builder();
        let resource = match named {
            true => resource,
            false => resource.with_service_name("trireme"),
        };
        let provider = provider.with_resource(resource.build()).build();
        let tracer = provider.tracer("trireme");
        Self(Some(Sending { provider, tracer }))
    }

    /// The span that the caller says its request belongs to (W3C's `traceparent`).
    pub fn parent(&self, headers: &HeaderMap) -> Context {
        match &self.0 {
            Some(_) => TraceContextPropagator::new()
                .extract_with_context(&Context::new(), &HeaderExtractor(headers)),
            None => Context::new(),
        }
    }

    /// Tells of a generation that has just ended.
    pub fn generated(&self, parent: &Context, what: &Generated<'_>) {
        let Some(Sending { tracer, .. }) = &self.0 else {
            return;
        };
        let ended = SystemTime::now();
        let began = ended - what.took;
        let builder = SpanBuilder::from_name(format!("{} {}", what.operation, what.model))
            .with_kind(SpanKind::Server)
            .with_start_time(began)
            .with_attributes(attributes(what));
        let mut span = tracer.build_with_context(builder, parent);
        if let Some(first) = what.first_token {
            span.add_event_with_timestamp("first_token", began + first, Vec::new());
        }
        if let Some(error) = what.error {
            span.set_status(Status::error(error));
        }
        span.end_with_timestamp(ended);
    }

    /// Sends what waits. Blocks until then, or until `limits::TRACES_FLUSH_DEADLINE`.
    pub fn close(&self) {
        if let Some(Sending { provider, .. }) = &self.0
            && let Err(error) = provider.shutdown_with_timeout(limits::TRACES_FLUSH_DEADLINE)
        {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

fn attributes(what: &Generated<'_>) -> Vec<KeyValue> {
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let reasons = what
        .finish_reasons
        .iter()
        .map(|reason| StringValue::from(*reason));
    let mut all = vec![
        KeyValue::new("gen_ai.operation.name", what.operation),
        KeyValue::new("gen_ai.provider.name", "trireme"),
        KeyValue::new("gen_ai.request.model", what.model.to_owned()),
        KeyValue::new("gen_ai.response.id", what.request_id.to_owned()),
        KeyValue::new(
            "gen_ai.response.finish_reasons",
            Value::Array(Array::String(reasons.collect())),
        ),
        KeyValue::new("gen_ai.usage.input_tokens", count(what.counts.prompt.0)),
        KeyValue::new(
            "gen_ai.usage.cache_read.input_tokens",
            count(what.counts.cached.0),
        ),
        KeyValue::new(
            "gen_ai.usage.output_tokens",
            count(what.counts.completion.0),
        ),
        KeyValue::new("trireme.tenant", i64::from(what.tenant.0)),
    ];
    if let Some(first) = what.first_token {
        all.push(KeyValue::new(
            "gen_ai.response.time_to_first_chunk",
            first.as_secs_f64(),
        ));
    }
    if let Some(cost) = what.cost_nano_usd {
        all.push(KeyValue::new("trireme.cost_nano_usd", cost));
    }
    if let Some(error) = what.error {
        all.push(KeyValue::new("error.type", error));
    }
    all
}

/// Brings spans to a collector, on the thread that waits for nothing else.
#[derive(Debug)]
struct Collector(Agent);

impl Collector {
    fn new() -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(limits::TRACES_SEND_DEADLINE))
            .build();
        Self(config.new_agent())
    }
}

#[async_trait::async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let mut answer = self.0.run(Request::from_parts(parts, body.to_vec()))?;
        let said = answer
            .body_mut()
            .with_config()
            .limit(limits::TRACES_ANSWER_BYTES_MAX)
            .read_to_vec()?;
        let (parts, _) = answer.into_parts();
        Ok(Response::from_parts(parts, said.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::TraceContextExt;
    use opentelemetry_sdk::trace::InMemorySpanExporter;
    use trireme_shared::ids::Tokens;

    fn generated(error: Option<&'static str>) -> Generated<'static> {
        Generated {
            operation: "chat",
            model: "tiny",
            request_id: "req_1",
            tenant: TenantId(7),
            took: Duration::from_millis(50),
            first_token: Some(Duration::from_millis(20)),
            finish_reasons: &["stop", "length"],
            counts: Counts {
                prompt: Tokens(11),
                cached: Tokens(4),
                completion: Tokens(5),
            },
            cost_nano_usd: Some(1_234),
            error,
        }
    }

    #[test]
    fn a_span_says_what_was_generated_under_its_callers() {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone());
        let traces = Traces::sending_to(provider);
        let mut headers = HeaderMap::new();
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        headers.insert("traceparent", parent.parse().unwrap());
        let parent = traces.parent(&headers);
        traces.generated(&parent, &generated(Some("client_disconnected")));
        let spans = exporter.get_finished_spans().unwrap();
        let [span] = &spans[..] else {
            panic!("{spans:?}")
        };
        assert_eq!(span.name, "chat tiny");
        assert_eq!(span.parent_span_id.to_string(), "b7ad6b7169203331");
        assert_eq!(
            span.span_context.trace_id().to_string(),
            "0af7651916cd43dd8448eb211c80319c"
        );
        let took = span.end_time.duration_since(span.start_time).unwrap();
        assert_eq!(took, Duration::from_millis(50));
        assert_eq!(span.status, Status::error("client_disconnected"));
        let of = |key: &str| {
            let found = span.attributes.iter().find(|a| a.key.as_str() == key);
            found.map(|a| a.value.to_string())
        };
        assert_eq!(of("gen_ai.usage.input_tokens").as_deref(), Some("11"));
        assert_eq!(of("gen_ai.usage.output_tokens").as_deref(), Some("5"));
        assert_eq!(of("trireme.cost_nano_usd").as_deref(), Some("1234"));
        assert_eq!(span.events.events.len(), 1);
    }

    #[test]
    fn without_a_collector_nothing_is_kept() {
        let traces = Traces::default();
        let parent = traces.parent(&HeaderMap::new());
        assert!(!parent.has_active_span());
        traces.generated(&parent, &generated(None));
        traces.close();
    }
}
