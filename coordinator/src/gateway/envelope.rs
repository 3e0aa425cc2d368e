//! What every request gets: an id, leave to run among a bounded number of others, a log line, a
//! count, and an answer in OpenAI's shape even where a handler panics.

use super::body;
use super::error::ApiError;
use super::server::{GatewayState, Permit};
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::FutureExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;
use tracing::Instrument;
use trireme_shared::ids::RequestId;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What handlers know of the request besides its content.
#[derive(Clone)]
pub struct RequestContext {
    pub id: RequestId,
    pub arrived: Instant,
    pub permit: Permit,
    /// What the caller says it is part of.
    pub trace: opentelemetry::Context,
}

/// The outermost layer.
pub async fn envelope(
    State(gateway): State<GatewayState>,
    mut request: Request,
    next: Next,
) -> Response {
    let arrived = Instant::now();
    let id = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .and_then(RequestId::parse)
        .unwrap_or_else(RequestId::random);
    // The route's pattern and not the URL: no caller's words in logs and metrics.
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("unknown", MatchedPath::as_str)
        .to_owned();
    let method = request.method().clone();
    let span = tracing::info_span!("http", request_id = %id, %method, route);

    let work = async {
        if is_probe(&route) {
            return (next.run(request).await, None);
        }
        let Some(permit) = gateway.permit() else {
            body::discard(request.into_body()).await;
            let busy =
                ApiError::unavailable("overloaded", "Too many requests are running here.", 1);
            return (busy.into_response(), None);
        };
        let trace = gateway.traces.parent(request.headers());
        request.extensions_mut().insert(RequestContext {
            id: id.clone(),
            arrived,
            permit: permit.clone(),
            trace,
        });
        (next.run(request).await, Some(permit))
    };
    // A defect in a handler must cost its own request only. Nothing that a handler shares is left
    // half-changed: all of it is behind channels and locks that tolerate poison.
    let caught = AssertUnwindSafe(work.instrument(span.clone()))
        .catch_unwind()
        .await;
    let (mut response, permit) = caught.unwrap_or_else(|_| {
        let failed = ApiError::internal("The gateway failed on this request; see its log.");
        (failed.into_response(), None)
    });

    let status = response.status();
    gateway.metrics.http(&route, status.as_u16());
    span.in_scope(|| {
        let ms = arrived.elapsed().as_millis() as u64;
        if status.is_server_error() {
            tracing::warn!(status = status.as_u16(), ms, "answered");
        } else {
            tracing::debug!(status = status.as_u16(), ms, "answered");
        }
    });
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    match permit {
        Some(permit) => response.map(|body| {
            Body::new(Held {
                body,
                _permit: permit,
            })
        }),
        None => response,
    }
}

/// Probes are answered even where there is no place for one more request.
fn is_probe(route: &str) -> bool {
    matches!(route, "/health" | "/ready" | "/metrics")
}

/// A body that keeps its request's place until it was sent or dropped.
struct Held {
    body: Body,
    _permit: Permit,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// Both read the body, so that its sender sees the answer and can go on using the connection.

pub async fn unknown_url(method: Method, uri: Uri, content: Body) -> ApiError {
    body::discard(content).await;
    ApiError::unknown_url(method.as_str(), uri.path())
}

pub async fn method_not_allowed(method: Method, uri: Uri, content: Body) -> ApiError {
    body::discard(content).await;
    ApiError::method_not_allowed(method.as_str(), uri.path())
}
