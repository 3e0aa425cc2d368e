//! What models cost, and the platform's part of it.

use super::{Look, Named, admit};
use crate::gateway::error::ApiError;
use crate::gateway::openapi::{Refused, RefusedAct};
use crate::gateway::server::GatewayState;
use crate::gateway::view;
use crate::state::{DEFAULT_PRICES, PriceList, State as Replica};
use axum::Json;
use axum::extract::{Path, Request, State};
use trireme_shared::api::{Fee, PriceReport, PriceRequest, PricesReport};

fn report(model: &str, effective_from: u64, list: PriceList) -> PriceReport {
    PriceReport {
        model: model.to_owned(),
        effective_from,
        prices: view::price_list(list),
    }
}

/// All price lists that were set, past ones too, and the one of models without any.
#[utoipa::path(get, path = "/admin/v1/prices", tag = "accounts", security(("key" = [])),
    responses((status = 200, body = PricesReport), Refused))]
pub async fn list(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<PricesReport>, ApiError> {
    let look = Look::admit(&gateway, &request, &[]).await?;
    let lists = look.state.prices();
    Ok(Json(PricesReport {
        default: view::price_list(DEFAULT_PRICES),
        lists: lists
            .map(|(m, from, list)| report(m, from, *list))
            .collect(),
    }))
}

/// Sets a model's prices from a second on that is yet to come. A request is priced by the list that was in
/// force when it began.
#[utoipa::path(put, path = "/admin/v1/prices/{*model}", tag = "accounts", security(("key" = [])),
    request_body = PriceRequest,
    params(("model" = String, Path, description = "The name it is asked for by")),
    responses((status = 200, body = Vec<PriceReport>), RefusedAct))]
pub async fn put(
    State(gateway): State<GatewayState>,
    model: Named,
    request: Request,
) -> Result<Json<Vec<PriceReport>>, ApiError> {
    let (act, wanted) = admit(&gateway, request).await?;
    let wanted: PriceRequest = wanted;
    // A name that is no UTF-8 is no model's.
    let Path(model) = model.map_err(|_| ApiError::model_not_found("?"))?;
    let list = PriceList {
        input: wanted.input_nano_usd,
        cached_input: wanted.cached_input_nano_usd,
        output: wanted.output_nano_usd,
        minimum: wanted.minimum_nano_usd,
    };
    let from = wanted.effective_from;
    let put = gateway.fleet.put_price(act.terms(), &model, from, list);
    act.told(put.await)?;
    Ok(Json(gateway.group.read(|s| {
        let lists = s.prices_of(&model);
        lists
            .map(|(from, list)| report(&model, from, *list))
            .collect()
    })))
}

/// What the platform keeps of every charge.
#[utoipa::path(get, path = "/admin/v1/fee", tag = "accounts", security(("key" = [])),
    responses((status = 200, body = Fee), Refused))]
pub async fn fee(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<Fee>, ApiError> {
    let look = Look::admit(&gateway, &request, &[]).await?;
    let basis_points = look.state.fee();
    Ok(Json(Fee { basis_points }))
}

/// Sets what the platform keeps of every charge from now on.
#[utoipa::path(put, path = "/admin/v1/fee", tag = "accounts", security(("key" = [])),
    request_body = Fee,
    responses((status = 200, body = Fee), RefusedAct))]
pub async fn set_fee(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<Fee>, ApiError> {
    let (act, wanted) = admit(&gateway, request).await?;
    let Fee { basis_points } = wanted;
    act.told(gateway.fleet.set_fee(act.terms(), basis_points).await)?;
    let basis_points = gateway.group.read(Replica::fee);
    Ok(Json(Fee { basis_points }))
}
