//! The admin API (`trireme_shared::api` has the table): thin calls to the fleet.

use super::envelope::RequestContext;
use super::error::ApiError;
use super::server::GatewayState;
use super::{auth, body};
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::Value;
use trireme_shared::api::{
    DeploymentReport, KeyCreated, KeyRequest, StatusReport, TokenCreated, TokenReport, TokenRequest,
};
use trireme_shared::ids::TokenRecordId;
use trireme_shared::plan::{DeploymentSpec, ReplicaPlan};

/// Lets the admin in and parses the body.
async fn admit<T: DeserializeOwned + Send + 'static>(
    gateway: &GatewayState,
    request: Request,
) -> Result<T, ApiError> {
    let (parts, content) = request.into_parts();
    if let Err(error) = auth::admin(&gateway.journal, &parts.headers) {
        body::discard(content).await;
        return Err(error);
    }
    body::parse(&parts.headers, content, |value: Value| {
        serde_json::from_value(value)
            .map_err(|error| ApiError::body(format!("The body is not as it should be: {error}.")))
    })
    .await
}

/// The status without what authenticates ranks to each other.
fn public_status(gateway: &GatewayState) -> StatusReport {
    let mut status = gateway.fleet.status();
    for replica in status.deployments.iter_mut().flat_map(|d| &mut d.replicas) {
        if let Some(plan) = &mut replica.plan {
            plan.nonce = [0; 16];
        }
    }
    status
}

pub async fn status(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<StatusReport>, ApiError> {
    auth::admin(&gateway.journal, request.headers())?;
    Ok(Json(public_status(&gateway)))
}

pub async fn plan(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<Vec<ReplicaPlan>>, ApiError> {
    auth::admin(&gateway.journal, request.headers())?;
    let plans = public_status(&gateway)
        .deployments
        .into_iter()
        .flat_map(|deployment| deployment.replicas)
        .filter_map(|replica| replica.plan)
        .collect();
    Ok(Json(plans))
}

pub async fn deploy(
    State(gateway): State<GatewayState>,
    Extension(context): Extension<RequestContext>,
    request: Request,
) -> Result<Json<DeploymentReport>, ApiError> {
    let spec: DeploymentSpec = admit(&gateway, request).await?;
    tracing::info!(request_id = %context.id, model = spec.model.name, "deploying");
    let model = spec.model.clone();
    let mut report = gateway.fleet.deploy(spec).await?;
    gateway.texts.warm(&model);
    for replica in &mut report.replicas {
        if let Some(plan) = &mut replica.plan {
            plan.nonce = [0; 16];
        }
    }
    Ok(Json(report))
}

pub async fn tokens(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<Vec<TokenReport>>, ApiError> {
    auth::admin(&gateway.journal, request.headers())?;
    Ok(Json(gateway.fleet.tokens()))
}

pub async fn create_token(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<(StatusCode, Json<TokenCreated>), ApiError> {
    let wanted: TokenRequest = admit(&gateway, request).await?;
    let created = gateway.fleet.create_token(wanted).await?;
    Ok((StatusCode::CREATED, Json(created)))
}

pub async fn revoke_token(
    State(gateway): State<GatewayState>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<TokenReport>, ApiError> {
    auth::admin(&gateway.journal, request.headers())?;
    // As shown (`j7`) or bare (`7`).
    let known = id
        .ok()
        .and_then(|Path(id)| id.strip_prefix('j').unwrap_or(&id).parse().ok())
        .map(TokenRecordId)
        .filter(|id| gateway.journal.read(|state| state.token(*id).is_some()));
    let Some(id) = known else {
        return Err(ApiError::not_found(
            "There is no such join token: GET /admin/v1/tokens lists them.",
        ));
    };
    Ok(Json(gateway.fleet.revoke_token(id).await?))
}

pub async fn create_key(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<(StatusCode, Json<KeyCreated>), ApiError> {
    let wanted: KeyRequest = admit(&gateway, request).await?;
    let created = gateway.fleet.create_key(wanted).await?;
    Ok((StatusCode::CREATED, Json(created)))
}
