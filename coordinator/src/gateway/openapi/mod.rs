//! The document of our HTTP API (OpenAPI 3.1), made from what the handlers say of themselves, and a page
//! for people made from the document.
//!
//! Keeps true: a route is in the document because it is registered by what documents it (`routes!`), so
//! that neither is without the other; an operation lists every status that it can give.

mod page;
mod refusals;

pub use refusals::{
    Refused, RefusedAct, RefusedLog, RefusedOften, RefusedOne, RefusedOpen, RefusedWork,
};

use super::billing::statements;
use super::envelope::RequestContext;
use super::error::ApiError;
use super::server::GatewayState;
use super::{admin, billing, health, openai};
use axum::extract::Extension;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use std::sync::OnceLock;
use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Trireme",
        description = "One model served from many machines, with every token metered. `/v1` is OpenAI's API; \
                       `/billing/v1` tells a tenant what it used, owes and may; `/admin/v1` runs the \
                       cluster. All take a key as `Authorization: Bearer`: a tenant's, or the admin's. \
                       Errors have OpenAI's shape and an `x-request-id`. Money is in whole nano-dollars \
                       (`*_nano_usd`), times are seconds since 1970 (`*_at`).",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    tags(
        (name = "inference", description = "OpenAI's API"),
        (name = "billing", description = "A tenant's own account: its key needs the scope `billing`"),
        (name = "accounts", description = "Administration of tenants, keys, prices and money"),
        (name = "cluster", description = "Administration of members, nodes and deployments"),
        (name = "service", description = "Health and documents; no key is needed")
    ),
    components(schemas(refusals::ErrorAnswer, refusals::ErrorDetail))
)]
struct Document;

/// Every route there is, and what is known of it.
pub fn documented() -> (Router<GatewayState>, utoipa::openapi::OpenApi) {
    let all = OpenApiRouter::with_openapi(Document::openapi())
        .merge(openai::routes())
        .merge(billing::routes())
        .merge(admin::routes())
        .merge(health::routes())
        .routes(routes!(openapi_json))
        .routes(routes!(docs));
    let (router, mut document) = all.split_for_parts();
    document.info.version = env!("CARGO_PKG_VERSION").into();
    // The router's way to say that a name may hold slashes is not the document's.
    let paths = std::mem::take(&mut document.paths.paths);
    let plain = |path: String| path.replace("{*", "{");
    document.paths.paths = paths
        .into_iter()
        .map(|(path, of)| (plain(path), of))
        .collect();
    let key = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("key", key);
    (router, document)
}

fn document() -> &'static utoipa::openapi::OpenApi {
    static DOCUMENT: OnceLock<utoipa::openapi::OpenApi> = OnceLock::new();
    DOCUMENT.get_or_init(|| documented().1)
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "service",
    responses((status = 200, description = "OpenAPI 3.1", body = Object), RefusedOpen))]
async fn openapi_json(
    Extension(_): Extension<RequestContext>,
) -> Json<&'static utoipa::openapi::OpenApi> {
    Json(document())
}

/// This document as a page to read.
#[utoipa::path(get, path = "/docs", tag = "service",
    responses((status = 200, description = "A page", body = String, content_type = "text/html"), RefusedOpen))]
async fn docs(Extension(_): Extension<RequestContext>) -> Result<Response, ApiError> {
    let value = serde_json::to_value(document());
    let value =
        value.map_err(|e| ApiError::internal(format!("The document cannot be told: {e}.")))?;
    Ok(statements::page(page::write(&value)).into_response())
}
