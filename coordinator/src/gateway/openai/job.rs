//! From a parsed request to prompts of token ids that fit the model: what is to be generated, and
//! the shape of the answer.
//!
//! Keeps true: every prompt has at least one token, every id is in the vocabulary, and prompt and
//! answer fit the context. Templates and tokenisers run off the async runtime.

use super::chat::ChatRequest;
use super::completions::{CompletionRequest, DEFAULT_MAX_TOKENS, PromptInput};
use super::params::CommonParams;
use super::render::{Api, Echo, Shape};
use crate::gateway::desk::Wish;
use crate::gateway::error::ApiError;
use crate::gateway::server::GatewayState;
use crate::gateway::text::ModelText;
use crate::state::Deployment;
use std::sync::Arc;
use trireme_shared::limits;
use trireme_shared::wall_clock::unix_seconds;

/// A prompt and how many tokens may follow it.
#[derive(Clone, Debug)]
pub struct Prompt {
    pub ids: Vec<u32>,
    pub max_tokens: u32,
}

/// One request's work.
pub struct Job {
    pub deployment: Deployment,
    pub prompts: Vec<Prompt>,
    pub common: CommonParams,
    pub logprobs: Option<u8>,
    pub prompt_logprobs: Option<u8>,
    pub shape: Shape,
    /// The caller left the length of the answer to us.
    pub may_shorten: bool,
}

/// A served model, found by name.
struct Model {
    deployment: Deployment,
    text: Arc<ModelText>,
    /// Tokens of the longest sequence it takes.
    context: u32,
}

impl Model {
    async fn find(gateway: &GatewayState, name: &str) -> Result<Self, ApiError> {
        let (deployment, planned) = gateway
            .group
            .read(|state| {
                let deployment = state.deployment_named(name)?.clone();
                // Replicas of little memory take shorter sequences than the model could.
                let planned = state
                    .plans()
                    .filter(|plan| plan.deployment == deployment.id)
                    .map(|plan| plan.context)
                    .min();
                Some((deployment, planned))
            })
            .ok_or_else(|| ApiError::model_not_found(name))?;
        let text = gateway.texts.get(&deployment.spec.model).await?;
        let trained = text.context();
        Ok(Self {
            deployment,
            text,
            context: planned.map_or(trained, |planned| planned.min(trained)),
        })
    }

    /// Checks a prompt's length and decides how many tokens may follow it.
    fn fit(
        &self,
        ids: Vec<u32>,
        wanted: Option<u32>,
        default: u32,
        param: &str,
    ) -> Result<Prompt, ApiError> {
        if ids.is_empty() {
            return Err(ApiError::value(
                param,
                "The prompt has no tokens; send some text.",
            ));
        }
        let context = self.context as usize;
        let room = context.saturating_sub(ids.len());
        // A prompt that fills the context can still be scored.
        let needed = wanted.unwrap_or(1).min(1) as usize;
        if ids.len() > limits::PROMPT_TOKENS_MAX || ids.len() > context || room < needed {
            return Err(ApiError::context_length(
                format!(
                    "This model's longest context is {context} tokens, and the prompt has {}; \
                     shorten it.",
                    ids.len()
                ),
                param,
            ));
        }
        let max_tokens = match wanted {
            Some(wanted) if wanted as usize > room => {
                return Err(ApiError::context_length(
                    format!(
                        "This model's longest context is {context} tokens; the prompt has {} and \
                         {wanted} more are asked for: lower 'max_tokens' to {room} or shorten the \
                         prompt.",
                        ids.len()
                    ),
                    "max_tokens",
                ));
            }
            Some(wanted) => wanted,
            None => default.min(room as u32),
        };
        Ok(Prompt { ids, max_tokens })
    }

    fn shape(
        &self,
        api: Api,
        common: &CommonParams,
        logprobs: bool,
        echo: Vec<Echo>,
    ) -> Result<Shape, ApiError> {
        let mut random = [0; 12];
        getrandom::fill(&mut random)
            .map_err(|error| ApiError::internal(format!("no random numbers: {error}")))?;
        Ok(Shape {
            api,
            id: format!("{}{}", api.id_prefix(), hex::encode(random)),
            created: unix_seconds(),
            model: self.deployment.spec.model.name.clone(),
            text: Arc::clone(&self.text),
            choices_per_prompt: common.n as usize,
            stream: common.stream,
            include_usage: common.include_usage,
            tier: common.tier,
            logprobs,
            tokens_as_ids: common.tokens_as_ids,
            echo,
        })
    }
}

impl Job {
    pub async fn chat(gateway: &GatewayState, request: ChatRequest) -> Result<Self, ApiError> {
        let model = Model::find(gateway, &request.common.model).await?;
        let contents = request.messages.iter().map(|m| m["content"].as_str());
        let bytes = contents.map(|text| text.map_or(0, str::len)).sum();
        off_runtime(gateway, bytes, move || {
            let common = request.common;
            common.check_vocabulary(model.text.vocab_size())?;
            let rendered = model.text.render_chat(&request.messages, true)?;
            // The template writes the beginning of the sequence itself, where there is one.
            let ids = model.text.encode(&rendered, true, false)?;
            let may_shorten = request.max_tokens.is_none();
            let prompt = model.fit(ids, request.max_tokens, u32::MAX, "messages")?;
            let shape = model.shape(Api::Chat, &common, request.logprobs.is_some(), Vec::new())?;
            Ok(Self {
                deployment: model.deployment,
                prompts: vec![prompt],
                common,
                logprobs: request.logprobs,
                prompt_logprobs: None,
                shape,
                may_shorten,
            })
        })
        .await
    }

    pub async fn completion(
        gateway: &GatewayState,
        request: CompletionRequest,
    ) -> Result<Self, ApiError> {
        let model = Model::find(gateway, &request.common.model).await?;
        let bytes = request
            .prompts
            .iter()
            .map(|prompt| match prompt {
                PromptInput::Text(text) => text.len(),
                PromptInput::Ids(_) => 0,
            })
            .sum();
        off_runtime(gateway, bytes, move || {
            let common = request.common;
            let vocabulary = model.text.vocab_size();
            common.check_vocabulary(vocabulary)?;
            let mut prompts = Vec::with_capacity(request.prompts.len());
            let mut echo = Vec::new();
            for input in request.prompts {
                let (ids, given) = match input {
                    PromptInput::Text(text) => (model.text.encode(&text, true, true)?, Some(text)),
                    PromptInput::Ids(ids) => (ids, None),
                };
                if let Some(id) = ids.iter().find(|id| **id >= vocabulary) {
                    return Err(ApiError::value(
                        "prompt",
                        format!(
                            "The prompt has token {id}; this model's tokens are 0 to {}.",
                            vocabulary.saturating_sub(1)
                        ),
                    ));
                }
                let prompt = model.fit(ids, request.max_tokens, DEFAULT_MAX_TOKENS, "prompt")?;
                if request.echo {
                    echo.push(Echo::new(&model.text, &prompt.ids, given));
                }
                prompts.push(prompt);
            }
            let shape = model.shape(Api::Text, &common, request.logprobs.is_some(), echo)?;
            Ok(Self {
                deployment: model.deployment,
                prompts,
                common,
                logprobs: request.logprobs,
                prompt_logprobs: request.logprobs.filter(|_| request.echo),
                shape,
                may_shorten: request.max_tokens.is_none(),
            })
        })
        .await
    }

    /// What must be held for it.
    pub fn wish(&self) -> Wish {
        let prompts = self.prompts.iter();
        Wish {
            model: self.shape.model.clone(),
            prompts: prompts
                .map(|p| (p.ids.len() as u64, p.max_tokens))
                .collect(),
            choices_per_prompt: self.shape.choices_per_prompt as u64,
            may_shorten: self.may_shorten,
        }
    }

    /// Tokens that end this job's texts.
    pub fn stop_tokens(&self) -> Vec<u32> {
        let mut tokens = self.common.stop_token_ids.clone();
        if !self.common.ignore_eos {
            tokens.extend_from_slice(self.shape.text.stop_tokens());
        }
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }
}

/// Runs `work` on a thread that may compute; few at once where it has much text to tokenise.
async fn off_runtime<T: Send + 'static>(
    gateway: &GatewayState,
    text_bytes: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let place = if text_bytes > limits::LONG_PROMPT_BYTES {
        let place = Arc::clone(&gateway.long_prompts).acquire_owned();
        let Ok(Ok(place)) = tokio::time::timeout(limits::LONG_PROMPT_WAIT, place).await else {
            return Err(ApiError::unavailable(
                "overloaded",
                "Too many long prompts are being read; send this one again later.",
                10,
            ));
        };
        Some(place)
    } else {
        None
    };
    tokio::task::spawn_blocking(move || {
        let result = work();
        drop(place);
        result
    })
    .await
    .unwrap_or_else(|_| Err(ApiError::internal("The gateway failed to read the prompt.")))
}
