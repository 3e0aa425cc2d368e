//! An answer as server-sent events (WHATWG HTML, section 9.2): `data: {...}` and a blank line each.
//!
//! Keeps true: a chat choice begins with its role; `[DONE]` is last and comes only after the usage
//! is durable; a failure in mid-stream is one `error` object and then the end. The body is pulled
//! by the connection, so a client that leaves drops it, and with it the generation.

use super::generation::Generation;
use super::render::{Piece, Renderer};
use crate::gateway::error::ApiError;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use serde_json::Value;
use std::convert::Infallible;
use trireme_shared::limits;

const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";
const DONE: &[u8] = b"data: [DONE]\n\n";

fn frame(value: &Value) -> Bytes {
    // JSON has no raw line breaks, so one `data:` line holds it.
    Bytes::from(format!("data: {value}\n\n"))
}

/// The stream's body, pulled piece by piece.
struct Events {
    /// `None` once the stream ended.
    generation: Option<Generation>,
    renderer: Renderer,
}

/// Answers with a stream; a failure before its first event is still an error answer.
pub async fn respond(mut generation: Generation, renderer: Renderer) -> Result<Response, ApiError> {
    generation.first(limits::FIRST_EVENT_WAIT).await?;
    let events = Events {
        generation: Some(generation),
        renderer,
    };
    let body = stream::unfold(events, |mut events| async move {
        let bytes = events.next().await?;
        Some((Ok::<_, Infallible>(bytes), events))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would hold the stream back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

impl Events {
    /// The next bytes to send; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let generation = self.generation.as_mut()?;
            let waited = tokio::time::timeout(limits::SSE_KEEP_ALIVE, generation.next()).await;
            match waited {
                Err(_) => return Some(Bytes::from_static(KEEP_ALIVE)),
                Ok(Ok(Some((index, event)))) => {
                    let mut out = Vec::new();
                    let note = generation.billing_note();
                    for piece in self.renderer.on(index, event) {
                        if let Some(mut chunk) = self.renderer.shape.chunk(index, &piece) {
                            if let (Piece::End(_), Some(note)) = (&piece, &note) {
                                chunk["billing_note"] = note.as_str().into();
                            }
                            out.extend_from_slice(&frame(&chunk));
                        }
                    }
                    if !out.is_empty() {
                        return Some(Bytes::from(out));
                    }
                }
                Ok(Ok(None)) => return Some(self.end().await),
                Ok(Err(error)) => {
                    // Dropping it cancels the other choices and bills what was delivered.
                    generation.failed(&error);
                    self.generation = None;
                    return Some(frame(&error.to_json()));
                }
            }
        }
    }

    async fn end(&mut self) -> Bytes {
        let Some(mut generation) = self.generation.take() else {
            return Bytes::new();
        };
        match generation.settle().await {
            Ok(usage) => {
                let mut out = Vec::new();
                if self.renderer.shape.include_usage {
                    let chunk = self.renderer.shape.usage_chunk(usage.to_json());
                    out.extend_from_slice(&frame(&chunk));
                }
                out.extend_from_slice(DONE);
                Bytes::from(out)
            }
            Err(error) => frame(&error.to_json()),
        }
    }
}
