//! `/health`, `/ready` and `/metrics`: for load balancers and Prometheus, without a key.

use super::error::ApiError;
use super::openapi::RefusedOpen;
use super::server::GatewayState;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// What needs no key.
pub fn routes() -> OpenApiRouter<GatewayState> {
    OpenApiRouter::new()
        .routes(routes!(health))
        .routes(routes!(ready))
        .routes(routes!(metrics))
}

/// The process answers.
#[utoipa::path(get, path = "/health", tag = "service",
    responses((status = 200, description = "It runs", body = Object), (status = 500, description = "It does not")))]
pub async fn health() -> Response {
    axum::Json(json!({"status": "ok"})).into_response()
}

/// Each deployment's name and whether a token came through it recently.
fn readiness(gateway: &GatewayState) -> Vec<(String, bool)> {
    let deployments: Vec<_> = gateway.group.read(|state| {
        state
            .deployments()
            .map(|d| (d.id, d.spec.model.name.clone()))
            .collect()
    });
    deployments
        .into_iter()
        .map(|(id, name)| (name, gateway.fleet.is_ready(id)))
        .collect()
}

/// 200 once there is a deployment and every deployment can answer; else 503 and why.
#[utoipa::path(get, path = "/ready", tag = "service",
    responses((status = 200, description = "Ready", body = Object), RefusedOpen))]
pub async fn ready(State(gateway): State<GatewayState>) -> Response {
    let deployments = readiness(&gateway);
    let waiting: Vec<&str> = deployments
        .iter()
        .filter(|(_, ready)| !ready)
        .map(|(name, _)| name.as_str())
        .collect();
    let (status, body) = if deployments.is_empty() {
        let why = "no model is deployed yet: PUT /admin/v1/deployments";
        (
            StatusCode::SERVICE_UNAVAILABLE,
            json!({"ready": false, "reason": why}),
        )
    } else if !waiting.is_empty() {
        let why = "no token has come through these models recently; see `cluster status`";
        (
            StatusCode::SERVICE_UNAVAILABLE,
            json!({"ready": false, "reason": why, "models": waiting}),
        )
    } else {
        // The first request should not wait for its tokeniser.
        gateway.warm();
        (StatusCode::OK, json!({"ready": true}))
    };
    (status, axum::Json(body)).into_response()
}

/// Prometheus's text format.
#[utoipa::path(get, path = "/metrics", tag = "service",
    responses(
        (status = 200, description = "Metrics", body = String, content_type = "text/plain"), RefusedOpen))]
pub async fn metrics(State(gateway): State<GatewayState>) -> Result<Response, ApiError> {
    let ready = readiness(&gateway);
    let stats: Vec<_> = gateway
        .fleet
        .engine_stats()
        .into_iter()
        .filter_map(|(id, replica, stats)| {
            let name = gateway
                .group
                .read(|state| state.deployment(id).map(|d| d.spec.model.name.clone()))?;
            Some((name, replica, stats))
        })
        .collect();
    let text = gateway
        .metrics
        .scrape(&stats, &ready)
        .map_err(|error| ApiError::internal(format!("metrics cannot be rendered: {error}")))?;
    let kind = (
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    );
    Ok(([kind], text).into_response())
}
