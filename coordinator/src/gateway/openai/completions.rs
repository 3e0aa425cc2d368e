//! `POST /v1/completions`: its body, parsed and checked.

use super::fields::{self, Fields};
use super::params::CommonParams;
use crate::gateway::error::ApiError;
use serde_json::Value;
use trireme_shared::limits;

/// `max_tokens` where it is left out, as in OpenAI's API.
pub const DEFAULT_MAX_TOKENS: u32 = 16;

/// One prompt as the caller gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptInput {
    Text(String),
    Ids(Vec<u32>),
}

/// A text completion request whose every field was looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    pub common: CommonParams,
    /// At least one; with `n`, at most `limits::CHOICES_MAX` choices.
    pub prompts: Vec<PromptInput>,
    /// 0 scores the prompt only.
    pub max_tokens: Option<u32>,
    /// How many best tokens to report beside each token.
    pub logprobs: Option<u8>,
    /// The prompt (and its logprobs, where asked) is part of the answer.
    pub echo: bool,
}

impl CompletionRequest {
    pub fn parse(body: Value) -> Result<Self, ApiError> {
        let mut fields = Fields::of(body)?;
        let common = CommonParams::parse(&mut fields)?;
        let prompts = prompts(fields.take("prompt"))?;
        if prompts.len() * common.n as usize > limits::CHOICES_MAX {
            return Err(ApiError::value(
                "prompt",
                format!(
                    "Prompts times 'n' may be up to {}; send fewer at once.",
                    limits::CHOICES_MAX
                ),
            ));
        }
        let n = i64::from(common.n);
        fields.only_if("best_of", "it may only equal 'n'.", |value| {
            value.as_i64() == Some(n)
        })?;
        fields.only_if("suffix", "text cannot be inserted before a suffix.", |v| {
            v == ""
        })?;
        let max_tokens = fields.integer("max_tokens", 0..=i64::from(u32::MAX))?;
        let logprobs = fields.integer("logprobs", 0..=i64::from(limits::TOP_LOGPROBS_MAX))?;
        let echo = fields.boolean("echo")?.unwrap_or(false);
        fields.finish()?;
        Ok(Self {
            common,
            prompts,
            max_tokens: max_tokens.map(|tokens| tokens as u32),
            logprobs: logprobs.map(|count| count as u8),
            echo,
        })
    }
}

/// A string, strings, token ids, or lists of token ids.
fn prompts(value: Option<Value>) -> Result<Vec<PromptInput>, ApiError> {
    const NAME: &str = "prompt";
    const FORMS: &str = "a string, strings, token ids, or arrays of token ids, all of one kind";
    match value {
        None => Err(ApiError::missing(NAME)),
        Some(Value::String(text)) => Ok(vec![PromptInput::Text(text)]),
        Some(Value::Array(items)) => match items.first() {
            None => Err(ApiError::value(NAME, "'prompt' must not be empty.")),
            Some(Value::Number(_)) => Ok(vec![PromptInput::Ids(ids(&items)?)]),
            // Checked here too: the check of all choices comes after all prompts were built.
            Some(_) if items.len() > limits::CHOICES_MAX => Err(ApiError::value(
                NAME,
                format!("One request takes up to {} prompts.", limits::CHOICES_MAX),
            )),
            // As in OpenAI's schema, all of one kind: a mix is a slip of the caller's.
            Some(first) => {
                let strings = first.is_string();
                items
                    .into_iter()
                    .map(|item| match item {
                        Value::String(text) if strings => Ok(PromptInput::Text(text)),
                        Value::Array(item) if !strings => Ok(PromptInput::Ids(ids(&item)?)),
                        other => Err(ApiError::wrong_type(NAME, FORMS, &other)),
                    })
                    .collect()
            }
        },
        Some(other) => Err(ApiError::wrong_type(NAME, FORMS, &other)),
    }
}

fn ids(values: &[Value]) -> Result<Vec<u32>, ApiError> {
    if values.is_empty() {
        return Err(ApiError::value(
            "prompt",
            "A prompt needs at least one token.",
        ));
    }
    values
        .iter()
        .map(|value| fields::integer("prompt", value, 0..=i64::from(u32::MAX)).map(|id| id as u32))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(prompt: Value, extra: Value) -> Result<CompletionRequest, ApiError> {
        let mut body = json!({"model": "m", "prompt": prompt});
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        CompletionRequest::parse(body)
    }

    #[test]
    fn every_form_of_prompt() {
        let of = |prompt: Value| parse(prompt, json!({})).unwrap().prompts;
        let text = |text: &str| PromptInput::Text(text.into());
        assert_eq!(of(json!("a")), [text("a")]);
        assert_eq!(of(json!(["a", "b"])), [text("a"), text("b")]);
        assert_eq!(of(json!([1, 2])), [PromptInput::Ids(vec![1, 2])]);
        assert_eq!(
            of(json!([[1, 2], [3]])),
            [PromptInput::Ids(vec![1, 2]), PromptInput::Ids(vec![3])]
        );
    }

    #[test]
    fn scoring_takes_no_tokens_and_best_of_may_equal_n() {
        let request = parse(
            json!("a"),
            json!({"max_tokens": 0, "echo": true, "logprobs": 0, "n": 2, "best_of": 2, "suffix": ""}),
        )
        .unwrap();
        assert_eq!((request.max_tokens, request.logprobs), (Some(0), Some(0)));
        assert!(request.echo);
    }

    #[test]
    fn the_culprit_is_named() {
        for (prompt, extra, param) in [
            (json!(null), json!({}), "prompt"),
            (json!([]), json!({}), "prompt"),
            (json!([[]]), json!({}), "prompt"),
            (json!([1, "a"]), json!({}), "prompt"),
            (json!([1, -1]), json!({}), "prompt"),
            (json!([1, 1.5]), json!({}), "prompt"),
            (json!([true]), json!({}), "prompt"),
            (json!([[["deep"]]]), json!({}), "prompt"),
            (json!(["a", [1]]), json!({}), "prompt"),
            (json!([[1], "a"]), json!({}), "prompt"),
            (json!({"text": "a"}), json!({}), "prompt"),
            (json!(vec!["a"; 129]), json!({}), "prompt"),
            (json!(vec!["a"; 65]), json!({"n": 2}), "prompt"),
            (json!("a"), json!({"best_of": 3}), "best_of"),
            (json!("a"), json!({"suffix": "z"}), "suffix"),
            (json!("a"), json!({"logprobs": true}), "logprobs"),
            (json!("a"), json!({"logprobs": 21}), "logprobs"),
            (json!("a"), json!({"max_tokens": -1}), "max_tokens"),
            (json!("a"), json!({"messages": []}), "messages"),
        ] {
            let error = parse(prompt.clone(), extra.clone()).expect_err(&prompt.to_string());
            assert_eq!(error.param.as_deref(), Some(param), "{prompt} {extra}");
        }
    }
}
