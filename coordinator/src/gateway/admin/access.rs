//! Who may join: tokens.

use super::{admit, admit_bare, fresh, numbered};
use crate::gateway::auth;
use crate::gateway::error::ApiError;
use crate::gateway::openapi::{Refused, RefusedAct};
use crate::gateway::server::GatewayState;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use trireme_shared::api::{TokenCreated, TokenReport, TokenRequest};
use trireme_shared::ids::TokenRecordId;

/// Join tokens, never their secrets.
#[utoipa::path(get, path = "/admin/v1/tokens", tag = "cluster", security(("key" = [])),
    responses((status = 200, body = Vec<TokenReport>), Refused))]
pub async fn tokens(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<Vec<TokenReport>>, ApiError> {
    auth::admin(&gateway.group, request.headers())?;
    fresh(&gateway).await;
    Ok(Json(gateway.fleet.tokens()))
}

/// Makes a join token; it is shown once.
#[utoipa::path(post, path = "/admin/v1/tokens", tag = "cluster", security(("key" = [])), request_body = TokenRequest,
    responses((status = 201, body = TokenCreated), RefusedAct))]
pub async fn create_token(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<(StatusCode, Json<TokenCreated>), ApiError> {
    let (act, wanted) = admit(&gateway, request).await?;
    let wanted: TokenRequest = wanted;
    let created = gateway.fleet.create_token(act.terms(), wanted).await;
    Ok((StatusCode::CREATED, Json(act.told(created)?)))
}

/// Makes a join token worthless.
#[utoipa::path(delete, path = "/admin/v1/tokens/{id}", tag = "cluster", security(("key" = [])),
    params(("id" = String, Path, description = "`j3`")),
    responses((status = 200, body = TokenReport), RefusedAct))]
pub async fn revoke_token(
    State(gateway): State<GatewayState>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<TokenReport>, ApiError> {
    let act = admit_bare(&gateway, request).await?;
    let id = id.ok().and_then(|Path(id)| numbered(&id, 'j'));
    let Some(id) = id.map(TokenRecordId) else {
        return Err(ApiError::not_found(
            "There is no such join token: GET /admin/v1/tokens lists them.",
        ));
    };
    let revoked = gateway.fleet.revoke_token(act.terms(), id).await;
    Ok(Json(act.told(revoked)?))
}
