//! Money that is moved by hand, each time by a posting with a reason, and the ledger that it stands in.

use super::{Look, Named, admit, tenants};
use crate::gateway::billing::requests;
use crate::gateway::error::ApiError;
use crate::gateway::openapi::{RefusedAct, RefusedOne};
use crate::gateway::server::GatewayState;
use crate::gateway::view;
use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use trireme_shared::api::{AdminRequestReport, LedgerPage, MoneyRequest, PostingReport};
use trireme_shared::ids::{PostingId, RequestId};
use trireme_shared::limits;

/// The answer to an act that moved money.
pub fn posted(
    gateway: &GatewayState,
    id: PostingId,
) -> Result<(StatusCode, Json<PostingReport>), ApiError> {
    let state = gateway.group.snapshot();
    let posting = state
        .posting(id)
        .map(|posting| view::posting(&state, posting));
    let gone = || ApiError::earlier("It was posted, and the posting is kept no longer.");
    Ok((StatusCode::CREATED, Json(posting.ok_or_else(gone)?)))
}

/// Credits a tenant with money that it paid in; an amount below zero is taken back from it, as far as it is
/// not spent or lent.
#[utoipa::path(post, path = "/admin/v1/tenants/{name}/credits", tag = "accounts", security(("key" = [])),
    request_body = MoneyRequest,
    params(("name" = String, Path, description = "The tenant's name")),
    responses((status = 201, body = PostingReport), RefusedAct))]
pub async fn credit(
    State(gateway): State<GatewayState>,
    name: Named,
    request: Request,
) -> Result<(StatusCode, Json<PostingReport>), ApiError> {
    let (act, wanted) = admit(&gateway, request).await?;
    let wanted: MoneyRequest = wanted;
    let Path(name) = name.map_err(|_| tenants::missing())?;
    let (amount, reason) = (wanted.amount_nano_usd, wanted.reason);
    let moved = gateway.fleet.credit(act.terms(), &name, amount, reason);
    posted(&gateway, act.told(moved.await)?)
}

/// Gives part of a request's charge back to its tenant, at the platform's expense.
#[utoipa::path(post, path = "/admin/v1/requests/{id}/refunds", tag = "accounts", security(("key" = [])),
    request_body = MoneyRequest,
    params(("id" = String, Path, description = "The request's id")),
    responses((status = 201, body = PostingReport), RefusedAct))]
pub async fn refund(
    State(gateway): State<GatewayState>,
    id: Named,
    request: Request,
) -> Result<(StatusCode, Json<PostingReport>), ApiError> {
    let (act, wanted) = admit(&gateway, request).await?;
    let wanted: MoneyRequest = wanted;
    let id = request_id(id)?;
    let (amount, reason) = (wanted.amount_nano_usd, wanted.reason);
    let moved = gateway.fleet.refund(act.terms(), id, amount, reason);
    posted(&gateway, act.told(moved.await)?)
}

fn request_id(id: Named) -> Result<RequestId, ApiError> {
    let id = id.ok().and_then(|Path(id)| RequestId::parse(&id));
    id.ok_or_else(requests::missing)
}

/// One request of any tenant, by our id, and how its price came about and was divided.
#[utoipa::path(get, path = "/admin/v1/requests/{id}", tag = "accounts", security(("key" = [])),
    params(("id" = String, Path, description = "The request's id")),
    responses((status = 200, body = AdminRequestReport), RefusedOne))]
pub async fn request(
    State(gateway): State<GatewayState>,
    id: Named,
    request: Request,
) -> Result<Json<AdminRequestReport>, ApiError> {
    let Look { state, .. } = Look::admit(&gateway, &request, &[]).await?;
    let id = request_id(id)?;
    let open = state.open_request(&id);
    let open = open.map(|open| view::admin_open_request(&state, open));
    let settled = || {
        let row = state.request_by_id(&id)?;
        Some(view::admin_request(&state, row))
    };
    open.or_else(settled)
        .map(Json)
        .ok_or_else(requests::missing)
}

/// Postings that are kept, oldest first: all, or those of one account. A page may be short, and still not
/// be the last.
#[utoipa::path(get, path = "/admin/v1/ledger", tag = "accounts", security(("key" = [])),
    params(
        ("account" = Option<String>, Query,
            description = "`tenant:NAME`, `provider:NAME`, `platform` or `funding`"),
        ("after" = Option<u64>, Query, description = "Postings after this one"),
        ("limit" = Option<u64>, Query, description = "Postings of a page"),
    ),
    responses((status = 200, body = LedgerPage), RefusedOne))]
pub async fn ledger(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<LedgerPage>, ApiError> {
    let look = Look::admit(&gateway, &request, &["account", "after", "limit"]).await?;
    let (state, params) = (&look.state, &look.params);
    let account = match params.text("account") {
        Some(name) => Some(view::account(state, name).ok_or_else(|| {
            ApiError::not_found(
                "There is no such account: say tenant:NAME, provider:NAME, platform or funding.",
            )
        })?),
        None => None,
    };
    let after = params.number("after", 0..=u64::MAX)?.unwrap_or_default();
    let limit = params.number("limit", 1..=limits::BILLING_PAGE_ROWS_MAX)?;
    let limit = limit.unwrap_or(limits::BILLING_PAGE_ROWS) as usize;
    let mut newer = state.postings_after(PostingId(after)).peekable();
    let (mut postings, mut last) = (Vec::new(), None);
    for _ in 0..limits::POSTINGS_LOOKED_AT_MAX {
        if postings.len() >= limit {
            break;
        }
        let Some(posting) = newer.next() else {
            break;
        };
        last = Some(posting.id);
        let is_of = |wanted| posting.lines.iter().any(|(of, _)| of == wanted);
        if account.as_ref().is_none_or(is_of) {
            postings.push(view::posting(state, posting));
        }
    }
    let next_after = newer.peek().and(last);
    Ok(Json(LedgerPage {
        postings,
        next_after,
    }))
}
