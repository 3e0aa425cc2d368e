//! The admin API (`trireme_shared::api` has the table), by area: `cluster` (status, members, nodes),
//! `serving` (deployments and plans), `access` (join tokens, API keys), `trust` (CA, audit log, backup).
//! Writes go through `act`.
//!
//! What it keeps true: only the admin passes; reads are as new as the group's leader confirms, or say
//! that they may not be.

mod access;
mod act;
mod cluster;
mod members;
mod serving;
mod trust;

use super::error::ApiError;
use super::server::GatewayState;
use super::{auth, body};
use act::Act;
use axum::extract::{Request, State};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde_json::Value;
use trireme_shared::api::IdempotencyKey;

/// Every route below `/admin/v1`.
pub fn routes() -> Router<GatewayState> {
    Router::new()
        .route("/admin/v1/status", get(cluster::status))
        .route(
            "/admin/v1/members",
            get(cluster::members).post(cluster::invite),
        )
        .route("/admin/v1/members/{id}", delete(cluster::remove_member))
        .route("/admin/v1/members/{id}/promote", post(cluster::promote))
        .route("/admin/v1/nodes", get(cluster::nodes))
        .route("/admin/v1/nodes/{id}", delete(cluster::remove_node))
        .route("/admin/v1/plan", get(serving::plan))
        .route("/admin/v1/deployments", put(serving::deploy))
        .route("/admin/v1/deployments/{*name}", delete(serving::undeploy))
        .route(
            "/admin/v1/tokens",
            get(access::tokens).post(access::create_token),
        )
        .route("/admin/v1/tokens/{id}", delete(access::revoke_token))
        .route("/admin/v1/keys", post(access::create_key))
        .route("/admin/v1/ca", get(trust::authorities))
        .route("/admin/v1/ca/rotate", post(trust::rotate))
        .route("/admin/v1/audit", get(trust::audit))
        .route("/admin/v1/backup", get(trust::backup))
        .route("/admin/v1/idempotency-key", get(idempotency_key))
}

/// Lets the admin in and parses the body.
async fn admit<T: DeserializeOwned + Send + 'static>(
    gateway: &GatewayState,
    request: Request,
) -> Result<(Act, T), ApiError> {
    let (parts, content) = request.into_parts();
    let act = match Act::admit(gateway, &parts) {
        Ok(act) => act,
        Err(error) => {
            body::discard(content).await;
            return Err(error);
        }
    };
    let parsed = body::parse(&parts.headers, content, |value: Value| {
        serde_json::from_value(value)
            .map_err(|error| ApiError::body(format!("The body is not as it should be: {error}.")))
    });
    Ok((act, parsed.await?))
}

/// Lets the admin in; the act needs no body, and one that comes is thrown away.
async fn admit_bare(gateway: &GatewayState, request: Request) -> Result<Act, ApiError> {
    let (parts, content) = request.into_parts();
    body::discard(content).await;
    Act::admit(gateway, &parts)
}

/// Waits until this replica holds all that was acknowledged anywhere; false where nobody leads, so that
/// it may be old.
async fn fresh(gateway: &GatewayState) -> bool {
    let led = gateway.group.leadership().borrow().leader.is_some();
    led && gateway.group.read_barrier().await.is_ok()
}

/// A number from a path, with or without the letter that it is shown with.
fn numbered(text: &str, letter: char) -> Option<u32> {
    text.strip_prefix(letter).unwrap_or(text).parse().ok()
}

async fn idempotency_key(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<IdempotencyKey>, ApiError> {
    auth::admin(&gateway.group, request.headers())?;
    let key = act::new_key(&gateway)?;
    Ok(Json(IdempotencyKey { key }))
}
