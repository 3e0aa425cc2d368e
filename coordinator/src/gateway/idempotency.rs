//! The header `Idempotency-Key`, as writes of the admin API and requests to `/v1` carry it.

use super::error::ApiError;
use axum::http::HeaderMap;
use trireme_shared::api::IDEMPOTENCY_KEY_HEADER;
use trireme_shared::limits;

/// The key; `None` where there is none. One that is empty, too long, not printable or given twice is refused.
pub fn key(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY_HEADER).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let key = value.to_str().unwrap_or_default();
    let good = (1..=limits::IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len())
        && key.bytes().all(|b| (b' '..=b'~').contains(&b))
        && values.next().is_none();
    match good {
        true => Ok(Some(key)),
        false => Err(ApiError::body(format!(
            "The header 'Idempotency-Key' is given once, with 1 to {} printable ASCII characters.",
            limits::IDEMPOTENCY_KEY_BYTES_MAX
        ))),
    }
}
