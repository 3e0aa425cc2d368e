//! Where a tenant is told of its account: set, looked at, removed and tried by its own key. Delivery is
//! the leader's (`crate::webhooks`).
//!
//! Kept true: the secret is in the answer that sets it and in no other.

use super::{Question, fresh};
use crate::gateway::act::{self, Act};
use crate::gateway::billing::params::Params;
use crate::gateway::error::ApiError;
use crate::gateway::openapi::{RefusedOften, RefusedOne};
use crate::gateway::server::GatewayState;
use crate::raft::group::GroupError;
use crate::state::{State as Replica, Topics};
use crate::webhooks::letter;
use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use trireme_shared::api::{WebhookEvent, WebhookReport, WebhookRequest, WebhookSet, WebhookTested};
use trireme_shared::ids::TenantId;

fn missing() -> ApiError {
    ApiError::not_found("There is no webhook: PUT /billing/v1/webhook sets one.")
}

fn report(state: &Replica, tenant: TenantId) -> Result<WebhookReport, ApiError> {
    let webhook = state.webhook(tenant).ok_or_else(missing)?;
    let topics = [
        (webhook.topics.budget, WebhookEvent::BudgetThreshold),
        (webhook.topics.statements, WebhookEvent::StatementReady),
    ];
    let failing = webhook.failing.as_ref();
    Ok(WebhookReport {
        url: webhook.url.clone(),
        events: topics
            .into_iter()
            .filter_map(|(wanted, event)| wanted.then_some(event))
            .collect(),
        created_at: webhook.created_at,
        waiting: state.webhook_events_of(tenant).count() as u64,
        delivered: webhook.delivered,
        delivered_at: webhook.delivered_at,
        dropped: webhook.dropped,
        given_up: webhook.given_up,
        failed_since: failing.map(|failing| failing.since),
        last_error: failing.map(|failing| failing.error.clone()),
    })
}

/// The webhook, and how deliveries go.
#[utoipa::path(get, path = "/billing/v1/webhook", tag = "billing", security(("key" = [])),
    responses((status = 200, body = WebhookReport), RefusedOne))]
pub async fn own(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<WebhookReport>, ApiError> {
    let (question, _) = Question::own(&gateway, &request, &[]).await?;
    report(&question.state, question.tenant).map(Json)
}

/// Sets where events go, in place of where they went. The secret that signs them is in this answer and in
/// no later one; another is made where `rotate` is true.
#[utoipa::path(put, path = "/billing/v1/webhook", tag = "billing", security(("key" = [])),
    request_body = WebhookRequest,
    responses((status = 200, body = WebhookSet), RefusedOften))]
pub async fn put(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<WebhookSet>, ApiError> {
    let ((act, tenant), wanted) = act::with_body(&gateway, request, admit).await?;
    let WebhookRequest {
        url,
        events,
        rotate,
    } = wanted;
    let reach = gateway.reach.check(&url);
    reach.map_err(|why| ApiError::value("url", format!("'url' is no webhook's: {why}.")))?;
    if events.is_empty() {
        let words = "'events' names at least one of what the webhook can be told of.";
        return Err(ApiError::value("events", words));
    }
    let topics = Topics {
        budget: events.contains(&WebhookEvent::BudgetThreshold),
        statements: events.contains(&WebhookEvent::StatementReady),
    };
    let fleet = &gateway.fleet;
    let put = fleet.put_webhook(act.terms(), tenant, url, topics, rotate);
    let secret = act.told(put.await)?;
    Ok(Json(WebhookSet {
        webhook: report(&gateway.group.snapshot(), tenant)?,
        secret: secret.as_ref().map(letter::shown),
    }))
}

/// Removes the webhook; what waits for it is told to nobody. The answer is what it was.
#[utoipa::path(delete, path = "/billing/v1/webhook", tag = "billing", security(("key" = [])),
    responses((status = 200, body = WebhookReport), RefusedOften))]
pub async fn remove(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<WebhookReport>, ApiError> {
    let (act, tenant) = act::bare(&gateway, request, admit).await?;
    let was = known(&gateway, tenant).await?;
    act.told(gateway.fleet.remove_webhook(act.terms(), tenant).await)?;
    Ok(Json(was))
}

/// Sends an event of the type `webhook.test`. It is delivered as any other, and tried again as any other.
#[utoipa::path(post, path = "/billing/v1/webhook/test", tag = "billing", security(("key" = [])),
    responses((status = 202, body = WebhookTested), RefusedOften))]
pub async fn test(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<(StatusCode, Json<WebhookTested>), ApiError> {
    let (act, tenant) = act::bare(&gateway, request, admit).await?;
    known(&gateway, tenant).await?;
    let id = act.told(gateway.fleet.test_webhook(act.terms(), tenant).await)?;
    Ok((StatusCode::ACCEPTED, Json(WebhookTested { id })))
}

/// What there is to act on, as new as the group's leader confirms.
async fn known(gateway: &GatewayState, tenant: TenantId) -> Result<WebhookReport, ApiError> {
    let led = fresh(gateway).await;
    report(&gateway.group.snapshot(), tenant).map_err(|missing| match led {
        true => missing,
        false => GroupError::NoLeader.into(),
    })
}

fn admit(
    gateway: &GatewayState,
    parts: &axum::http::request::Parts,
) -> Result<(Act, TenantId), ApiError> {
    let act = Act::own(gateway, parts)?;
    Params::of(&parts.uri, &[]).map(|_| act)
}
