//! A write of the admin's, or of a tenant's to its own: who asks, from where, and under which proposal id.
//!
//! What it keeps true: the same key on the same method and path by the same principal is the same
//! proposal, at whichever coordinator it is asked; whatever is left in doubt is answered with the key
//! that makes asking again safe.
//!
//! A key that a coordinator gives (`new_key`) holds the count of commands at that time: `apply` refuses
//! it once it may have been forgotten, so that it can never take effect twice. A key of the client's own
//! making has no such count, and is a new one once it is forgotten.

use crate::fleet::FleetError;
use crate::gateway::auth;
use crate::gateway::body;
use crate::gateway::error::ApiError;
use crate::gateway::idempotency;
use crate::gateway::server::{GatewayState, PeerAddress};
use crate::raft::group::{GroupError, Terms};
use crate::state::{Origin, ProposalId};
use axum::extract::Request;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};
use trireme_shared::ids::TenantId;

const DOMAIN: &[u8] = b"trireme idempotency";

/// One write under way.
pub struct Act {
    key: String,
    terms: Terms,
}

impl Act {
    /// Lets only the admin pass.
    pub fn admit(gateway: &GatewayState, parts: &Parts) -> Result<Self, ApiError> {
        auth::admin(&gateway.group, &parts.headers)?;
        Self::by(gateway, parts, auth::ADMIN.into())
    }

    /// Lets a tenant pass that writes what is its own.
    pub fn own(gateway: &GatewayState, parts: &Parts) -> Result<(Self, TenantId), ApiError> {
        let (tenant, key) = auth::billing(&gateway.group, &parts.headers)?;
        let act = Self::by(gateway, parts, format!("key {key} of {tenant}"))?;
        Ok((act, tenant))
    }

    fn by(gateway: &GatewayState, parts: &Parts, who: String) -> Result<Self, ApiError> {
        let key = match idempotency::key(&parts.headers)? {
            Some(key) => key.to_owned(),
            None => new_key(gateway)?,
        };
        let from = parts.extensions.get::<PeerAddress>();
        let origin = Origin {
            who,
            from: from.map_or_else(|| "unknown".into(), |peer| peer.0.to_string()),
        };
        let (method, path) = (parts.method.as_str(), parts.uri.path());
        Ok(Self {
            terms: Terms {
                id: Some(proposal_id(method, path, &origin.who, &key)),
                base: base(&key),
                origin: Some(origin),
            },
            key,
        })
    }

    pub fn terms(&self) -> Terms {
        self.terms.clone()
    }

    /// What the client is told.
    pub fn told<T>(&self, result: Result<T, FleetError>) -> Result<T, ApiError> {
        result.map_err(|error| match error {
            FleetError::Group(GroupError::InDoubt { .. }) => ApiError::in_doubt(&self.key),
            other => other.into(),
        })
    }
}

/// Lets a write in by `admit` and parses its body.
pub async fn with_body<A, T: DeserializeOwned + Send + 'static>(
    gateway: &GatewayState,
    request: Request,
    admit: fn(&GatewayState, &Parts) -> Result<A, ApiError>,
) -> Result<(A, T), ApiError> {
    let (parts, content) = request.into_parts();
    let admitted = match admit(gateway, &parts) {
        Ok(admitted) => admitted,
        Err(error) => {
            body::discard(content).await;
            return Err(error);
        }
    };
    let parsed = body::parse(&parts.headers, content, |value: Value| {
        serde_json::from_value(value)
            .map_err(|error| ApiError::body(format!("The body is not as it should be: {error}.")))
    });
    Ok((admitted, parsed.await?))
}

/// Lets a write in that needs no body; one that comes is thrown away.
pub async fn bare<A>(
    gateway: &GatewayState,
    request: Request,
    admit: fn(&GatewayState, &Parts) -> Result<A, ApiError>,
) -> Result<A, ApiError> {
    let (parts, content) = request.into_parts();
    body::discard(content).await;
    admit(gateway, &parts)
}

/// A key for one write, good anywhere in the group.
pub fn new_key(gateway: &GatewayState) -> Result<String, ApiError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)
        .map_err(|e| ApiError::internal(format!("The system gives no random numbers: {e}.")))?;
    let base = gateway.group.read(|s| s.commands());
    Ok(format!("k{base}.{}", hex::encode(random)))
}

/// The count of commands in a key that a coordinator gave.
fn base(key: &str) -> Option<u64> {
    let (base, random) = key.strip_prefix('k')?.split_once('.')?;
    let is_hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    let ours = random.len() == 32 && random.bytes().all(is_hex);
    ours.then(|| base.parse().ok()).flatten()
}

/// None of the parts but the last holds a zero byte, so that no two lists of them are one.
fn proposal_id(method: &str, path: &str, principal: &str, key: &str) -> ProposalId {
    let mut hash = Sha256::new();
    hash.update(DOMAIN);
    for part in [method, path, principal, key] {
        hash.update([0]);
        hash.update(part);
    }
    let mut id = [0; 16];
    id.copy_from_slice(&hash.finalize()[..16]);
    ProposalId(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proposal_is_named_by_all_of_its_parts() {
        let id = proposal_id("POST", "/a", "admin", "1");
        assert_eq!(id, proposal_id("POST", "/a", "admin", "1"));
        for other in [
            proposal_id("PUT", "/a", "admin", "1"),
            proposal_id("POST", "/b", "admin", "1"),
            proposal_id("POST", "/a", "else", "1"),
            proposal_id("POST", "/a", "admin", "2"),
            proposal_id("POST", "/aa", "dmin", "1"),
        ] {
            assert_ne!(id, other);
        }
    }

    #[test]
    fn only_keys_of_our_making_hold_a_base() {
        let random = "0123456789abcdef0123456789abcdef";
        assert_eq!(base(&format!("k17.{random}")), Some(17));
        for foreign in [
            "k17.abc",
            "17",
            &format!("k.{random}"),
            &format!("k-1.{random}"),
            &format!("x17.{random}"),
            &format!("k17.{}", random.to_uppercase()),
        ] {
            assert_eq!(base(foreign), None, "{foreign}");
        }
    }
}
