//! `GET /v1/models` and `/v1/models/{id}`.

use super::schema::{Model, ModelList};
use crate::gateway::auth;
use crate::gateway::envelope::RequestContext;
use crate::gateway::error::ApiError;
use crate::gateway::openapi::{Refused, RefusedOne};
use crate::gateway::server::GatewayState;
use crate::state::Deployment;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use serde_json::{Value, json};

fn model(deployment: &Deployment) -> Value {
    json!({
        "id": deployment.spec.model.name,
        "object": "model",
        "created": deployment.created_at,
        "owned_by": "trireme",
    })
}

/// The models that the key may use.
#[utoipa::path(get, path = "/v1/models", tag = "inference", security(("key" = [])),
    responses((status = 200, body = ModelList), Refused))]
pub async fn list(
    State(gateway): State<GatewayState>,
    Extension(context): Extension<RequestContext>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let payer = auth::tenant(&gateway.group, request.headers(), &context.id)?;
    let models: Vec<Value> = gateway.group.read(|state| {
        let all = state.deployments();
        let open = all.filter(|d| auth::allows(state, payer.key, &d.spec.model.name));
        open.map(model).collect()
    });
    Ok(Json(json!({"object": "list", "data": models})))
}

/// One model that the key may use.
#[utoipa::path(get, path = "/v1/models/{*id}", tag = "inference", security(("key" = [])),
    params(("id" = String, Path, description = "The model's name")),
    responses((status = 200, body = Model), RefusedOne))]
pub async fn one(
    State(gateway): State<GatewayState>,
    Extension(context): Extension<RequestContext>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let payer = auth::tenant(&gateway.group, request.headers(), &context.id)?;
    // A name that is no UTF-8 is no model's.
    let Path(id) = id.map_err(|_| ApiError::model_not_found("?"))?;
    gateway
        .group
        .read(|state| {
            let open = auth::allows(state, payer.key, &id);
            state.deployment_named(&id).filter(|_| open).map(model)
        })
        .map(Json)
        .ok_or_else(|| ApiError::model_not_found(&id))
}
