//! Statements of a tenant's months, from what the ledger and the sums of usage keep for ever.
//!
//! Kept true: opening balance, charges, credits and refunds come to the closing balance, to the
//! nano-dollar, and one month's closing balance is the next one's opening balance. A month is provisional
//! until the state's own time has passed its end: only then can nothing more come to it.

use super::dates::{self, DAY_S, month_begins_s, month_name};
use super::{Question, has_months, statement_csv, statement_html};
use crate::gateway::error::ApiError;
use crate::gateway::openapi::{Refused, RefusedOne};
use crate::gateway::server::GatewayState;
use crate::gateway::view;
use crate::state::{Account, State as Replica, Tenant, UsageTotals};
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::{IntoResponse, Response};
use std::collections::BTreeMap;
use trireme_shared::api::{KeyUsage, ModelUsage, Statement, StatementMonth};
use trireme_shared::ids::{KeyId, NanoUsd};

/// The months there are statements of, newest first.
#[utoipa::path(get, path = "/billing/v1/statements", tag = "billing", security(("key" = [])),
    responses((status = 200, body = Vec<StatementMonth>), Refused))]
pub async fn own(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<Vec<StatementMonth>>, ApiError> {
    let (question, _) = Question::own(&gateway, &request, &[]).await?;
    Ok(Json(months(&question)?))
}

/// One month's statement: as JSON, or as `.csv`, `.html` or the header `Accept` says.
#[utoipa::path(get, path = "/billing/v1/statements/{month}", tag = "billing", security(("key" = [])),
    params(("month" = String, Path, description = "`2026-11`, `2026-11.json`, `2026-11.csv` or `2026-11.html`")),
    responses(
        (status = 200, content(
            (Statement = "application/json"), (String = "text/csv"), (String = "text/html"))),
        RefusedOne))]
pub async fn own_one(
    State(gateway): State<GatewayState>,
    month: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let (question, _) = Question::own(&gateway, &request, &[]).await?;
    let month = month.ok().map(|Path(month)| month).unwrap_or_default();
    one(question, &month, request.headers()).await
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Json,
    Csv,
    Html,
}

/// The month that a path's last part names, in the form that it or the header asks for.
pub async fn one(
    question: Question,
    named: &str,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    has_months(&question.state)?;
    let (month, form) = match named.split_once('.') {
        None => (named, accepted(headers)),
        Some((month, "json")) => (month, Form::Json),
        Some((month, "csv")) => (month, Form::Csv),
        Some((month, "html")) => (month, Form::Html),
        Some(_) => ("", Form::Json),
    };
    let month = dates::parse_month(month).filter(|m| covered(&question).contains(m));
    let month = month.ok_or_else(|| {
        ApiError::not_found("There is no statement of that month: the list of statements has all.")
    })?;
    let made = question.answer(move |q| Ok(statement(&q.state, q.tenant()?, month)));
    let made = made.await?;
    Ok(match form {
        Form::Json => Json(made).into_response(),
        Form::Csv => {
            let name = format!("attachment; filename=\"statement-{}.csv\"", made.month);
            let headers = [
                (
                    header::CONTENT_TYPE,
                    "text/csv; charset=utf-8; header=present",
                ),
                (header::CONTENT_DISPOSITION, &name),
            ];
            (headers, statement_csv::write(&made)).into_response()
        }
        Form::Html => page(statement_html::write(&made)),
    })
}

/// An HTML page of ours: it loads nothing and runs nothing.
pub fn page(html: String) -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy),
        (HeaderName::from_static("x-content-type-options"), "nosniff"),
    ];
    (headers, html).into_response()
}

/// The first of our forms that the header wants most; JSON where it wants none of them.
fn accepted(headers: &HeaderMap) -> Form {
    let mut best = (0u32, Form::Json);
    let values = headers.get_all(header::ACCEPT).iter();
    for wanted in values
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
    {
        let mut parts = wanted.split(';').map(str::trim);
        let form = match parts.next().unwrap_or_default() {
            "text/csv" => Form::Csv,
            "text/html" => Form::Html,
            "application/json" | "application/*" | "*/*" => Form::Json,
            _ => continue,
        };
        let quality = parts.find_map(|p| p.strip_prefix("q="));
        // In thousandths, as RFC 9110 allows.
        let quality = quality.map_or(Some(1_000), thousandths).unwrap_or(0);
        if quality > best.0 {
            best = (quality, form);
        }
    }
    best.1
}

fn thousandths(text: &str) -> Option<u32> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    if rest.len() > 3 || !rest.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let rest: u32 = format!("{rest:0<3}").parse().ok()?;
    Some((whole.parse::<u32>().ok()?.min(1) * 1_000 + rest).min(1_000))
}

/// From the first month that moved the account's money to the one that it is.
fn covered(question: &Question) -> std::ops::RangeInclusive<u64> {
    let account = Account::Tenant(question.tenant);
    let now = dates::month_of(question.now_ms / 1_000);
    let first = question.state.movements(&account).next();
    first.map_or(now, |(month, _)| month.min(now))..=now
}

pub fn months(question: &Question) -> Result<Vec<StatementMonth>, ApiError> {
    let state = &question.state;
    has_months(state)?;
    let account = Account::Tenant(question.tenant);
    let covered = covered(question);
    let mut opening = state.balance_before(&account, *covered.start());
    let all = covered.map(|month| {
        let closing = opening
            .0
            .wrapping_add(state.movement(&account, month).sum().0);
        let one = StatementMonth {
            month: month_name(month),
            provisional: is_provisional(state, month),
            opening_nano_usd: opening,
            closing_nano_usd: NanoUsd(closing),
        };
        opening = NanoUsd(closing);
        one
    });
    let mut all: Vec<StatementMonth> = all.collect();
    all.reverse();
    Ok(all)
}

/// Whether something may come to that month yet.
pub fn is_provisional(state: &Replica, month: u64) -> bool {
    state.now_ms() / 1_000 < month_begins_s(month + 1)
}

pub fn statement(state: &Replica, tenant: &Tenant, month: u64) -> Statement {
    let account = Account::Tenant(tenant.id);
    let opening = state.balance_before(&account, month);
    let moved = state.movement(&account, month);
    let (begins_at, ends_at) = (month_begins_s(month), month_begins_s(month + 1));
    let (mut models, mut keys) = (BTreeMap::new(), BTreeMap::new());
    let days = begins_at / DAY_S..=ends_at / DAY_S - 1;
    for (of, totals) in state.usage_by_day(tenant.id, days) {
        let sum: &mut UsageTotals = models.entry(of.model.as_str()).or_default();
        *sum = sum.plus(*totals);
        let sum: &mut UsageTotals = keys.entry(of.key).or_default();
        *sum = sum.plus(*totals);
    }
    let key = |(key, totals): (KeyId, UsageTotals)| KeyUsage {
        key,
        name: state
            .key(key)
            .map(|k| k.settings.name.clone())
            .unwrap_or_default(),
        usage: view::sums(&totals),
    };
    let model = |(model, totals): (&str, UsageTotals)| ModelUsage {
        model: model.to_owned(),
        usage: view::sums(&totals),
    };
    Statement {
        cluster: state.cluster().map(|c| c.name.clone()).unwrap_or_default(),
        tenant: tenant.id,
        tenant_name: tenant.name.clone(),
        month: month_name(month),
        begins_at,
        ends_at,
        provisional: is_provisional(state, month),
        opening_nano_usd: opening,
        charges_nano_usd: NanoUsd(moved.requests.0.wrapping_neg()),
        // A tenant is paid nothing out; if it ever was, it is less that it paid in.
        credits_nano_usd: NanoUsd(moved.credits.0.wrapping_add(moved.payouts.0)),
        refunds_nano_usd: moved.refunds,
        closing_nano_usd: NanoUsd(opening.0.wrapping_add(moved.sum().0)),
        models: models.into_iter().map(model).collect(),
        keys: keys.into_iter().map(key).collect(),
    }
}

#[cfg(test)]
#[path = "statements_tests.rs"]
mod tests;
