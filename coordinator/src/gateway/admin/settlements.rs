//! The log of settlements, for exports.
//!
//! Keeps true: a page holds every settlement after the one that was named, in their order and without a
//! gap; where some of those are gone it is refused, and says where to go on.

use super::Look;
use crate::gateway::billing::has_months;
use crate::gateway::error::ApiError;
use crate::gateway::openapi::RefusedLog;
use crate::gateway::server::GatewayState;
use crate::gateway::view;
use crate::state::State as Replica;
use axum::Json;
use axum::extract::{Request, State};
use trireme_shared::api::SettlementsPage;
use trireme_shared::ids::SettlementSeq;
use trireme_shared::limits;

/// What each settlement added to its request, oldest first: those after one, or all that are kept. The
/// page that ends with `newest` is the last for now.
#[utoipa::path(get, path = "/admin/v1/settlements", tag = "accounts", security(("key" = [])),
    params(
        ("after" = Option<u64>, Query, description = "Settlements after this one; without it, from the oldest that is kept"),
        ("limit" = Option<u64>, Query, description = "Settlements of a page"),
    ),
    responses((status = 200, body = SettlementsPage), RefusedLog))]
pub async fn list(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<SettlementsPage>, ApiError> {
    let Look { state, params, .. } = Look::admit(&gateway, &request, &["after", "limit"]).await?;
    let after = params.number("after", 0..=u64::MAX)?.map(SettlementSeq);
    let limit = params.number("limit", 1..=limits::BILLING_PAGE_ROWS_MAX)?;
    has_months(&state)?;
    let limit = limit.unwrap_or(limits::BILLING_PAGE_ROWS) as usize;
    page(&state, after, limit).map(Json)
}

fn page(
    state: &Replica,
    after: Option<SettlementSeq>,
    limit: usize,
) -> Result<SettlementsPage, ApiError> {
    let newest = state.settlement_last();
    let kept = state.settlements_from(SettlementSeq(0)).next();
    let oldest = kept.map_or(SettlementSeq(newest.0.saturating_add(1)), |row| row.seq);
    let rows = state.settlements_from(first(oldest, after)?).take(limit);
    let cluster = state.cluster().map(|cluster| cluster.id.to_string());
    Ok(SettlementsPage {
        cluster: cluster.unwrap_or_default(),
        oldest,
        newest,
        settlements: rows.map(|row| view::settlement(state, row)).collect(),
    })
}

/// The first that a page holds.
fn first(oldest: SettlementSeq, after: Option<SettlementSeq>) -> Result<SettlementSeq, ApiError> {
    let from = after.map_or(oldest, |after| SettlementSeq(after.0.saturating_add(1)));
    if from >= oldest {
        return Ok(from);
    }
    let lost = SettlementSeq(oldest.0 - 1);
    let words = format!(
        "Settlements {from} to {lost} are kept no longer. Go on with 'after={lost}'; what they added up to \
         is still in usage and statements."
    );
    Err(ApiError::lost("settlements_lost", words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_begins_where_it_was_asked_to_or_says_what_is_gone() {
        let oldest = SettlementSeq(11);
        let from = |after: Option<u64>| first(oldest, after.map(SettlementSeq));
        assert_eq!(from(None), Ok(oldest));
        assert_eq!(from(Some(10)), Ok(oldest));
        assert_eq!(from(Some(40)), Ok(SettlementSeq(41)));
        assert!(from(Some(u64::MAX)).is_ok());
        let error = from(Some(9)).expect_err("10 is gone");
        assert_eq!(
            (error.status.as_u16(), error.code),
            (410, Some("settlements_lost"))
        );
        assert!(error.message.contains("10 to 10"), "{}", error.message);
        assert!(error.message.contains("after=10"), "{}", error.message);
        assert!(from(Some(0)).is_err());
    }
}
