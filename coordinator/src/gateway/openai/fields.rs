//! A JSON object read field by field, so that every refusal names its field and no field is ignored.

use crate::gateway::error::ApiError;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// The fields that were not yet taken.
pub struct Fields {
    map: Map<String, Value>,
}

impl Fields {
    /// The whole body, which must be an object.
    pub fn of(body: Value) -> Result<Self, ApiError> {
        match body {
            Value::Object(map) => Ok(Self { map }),
            _ => Err(ApiError::body("The request body must be a JSON object.")),
        }
    }

    /// A field's value; `null` counts as left out, as in OpenAI's API.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(ApiError::wrong_type(name, "a boolean", &other)),
        }
    }

    pub fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(other) => Err(ApiError::wrong_type(name, "a string", &other)),
        }
    }

    /// A whole number within `range`.
    pub fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        self.take(name)
            .map(|value| integer(name, &value, range))
            .transpose()
    }

    /// A finite number within `range`.
    pub fn number(
        &mut self,
        name: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ApiError> {
        self.take(name)
            .map(|value| number(name, &value, range))
            .transpose()
    }

    /// Takes a field that is fine only where leaving it out would change nothing.
    pub fn only_if(
        &mut self,
        name: &str,
        why: &str,
        harmless: impl Fn(&Value) -> bool,
    ) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !harmless(&value) => Err(ApiError::unsupported(name, why)),
            _ => Ok(()),
        }
    }

    /// Nothing may be left.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.map.into_iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => Err(ApiError::unknown(&name)),
            None => Ok(()),
        }
    }
}

/// `value` as a whole number within `range`.
pub fn integer(name: &str, value: &Value, range: RangeInclusive<i64>) -> Result<i64, ApiError> {
    let Value::Number(number) = value else {
        return Err(ApiError::wrong_type(name, "an integer", value));
    };
    let whole = match number.as_i64() {
        Some(whole) => Some(whole),
        // Above i64: of the right type, but out of every range we have.
        None if number.is_u64() => None,
        None => {
            let float = number.as_f64().unwrap_or(f64::NAN);
            if float.fract() != 0.0 {
                return Err(ApiError::value(
                    name,
                    format!("'{name}' must be an integer, not a decimal number."),
                ));
            }
            (float.abs() < 2f64.powi(63)).then_some(float as i64)
        }
    };
    let Some(whole) = whole.filter(|whole| range.contains(whole)) else {
        return Err(ApiError::value(
            name,
            format!(
                "'{name}' must be from {} to {}.",
                range.start(),
                range.end()
            ),
        ));
    };
    Ok(whole)
}

/// `value` as a finite number within `range`.
pub fn number(name: &str, value: &Value, range: RangeInclusive<f64>) -> Result<f64, ApiError> {
    let Value::Number(number) = value else {
        return Err(ApiError::wrong_type(name, "a number", value));
    };
    match number.as_f64() {
        Some(float) if float.is_finite() && range.contains(&float) => Ok(float),
        _ => Err(ApiError::value(
            name,
            format!(
                "'{name}' must be from {} to {}.",
                range.start(),
                range.end()
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn integers_are_whole_and_in_range() {
        let ok = |v: Value| integer("n", &v, 0..=10).ok();
        assert_eq!(ok(json!(10)), Some(10));
        assert_eq!(ok(json!(3.0)), Some(3));
        for bad in [
            json!(11),
            json!(-1),
            json!(2.5),
            json!(1e300),
            json!(u64::MAX),
            json!("3"),
            json!([3]),
        ] {
            assert_eq!(ok(bad.clone()), None, "{bad}");
        }
        for huge in [json!(u64::MAX), json!(1e300), json!(-1e19)] {
            assert!(integer("seed", &huge, i64::MIN..=i64::MAX).is_err());
        }
    }

    #[test]
    fn what_is_left_is_named_unless_null() {
        let mut fields = Fields::of(json!({"a": 1, "b": null, "zeta": 2})).unwrap();
        assert_eq!(fields.integer("a", 0..=5).unwrap(), Some(1));
        let error = fields.finish().unwrap_err();
        assert_eq!(error.param.as_deref(), Some("zeta"));
        assert!(Fields::of(json!([1])).is_err());
    }
}
