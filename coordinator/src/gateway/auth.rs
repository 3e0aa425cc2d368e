//! Who is asking: `Authorization: Bearer <key>`, looked up by the key's SHA-256, and what that key opens.
//!
//! Keeps true: keys are never logged or kept; what is compared are hashes, so that the time a
//! lookup takes says nothing about a key. A key opens what its scopes say, and no model but those it
//! names, if it names any.

use super::error::ApiError;
use super::usage::Payer;
use crate::raft::group::Group;
use crate::state::{KeyFault, Principal, Scopes, State};
use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use trireme_shared::ids::{KeyId, RequestId, TenantId};
use trireme_shared::wall_clock::unix_seconds;

/// The key that was presented.
fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(ApiError::unauthorized(
            "Send your API key once, as 'Authorization: Bearer <key>'.",
        ));
    };
    value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key.trim())
        .filter(|key| !key.is_empty())
        .ok_or_else(|| ApiError::unauthorized("The Authorization header must be 'Bearer <key>'."))
}

fn principal(group: &Group, headers: &HeaderMap) -> Result<Principal, ApiError> {
    let hash: [u8; 32] = Sha256::digest(bearer(headers)?.as_bytes()).into();
    let found = group.read(|state| state.authenticate(&hash, unix_seconds()));
    found.map_err(|fault| match fault {
        KeyFault::Unknown => ApiError::unauthorized("This API key is not known here."),
        KeyFault::Expired => ApiError::unauthorized("This API key has expired."),
        KeyFault::Revoked => ApiError::unauthorized("This API key was revoked."),
        KeyFault::Suspended => {
            ApiError::forbidden("This account is suspended: ask whoever runs this cluster.")
        }
    })
}

fn scopes(state: &State, key: KeyId) -> Scopes {
    let none = Scopes {
        inference: false,
        billing: false,
    };
    state.key(key).map_or(none, |key| key.settings.scopes)
}

/// The tenant behind a request to `/v1`.
pub fn tenant(group: &Group, headers: &HeaderMap, request: &RequestId) -> Result<Payer, ApiError> {
    match principal(group, headers)? {
        Principal::Tenant { key, .. } if !group.read(|s| scopes(s, key)).inference => {
            Err(ApiError::forbidden(
                "This API key is not for /v1: it lacks the scope 'inference'. Use another, or have it \
                 given that scope.",
            ))
        }
        Principal::Tenant { tenant, key, .. } => Ok(Payer {
            request: request.clone(),
            tenant,
            key,
            idempotency: None,
        }),
        Principal::Admin => Err(ApiError::forbidden(
            "This is the admin key, and /v1 bills a tenant: make a tenant's key with \
             POST /admin/v1/keys and use that.",
        )),
    }
}

/// The tenant, and the key, behind a request to `/billing/v1`.
pub fn billing(group: &Group, headers: &HeaderMap) -> Result<(TenantId, KeyId), ApiError> {
    match principal(group, headers)? {
        Principal::Tenant { key, .. } if !group.read(|s| scopes(s, key)).billing => {
            Err(ApiError::forbidden(
                "This API key is not for /billing/v1: it lacks the scope 'billing'. Use another, or have \
                 it given that scope.",
            ))
        }
        Principal::Tenant { tenant, key, .. } => Ok((tenant, key)),
        Principal::Admin => Err(ApiError::forbidden(
            "This is the admin key, and /billing/v1 tells a tenant of itself: ask below \
             /admin/v1/tenants/{name}, or use a tenant's key.",
        )),
    }
}

/// Whether the key may use the model of that name.
pub fn allows(state: &State, key: KeyId, model: &str) -> bool {
    let key = state.key(key);
    key.is_some_and(|key| key.settings.allows(model))
}

/// Lets a request for that model pass; one that the key may not use is as one that is not served.
pub fn model(group: &Group, key: KeyId, model: &str) -> Result<(), ApiError> {
    match group.read(|state| allows(state, key, model)) {
        true => Ok(()),
        false => Err(ApiError::model_not_found(model)),
    }
}

/// How the audit log names whoever shows the admin key.
pub const ADMIN: &str = "admin";

/// Lets only the admin pass.
pub fn admin(group: &Group, headers: &HeaderMap) -> Result<(), ApiError> {
    match principal(group, headers)? {
        Principal::Admin => Ok(()),
        Principal::Tenant { .. } => Err(ApiError::forbidden(
            "This needs the admin key: a tenant's key only reaches /v1 and /billing/v1.",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn with(values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn only_one_bearer_key_is_taken() {
        assert_eq!(bearer(&with(&["Bearer sk-1"])).unwrap(), "sk-1");
        assert_eq!(bearer(&with(&["bearer  sk-1 "])).unwrap(), "sk-1");
        for bad in [
            &[][..],
            &["Bearer"],
            &["Bearer "],
            &["Basic sk-1"],
            &["sk-1"],
            &["Bearer a", "Bearer b"],
        ] {
            assert_eq!(bearer(&with(bad)).unwrap_err().status, 401, "{bad:?}");
        }
    }
}
