//! The billing API below `/billing/v1`, for a tenant's own key, and what the admin API answers of one
//! tenant by the same functions. An area a file: `account` (balance, limits, prices), `usage`, `requests`,
//! `statements`, `webhook`.
//!
//! What it keeps true: whose data it is comes from the key and from nothing else; no parameter, path or
//! cursor of a tenant's request names a tenant, and what another tenant owns is answered as what does not
//! exist. Questions are answered from one clone of the state, as new as the group's leader confirms, away
//! from the threads that serve requests where there may be much to sum.

mod account;
mod cursor;
pub mod dates;
pub mod params;
pub mod requests;
mod statement_csv;
pub mod statement_html;
pub mod statements;
pub mod usage;
mod webhook;

use super::auth;
use super::error::ApiError;
use super::server::GatewayState;
use crate::state::{State, Tenant};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request};
use params::Params;
use trireme_shared::ids::{KeyId, TenantId};
use trireme_shared::wall_clock::unix_ms;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Every route below `/billing/v1`.
pub fn routes() -> OpenApiRouter<GatewayState> {
    OpenApiRouter::new()
        .routes(routes!(account::balance))
        .routes(routes!(account::limits))
        .routes(routes!(account::prices))
        .routes(routes!(usage::own))
        .routes(routes!(requests::own))
        .routes(routes!(requests::own_one))
        .routes(routes!(statements::own))
        .routes(routes!(statements::own_one))
        .routes(routes!(webhook::own, webhook::put, webhook::remove))
        .routes(routes!(webhook::test))
}

/// A question under way: who is asked about, and the state it is answered from.
pub struct Question {
    pub state: State,
    pub tenant: TenantId,
    pub params: Params,
    /// Milliseconds since 1970: the state's time, or the wall's where that is later.
    pub now_ms: u64,
}

/// Waits until this replica holds all that was acknowledged anywhere; false where nobody leads, so that
/// it may be old.
pub async fn fresh(gateway: &GatewayState) -> bool {
    let led = gateway.group.leadership().borrow().leader.is_some();
    led && gateway.group.read_barrier().await.is_ok()
}

/// Refuses what is asked of the ledger's months while they are not made yet: in the first moments after
/// an older release.
pub fn has_months(state: &State) -> Result<(), ApiError> {
    let words = "The books of an earlier release are being taken over: ask again in a moment.";
    match state.keeps_months() {
        true => Ok(()),
        false => Err(ApiError::unavailable("upgrading", words, 1)),
    }
}

/// The state's time, or the wall's where that is later.
pub fn now_ms(state: &State) -> u64 {
    state.now_ms().max(unix_ms())
}

// A request's body may not be shared between threads: what waits must not hold a reference to it. So each
// of these looks at the request first, and gives what then waits.
impl Question {
    /// Of the tenant whose key is shown. `known`: names of the parameters that it may have.
    fn own<'a>(
        gateway: &'a GatewayState,
        request: &Request,
        known: &[&str],
    ) -> impl Future<Output = Result<(Self, KeyId), ApiError>> + Send + use<'a> {
        let caller = auth::billing(&gateway.group, request.headers());
        let asked = caller.and_then(|of| Ok((of, Params::of(request.uri(), known)?)));
        async move {
            let ((tenant, key), params) = asked?;
            fresh(gateway).await;
            let state = gateway.group.snapshot();
            let question = Self {
                now_ms: now_ms(&state),
                state,
                tenant,
                params,
            };
            Ok((question, key))
        }
    }

    /// Of a tenant that the admin names.
    pub fn of<'a>(
        gateway: &'a GatewayState,
        request: &Request,
        name: Result<Path<String>, PathRejection>,
        known: &[&str],
    ) -> impl Future<Output = Result<Self, ApiError>> + Send + use<'a> {
        let admitted = auth::admin(&gateway.group, request.headers());
        let params = admitted.and_then(|()| Params::of(request.uri(), known));
        // A name that is no UTF-8 is no tenant's.
        let name = name.ok().map(|Path(name)| name);
        async move {
            let params = params?;
            fresh(gateway).await;
            let state = gateway.group.snapshot();
            let tenant = name.and_then(|name| state.tenant_named(&name));
            let tenant = tenant.map(|tenant| tenant.id);
            let missing = "There is no such tenant: GET /admin/v1/tenants lists them.";
            Ok(Self {
                tenant: tenant.ok_or_else(|| ApiError::not_found(missing))?,
                now_ms: now_ms(&state),
                state,
                params,
            })
        }
    }

    pub fn tenant(&self) -> Result<&Tenant, ApiError> {
        let tenant = self.state.tenant(self.tenant);
        tenant.ok_or_else(|| ApiError::not_found("This tenant does not exist."))
    }

    /// Answers it on a thread that may compute.
    pub async fn answer<T: Send + 'static>(
        self,
        how: impl FnOnce(&Self) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let answered = tokio::task::spawn_blocking(move || how(&self)).await;
        answered.unwrap_or_else(|_| Err(ApiError::internal("The gateway failed on this question.")))
    }
}
