//! The admin API (`trireme_shared::api` has the table), by area: `cluster` (status, members, nodes),
//! `serving` (deployments and plans), `access` (join tokens), `trust` (CA, audit log, backup), and accounts:
//! `tenants`, `keys`, `prices`, `money` (credits, refunds, the ledger), `providers`,
//! `settlements` (what an export reads). Writes go through `gateway::act`.
//!
//! What it keeps true: only the admin passes; reads are as new as the group's leader confirms, or say
//! that they may not be.

mod access;
mod cluster;
mod keys;
mod members;
mod money;
mod prices;
mod providers;
mod serving;
mod settlements;
mod tenants;
mod trust;

use super::act::{self, Act};
use super::auth;
use super::billing::params::Params;
use super::billing::{fresh, now_ms};
use super::error::ApiError;
use super::openapi::Refused;
use super::server::GatewayState;
use crate::state::State as Replica;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use trireme_shared::api::IdempotencyKey;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Every route below `/admin/v1`.
pub fn routes() -> OpenApiRouter<GatewayState> {
    OpenApiRouter::new()
        .routes(routes!(cluster::status))
        .routes(routes!(cluster::members, cluster::invite))
        .routes(routes!(cluster::remove_member))
        .routes(routes!(cluster::promote))
        .routes(routes!(cluster::nodes))
        .routes(routes!(cluster::remove_node))
        .routes(routes!(serving::plan))
        .routes(routes!(serving::deploy))
        .routes(routes!(serving::undeploy))
        .routes(routes!(access::tokens, access::create_token))
        .routes(routes!(access::revoke_token))
        .routes(routes!(keys::list, keys::create))
        .routes(routes!(keys::one, keys::put, keys::revoke))
        .routes(routes!(keys::rotate))
        .routes(routes!(tenants::list))
        .routes(routes!(tenants::one, tenants::put))
        .routes(routes!(tenants::usage))
        .routes(routes!(tenants::requests))
        .routes(routes!(tenants::statements))
        .routes(routes!(tenants::statement))
        .routes(routes!(prices::list))
        .routes(routes!(prices::put))
        .routes(routes!(prices::fee, prices::set_fee))
        .routes(routes!(money::credit))
        .routes(routes!(money::refund))
        .routes(routes!(money::request))
        .routes(routes!(money::ledger))
        .routes(routes!(settlements::list))
        .routes(routes!(providers::list))
        .routes(routes!(providers::earnings))
        .routes(routes!(providers::statement))
        .routes(routes!(providers::payout))
        .routes(routes!(trust::authorities))
        .routes(routes!(trust::rotate))
        .routes(routes!(trust::audit))
        .routes(routes!(trust::backup))
        .routes(routes!(idempotency_key))
}

/// Lets the admin in and parses the body.
async fn admit<T: DeserializeOwned + Send + 'static>(
    gateway: &GatewayState,
    request: Request,
) -> Result<(Act, T), ApiError> {
    act::with_body(gateway, request, plain).await
}

/// Lets the admin in; the act needs no body.
async fn admit_bare(gateway: &GatewayState, request: Request) -> Result<Act, ApiError> {
    act::bare(gateway, request, plain).await
}

/// The admin's act, without parameters.
fn plain(gateway: &GatewayState, parts: &Parts) -> Result<Act, ApiError> {
    let act = Act::admit(gateway, parts)?;
    Params::of(&parts.uri, &[]).map(|_| act)
}

/// A part of a path, which may be no UTF-8.
type Named = Result<Path<String>, PathRejection>;

/// A question of the admin's, and the state it is answered from.
struct Look {
    state: Replica,
    params: Params,
    /// Milliseconds since 1970.
    now_ms: u64,
}

impl Look {
    /// Lets the admin ask. `known`: names of the parameters that the question may have. Looks at the
    /// request first, and gives what then waits, which must not hold a reference to a body.
    fn admit<'a>(
        gateway: &'a GatewayState,
        request: &Request,
        known: &[&str],
    ) -> impl Future<Output = Result<Self, ApiError>> + Send + use<'a> {
        let admitted = auth::admin(&gateway.group, request.headers());
        let params = admitted.and_then(|()| Params::of(request.uri(), known));
        async move {
            let params = params?;
            fresh(gateway).await;
            let state = gateway.group.snapshot();
            Ok(Self {
                now_ms: now_ms(&state),
                state,
                params,
            })
        }
    }
}

/// A number from a path, with or without the letter that it is shown with.
fn numbered(text: &str, letter: char) -> Option<u32> {
    text.strip_prefix(letter).unwrap_or(text).parse().ok()
}

/// A key for one write: with it in the header `Idempotency-Key` the write takes effect once.
#[utoipa::path(get, path = "/admin/v1/idempotency-key", tag = "cluster", security(("key" = [])),
    responses((status = 200, body = IdempotencyKey), Refused))]
async fn idempotency_key(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<IdempotencyKey>, ApiError> {
    auth::admin(&gateway.group, request.headers())?;
    let key = act::new_key(&gateway)?;
    Ok(Json(IdempotencyKey { key }))
}
