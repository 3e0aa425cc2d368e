//! Cursors: where a page ended. Keeps true: a cursor is good for the very query that gave it, of the same
//! tenant; for any other it is refused. It holds no secret, and nothing is found by it that the query
//! would not find.

use crate::gateway::error::ApiError;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use trireme_shared::ids::TenantId;

const DOMAIN: &[u8] = b"trireme cursor\0";
const SEAL_BYTES: usize = 8;

/// A query, by all that its rows depend on.
pub struct Bound([u8; SEAL_BYTES]);

impl Bound {
    /// `query`: everything of it but cursor and limit.
    pub fn to(tenant: TenantId, query: &impl Serialize) -> Result<Self, ApiError> {
        let query = serde_json::to_vec(query).map_err(|e| ApiError::internal(e.to_string()))?;
        let mut hash = Sha256::new();
        hash.update(DOMAIN);
        hash.update(tenant.0.to_le_bytes());
        hash.update(query);
        let mut seal = [0; SEAL_BYTES];
        seal.copy_from_slice(&hash.finalize()[..SEAL_BYTES]);
        Ok(Self(seal))
    }

    /// `position`: the last row's.
    pub fn cursor(&self, position: &impl Serialize) -> Result<String, ApiError> {
        let mut bytes = self.0.to_vec();
        let position = serde_json::to_vec(position);
        bytes.extend(position.map_err(|e| ApiError::internal(e.to_string()))?);
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The position in a cursor that came from this query.
    pub fn position<P: DeserializeOwned>(
        &self,
        cursor: Option<&str>,
    ) -> Result<Option<P>, ApiError> {
        let Some(cursor) = cursor else {
            return Ok(None);
        };
        let wrong = || {
            ApiError::value(
                "cursor",
                "This cursor is not of this query: send the 'next_cursor' of its page before, and leave all \
                 other parameters as they were.",
            )
        };
        let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| wrong())?;
        let position = bytes.strip_prefix(&self.0[..]).ok_or_else(wrong)?;
        serde_json::from_slice(position)
            .map(Some)
            .map_err(|_| wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_good_for_its_own_query_only() {
        let query = ("usage", 1, 2);
        let bound = Bound::to(TenantId(1), &query).unwrap();
        let cursor = bound.cursor(&(7u64, "m")).unwrap();
        let read = |tenant, query: (&str, i32, i32), cursor: &str| {
            let bound = Bound::to(TenantId(tenant), &query).unwrap();
            bound.position::<(u64, String)>(Some(cursor))
        };
        assert_eq!(read(1, query, &cursor).unwrap(), Some((7, "m".into())));
        assert_eq!(bound.position::<u64>(None).unwrap(), None);
        assert!(read(2, query, &cursor).is_err(), "another tenant's");
        assert!(read(1, ("usage", 1, 3), &cursor).is_err());
        for wrong in ["", "x", "AAAA", &cursor[1..], &format!("{cursor}AA")] {
            let error = read(1, query, wrong).unwrap_err();
            assert_eq!(
                (error.status.as_u16(), error.param.as_deref()),
                (400, Some("cursor"))
            );
        }
    }
}
