//! OpenAI's API: `/v1/chat/completions`, `/v1/completions`, `/v1/models`.

mod answer;
mod chat;
mod completions;
mod fields;
mod generation;
mod job;
mod logprobs;
pub mod models;
mod params;
mod render;
mod stream;

use super::envelope::RequestContext;
use super::error::ApiError;
use super::server::GatewayState;
use super::usage::Payer;
use super::{auth, body};
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use chat::ChatRequest;
use completions::CompletionRequest;
use generation::Generation;
use job::Job;
use serde_json::Value;

/// `POST /v1/chat/completions`
pub async fn chat_completions(
    State(gateway): State<GatewayState>,
    Extension(context): Extension<RequestContext>,
    request: Request,
) -> Result<Response, ApiError> {
    let (payer, wanted) = admit(&gateway, &context, request, ChatRequest::parse).await?;
    let job = Job::chat(&gateway, wanted).await?;
    respond(&gateway, context, payer, job).await
}

/// `POST /v1/completions`
pub async fn text_completions(
    State(gateway): State<GatewayState>,
    Extension(context): Extension<RequestContext>,
    request: Request,
) -> Result<Response, ApiError> {
    let (payer, wanted) = admit(&gateway, &context, request, CompletionRequest::parse).await?;
    let job = Job::completion(&gateway, wanted).await?;
    respond(&gateway, context, payer, job).await
}

/// Lets the tenant in, if there is a place for it, and parses the body.
async fn admit<T: Send + 'static>(
    gateway: &GatewayState,
    context: &RequestContext,
    request: Request,
    make: fn(Value) -> Result<T, ApiError>,
) -> Result<(Payer, T), ApiError> {
    let (parts, content) = request.into_parts();
    let payer = auth::tenant(&gateway.group, &parts.headers, &context.id);
    let seated = payer.and_then(|payer| {
        gateway.seat(&context.permit, payer.tenant)?;
        Ok(payer)
    });
    let payer = match seated {
        Ok(payer) => payer,
        Err(error) => {
            body::discard(content).await;
            return Err(error);
        }
    };
    Ok((payer, body::parse(&parts.headers, content, make).await?))
}

/// Runs the job and answers, at once or as a stream.
async fn respond(
    gateway: &GatewayState,
    context: RequestContext,
    payer: Payer,
    job: Job,
) -> Result<Response, ApiError> {
    let (generation, renderer) = Generation::start(gateway, context, payer, job)?;
    if renderer.shape.stream {
        stream::respond(generation, renderer).await
    } else {
        let answer = answer::collect(generation, renderer).await?;
        Ok(axum::Json(answer).into_response())
    }
}
