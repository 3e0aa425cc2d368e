//! From choices' events to pieces of an answer, and their JSON in both APIs.
//!
//! Keeps true: an echoed prompt comes before anything generated, and text offsets count characters
//! of the whole text, echo included.

use super::logprobs::{self, TokenReport};
use super::params::tier_name;
use crate::gateway::session::{ChoiceEvent, ChoiceIndex, PlacedLogprobs};
use crate::gateway::text::ModelText;
use serde_json::{Value, json};
use std::sync::Arc;
use trireme_shared::wire::generate::{FinishReason, Priority, TokenLogprobs};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    Chat,
    Text,
}

impl Api {
    pub fn id_prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl-",
            Self::Text => "cmpl-",
        }
    }

    /// As OpenTelemetry's conventions for generative AI name it.
    pub fn operation(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Text => "text_completion",
        }
    }

    fn object(self, chunk: bool) -> &'static str {
        match (self, chunk) {
            (Self::Chat, true) => "chat.completion.chunk",
            (Self::Chat, false) => "chat.completion",
            (Self::Text, _) => "text_completion",
        }
    }
}

/// A prompt that is part of the answer.
#[derive(Clone, Debug)]
pub struct Echo {
    pub ids: Vec<u32>,
    pub text: String,
    /// Where each token begins in `text`, in characters.
    pub offsets: Vec<usize>,
}

impl Echo {
    /// `given` is the caller's own text, where the prompt was one.
    pub fn new(model: &ModelText, ids: &[u32], given: Option<String>) -> Self {
        let mut bytes = Vec::new();
        let mut offsets = Vec::with_capacity(ids.len());
        let mut characters = 0usize;
        for &id in ids {
            let token = model.token_bytes(id);
            // A character begins at every byte that continues none; a token that continues one
            // stands where that one does, as in generated text.
            let continues = token.first().is_some_and(|byte| byte & 0xC0 == 0x80);
            offsets.push(characters.saturating_sub(usize::from(continues)));
            characters += token.iter().filter(|byte| **byte & 0xC0 != 0x80).count();
            bytes.extend_from_slice(&token);
        }
        let text = given.unwrap_or_else(|| String::from_utf8_lossy(&bytes).into_owned());
        // What the tokeniser put before the caller's text (beginning of sequence) is not in it.
        let before = characters.saturating_sub(text.chars().count());
        for offset in &mut offsets {
            *offset = offset.saturating_sub(before);
        }
        Self {
            ids: ids.to_vec(),
            text,
            offsets,
        }
    }
}

/// What an answer looks like.
pub struct Shape {
    pub api: Api,
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    pub text: Arc<ModelText>,
    pub choices_per_prompt: usize,
    pub stream: bool,
    pub include_usage: bool,
    /// Told where it was asked for.
    pub tier: Option<Priority>,
    /// Logprobs were asked for.
    pub logprobs: bool,
    pub tokens_as_ids: bool,
    /// Of each prompt; empty unless asked for.
    pub echo: Vec<Echo>,
}

/// A part of one choice, in the order of the answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    Begin,
    Text {
        text: String,
        logprobs: Vec<TokenReport>,
    },
    End(FinishReason),
}

/// Turns events into pieces.
pub struct Renderer {
    pub shape: Shape,
    /// Choices whose prompt was echoed (or has none to echo).
    echoed: Vec<bool>,
}

impl Renderer {
    pub fn new(shape: Shape, choices: usize) -> Self {
        let echoed = vec![shape.echo.is_empty(); choices];
        Self { shape, echoed }
    }

    pub fn on(&mut self, index: ChoiceIndex, event: ChoiceEvent) -> Vec<Piece> {
        let mut out = Vec::new();
        match event {
            ChoiceEvent::Started { .. } => {
                out.push(Piece::Begin);
                if !self.shape.logprobs {
                    self.echo(index, &[], &mut out);
                }
            }
            ChoiceEvent::PromptLogprobs(entries) => self.echo(index, &entries, &mut out),
            ChoiceEvent::Delta { text, logprobs, .. } => {
                self.echo(index, &[], &mut out);
                let base = self.echo_of(index).map_or(0, |e| e.text.chars().count());
                // Chat's entries spell the message. Text completions' are one for each counted
                // token, the end token too: who scores texts counts on the last being the answer's.
                let logprobs: Vec<_> = logprobs
                    .into_iter()
                    .filter(|placed| self.shape.api == Api::Text || !placed.ends_text)
                    .map(|placed| generated(placed, base))
                    .collect();
                if !text.is_empty() || !logprobs.is_empty() {
                    out.push(Piece::Text { text, logprobs });
                }
            }
            ChoiceEvent::Finished(reason) => {
                self.echo(index, &[], &mut out);
                out.push(Piece::End(reason));
            }
            // The request fails as a whole; its driver has taken the error out.
            ChoiceEvent::Failed(_) => {}
        }
        out
    }

    fn echo_of(&self, index: ChoiceIndex) -> Option<&Echo> {
        self.shape.echo.get(index / self.shape.choices_per_prompt)
    }

    fn echo(&mut self, index: ChoiceIndex, entries: &[TokenLogprobs], out: &mut Vec<Piece>) {
        if std::mem::replace(&mut self.echoed[index], true) {
            return;
        }
        let Some(echo) = self.echo_of(index) else {
            return;
        };
        let logprobs = if self.shape.logprobs {
            echo.ids
                .iter()
                .zip(&echo.offsets)
                .enumerate()
                .map(|(position, (id, offset))| {
                    // The first token follows nothing, so it has no entry.
                    let entry = position.checked_sub(1).and_then(|i| entries.get(i));
                    TokenReport {
                        offset: *offset,
                        token: *id,
                        logprob: entry.map(|entry| entry.logprob),
                        top: entry.map(|entry| entry.top.clone()).unwrap_or_default(),
                    }
                })
                .collect()
        } else {
            Vec::new()
        };
        out.push(Piece::Text {
            text: echo.text.clone(),
            logprobs,
        });
    }
}

fn generated(placed: PlacedLogprobs, base: usize) -> TokenReport {
    TokenReport {
        offset: base + placed.offset,
        token: placed.entry.token,
        logprob: Some(placed.entry.logprob),
        top: placed.entry.top,
    }
}

pub fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

impl Shape {
    /// `logprobs` of these tokens, or `null` where they were not asked for.
    fn logprobs(&self, reports: &[TokenReport]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let names = logprobs::Names {
            text: &self.text,
            as_ids: self.tokens_as_ids,
        };
        match self.api {
            Api::Chat => logprobs::chat(&names, reports),
            Api::Text => logprobs::text(&names, reports),
        }
    }

    fn body(&self, chunk: bool, choices: Vec<Value>) -> Value {
        let mut body = json!({
            "id": self.id,
            "object": self.api.object(chunk),
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if let Some(tier) = self.tier {
            body["service_tier"] = tier_name(tier).into();
        }
        body
    }

    /// One chunk of a stream, if the piece needs one.
    pub fn chunk(&self, index: ChoiceIndex, piece: &Piece) -> Option<Value> {
        let choice = match (self.api, piece) {
            (Api::Chat, Piece::Begin) => json!({
                "index": index, "delta": {"role": "assistant", "content": ""},
                "logprobs": null, "finish_reason": null,
            }),
            (Api::Text, Piece::Begin) => return None,
            (Api::Chat, Piece::Text { text, logprobs }) => json!({
                "index": index, "delta": {"content": text},
                "logprobs": self.logprobs_of_piece(logprobs), "finish_reason": null,
            }),
            (Api::Text, Piece::Text { text, logprobs }) => json!({
                "index": index, "text": text,
                "logprobs": self.logprobs_of_piece(logprobs), "finish_reason": null,
            }),
            (Api::Chat, Piece::End(reason)) => json!({
                "index": index, "delta": {},
                "logprobs": null, "finish_reason": finish_reason(*reason),
            }),
            (Api::Text, Piece::End(reason)) => json!({
                "index": index, "text": "",
                "logprobs": null, "finish_reason": finish_reason(*reason),
            }),
        };
        let mut chunk = self.body(true, vec![choice]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        Some(chunk)
    }

    fn logprobs_of_piece(&self, reports: &[TokenReport]) -> Value {
        if reports.is_empty() {
            return Value::Null;
        }
        self.logprobs(reports)
    }

    /// The last chunk where usage was asked for.
    pub fn usage_chunk(&self, usage: Value) -> Value {
        let mut chunk = self.body(true, Vec::new());
        chunk["usage"] = usage;
        chunk
    }

    /// One choice of an answer that is sent at once.
    pub fn whole_choice(
        &self,
        index: ChoiceIndex,
        text: &str,
        reports: &[TokenReport],
        reason: FinishReason,
    ) -> Value {
        match self.api {
            Api::Chat => json!({
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": null},
                "logprobs": self.logprobs(reports),
                "finish_reason": finish_reason(reason),
            }),
            Api::Text => json!({
                "index": index,
                "text": text,
                "logprobs": self.logprobs(reports),
                "finish_reason": finish_reason(reason),
            }),
        }
    }

    pub fn whole(&self, choices: Vec<Value>, usage: Value) -> Value {
        let mut body = self.body(false, choices);
        body["usage"] = usage;
        body
    }
}
