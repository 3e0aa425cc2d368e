//! Log-probabilities in the shapes of both APIs.

use crate::gateway::text::ModelText;
use serde_json::{Map, Value, json};

/// What JSON can hold in place of minus infinity; OpenAI's API shows the same number.
const LEAST: f64 = -9999.0;

/// One token's logprob (`None` for a prompt's first) and the best ones beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenReport {
    /// Where its text begins, in characters.
    pub offset: usize,
    pub token: u32,
    pub logprob: Option<f32>,
    pub top: Vec<(u32, f32)>,
}

/// How tokens are named.
pub struct Names<'a> {
    pub text: &'a ModelText,
    /// `token_id:N` instead of the token's text.
    pub as_ids: bool,
}

impl Names<'_> {
    fn name(&self, token: u32) -> String {
        if self.as_ids {
            return format!("token_id:{token}");
        }
        name(self.text.token_bytes(token))
    }
}

/// A token's text; one that is only a part of a character is written `bytes:\xe2\x80`, as OpenAI
/// does, so that different tokens have different names.
fn name(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| {
        let escaped: String = error
            .as_bytes()
            .iter()
            .map(|byte| format!("\\x{byte:02x}"))
            .collect();
        format!("bytes:{escaped}")
    })
}

fn finite(logprob: f32) -> f64 {
    let logprob = f64::from(logprob);
    if logprob.is_finite() {
        logprob.max(LEAST)
    } else {
        LEAST
    }
}

/// Chat's `{"content": [{token, logprob, bytes, top_logprobs}]}`.
pub fn chat(names: &Names<'_>, reports: &[TokenReport]) -> Value {
    let one = |token: u32, logprob: f32| {
        json!({
            "token": names.name(token),
            "logprob": finite(logprob),
            "bytes": names.text.token_bytes(token),
        })
    };
    let content: Vec<Value> = reports
        .iter()
        .map(|report| {
            let mut entry = one(report.token, report.logprob.unwrap_or(f32::NEG_INFINITY));
            entry["top_logprobs"] = report.top.iter().map(|&(t, l)| one(t, l)).collect();
            entry
        })
        .collect();
    json!({"content": content, "refusal": null})
}

/// Completions' parallel lists; `top_logprobs` always holds the token itself too.
pub fn text(names: &Names<'_>, reports: &[TokenReport]) -> Value {
    let top = |report: &TokenReport| {
        let Some(own) = report.logprob else {
            return Value::Null;
        };
        let mut map = Map::new();
        for &(token, logprob) in report.top.iter().chain([&(report.token, own)]) {
            map.entry(names.name(token))
                .or_insert_with(|| json!(finite(logprob)));
        }
        Value::Object(map)
    };
    json!({
        "tokens": reports.iter().map(|r| names.name(r.token)).collect::<Vec<_>>(),
        "token_logprobs": reports.iter().map(|r| r.logprob.map(finite)).collect::<Vec<_>>(),
        "top_logprobs": reports.iter().map(top).collect::<Vec<_>>(),
        "text_offset": reports.iter().map(|r| r.offset).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_characters_have_names_of_their_own() {
        assert_eq!(name(b" the".to_vec()), " the");
        assert_eq!(name(vec![0xe2, 0x80]), "bytes:\\xe2\\x80");
        assert_ne!(name(vec![0xe2, 0x80]), name(vec![0xe2, 0x81]));
    }

    #[test]
    fn infinities_become_numbers() {
        assert_eq!(finite(f32::NEG_INFINITY), LEAST);
        assert_eq!(finite(f32::NAN), LEAST);
        assert_eq!(finite(-0.5), -0.5);
    }
}
