//! Status, members of the group, and nodes of the cluster.

use super::serving::hide_nonces;
use super::{admit, admit_bare, fresh, members, numbered};
use crate::gateway::auth;
use crate::gateway::error::ApiError;
use crate::gateway::openapi::{Refused, RefusedAct};
use crate::gateway::server::GatewayState;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use trireme_shared::api::*;
use trireme_shared::identity::NodeId;
use trireme_shared::ids::{CoordinatorId, WorkerId};

/// Members, workers and what is served.
#[utoipa::path(get, path = "/admin/v1/status", tag = "cluster", security(("key" = [])),
    responses((status = 200, body = StatusReport), Refused))]
pub async fn status(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<StatusReport>, ApiError> {
    auth::admin(&gateway.group, request.headers())?;
    let stale = !fresh(&gateway).await;
    let mut deployments = gateway.fleet.deployments();
    deployments.iter_mut().for_each(hide_nonces);
    let coordinators = group(&gateway).await;
    let own = gateway.group.status();
    let leadership = *gateway.group.leadership().borrow();
    Ok(Json(StatusReport {
        cluster: gateway
            .group
            .read(|s| s.cluster().map(|c| c.name.clone()))
            .unwrap_or_default(),
        version: env!("CARGO_PKG_VERSION").into(),
        leader: leadership.leader,
        term: leadership.term,
        commit: own.as_ref().map_or(0, |s| s.commit),
        log: own.map_or_else(LogReport::default, |s| LogReport {
            first: s.first,
            last: s.last,
            applied: s.applied,
            snapshot: s.snapshot,
        }),
        stale,
        coordinators,
        workers: gateway.fleet.workers(),
        deployments,
    }))
}

async fn group(gateway: &GatewayState) -> Vec<CoordinatorStatus> {
    let seen = match gateway.group.leader_status().await {
        Some(seen) => Some(seen),
        None => gateway.group.status(),
    };
    let this = gateway.fleet.this();
    gateway
        .group
        .read(|s| members::view(s, seen.as_ref(), this))
}

/// The coordinators of the group.
#[utoipa::path(get, path = "/admin/v1/members", tag = "cluster", security(("key" = [])),
    responses((status = 200, body = Vec<CoordinatorStatus>), Refused))]
pub async fn members(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<Vec<CoordinatorStatus>>, ApiError> {
    auth::admin(&gateway.group, request.headers())?;
    fresh(&gateway).await;
    Ok(Json(group(&gateway).await))
}

/// A token for one more coordinator.
#[utoipa::path(post, path = "/admin/v1/members", tag = "cluster", security(("key" = [])), request_body = MemberRequest,
    responses((status = 201, body = MemberInvited), RefusedAct))]
pub async fn invite(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<(StatusCode, Json<MemberInvited>), ApiError> {
    let (act, wanted) = admit(&gateway, request).await?;
    let wanted: MemberRequest = wanted;
    let token = TokenRequest {
        role: match wanted.learner {
            true => TokenRole::Learner,
            false => TokenRole::Coordinator,
        },
        provider: None,
        uses: 1,
        ttl_seconds: wanted.ttl_seconds,
    };
    let created = gateway.fleet.create_token(act.terms(), token).await;
    let token = act.told(created)?;
    let join: Vec<String> = gateway.group.read(|s| {
        let listens = s.coordinators().filter(|c| !c.control.is_empty());
        listens.map(|c| c.control.clone()).collect()
    });
    let command = format!(
        "cluster coordinator --data-dir DIR --listen HOST:PORT --http HOST:PORT --join {} --token {}",
        join.join(","),
        token.token
    );
    let invited = MemberInvited {
        token,
        join,
        command,
    };
    Ok((StatusCode::CREATED, Json(invited)))
}

/// Lets a learner vote.
#[utoipa::path(post, path = "/admin/v1/members/{id}/promote", tag = "cluster", security(("key" = [])),
    params(("id" = String, Path, description = "`c2`")),
    responses((status = 200, body = CoordinatorStatus), RefusedAct))]
pub async fn promote(
    State(gateway): State<GatewayState>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<CoordinatorStatus>, ApiError> {
    let act = admit_bare(&gateway, request).await?;
    let id = member(id)?;
    act.told(gateway.fleet.promote(act.terms(), id).await)?;
    let all = group(&gateway).await;
    let one = all.into_iter().find(|one| one.id == id);
    one.map(Json).ok_or_else(no_member)
}

/// Removes a coordinator for good.
#[utoipa::path(delete, path = "/admin/v1/members/{id}", tag = "cluster", security(("key" = [])),
    params(("id" = String, Path, description = "`c2`")),
    responses((status = 200, body = Removed), RefusedAct))]
pub async fn remove_member(
    State(gateway): State<GatewayState>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<Removed>, ApiError> {
    let act = admit_bare(&gateway, request).await?;
    let id = member(id)?;
    let node = NodeId::Coordinator(id);
    act.told(gateway.fleet.remove_node(act.terms(), node).await)?;
    let removed = id.to_string();
    Ok(Json(Removed { removed }))
}

/// As shown (`c2`) or bare (`2`).
fn member(id: Result<Path<String>, PathRejection>) -> Result<CoordinatorId, ApiError> {
    let id = id.ok().and_then(|Path(id)| numbered(&id, 'c'));
    id.map(CoordinatorId).ok_or_else(no_member)
}

fn no_member() -> ApiError {
    ApiError::not_found("There is no such coordinator: GET /admin/v1/members lists them.")
}

/// Workers and coordinators, and their certificates.
#[utoipa::path(get, path = "/admin/v1/nodes", tag = "cluster", security(("key" = [])),
    responses((status = 200, body = Vec<NodeReport>), Refused))]
pub async fn nodes(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<Vec<NodeReport>>, ApiError> {
    auth::admin(&gateway.group, request.headers())?;
    fresh(&gateway).await;
    let coordinators = group(&gateway).await;
    let workers = gateway.fleet.workers();
    let heard = |id: CoordinatorId| coordinators.iter().find(|c| c.id == id)?.active;
    let seen = |id: WorkerId| workers.iter().find(|w| w.id == id);
    Ok(Json(gateway.group.read(|s| {
        let coordinators = s.coordinators().map(|c| NodeReport {
            id: c.id.to_string(),
            role: Role::Coordinator,
            address: c.control.clone(),
            connected: heard(c.id),
            provider: None,
            joined_at: c.joined_at,
            certificate: c.certificate.as_ref().map(|c| c.fingerprint.clone()),
            certificate_expires_at: c.certificate.as_ref().map(|c| c.expires_at),
        });
        let workers = s.workers().map(|w| NodeReport {
            id: w.id.to_string(),
            role: Role::Worker,
            address: seen(w.id).map(|w| w.address.clone()).unwrap_or_default(),
            connected: seen(w.id).map(|w| w.connected),
            provider: w.provider.clone(),
            joined_at: w.joined_at,
            certificate: w.certificate.as_ref().map(|c| c.fingerprint.clone()),
            certificate_expires_at: w.certificate.as_ref().map(|c| c.expires_at),
        });
        coordinators.chain(workers).collect()
    })))
}

/// Removes a worker or a coordinator for good.
#[utoipa::path(delete, path = "/admin/v1/nodes/{id}", tag = "cluster", security(("key" = [])),
    params(("id" = String, Path, description = "`w3` or `c2`")),
    responses((status = 200, body = Removed), RefusedAct))]
pub async fn remove_node(
    State(gateway): State<GatewayState>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<Removed>, ApiError> {
    let act = admit_bare(&gateway, request).await?;
    let named = id.ok().and_then(|Path(id)| {
        let number = id.get(1..)?.parse().ok()?;
        match id.as_bytes().first()? {
            b'w' => Some(NodeId::Worker(WorkerId(number))),
            b'c' => Some(NodeId::Coordinator(CoordinatorId(number))),
            _ => None,
        }
        .map(|node| (id, node))
    });
    let Some((removed, node)) = named else {
        return Err(ApiError::not_found(
            "There is no such node: GET /admin/v1/nodes lists them (w3, c2).",
        ));
    };
    act.told(gateway.fleet.remove_node(act.terms(), node).await)?;
    Ok(Json(Removed { removed }))
}
