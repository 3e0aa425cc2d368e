//! The parameters that chat and text completions share, typed and checked.
//!
//! Keeps true: every parameter is honoured, or known to change nothing, or refused by its name.

use super::fields::{self, Fields};
use crate::gateway::error::ApiError;
use serde_json::Value;
use trireme_shared::limits;
use trireme_shared::wire::generate::{Priority, Sampling};

/// Temperatures below this are greedy: dividing logits by less only overflows to the same choice.
const GREEDY_BELOW: f64 = 1e-4;

/// Sampling and output control of one request.
#[derive(Clone, Debug, PartialEq)]
pub struct CommonParams {
    pub model: String,
    /// `seed` is that of choice 0; choice i takes `seed + i`.
    pub sampling: Sampling,
    pub stop: Vec<String>,
    /// vLLM's extension: further tokens that end the text.
    pub stop_token_ids: Vec<u32>,
    /// vLLM's extension: go on past the model's own end tokens (for benchmarks).
    pub ignore_eos: bool,
    pub n: u32,
    pub stream: bool,
    pub include_usage: bool,
    /// `service_tier`, if it was given: what goes first among this tenant's own requests.
    pub tier: Option<Priority>,
    /// vLLM's extension: name tokens `token_id:N` in logprobs.
    pub tokens_as_ids: bool,
}

const NO_TOOLS: &str = "tool calling is not built yet; send the request without it.";
const TEXT_ONLY: &str = "only plain text is produced; leave it out or ask for \"text\".";

impl CommonParams {
    /// Takes the shared fields out of `fields`.
    pub fn parse(fields: &mut Fields) -> Result<Self, ApiError> {
        let model = fields
            .string("model")?
            .ok_or_else(|| ApiError::missing("model"))?;
        let n = fields
            .integer("n", 1..=limits::CHOICES_MAX as i64)?
            .unwrap_or(1) as u32;
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let include_usage = stream_options(fields, stream)?;
        let params = Self {
            model,
            sampling: sampling(fields)?,
            stop: stop(fields)?,
            stop_token_ids: token_ids(fields, "stop_token_ids", limits::STOP_TOKENS_MAX)?,
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            n,
            stream,
            include_usage,
            tier: tier(fields)?,
            tokens_as_ids: fields
                .boolean("return_tokens_as_token_ids")?
                .unwrap_or(false),
        };
        harmless(fields)?;
        Ok(params)
    }

    /// Checks token ids against the model's vocabulary, which is known only after `parse`.
    pub fn check_vocabulary(&self, vocabulary: u32) -> Result<(), ApiError> {
        let outside = |name: &str, id: u32| {
            Err(ApiError::value(
                name,
                format!(
                    "'{name}' names token {id}; this model's tokens are 0 to {}.",
                    vocabulary.saturating_sub(1)
                ),
            ))
        };
        if let Some((id, _)) = self
            .sampling
            .logit_bias
            .iter()
            .find(|(id, _)| *id >= vocabulary)
        {
            return outside("logit_bias", *id);
        }
        if let Some(id) = self.stop_token_ids.iter().find(|id| **id >= vocabulary) {
            return outside("stop_token_ids", *id);
        }
        Ok(())
    }
}

/// What OpenAI calls it; the price is the same.
pub fn tier_name(priority: Priority) -> &'static str {
    match priority {
        Priority::Low => "flex",
        Priority::Normal => "default",
        Priority::High => "priority",
    }
}

fn tier(fields: &mut Fields) -> Result<Option<Priority>, ApiError> {
    const NAME: &str = "service_tier";
    let Some(name) = fields.string(NAME)? else {
        return Ok(None);
    };
    let mut known = Priority::ALL.into_iter();
    match known.find(|priority| name == tier_name(*priority)) {
        None if name == "auto" => Ok(Some(Priority::Normal)),
        None => Err(ApiError::value(
            NAME,
            "'service_tier' must be \"auto\", \"default\", \"flex\" (after your other requests) or \
             \"priority\" (before them).",
        )),
        named => Ok(named),
    }
}

fn sampling(fields: &mut Fields) -> Result<Sampling, ApiError> {
    let temperature = fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0);
    let top_p = fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0);
    // As f32: a value that rounds to 0 would keep nothing.
    if top_p as f32 <= 0.0 {
        return Err(ApiError::value(
            "top_p",
            "'top_p' must be above 0, up to 1.",
        ));
    }
    let top_k = fields
        .integer("top_k", -1..=i64::from(u32::MAX))?
        .unwrap_or(0);
    let seed = fields.integer("seed", i64::MIN..=i64::MAX)?;
    Ok(Sampling {
        temperature: if temperature < GREEDY_BELOW {
            0.0
        } else {
            temperature as f32
        },
        top_p: top_p as f32,
        top_k: u32::try_from(top_k).unwrap_or(0),
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0) as f32,
        seed: match seed {
            Some(seed) => seed as u64,
            None => random_seed()?,
        },
        frequency_penalty: fields
            .number("frequency_penalty", -2.0..=2.0)?
            .unwrap_or(0.0) as f32,
        presence_penalty: fields
            .number("presence_penalty", -2.0..=2.0)?
            .unwrap_or(0.0) as f32,
        logit_bias: logit_bias(fields)?,
        drafts: fields
            .integer(
                "speculative_tokens",
                0..=i64::from(limits::DRAFT_TOKENS_MAX),
            )?
            .map_or(limits::DRAFT_TOKENS_MAX, |most| most as u8),
    })
}

fn random_seed() -> Result<u64, ApiError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| ApiError::internal(format!("no random numbers: {error}")))?;
    Ok(u64::from_le_bytes(bytes))
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    const NAME: &str = "logit_bias";
    let entries = match fields.take(NAME) {
        None => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(other) => {
            return Err(ApiError::wrong_type(
                NAME,
                "an object of token ids and biases",
                &other,
            ));
        }
    };
    if entries.len() > limits::LOGIT_BIAS_MAX {
        return Err(ApiError::value(
            NAME,
            format!("'{NAME}' has more than {} entries.", limits::LOGIT_BIAS_MAX),
        ));
    }
    let mut bias = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        let Ok(token) = key.parse::<u32>() else {
            return Err(ApiError::value(
                NAME,
                "The keys of 'logit_bias' must be token ids, such as \"50256\".",
            ));
        };
        bias.push((token, fields::number(NAME, &value, -100.0..=100.0)? as f32));
    }
    bias.sort_by_key(|(token, _)| *token);
    // "7" and "07" are two keys of one token.
    if bias.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(ApiError::value(NAME, "'logit_bias' names a token twice."));
    }
    Ok(bias)
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    const NAME: &str = "stop";
    let values = match fields.take(NAME) {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => values,
        Some(single) => vec![single],
    };
    if values.len() > limits::STOP_STRINGS_MAX {
        return Err(ApiError::value(
            NAME,
            format!("'stop' takes up to {} strings.", limits::STOP_STRINGS_MAX),
        ));
    }
    values
        .into_iter()
        .map(|value| match value {
            Value::String(text) if text.is_empty() => {
                Err(ApiError::value(NAME, "A stop string must not be empty."))
            }
            Value::String(text) if text.len() > limits::STOP_STRING_BYTES_MAX => {
                Err(ApiError::value(
                    NAME,
                    format!(
                        "A stop string may have up to {} bytes.",
                        limits::STOP_STRING_BYTES_MAX
                    ),
                ))
            }
            Value::String(text) => Ok(text),
            other => Err(ApiError::wrong_type(
                NAME,
                "a string or an array of strings",
                &other,
            )),
        })
        .collect()
}

fn token_ids(fields: &mut Fields, name: &str, count_max: usize) -> Result<Vec<u32>, ApiError> {
    match fields.take(name) {
        None => Ok(Vec::new()),
        Some(Value::Array(values)) if values.len() > count_max => Err(ApiError::value(
            name,
            format!("'{name}' takes up to {count_max} ids."),
        )),
        Some(Value::Array(values)) => values
            .iter()
            .map(|value| fields::integer(name, value, 0..=i64::from(u32::MAX)).map(|id| id as u32))
            .collect(),
        Some(other) => Err(ApiError::wrong_type(name, "an array of token ids", &other)),
    }
}

fn stream_options(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    const NAME: &str = "stream_options";
    let options = match fields.take(NAME) {
        None => return Ok(false),
        Some(options @ Value::Object(_)) => options,
        Some(other) => return Err(ApiError::wrong_type(NAME, "an object", &other)),
    };
    if !stream {
        return Err(ApiError::value(
            NAME,
            "'stream_options' is only for 'stream': true.",
        ));
    }
    let mut options = Fields::of(options)?;
    let include_usage = options.boolean("include_usage")?.unwrap_or(false);
    // Padding against traffic analysis; we add none, whatever is asked.
    options.only_if("include_obfuscation", "no padding is added.", |value| {
        value == &Value::Bool(false)
    })?;
    options.finish()?;
    Ok(include_usage)
}

/// Fields of OpenAI's API that we do not serve: fine where leaving them out changes nothing.
fn harmless(fields: &mut Fields) -> Result<(), ApiError> {
    // Labels of the caller's own; nothing here depends on them.
    for label in ["user", "safety_identifier", "prompt_cache_key"] {
        fields.string(label)?;
    }
    match fields.take("metadata") {
        None | Some(Value::Object(_)) => {}
        Some(other) => return Err(ApiError::wrong_type("metadata", "an object", &other)),
    }
    fields.only_if("store", "nothing is stored here.", |v| {
        v == &Value::Bool(false)
    })?;
    fields.only_if("response_format", TEXT_ONLY, |v| {
        v.get("type").is_some_and(|kind| kind == "text")
    })?;
    fields.only_if("modalities", TEXT_ONLY, |v| v == &Value::from(vec!["text"]))?;
    let no_list = |v: &Value| v.as_array().is_some_and(Vec::is_empty);
    fields.only_if("tools", NO_TOOLS, no_list)?;
    fields.only_if("functions", NO_TOOLS, no_list)?;
    fields.only_if("tool_choice", NO_TOOLS, |v| v == "none" || v == "auto")?;
    fields.only_if("function_call", NO_TOOLS, |v| v == "none" || v == "auto")?;
    fields.boolean("parallel_tool_calls")?;
    fields.only_if("audio", "this model makes no sound.", |_| false)?;
    fields.only_if("prediction", "predicted outputs are not built.", |_| false)?;
    fields.only_if("reasoning_effort", "this model does not reason.", |v| {
        v == "none"
    })?;
    fields.only_if("web_search_options", "there is no web search.", |_| false)?;
    fields.only_if("repetition_penalty", "use 'frequency_penalty'.", |v| {
        v.as_f64() == Some(1.0)
    })?;
    Ok(())
}
