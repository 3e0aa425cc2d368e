//! Whoever lends machines: what they earned, and what was paid out to them.

use super::{Look, Named, admit, money};
use crate::gateway::billing::dates::{self, DAY_S, month_begins_s};
use crate::gateway::billing::has_months;
use crate::gateway::billing::statements::is_provisional;
use crate::gateway::error::ApiError;
use crate::gateway::openapi::{Refused, RefusedAct, RefusedOne};
use crate::gateway::server::GatewayState;
use crate::gateway::view;
use crate::state::{Account, State as Replica};
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use std::collections::BTreeSet;
use std::ops::Range;
use trireme_shared::api::{
    DayEarned, Earnings, MoneyRequest, PostingReport, ProviderReport, ProviderStatement,
};
use trireme_shared::ids::NanoUsd;

fn missing() -> ApiError {
    ApiError::not_found("There is no such provider: GET /admin/v1/providers lists them.")
}

/// Those that ever earned, and those whose workers are members.
fn names(state: &Replica) -> BTreeSet<&str> {
    let accounts = state.balances().filter_map(|(account, _)| match account {
        Account::Provider(name) => Some(name.as_str()),
        _ => None,
    });
    let workers = state.workers().filter_map(|w| w.provider.as_deref());
    accounts.chain(workers).collect()
}

fn known(state: &Replica, name: String) -> Result<String, ApiError> {
    match names(state).contains(name.as_str()) {
        true => Ok(name),
        false => Err(missing()),
    }
}

/// All providers.
#[utoipa::path(get, path = "/admin/v1/providers", tag = "accounts", security(("key" = [])),
    responses((status = 200, body = Vec<ProviderReport>), Refused))]
pub async fn list(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<Vec<ProviderReport>>, ApiError> {
    let Look { state, now_ms, .. } = Look::admit(&gateway, &request, &[]).await?;
    has_months(&state)?;
    let month = dates::month_of(now_ms / 1_000);
    let all = names(&state);
    let all = all
        .into_iter()
        .map(|name| view::provider(&state, name, month));
    Ok(Json(all.collect()))
}

/// The days of that time, in seconds since 1970, on which it earned.
fn days(state: &Replica, name: &str, time: Range<u64>) -> (Vec<DayEarned>, NanoUsd) {
    let mut total = 0i64;
    let days = time.start / DAY_S..=(time.end / DAY_S).saturating_sub(1);
    let earned = state.earnings_of(name, days).map(|(day, sum)| {
        total = total.saturating_add(sum.0);
        DayEarned {
            day: dates::day_name(day),
            earned_nano_usd: sum,
        }
    });
    let earned = earned.collect();
    (earned, NanoUsd(total))
}

/// What a provider earned, by the day; this month where nothing is said.
#[utoipa::path(get, path = "/admin/v1/providers/{name}/earnings", tag = "accounts", security(("key" = [])),
    params(
        ("name" = String, Path, description = "The provider's name"),
        ("from" = Option<String>, Query, description = "A day (`2026-11-01`)"),
        ("to" = Option<String>, Query, description = "The first day after it"),
    ),
    responses((status = 200, body = Earnings), RefusedOne))]
pub async fn earnings(
    State(gateway): State<GatewayState>,
    name: Named,
    request: Request,
) -> Result<Json<Earnings>, ApiError> {
    let look = Look::admit(&gateway, &request, &["from", "to"]).await?;
    let Path(name) = name.map_err(|_| missing())?;
    let provider = known(&look.state, name)?;
    let time = |name: &str| {
        let Some(text) = look.params.text(name) else {
            return Ok(None);
        };
        let at = dates::parse_moment(name, text)?;
        match at % DAY_S {
            0 => Ok(Some(at)),
            _ => Err(ApiError::value(
                name,
                format!("'{name}' must be a whole day."),
            )),
        }
    };
    let month = dates::month_of(look.now_ms / 1_000);
    let to_at = time("to")?.unwrap_or_else(|| month_begins_s(month + 1));
    let month = dates::month_of(to_at.saturating_sub(1));
    let from_at = time("from")?.unwrap_or_else(|| month_begins_s(month));
    if from_at >= to_at {
        return Err(ApiError::value("to", "'to' must be later than 'from'."));
    }
    let (days, total_nano_usd) = days(&look.state, &provider, from_at..to_at);
    Ok(Json(Earnings {
        provider,
        from_at,
        to_at,
        days,
        total_nano_usd,
    }))
}

/// A provider's month: what it was owed, earned, was paid, and is owed.
#[utoipa::path(get, path = "/admin/v1/providers/{name}/statements/{month}", tag = "accounts",
    security(("key" = [])),
    params(
        ("name" = String, Path, description = "The provider's name"),
        ("month" = String, Path, description = "`2026-11`"),
    ),
    responses((status = 200, body = ProviderStatement), RefusedOne))]
pub async fn statement(
    State(gateway): State<GatewayState>,
    path: Result<Path<(String, String)>, PathRejection>,
    request: Request,
) -> Result<Json<ProviderStatement>, ApiError> {
    let Look { state, now_ms, .. } = Look::admit(&gateway, &request, &[]).await?;
    has_months(&state)?;
    let Path((name, month)) = path.map_err(|_| missing())?;
    let provider = known(&state, name)?;
    let now = dates::month_of(now_ms / 1_000);
    let month = dates::parse_month(&month).filter(|month| *month <= now);
    let month = month.ok_or_else(|| {
        ApiError::not_found(
            "There is no statement of that month: say one such as 2026-11, not to come.",
        )
    })?;
    let account = Account::Provider(provider.clone());
    let opening = state.balance_before(&account, month);
    let moved = state.movement(&account, month);
    let (days, _) = days(
        &state,
        &provider,
        month_begins_s(month)..month_begins_s(month + 1),
    );
    Ok(Json(ProviderStatement {
        provider,
        month: dates::month_name(month),
        provisional: is_provisional(&state, month),
        opening_nano_usd: opening,
        earned_nano_usd: moved.requests,
        paid_out_nano_usd: NanoUsd(moved.payouts.0.wrapping_neg()),
        closing_nano_usd: NanoUsd(opening.0.wrapping_add(moved.sum().0)),
        days,
    }))
}

/// Writes down that part of a provider's earnings was paid to it.
#[utoipa::path(post, path = "/admin/v1/providers/{name}/payouts", tag = "accounts", security(("key" = [])),
    request_body = MoneyRequest,
    params(("name" = String, Path, description = "The provider's name")),
    responses((status = 201, body = PostingReport), RefusedAct))]
pub async fn payout(
    State(gateway): State<GatewayState>,
    name: Named,
    request: Request,
) -> Result<(StatusCode, Json<PostingReport>), ApiError> {
    let (act, wanted) = admit(&gateway, request).await?;
    let wanted: MoneyRequest = wanted;
    let Path(name) = name.map_err(|_| missing())?;
    let (amount, reason) = (wanted.amount_nano_usd, wanted.reason);
    let moved = gateway.fleet.payout(act.terms(), &name, amount, reason);
    money::posted(&gateway, act.told(moved.await)?)
}
