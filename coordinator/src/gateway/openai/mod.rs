//! OpenAI's API: `/v1/chat/completions`, `/v1/completions`, `/v1/models`.

mod answer;
mod chat;
mod completions;
mod fields;
mod generation;
mod headers;
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
) -> Response {
    let make = async |payer: &Payer, wanted: ChatRequest| {
        auth::model(&gateway.group, payer.key, &wanted.common.model)?;
        Job::chat(&gateway, wanted).await
    };
    serve(&gateway, context, request, ChatRequest::parse, make).await
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
) -> Response {
    let make = async |payer: &Payer, wanted: CompletionRequest| {
        auth::model(&gateway.group, payer.key, &wanted.common.model)?;
        Job::completion(&gateway, wanted).await
    };
    serve(&gateway, context, request, CompletionRequest::parse, make).await
}

/// Lets the tenant in, and answers with what is left of its limits whatever comes of the request.
async fn serve<T: Send + 'static>(
    gateway: &GatewayState,
    context: RequestContext,
    request: Request,
    parse: fn(Value) -> Result<T, ApiError>,
    make: impl AsyncFnOnce(&Payer, T) -> Result<Job, ApiError>,
) -> Response {
    let (parts, content) = request.into_parts();
    let payer = auth::tenant(&gateway.group, &parts.headers, &context.id);
    let seated = payer.and_then(|payer| {
        gateway.seat(&context.permit, payer.tenant)?;
        Ok(payer)
    });
    let mut payer = match seated {
        Ok(payer) => payer,
        Err(error) => {
            body::discard(content).await;
            return error.into_response();
        }
    };
    let answered = async {
        let wish = headers::Asked::of(&parts.headers)?;
        let (wanted, digest) = body::parse_hashed(&parts.headers, content, parse).await?;
        payer.idempotency = wish.idempotency(&digest);
        let job = make(&payer, wanted).await?;
        respond(gateway, context, &payer, job, wish.cost).await
    };
    let mut response = answered.await.into_response();
    headers::rates(response.headers_mut(), &gateway.desk.rates(&payer));
    response
}

/// Runs the job and answers, at once or as a stream.
async fn respond(
    gateway: &GatewayState,
    context: RequestContext,
    payer: &Payer,
    job: Job,
    cost: bool,
) -> Result<Response, ApiError> {
    let held = gateway.desk.admit(payer, &job.wish()).await?;
    let (generation, renderer) = Generation::start(gateway, context, payer.clone(), job, held)?;
    if renderer.shape.stream {
        return stream::respond(generation, renderer).await;
    }
    let (answer, usage) = answer::collect(generation, renderer).await?;
    let mut response = axum::Json(answer).into_response();
    if cost {
        headers::cost(response.headers_mut(), usage.cost);
    }
    Ok(response)
}
