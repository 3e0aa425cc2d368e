//! Headers of requests and answers beside HTTP's own.
//!
//! | header | of | meaning |
//! |---|---|---|
//! | `idempotency-key` | request | the same key with the same body is one request, however often it is sent |
//! | `x-trireme-cost` | request | `true`: tell what an unstreamed answer cost |
//! | `x-trireme-cost-nano-usd` | answer | that, in thousand-millionths of a dollar |
//! | `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` | answer | limits a minute, where there are any; `reset` is when all is there again, as OpenAI writes it (`6m0s`) |

use crate::gateway::error::ApiError;
use crate::gateway::idempotency;
use crate::state::{Rate, Rates};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};
use trireme_shared::ids::NanoUsd;

const COST_WANTED: HeaderName = HeaderName::from_static("x-trireme-cost");
const COST: HeaderName = HeaderName::from_static("x-trireme-cost-nano-usd");
const DOMAIN: &[u8] = b"trireme request";

/// What a request's headers ask for.
pub struct Asked<'a> {
    key: Option<&'a str>,
    pub cost: bool,
}

impl<'a> Asked<'a> {
    pub fn of(headers: &'a HeaderMap) -> Result<Self, ApiError> {
        let cost = match headers.get(COST_WANTED).map(HeaderValue::as_bytes) {
            None | Some(b"false") => false,
            Some(b"true") => true,
            Some(_) => {
                let message = "The header 'x-trireme-cost' is 'true' or 'false'.";
                return Err(ApiError::body(message));
            }
        };
        let key = idempotency::key(headers)?;
        Ok(Self { key, cost })
    }

    /// Names what was asked under the caller's key; `body` is the SHA-256 of the request's. Another
    /// tenant's is another by the tenant, which the state keeps beside it.
    pub fn idempotency(&self, body: &[u8; 32]) -> Option<[u8; 32]> {
        let mut hash = Sha256::new();
        hash.update(DOMAIN);
        hash.update(body);
        hash.update(self.key?);
        Some(hash.finalize().into())
    }
}

/// Says what is left of the limits.
pub fn rates(headers: &mut HeaderMap, rates: &Rates) {
    let mut say = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    if let Some(Rate {
        limit,
        left,
        full_in_ms,
    }) = rates.requests
    {
        say("x-ratelimit-limit-requests", limit.to_string());
        say("x-ratelimit-remaining-requests", left.to_string());
        say("x-ratelimit-reset-requests", duration(full_in_ms));
    }
    if let Some(Rate {
        limit,
        left,
        full_in_ms,
    }) = rates.tokens
    {
        say("x-ratelimit-limit-tokens", limit.to_string());
        say("x-ratelimit-remaining-tokens", left.to_string());
        say("x-ratelimit-reset-tokens", duration(full_in_ms));
    }
}

/// Says what the answer cost.
pub fn cost(headers: &mut HeaderMap, cost: NanoUsd) {
    headers.insert(COST, HeaderValue::from(cost.0));
}

/// As OpenAI writes it: `0s`, `20ms`, `1.5s`, `6m0s`.
fn duration(ms: u64) -> String {
    match (ms / 60_000, ms % 60_000) {
        (0, 0) => "0s".into(),
        (0, ms) if ms < 1_000 => format!("{ms}ms"),
        (0, ms) if ms % 1_000 == 0 => format!("{}s", ms / 1_000),
        (0, ms) => format!("{}.{:03}s", ms / 1_000, ms % 1_000),
        (minutes, ms) => format!("{minutes}m{}s", ms / 1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trireme_shared::api::IDEMPOTENCY_KEY_HEADER;

    #[test]
    fn durations_are_written_as_openai_does() {
        let written = [0, 20, 1_000, 1_500, 360_000, 61_999].map(duration);
        assert_eq!(written, ["0s", "20ms", "1s", "1.500s", "6m0s", "1m1s"]);
    }

    #[test]
    fn a_key_names_its_body_too() {
        let headers = |key: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(IDEMPOTENCY_KEY_HEADER, HeaderValue::from_static(key));
            headers
        };
        let named = |headers: &HeaderMap, body: u8| {
            let asked = Asked::of(headers).unwrap();
            asked.idempotency(&[body; 32])
        };
        let (a, b) = (headers("a"), headers("b"));
        assert_eq!(named(&a, 1), named(&a, 1));
        assert_ne!(named(&a, 1), named(&a, 2));
        assert_ne!(named(&a, 1), named(&b, 1));
        assert_eq!(named(&HeaderMap::new(), 1), None);
        let mut twice = headers("a");
        twice.append(IDEMPOTENCY_KEY_HEADER, HeaderValue::from_static("b"));
        assert!(Asked::of(&twice).is_err());
    }
}
