//! Who may join (tokens) and who may ask (keys).

use super::{admit, admit_bare, fresh, numbered};
use crate::gateway::auth;
use crate::gateway::error::ApiError;
use crate::gateway::server::GatewayState;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use trireme_shared::api::{KeyCreated, KeyRequest, TokenCreated, TokenReport, TokenRequest};
use trireme_shared::ids::TokenRecordId;

pub async fn tokens(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<Vec<TokenReport>>, ApiError> {
    auth::admin(&gateway.group, request.headers())?;
    fresh(&gateway).await;
    Ok(Json(gateway.fleet.tokens()))
}

pub async fn create_token(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<(StatusCode, Json<TokenCreated>), ApiError> {
    let (act, wanted) = admit(&gateway, request).await?;
    let wanted: TokenRequest = wanted;
    let created = gateway.fleet.create_token(act.terms(), wanted).await;
    Ok((StatusCode::CREATED, Json(act.told(created)?)))
}

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

pub async fn create_key(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<(StatusCode, Json<KeyCreated>), ApiError> {
    let (act, wanted) = admit(&gateway, request).await?;
    let wanted: KeyRequest = wanted;
    let created = gateway.fleet.create_key(act.terms(), wanted).await;
    Ok((StatusCode::CREATED, Json(act.told(created)?)))
}
