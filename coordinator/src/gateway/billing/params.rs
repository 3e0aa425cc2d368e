//! What follows the `?` of a URL. Keeps true: a parameter that a route does not know, or that comes twice,
//! is refused by name.

use crate::gateway::error::ApiError;
use axum::extract::Query;
use axum::http::Uri;
use std::ops::RangeInclusive;
use trireme_shared::ids::KeyId;

#[derive(Clone, Debug)]
pub struct Params {
    pairs: Vec<(String, String)>,
}

impl Params {
    /// Those of the URL, none of which may have another name.
    pub fn of(uri: &Uri, known: &[&str]) -> Result<Self, ApiError> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|e| ApiError::body(format!("{}.", e.body_text())))?;
        for (at, (name, _)) in pairs.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                return Err(ApiError::unknown(name));
            }
            if pairs[..at].iter().any(|(earlier, _)| earlier == name) {
                return Err(ApiError::value(name, format!("'{name}' is given twice.")));
            }
        }
        Ok(Self { pairs })
    }

    /// `None` where it is not given.
    pub fn text(&self, name: &str) -> Option<&str> {
        let found = self.pairs.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// A whole number in that range.
    pub fn number(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        let number = text.parse().ok().filter(|number| range.contains(number));
        let (least, most) = (range.start(), range.end());
        let wrong = || format!("'{name}' is a whole number from {least} to {most}.");
        number
            .map(Some)
            .ok_or_else(|| ApiError::value(name, wrong()))
    }

    /// The number of a key, as it is shown (`k3`) or bare.
    pub fn key(&self, name: &str) -> Result<Option<KeyId>, ApiError> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        let number = text.strip_prefix('k').unwrap_or(text).parse().ok();
        let wrong = || ApiError::value(name, format!("'{name}' is a key's number, such as k3."));
        number.map(|n| Some(KeyId(n))).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(query: &str) -> Result<Params, ApiError> {
        let uri: Uri = format!("/a?{query}").parse().unwrap();
        Params::of(&uri, &["from", "limit", "key"])
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let error = of("from=1&tenant=zeta").unwrap_err();
        assert_eq!(
            (error.status.as_u16(), error.code),
            (400, Some("unknown_parameter"))
        );
        assert_eq!(error.param.as_deref(), Some("tenant"));
        let error = of("limit=1&limit=2").unwrap_err();
        assert_eq!(error.param.as_deref(), Some("limit"));
        assert!(of("").is_ok());
    }

    #[test]
    fn values_are_held_to_their_kind() {
        let params = of("from=a%20b&limit=10&key=k3").unwrap();
        assert_eq!(params.text("from"), Some("a b"));
        assert_eq!(params.text("none"), None);
        assert_eq!(params.number("limit", 1..=10).unwrap(), Some(10));
        assert_eq!(params.number("limit", 1..=9).unwrap_err().status, 400);
        assert_eq!(params.key("key").unwrap(), Some(KeyId(3)));
        assert_eq!(params.key("from").unwrap_err().status, 400);
        for wrong in ["-1", "1.0", "x", "", "99999999999999999999"] {
            let params = of(&format!("limit={wrong}")).unwrap();
            assert!(params.number("limit", 0..=u64::MAX).is_err(), "{wrong}");
        }
    }
}
