//! The shapes of OpenAI's API as the document tells them. What is parsed and rendered stands in `chat`,
//! `completions`, `params` and `render`; only the schemas of these types are used.

#![allow(dead_code, reason = "only their schemas are used")]

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// One stop string, or several.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum StopStrings {
    One(String),
    Several(Vec<String>),
}

#[derive(ToSchema)]
pub struct StreamOptions {
    /// A last chunk tells the usage.
    include_usage: Option<bool>,
}

/// A message's content: text, or parts of type `text`.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum Content {
    Text(String),
    Parts(Vec<TextPart>),
}

#[derive(Serialize, ToSchema)]
pub struct TextPart {
    /// `text`
    r#type: String,
    text: String,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum MessageRole {
    System,
    Developer,
    User,
    Assistant,
}

#[derive(ToSchema)]
pub struct ChatMessage {
    role: MessageRole,
    content: Content,
}

/// Which of a tenant's own requests go first: `priority` before the others, `flex` after them, at the same price.
/// It changes nothing between tenants.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum ServiceTier {
    Auto,
    Default,
    Flex,
    Priority,
}

#[derive(ToSchema)]
pub struct ChatCompletionRequest {
    model: String,
    messages: Vec<ChatMessage>,
    /// Tokens that are generated at most; the rest of the context where it is left out.
    #[schema(minimum = 1)]
    max_completion_tokens: Option<u32>,
    /// The older name of `max_completion_tokens`.
    #[schema(minimum = 1)]
    max_tokens: Option<u32>,
    /// Choices.
    #[schema(minimum = 1, maximum = 128)]
    n: Option<u32>,
    /// The answer comes as server-sent events, the last of which is `[DONE]`.
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    stop: Option<StopStrings>,
    #[schema(minimum = 0.0, maximum = 2.0)]
    temperature: Option<f64>,
    #[schema(maximum = 1.0)]
    top_p: Option<f64>,
    top_k: Option<i64>,
    #[schema(minimum = 0.0, maximum = 1.0)]
    min_p: Option<f64>,
    seed: Option<i64>,
    #[schema(minimum = -2.0, maximum = 2.0)]
    frequency_penalty: Option<f64>,
    #[schema(minimum = -2.0, maximum = 2.0)]
    presence_penalty: Option<f64>,
    #[schema(value_type = Option<Object>)]
    logit_bias: Option<Value>,
    service_tier: Option<ServiceTier>,
    /// Tokens that may be guessed ahead at a time, where that is faster: they change nothing but the speed.
    #[schema(minimum = 0, maximum = 8)]
    speculative_tokens: Option<u32>,
    logprobs: Option<bool>,
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<u32>,
}

/// A text, texts, token ids, or lists of token ids.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    Lists(Vec<Vec<u32>>),
}

#[derive(ToSchema)]
pub struct CompletionRequest {
    model: String,
    prompt: Prompt,
    /// Tokens that are generated at most; 0 scores the prompt only.
    max_tokens: Option<u32>,
    /// The prompt is part of the answer.
    echo: Option<bool>,
    /// Best tokens to report beside each token.
    #[schema(minimum = 0, maximum = 20)]
    logprobs: Option<u32>,
    #[schema(minimum = 1, maximum = 128)]
    n: Option<u32>,
    /// The answer comes as server-sent events, the last of which is `[DONE]`.
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    stop: Option<StopStrings>,
    #[schema(minimum = 0.0, maximum = 2.0)]
    temperature: Option<f64>,
    #[schema(maximum = 1.0)]
    top_p: Option<f64>,
    top_k: Option<i64>,
    #[schema(minimum = 0.0, maximum = 1.0)]
    min_p: Option<f64>,
    seed: Option<i64>,
    #[schema(minimum = -2.0, maximum = 2.0)]
    frequency_penalty: Option<f64>,
    #[schema(minimum = -2.0, maximum = 2.0)]
    presence_penalty: Option<f64>,
    #[schema(value_type = Option<Object>)]
    logit_bias: Option<Value>,
    service_tier: Option<ServiceTier>,
    /// Tokens that may be guessed ahead at a time, where that is faster: they change nothing but the speed.
    #[schema(minimum = 0, maximum = 8)]
    speculative_tokens: Option<u32>,
}

#[derive(ToSchema)]
pub struct PromptTokensDetails {
    /// Those that were found in the KV cache.
    cached_tokens: u64,
}

#[derive(ToSchema)]
pub struct CompletionUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptTokensDetails,
    /// What the request was charged.
    cost_nano_usd: i64,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum WhyFinished {
    Stop,
    Length,
}

#[derive(ToSchema)]
pub struct AssistantMessage {
    /// `assistant`
    role: String,
    content: String,
    refusal: Option<String>,
}

#[derive(ToSchema)]
pub struct ChatChoice {
    index: u32,
    message: AssistantMessage,
    #[schema(value_type = Option<Object>)]
    logprobs: Option<Value>,
    finish_reason: WhyFinished,
}

#[derive(ToSchema)]
pub struct ChatCompletion {
    id: String,
    /// `chat.completion`
    object: String,
    /// Seconds since 1970.
    created: u64,
    model: String,
    choices: Vec<ChatChoice>,
    /// Where the request names one; `default` for `auto`.
    service_tier: Option<ServiceTier>,
    usage: CompletionUsage,
}

#[derive(ToSchema)]
pub struct TextChoice {
    index: u32,
    text: String,
    #[schema(value_type = Option<Object>)]
    logprobs: Option<Value>,
    finish_reason: WhyFinished,
}

#[derive(ToSchema)]
pub struct TextCompletion {
    id: String,
    /// `text_completion`
    object: String,
    /// Seconds since 1970.
    created: u64,
    model: String,
    choices: Vec<TextChoice>,
    /// Where the request names one; `default` for `auto`.
    service_tier: Option<ServiceTier>,
    usage: CompletionUsage,
}

#[derive(ToSchema)]
pub struct Model {
    id: String,
    /// `model`
    object: String,
    /// Seconds since 1970.
    created: u64,
    owned_by: String,
}

#[derive(ToSchema)]
pub struct ModelList {
    /// `list`
    object: String,
    data: Vec<Model>,
}
