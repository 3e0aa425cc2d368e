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
mod schema;
mod stream;

use super::envelope::RequestContext;
use super::error::ApiError;
use super::openapi::RefusedWork;
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
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Every route below `/v1`.
pub fn routes() -> OpenApiRouter<GatewayState> {
    OpenApiRouter::new()
        .routes(routes!(chat_completions))
        .routes(routes!(text_completions))
        .routes(routes!(models::list))
        .routes(routes!(models::one))
}

/// Answers a chat: OpenAI's chat completions, for text.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "inference", security(("key" = [])),
    request_body = schema::ChatCompletionRequest,
    responses(
        (status = 200, content(
            (schema::ChatCompletion = "application/json"), (String = "text/event-stream"))),
        RefusedWork))]
pub async fn chat_completions(
    State(gateway): State<GatewayState>,
    Extension(context): Extension<RequestContext>,
    request: Request,
) -> Result<Response, ApiError> {
    let (payer, wanted) = admit(&gateway, &context, request, ChatRequest::parse).await?;
    auth::model(&gateway.group, payer.key, &wanted.common.model)?;
    let job = Job::chat(&gateway, wanted).await?;
    respond(&gateway, context, payer, job).await
}

/// Goes on with a text: OpenAI's completions.
#[utoipa::path(post, path = "/v1/completions", tag = "inference", security(("key" = [])),
    request_body = schema::CompletionRequest,
    responses(
        (status = 200, content(
            (schema::TextCompletion = "application/json"), (String = "text/event-stream"))),
        RefusedWork))]
pub async fn text_completions(
    State(gateway): State<GatewayState>,
    Extension(context): Extension<RequestContext>,
    request: Request,
) -> Result<Response, ApiError> {
    let (payer, wanted) = admit(&gateway, &context, request, CompletionRequest::parse).await?;
    auth::model(&gateway.group, payer.key, &wanted.common.model)?;
    let job = Job::completion(&gateway, wanted).await?;
    respond(&gateway, context, payer, job).await
}

/// Lets the tenant in and parses the body.
async fn admit<T: Send + 'static>(
    gateway: &GatewayState,
    context: &RequestContext,
    request: Request,
    make: fn(Value) -> Result<T, ApiError>,
) -> Result<(Payer, T), ApiError> {
    let (parts, content) = request.into_parts();
    let payer = match auth::tenant(&gateway.group, &parts.headers, &context.id) {
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
