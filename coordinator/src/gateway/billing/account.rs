//! What a tenant has, what bounds it, and what models cost it.

use super::Question;
use crate::gateway::error::ApiError;
use crate::gateway::openapi::Refused;
use crate::gateway::server::GatewayState;
use crate::gateway::view;
use crate::state::{self, Account, Left, Resets, State as Replica, Subject};
use axum::Json;
use axum::extract::{Request, State};
use std::collections::BTreeSet;
use trireme_shared::api::{
    Balance, Bounds, BudgetReport, LimitReport, LimitsReport, ModelPrices, PriceReport,
};
use trireme_shared::ids::{KeyId, NanoUsd, TenantId};

/// What the account has and may still spend.
#[utoipa::path(get, path = "/billing/v1/balance", tag = "billing", security(("key" = [])),
    responses((status = 200, body = Balance), Refused))]
pub async fn balance(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<Balance>, ApiError> {
    let (question, _) = Question::own(&gateway, &request, &[]).await?;
    let subject = Subject::Tenant(question.tenant);
    let left = question.state.left(subject, question.now_ms);
    Ok(Json(Balance {
        balance_nano_usd: question.state.balance(&Account::Tenant(question.tenant)),
        credit_limit_nano_usd: question.tenant()?.settings.credit(),
        lent_nano_usd: question.state.lent(subject).money,
        available_nano_usd: view::available(left.and_then(|left| left.funds)),
    }))
}

/// What bounds the tenant and the key that asks, what is left, and when it is whole again.
#[utoipa::path(get, path = "/billing/v1/limits", tag = "billing", security(("key" = [])),
    responses((status = 200, body = LimitsReport), Refused))]
pub async fn limits(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<LimitsReport>, ApiError> {
    let (question, key) = Question::own(&gateway, &request, &[]).await?;
    let (state, now_ms) = (&question.state, question.now_ms);
    let settings = &question.tenant()?.settings;
    let line = state.key(key).map_or(key, |key| key.line);
    // A line's limits are those of its first key, as the state counts them.
    let first = state.key(line).map(|key| &key.settings);
    let first = first.ok_or_else(|| ApiError::not_found("This key does not exist."))?;
    let of = |subject, limits, budget| bounds(state, subject, limits, budget, now_ms);
    Ok(Json(LimitsReport {
        tenant: of(
            Subject::Tenant(question.tenant),
            &settings.limits,
            settings.monthly_budget,
        ),
        key: of(Subject::Key(line), &first.limits, first.monthly_budget),
    }))
}

fn bounds(
    state: &Replica,
    subject: Subject,
    limits: &state::Limits,
    budget: Option<NanoUsd>,
    now_ms: u64,
) -> Bounds {
    let left: Left = state.left(subject, now_ms).unwrap_or_default();
    let resets: Resets = state.resets(subject, now_ms).unwrap_or_default();
    let report = |limit: Option<u64>, left: Option<u64>, resets_at: Option<u64>| {
        limit.map(|limit| LimitReport {
            limit,
            left: left.unwrap_or_default(),
            // A bound is whole in the second that the moment falls in.
            resets_at: resets_at.map(|ms| ms.div_ceil(1_000)),
        })
    };
    let budget = budget.map(|limit| BudgetReport {
        limit_nano_usd: limit,
        spent_nano_usd: state.month_spend(subject, now_ms),
        left_nano_usd: view::available(left.monthly_budget),
        resets_at: resets.month_ms.div_ceil(1_000),
    });
    Bounds {
        requests_per_minute: report(
            limits.requests_per_minute,
            left.requests_per_minute,
            Some(resets.requests_ms),
        ),
        tokens_per_minute: report(
            limits.tokens_per_minute.map(|t| t.0),
            left.tokens_per_minute.map(|t| t.0),
            Some(resets.tokens_ms),
        ),
        tokens_per_day: report(
            limits.tokens_per_day.map(|t| t.0),
            left.tokens_per_day.map(|t| t.0),
            Some(resets.day_ms),
        ),
        concurrency: report(limits.concurrency, left.concurrency, None),
        monthly_budget: budget,
    }
}

/// Prices of the models that the key may use: in force, and announced.
#[utoipa::path(get, path = "/billing/v1/prices", tag = "billing", security(("key" = [])),
    responses((status = 200, body = Vec<ModelPrices>), Refused))]
pub async fn prices(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<Vec<ModelPrices>>, ApiError> {
    let (question, key) = Question::own(&gateway, &request, &[]).await?;
    let found = question.answer(move |q| Ok(model_prices(&q.state, q.tenant, key, q.now_ms)));
    Ok(Json(found.await?))
}

fn model_prices(state: &Replica, tenant: TenantId, key: KeyId, now_ms: u64) -> Vec<ModelPrices> {
    let now_s = now_ms / 1_000;
    let key = state.key(key).filter(|key| key.tenant == tenant);
    let served: BTreeSet<&str> = state
        .deployments()
        .map(|d| d.spec.model.name.as_str())
        .collect();
    let priced = state.prices().map(|(model, _, _)| model);
    let models: BTreeSet<&str> = served.iter().copied().chain(priced).collect();
    let open = models
        .into_iter()
        .filter(|model| key.is_some_and(|key| key.settings.allows(model)));
    open.map(|model| {
        let to_come = state.prices_of(model).filter(|(from, _)| *from > now_s);
        ModelPrices {
            model: model.to_owned(),
            served: served.contains(model),
            in_force: view::price_list(state.price(model, now_s)),
            announced: to_come
                .map(|(effective_from, list)| PriceReport {
                    model: model.to_owned(),
                    effective_from,
                    prices: view::price_list(*list),
                })
                .collect(),
        }
    })
    .collect()
}
