//! Tenants: what is set for them, and what they used and owe.

use super::{Look, Named, admit};
use crate::gateway::billing::usage as tenant_usage;
use crate::gateway::billing::{
    Question, requests as tenant_requests, statements as tenant_statements,
};
use crate::gateway::error::ApiError;
use crate::gateway::openapi::{Refused, RefusedAct, RefusedOne};
use crate::gateway::server::GatewayState;
use crate::gateway::view;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use trireme_shared::api::{
    RequestsPage, Statement, StatementMonth, TenantReport, TenantSettings, UsagePage,
};

pub fn missing() -> ApiError {
    ApiError::not_found("There is no such tenant: GET /admin/v1/tenants lists them.")
}

fn named(name: Named) -> Result<String, ApiError> {
    // A name that is no UTF-8 is no tenant's.
    name.map(|Path(name)| name).map_err(|_| missing())
}

/// All tenants.
#[utoipa::path(get, path = "/admin/v1/tenants", tag = "accounts", security(("key" = [])),
    responses((status = 200, body = Vec<TenantReport>), Refused))]
pub async fn list(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<Vec<TenantReport>>, ApiError> {
    let Look { state, now_ms, .. } = Look::admit(&gateway, &request, &[]).await?;
    let all = state.tenants().map(|t| view::tenant(&state, t, now_ms));
    Ok(Json(all.collect()))
}

/// One tenant: settings, balance, what it spent this month and what is left.
#[utoipa::path(get, path = "/admin/v1/tenants/{name}", tag = "accounts", security(("key" = [])),
    params(("name" = String, Path, description = "The tenant's name")),
    responses((status = 200, body = TenantReport), RefusedOne))]
pub async fn one(
    State(gateway): State<GatewayState>,
    name: Named,
    request: Request,
) -> Result<Json<TenantReport>, ApiError> {
    let Look { state, now_ms, .. } = Look::admit(&gateway, &request, &[]).await?;
    let tenant = state.tenant_named(&named(name)?).ok_or_else(missing)?;
    Ok(Json(view::tenant(&state, tenant, now_ms)))
}

/// Makes a tenant, or gives it other settings: all of them, as what is left out is not bounded.
#[utoipa::path(put, path = "/admin/v1/tenants/{name}", tag = "accounts", security(("key" = [])),
    request_body = TenantSettings,
    params(("name" = String, Path, description = "The tenant's name")),
    responses((status = 200, body = TenantReport), RefusedAct))]
pub async fn put(
    State(gateway): State<GatewayState>,
    name: Named,
    request: Request,
) -> Result<Json<TenantReport>, ApiError> {
    let (act, settings) = admit(&gateway, request).await?;
    let settings: TenantSettings = settings;
    let settings = view::stored_tenant_settings(&settings);
    let name = named(name)?;
    let put = gateway.fleet.put_tenant(act.terms(), &name, settings);
    let id = act.told(put.await)?;
    let state = gateway.group.snapshot();
    let tenant = state.tenant(id).ok_or_else(missing)?;
    Ok(Json(view::tenant(&state, tenant, super::now_ms(&state))))
}

/// What a tenant used: as `/billing/v1/usage` tells it.
#[utoipa::path(get, path = "/admin/v1/tenants/{name}/usage", tag = "accounts", security(("key" = [])),
    params(
        ("name" = String, Path, description = "The tenant's name"),
        ("from" = Option<String>, Query, description = "A day (`2026-11-01`) or a whole hour (RFC 3339)"),
        ("to" = Option<String>, Query, description = "The first day or whole hour after it"),
        ("group_by" = Option<String>, Query, description = "Of `hour` or `day`, `model`, `key`, with commas"),
        ("limit" = Option<u64>, Query, description = "Rows of a page"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, body = UsagePage), RefusedOne))]
pub async fn usage(
    State(gateway): State<GatewayState>,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<UsagePage>, ApiError> {
    let known = &tenant_usage::PARAMS;
    let question = Question::of(&gateway, &request, name, known).await?;
    question.answer(|q| tenant_usage::page(q).map(Json)).await
}

/// A tenant's requests: as `/billing/v1/requests` tells them.
#[utoipa::path(get, path = "/admin/v1/tenants/{name}/requests", tag = "accounts", security(("key" = [])),
    params(
        ("name" = String, Path, description = "The tenant's name"),
        ("limit" = Option<u64>, Query, description = "Requests of a page"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
        ("from" = Option<String>, Query, description = "A day (`2026-11-01`) or a time (RFC 3339)"),
        ("to" = Option<String>, Query, description = "The first day or time after it"),
        ("model" = Option<String>, Query, description = "Of one model"),
        ("key" = Option<String>, Query, description = "Of one key (`k3`)"),
    ),
    responses((status = 200, body = RequestsPage), RefusedOne))]
pub async fn requests(
    State(gateway): State<GatewayState>,
    name: Named,
    request: Request,
) -> Result<Json<RequestsPage>, ApiError> {
    let known = &tenant_requests::PARAMS;
    let question = Question::of(&gateway, &request, name, known).await?;
    question
        .answer(|q| tenant_requests::page(q).map(Json))
        .await
}

/// The months there are statements of, newest first.
#[utoipa::path(get, path = "/admin/v1/tenants/{name}/statements", tag = "accounts", security(("key" = [])),
    params(("name" = String, Path, description = "The tenant's name")),
    responses((status = 200, body = Vec<StatementMonth>), RefusedOne))]
pub async fn statements(
    State(gateway): State<GatewayState>,
    name: Named,
    request: Request,
) -> Result<Json<Vec<StatementMonth>>, ApiError> {
    let question = Question::of(&gateway, &request, name, &[]).await?;
    Ok(Json(tenant_statements::months(&question)?))
}

/// One month's statement: as JSON, or as `.csv`, `.html` or the header `Accept` says.
#[utoipa::path(get, path = "/admin/v1/tenants/{name}/statements/{month}", tag = "accounts",
    security(("key" = [])),
    params(
        ("name" = String, Path, description = "The tenant's name"),
        ("month" = String, Path, description = "`2026-11`, `2026-11.json`, `2026-11.csv` or `2026-11.html`"),
    ),
    responses(
        (status = 200, content(
            (Statement = "application/json"), (String = "text/csv"), (String = "text/html"))),
        RefusedOne))]
pub async fn statement(
    State(gateway): State<GatewayState>,
    path: Result<Path<(String, String)>, PathRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let (name, month) = match path {
        Ok(Path((name, month))) => (Ok(Path(name)), month),
        Err(wrong) => (Err(wrong), String::new()),
    };
    let question = Question::of(&gateway, &request, name, &[]).await?;
    tenant_statements::one(question, &month, request.headers()).await
}
