//! Who may ask: API keys. A key is in the answer that makes it and nowhere else.

use super::{Look, Named, admit, admit_bare, numbered};
use crate::gateway::error::ApiError;
use crate::gateway::openapi::{RefusedAct, RefusedOne};
use crate::gateway::server::GatewayState;
use crate::gateway::view;
use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use trireme_shared::api::{KeyCreated, KeyReport, KeyRequest, KeySettings, RotateRequest};
use trireme_shared::ids::KeyId;

fn missing() -> ApiError {
    ApiError::not_found("There is no such key: GET /admin/v1/keys lists them.")
}

/// As shown (`k2`) or bare (`2`).
fn key(id: Named) -> Result<KeyId, ApiError> {
    let id = id.ok().and_then(|Path(id)| numbered(&id, 'k'));
    id.map(KeyId).ok_or_else(missing)
}

fn report(gateway: &GatewayState, id: KeyId) -> Result<Json<KeyReport>, ApiError> {
    let state = gateway.group.snapshot();
    let key = state.key(id).ok_or_else(missing)?;
    Ok(Json(view::key(&state, key, super::now_ms(&state))))
}

/// All keys, or one tenant's.
#[utoipa::path(get, path = "/admin/v1/keys", tag = "accounts", security(("key" = [])),
    params(("tenant" = Option<String>, Query, description = "Of the tenant of that name")),
    responses((status = 200, body = Vec<KeyReport>), RefusedOne))]
pub async fn list(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<Vec<KeyReport>>, ApiError> {
    let look = Look::admit(&gateway, &request, &["tenant"]).await?;
    let (state, now_ms) = (&look.state, look.now_ms);
    let tenant = match look.params.text("tenant") {
        Some(name) => Some(
            state
                .tenant_named(name)
                .ok_or_else(super::tenants::missing)?,
        ),
        None => None,
    };
    let keys = state.keys();
    let keys = keys.filter(|key| tenant.is_none_or(|tenant| tenant.id == key.tenant));
    Ok(Json(
        keys.map(|key| view::key(state, key, now_ms)).collect(),
    ))
}

/// Makes a key for a tenant, who is made if need be; it is shown once.
#[utoipa::path(post, path = "/admin/v1/keys", tag = "accounts", security(("key" = [])),
    request_body = KeyRequest,
    responses((status = 201, body = KeyCreated), RefusedAct))]
pub async fn create(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<(StatusCode, Json<KeyCreated>), ApiError> {
    let (act, wanted) = admit(&gateway, request).await?;
    let wanted: KeyRequest = wanted;
    let (tenant, settings) = wanted.split();
    let settings = view::stored_key_settings(&settings);
    let created = gateway.fleet.create_key(act.terms(), tenant, settings);
    Ok((StatusCode::CREATED, Json(act.told(created.await)?)))
}

/// One key: settings, what it spent this month and what is left.
#[utoipa::path(get, path = "/admin/v1/keys/{id}", tag = "accounts", security(("key" = [])),
    params(("id" = String, Path, description = "`k3`")),
    responses((status = 200, body = KeyReport), RefusedOne))]
pub async fn one(
    State(gateway): State<GatewayState>,
    id: Named,
    request: Request,
) -> Result<Json<KeyReport>, ApiError> {
    let look = Look::admit(&gateway, &request, &[]).await?;
    let key = look.state.key(key(id)?).ok_or_else(missing)?;
    Ok(Json(view::key(&look.state, key, look.now_ms)))
}

/// Gives a key other settings: all of them, as what is left out is not bounded. Its limits and its budget
/// are also those of the keys that it replaced or that replaced it.
#[utoipa::path(put, path = "/admin/v1/keys/{id}", tag = "accounts", security(("key" = [])),
    request_body = KeySettings,
    params(("id" = String, Path, description = "`k3`")),
    responses((status = 200, body = KeyReport), RefusedAct))]
pub async fn put(
    State(gateway): State<GatewayState>,
    id: Named,
    request: Request,
) -> Result<Json<KeyReport>, ApiError> {
    let (act, settings) = admit(&gateway, request).await?;
    let settings: KeySettings = settings;
    let (id, settings) = (key(id)?, view::stored_key_settings(&settings));
    act.told(gateway.fleet.update_key(act.terms(), id, settings).await)?;
    report(&gateway, id)
}

/// Revokes a key: from now on it lets nobody in.
#[utoipa::path(delete, path = "/admin/v1/keys/{id}", tag = "accounts", security(("key" = [])),
    params(("id" = String, Path, description = "`k3`")),
    responses((status = 200, body = KeyReport), RefusedAct))]
pub async fn revoke(
    State(gateway): State<GatewayState>,
    id: Named,
    request: Request,
) -> Result<Json<KeyReport>, ApiError> {
    let act = admit_bare(&gateway, request).await?;
    let id = key(id)?;
    act.told(gateway.fleet.revoke_key(act.terms(), id).await)?;
    report(&gateway, id)
}

/// Makes a key that takes this one's place, with its settings; it is shown once. Both work for the time
/// that they overlap.
#[utoipa::path(post, path = "/admin/v1/keys/{id}/rotate", tag = "accounts", security(("key" = [])),
    request_body = RotateRequest,
    params(("id" = String, Path, description = "`k3`")),
    responses((status = 201, body = KeyCreated), RefusedAct))]
pub async fn rotate(
    State(gateway): State<GatewayState>,
    id: Named,
    request: Request,
) -> Result<(StatusCode, Json<KeyCreated>), ApiError> {
    let (act, wanted) = admit(&gateway, request).await?;
    let RotateRequest { overlap_seconds } = wanted;
    let id = key(id)?;
    let rotated = gateway.fleet.rotate_key(act.terms(), id, overlap_seconds);
    Ok((StatusCode::CREATED, Json(act.told(rotated.await)?)))
}
