//! The answers that are not a success, as the document lists them: a set for each kind of route.

use std::collections::BTreeMap;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

/// OpenAI's shape of an error.
#[derive(ToSchema)]
#[allow(
    dead_code,
    reason = "only its schema is used: `ApiError::to_json` writes it"
)]
pub struct ErrorAnswer {
    error: ErrorDetail,
}

#[derive(ToSchema)]
#[allow(
    dead_code,
    reason = "only its schema is used: `ApiError::to_json` writes it"
)]
pub struct ErrorDetail {
    /// For people: what is wrong and what to do.
    message: String,
    /// `invalid_request_error`, or `server_error` where nothing is wrong with the request.
    r#type: String,
    /// The parameter that it is about.
    param: Option<String>,
    /// For programs, such as `invalid_api_key`.
    code: Option<String>,
}

fn meaning(status: u16) -> &'static str {
    match status {
        400 => "A parameter, a header or the body is not one we take; nothing was changed",
        401 => "No key, or one that is not known, has expired or was revoked",
        403 => "The key is not for this, or its account is suspended",
        404 => "There is no such thing, or it is not the caller's",
        408 => "The body did not arrive in time",
        409 => "It was done before, under the same idempotency key, and its answer is gone",
        410 => "It was kept once, and is kept no longer",
        413 => "The body is too large",
        415 => "The body is not plain `application/json`",
        429 => {
            "A limit, a budget or the balance is used up: `retry-after` says until when, where waiting helps"
        }
        500 => "We failed",
        503 => "We cannot now: try again after `retry-after` seconds",
        _ => "An error",
    }
}

fn refusals(statuses: &[u16]) -> BTreeMap<String, RefOr<Response>> {
    let answer = |status: &u16| {
        let schema = Ref::from_schema_name("ErrorAnswer");
        let content = ContentBuilder::new().schema(Some(schema)).build();
        let response = ResponseBuilder::new()
            .description(meaning(*status))
            .content("application/json", content)
            .build();
        (status.to_string(), RefOr::T(response))
    };
    statuses.iter().map(answer).collect()
}

macro_rules! refused {
    ($($(#[$doc:meta])* $name:ident: $($status:literal),+;)+) => {$(
        $(#[$doc])*
        pub struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                refusals(&[$($status),+])
            }
        }
    )+};
}

refused! {
    /// Of a question without a key.
    RefusedOpen: 500, 503;
    /// Of a question.
    Refused: 400, 401, 403, 500, 503;
    /// Of a question about one thing, which may not be there.
    RefusedOne: 400, 401, 403, 404, 500, 503;
    /// Of a question of a log, which may have been cut short.
    RefusedLog: 400, 401, 403, 410, 500, 503;
    /// Of a change.
    RefusedAct: 400, 401, 403, 404, 408, 409, 413, 415, 500, 503;
    /// Of a change that can be made so often only.
    RefusedOften: 400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503;
    /// Of work for a model.
    RefusedWork: 400, 401, 403, 404, 408, 413, 415, 429, 500, 503;
}
