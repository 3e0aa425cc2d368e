//! What is served: deployments and their plans.

use super::{admit, admit_bare};
use crate::gateway::auth;
use crate::gateway::envelope::RequestContext;
use crate::gateway::error::ApiError;
use crate::gateway::openapi::{Refused, RefusedAct};
use crate::gateway::server::GatewayState;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use trireme_shared::api::{DeploymentReport, Removed};
use trireme_shared::plan::{DeploymentSpec, ReplicaPlan};

/// Which worker runs which part of which model.
#[utoipa::path(get, path = "/admin/v1/plan", tag = "cluster", security(("key" = [])),
    responses((status = 200, body = Vec<ReplicaPlan>), Refused))]
pub async fn plan(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<Vec<ReplicaPlan>>, ApiError> {
    auth::admin(&gateway.group, request.headers())?;
    Ok(Json(gateway.fleet.plans()))
}

/// Serves a model, or serves it in another way.
#[utoipa::path(put, path = "/admin/v1/deployments", tag = "cluster", security(("key" = [])), request_body = DeploymentSpec,
    responses((status = 200, body = DeploymentReport), RefusedAct))]
pub async fn deploy(
    State(gateway): State<GatewayState>,
    Extension(context): Extension<RequestContext>,
    request: Request,
) -> Result<Json<DeploymentReport>, ApiError> {
    let (act, spec) = admit(&gateway, request).await?;
    let spec: DeploymentSpec = spec;
    tracing::info!(request_id = %context.id, model = spec.model.name, "deploying");
    let model = spec.model.clone();
    let deployed = gateway.fleet.deploy(act.terms(), spec).await;
    let mut report = act.told(deployed)?;
    gateway.texts.warm(&model);
    hide_nonces(&mut report);
    Ok(Json(report))
}

/// Stops serving a model.
#[utoipa::path(delete, path = "/admin/v1/deployments/{*name}", tag = "cluster", security(("key" = [])),
    params(("name" = String, Path, description = "The model's name")),
    responses((status = 200, body = Removed), RefusedAct))]
pub async fn undeploy(
    State(gateway): State<GatewayState>,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<Removed>, ApiError> {
    let act = admit_bare(&gateway, request).await?;
    // A name that is no UTF-8 is no deployment's.
    let Path(name) = name.map_err(|_| ApiError::model_not_found("?"))?;
    let gone = gateway.fleet.undeploy(act.terms(), &name).await;
    act.told(gone)?;
    Ok(Json(Removed { removed: name }))
}

/// Nonces are what ranks know each other by.
pub fn hide_nonces(report: &mut DeploymentReport) {
    for replica in &mut report.replicas {
        if let Some(plan) = &mut replica.plan {
            plan.nonce = [0; 16];
        }
    }
}
