//! `POST /v1/chat/completions`: its body, parsed and checked.

use super::fields::Fields;
use super::params::CommonParams;
use crate::gateway::error::ApiError;
use serde_json::{Map, Value, json};
use trireme_shared::limits;

/// A chat request whose every field was looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    pub common: CommonParams,
    /// OpenAI's message objects with `content` as one string.
    pub messages: Vec<Value>,
    /// `None` is the rest of the context.
    pub max_tokens: Option<u32>,
    /// How many best tokens to report beside each generated one.
    pub logprobs: Option<u8>,
}

impl ChatRequest {
    pub fn parse(body: Value) -> Result<Self, ApiError> {
        let mut fields = Fields::of(body)?;
        let common = CommonParams::parse(&mut fields)?;
        let messages = match fields.take("messages") {
            None => return Err(ApiError::missing("messages")),
            Some(Value::Array(messages)) if messages.is_empty() => {
                return Err(ApiError::value("messages", "'messages' must not be empty."));
            }
            Some(Value::Array(messages)) => messages
                .into_iter()
                .enumerate()
                .map(|(i, value)| message(i, value))
                .collect::<Result<Vec<_>, _>>()?,
            Some(other) => return Err(ApiError::wrong_type("messages", "an array", &other)),
        };
        let max_tokens = max_tokens(&mut fields)?;
        let logprobs = logprobs(&mut fields)?;
        fields.finish()?;
        Ok(Self {
            common,
            messages,
            max_tokens,
            logprobs,
        })
    }
}

fn max_tokens(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let range = 1..=i64::from(u32::MAX);
    let old = fields.integer("max_tokens", range.clone())?;
    let new = fields.integer("max_completion_tokens", range)?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => Err(ApiError::value(
            "max_tokens",
            "'max_tokens' and 'max_completion_tokens' differ; send one of them.",
        )),
        _ => Ok(new.or(old).map(|tokens| tokens as u32)),
    }
}

fn logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=i64::from(limits::TOP_LOGPROBS_MAX))?;
    match (wanted, top) {
        (false, Some(top)) if top > 0 => Err(ApiError::value(
            "top_logprobs",
            "'top_logprobs' needs 'logprobs': true.",
        )),
        (false, _) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0) as u8)),
    }
}

/// One message, its content made one string.
fn message(index: usize, value: Value) -> Result<Value, ApiError> {
    let at = format!("messages[{index}]");
    if !value.is_object() {
        return Err(ApiError::wrong_type(&at, "an object", &value));
    }
    let mut fields = Fields::of(value)?;
    let role_at = format!("{at}.role");
    let role = match fields.take("role") {
        None => return Err(ApiError::missing(&role_at)),
        Some(Value::String(role)) => role,
        Some(other) => return Err(ApiError::wrong_type(&role_at, "a string", &other)),
    };
    let role = match role.as_str() {
        // OpenAI's newer name for the same voice; templates know the older one.
        "system" | "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        "tool" | "function" => {
            return Err(ApiError::unsupported(
                &role_at,
                "tool calling is not built yet.",
            ));
        }
        _ => {
            return Err(ApiError::value(
                &role_at,
                format!("'{role_at}' must be system, developer, user or assistant."),
            ));
        }
    };
    let mut message = Map::new();
    message.insert("role".into(), json!(role));
    let content_at = format!("{at}.content");
    match fields.take("content") {
        None => return Err(ApiError::missing(&content_at)),
        Some(content) => {
            message.insert(
                "content".into(),
                Value::String(text_of(&content_at, content)?),
            );
        }
    }
    match fields.take("name") {
        None => {}
        Some(Value::String(name)) => {
            message.insert("name".into(), Value::String(name));
        }
        Some(other) => {
            return Err(ApiError::wrong_type(
                &format!("{at}.name"),
                "a string",
                &other,
            ));
        }
    }
    let no_list = |v: &Value| v.as_array().is_some_and(Vec::is_empty);
    fields
        .only_if("tool_calls", "tool calling is not built yet.", no_list)
        // Part of an OpenAI answer that is sent back as history.
        .and_then(|()| fields.only_if("annotations", "they are not read.", no_list))
        // Evaluation harnesses write it on every message.
        .and_then(|()| {
            fields.only_if("type", "messages are text.", |v| {
                v == "text" || v == "message"
            })
        })
        .and_then(|()| fields.finish())
        .map_err(|mut error| {
            error.param = error.param.map(|name| format!("{at}.{name}"));
            error
        })?;
    Ok(Value::Object(message))
}

/// A content's text: a string, or text parts, which stand on lines of their own.
fn text_of(at: &str, content: Value) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) if !parts.is_empty() => parts,
        Value::Array(_) => {
            return Err(ApiError::value(at, format!("'{at}' must not be empty.")));
        }
        other => {
            return Err(ApiError::wrong_type(
                at,
                "a string or an array of text parts",
                &other,
            ));
        }
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (i, part) in parts.into_iter().enumerate() {
        let at = format!("{at}[{i}]");
        let Value::Object(mut part) = part else {
            return Err(ApiError::wrong_type(&at, "an object", &part));
        };
        match part.remove("type") {
            Some(Value::String(kind)) if kind == "text" => {}
            Some(Value::String(_)) => {
                return Err(ApiError::unsupported(
                    &format!("{at}.type"),
                    "only parts of type \"text\" are read.",
                ));
            }
            Some(other) => {
                return Err(ApiError::wrong_type(
                    &format!("{at}.type"),
                    "a string",
                    &other,
                ));
            }
            None => return Err(ApiError::missing(&format!("{at}.type"))),
        }
        match part.remove("text") {
            Some(Value::String(text)) => texts.push(text),
            Some(other) => {
                return Err(ApiError::wrong_type(
                    &format!("{at}.text"),
                    "a string",
                    &other,
                ));
            }
            None => return Err(ApiError::missing(&format!("{at}.text"))),
        }
        if let Some((name, _)) = part.into_iter().next() {
            return Err(ApiError::unknown(&format!("{at}.{name}")));
        }
    }
    Ok(texts.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extra: Value) -> Result<ChatRequest, ApiError> {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        ChatRequest::parse(body)
    }

    #[test]
    fn defaults_are_openais() {
        let request = parse(json!({})).unwrap();
        assert_eq!(request.common.sampling.temperature, 1.0);
        assert_eq!(request.common.sampling.top_p, 1.0);
        assert_eq!((request.common.n, request.common.stream), (1, false));
        assert_eq!((request.max_tokens, request.logprobs), (None, None));
    }

    #[test]
    fn every_parameter_arrives() {
        let request = parse(json!({
            "max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.25, "top_k": -1,
            "min_p": 0.125, "seed": -3, "stop": ["a", "b"], "n": 3, "logprobs": true,
            "top_logprobs": 4, "frequency_penalty": -2, "presence_penalty": 2,
            "logit_bias": {"9": -100, "3": 1.5}, "stream": true,
            "stream_options": {"include_usage": true}, "stop_token_ids": [5], "ignore_eos": true,
            "user": "u", "metadata": {"a": "b"}, "store": false, "service_tier": "auto",
            "parallel_tool_calls": true, "tools": [], "tool_choice": "none",
            "response_format": {"type": "text"}, "modalities": ["text"], "top_a": null,
        }))
        .unwrap();
        let sampling = &request.common.sampling;
        assert_eq!(sampling.temperature, 0.5);
        assert_eq!(
            (sampling.top_p, sampling.top_k, sampling.min_p),
            (0.25, 0, 0.125)
        );
        assert_eq!(sampling.seed, -3i64 as u64);
        assert_eq!(sampling.logit_bias, [(3, 1.5), (9, -100.0)]);
        assert_eq!(
            (sampling.frequency_penalty, sampling.presence_penalty),
            (-2.0, 2.0)
        );
        assert_eq!(request.common.stop, ["a", "b"]);
        assert_eq!(request.common.stop_token_ids, [5]);
        assert_eq!((request.max_tokens, request.logprobs), (Some(7), Some(4)));
        assert!(request.common.include_usage && request.common.ignore_eos);
        assert_eq!(request.common.n, 3);
    }

    #[test]
    fn content_parts_are_joined_and_developer_is_system() {
        let request = parse(json!({"messages": [
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "", "name": "Ann", "type": "text"},
        ]}))
        .unwrap();
        assert_eq!(
            request.messages[0],
            json!({"role": "system", "content": "a\nb"})
        );
        assert_eq!(
            request.messages[1],
            json!({"role": "user", "content": "", "name": "Ann"})
        );
    }

    #[test]
    fn the_culprit_is_named() {
        for (extra, param) in [
            (json!({"frobnicate": 1}), "frobnicate"),
            (json!({"tools": [{"type": "function"}]}), "tools"),
            (
                json!({"response_format": {"type": "json_object"}}),
                "response_format",
            ),
            (json!({"audio": {}}), "audio"),
            (json!({"store": true}), "store"),
            (json!({"suffix": "x"}), "suffix"),
            (json!({"best_of": 2}), "best_of"),
            (json!({"temperature": 2.1}), "temperature"),
            (json!({"temperature": "hot"}), "temperature"),
            (json!({"top_p": 0}), "top_p"),
            (json!({"top_p": 1e-300}), "top_p"),
            (json!({"n": 0}), "n"),
            (json!({"n": 129}), "n"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (
                json!({"max_tokens": 3, "max_completion_tokens": 4}),
                "max_tokens",
            ),
            (json!({"logprobs": 3}), "logprobs"),
            (json!({"top_logprobs": 3}), "top_logprobs"),
            (
                json!({"logprobs": true, "top_logprobs": 21}),
                "top_logprobs",
            ),
            (json!({"stop": [""]}), "stop"),
            (json!({"stop": vec!["x"; 17]}), "stop"),
            (json!({"logit_bias": {"x": 1}}), "logit_bias"),
            (json!({"logit_bias": {"1": 101}}), "logit_bias"),
            (json!({"logit_bias": {"1": 1, "01": 2}}), "logit_bias"),
            (
                json!({"stream_options": {"include_usage": true}}),
                "stream_options",
            ),
            (json!({"messages": []}), "messages"),
            (
                json!({"messages": [{"role": "user"}]}),
                "messages[0].content",
            ),
            (
                json!({"messages": [{"role": "king", "content": ""}]}),
                "messages[0].role",
            ),
            (
                json!({"messages": [{"role": "user", "content": "", "x": 1}]}),
                "messages[0].x",
            ),
            (
                json!({"messages": [{"role": "user", "content": "", "type": "image"}]}),
                "messages[0].type",
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
                "messages[0].content[0].type",
            ),
        ] {
            let error = parse(extra.clone()).expect_err(&extra.to_string());
            assert_eq!(error.param.as_deref(), Some(param), "{extra}");
            assert_eq!(error.status, 400, "{extra}");
        }
    }
}
