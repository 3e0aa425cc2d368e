//! A tenant's requests, one by one: those under way as last told, and the settled ones that are kept.

use super::Question;
use super::cursor::Bound;
use super::dates;
use crate::gateway::error::ApiError;
use crate::gateway::openapi::RefusedOne;
use crate::gateway::server::GatewayState;
use crate::gateway::view;
use crate::state::OpenRequest;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use serde::Serialize;
use trireme_shared::api::{RequestReport, RequestSummary, RequestsPage};
use trireme_shared::ids::{KeyId, RequestId, RequestNumber};
use trireme_shared::limits;

/// Names of the list's parameters.
pub const PARAMS: [&str; 6] = ["limit", "cursor", "from", "to", "model", "key"];

/// Requests that began in a time, newest first. Those under way come before all others, on the first page,
/// as many as it holds.
#[utoipa::path(get, path = "/billing/v1/requests", tag = "billing", security(("key" = [])),
    params(
        ("limit" = Option<u64>, Query, description = "Requests of a page"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
        ("from" = Option<String>, Query, description = "A day (`2026-11-01`) or a time (RFC 3339)"),
        ("to" = Option<String>, Query, description = "The first day or time after it"),
        ("model" = Option<String>, Query, description = "Of one model"),
        ("key" = Option<String>, Query, description = "Of one key (`k3`)"),
    ),
    responses((status = 200, body = RequestsPage), RefusedOne))]
pub async fn own(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<RequestsPage>, ApiError> {
    let (question, _) = Question::own(&gateway, &request, &PARAMS).await?;
    question.answer(|q| page(q).map(Json)).await
}

/// One request, by our id, the caller's own `x-request-id` or a later attempt's, and how its price came
/// about.
#[utoipa::path(get, path = "/billing/v1/requests/{id}", tag = "billing", security(("key" = [])),
    params(("id" = String, Path, description = "The request's id, or the caller's own for it")),
    responses((status = 200, body = RequestReport), RefusedOne))]
pub async fn own_one(
    State(gateway): State<GatewayState>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<RequestReport>, ApiError> {
    let (question, _) = Question::own(&gateway, &request, &[]).await?;
    let id = id.ok().and_then(|Path(id)| RequestId::parse(&id));
    let found = id.and_then(|id| find(&question, &id));
    found.map(Json).ok_or_else(missing)
}

pub fn missing() -> ApiError {
    ApiError::not_found("There is no such request, or it is kept no longer.")
}

fn find(question: &Question, id: &RequestId) -> Option<RequestReport> {
    let (state, tenant) = (&question.state, question.tenant);
    let own = |open: &&OpenRequest| open.progress.tenant == tenant;
    if let Some(open) = state.open_request(id).filter(own) {
        return Some(view::open_request(state, open));
    }
    let row = state.request_by_id(id).filter(|row| row.tenant == tenant);
    if let Some(row) = row {
        return Some(view::request(state, row));
    }
    let mut open = state.open_requests_of(tenant);
    if let Some(open) = open.find(|open| open.progress.caller_id.as_ref() == Some(id)) {
        return Some(view::open_request(state, open));
    }
    let row = state.request_by_caller(tenant, id)?;
    Some(view::request(state, row))
}

/// Which requests are asked for.
#[derive(Serialize)]
struct Wanted<'a> {
    /// Seconds since 1970.
    from: u64,
    to: u64,
    model: Option<&'a str>,
    key: Option<KeyId>,
}

impl Wanted<'_> {
    fn has(&self, began_at_ms: u64, model: &str, key: KeyId) -> bool {
        (self.from..self.to).contains(&(began_at_ms / 1_000))
            && self.model.is_none_or(|wanted| wanted == model)
            && self.key.is_none_or(|wanted| wanted == key)
    }
}

/// One page of what is asked for.
pub fn page(question: &Question) -> Result<RequestsPage, ApiError> {
    let (state, tenant, params) = (&question.state, question.tenant, &question.params);
    let limit = params.number("limit", 1..=limits::BILLING_PAGE_ROWS_MAX)?;
    let limit = limit.unwrap_or(limits::BILLING_PAGE_ROWS) as usize;
    let time = |name: &str| match params.text(name) {
        Some(text) => dates::parse_moment(name, text).map(Some),
        None => Ok(None),
    };
    let key = params.key("key")?;
    if let Some(key) = key
        && state.key(key).is_none_or(|key| key.tenant != tenant)
    {
        return Err(ApiError::not_found("There is no such key."));
    }
    let wanted = Wanted {
        from: time("from")?.unwrap_or_default(),
        to: time("to")?.unwrap_or(u64::MAX),
        model: params.text("model"),
        key,
    };
    let bound = Bound::to(tenant, &("requests", &wanted))?;
    let below: Option<RequestNumber> = bound.position(params.text("cursor"))?;
    let mut requests = match below {
        Some(_) => Vec::new(),
        None => running(question, &wanted, limit),
    };
    let below = below.unwrap_or(RequestNumber(u64::MAX));
    let mut last = None;
    let mut rows = state.requests_of(tenant, below).peekable();
    for _ in 0..limits::REQUESTS_LOOKED_AT_MAX {
        if requests.len() >= limit {
            break;
        }
        let Some(row) = rows.next() else {
            break;
        };
        last = Some(row.number);
        if wanted.has(row.began_at_ms, &row.model, row.key) {
            requests.push(view::settled(row));
        }
    }
    let next_cursor = match rows.peek() {
        // A page of requests under way only has no row to go on below.
        Some(next) => Some(bound.cursor(&last.unwrap_or(RequestNumber(next.number.0 + 1)))?),
        None => None,
    };
    Ok(RequestsPage {
        requests,
        next_cursor,
    })
}

fn running(question: &Question, wanted: &Wanted<'_>, limit: usize) -> Vec<RequestSummary> {
    let open = question.state.open_requests_of(question.tenant);
    let mut open: Vec<&OpenRequest> = open
        .filter(|open| {
            let told = &open.progress;
            wanted.has(told.began_at_ms, &told.model, told.key)
        })
        .collect();
    open.sort_by_key(|open| std::cmp::Reverse(open.progress.began_at_ms));
    let newest = open.into_iter().take(limit);
    newest.map(|o| view::running(&question.state, o)).collect()
}
