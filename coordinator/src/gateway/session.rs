//! One choice: from the engine's tokens to certain text, stop strings and logprobs.
//!
//! [`Choice`] is the pure core; [`run`] is its driver. Keeps true: no text is given out that a stop
//! string might still take back; a token is counted, and its logprob given out, only with its text, so that nobody
//! pays for what was held back when they left; nothing that was generated after the end of a choice is counted. Dropping `run` cancels the sequence.

use super::error::ApiError;
use super::stop::StopMatcher;
use super::text::{ModelText, StreamDecoder};
use crate::fleet::dispatch::GenerationStream;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::mpsc;
use trireme_shared::limits;
use trireme_shared::wire::generate::{FinishReason, GenerateEvent, TokenLogprobs};

/// A token's logprobs and where its text begins in the generated text, in characters.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacedLogprobs {
    pub offset: usize,
    pub entry: TokenLogprobs,
    /// The token ended the text and is no part of it.
    pub ends_text: bool,
}

/// What a choice's client learns.
#[derive(Clone, Debug, PartialEq)]
pub enum ChoiceEvent {
    /// The sequence is in a batch; `cached_tokens` of its prompt needed no work.
    Started { cached_tokens: u32 },
    /// Of all prompt positions but the first, before any `Delta`.
    PromptLogprobs(Vec<TokenLogprobs>),
    /// Text that became certain (perhaps none) and the tokens that begin in it, or that end the choice.
    Delta {
        text: String,
        tokens: u32,
        logprobs: Vec<PlacedLogprobs>,
    },
    /// The last event of a good choice.
    Finished(FinishReason),
    /// The last event of a failed one.
    Failed(ApiError),
}

/// The state of one choice between events. Pure.
pub struct Choice<'t> {
    /// `None` once the text ended.
    decoder: Option<StreamDecoder<'t>>,
    stops: StopMatcher,
    stop_tokens: Vec<u32>,
    prompt_logprobs: Vec<TokenLogprobs>,
    /// Characters decoded, and of these given out.
    decoded: usize,
    released: usize,
    /// Where tokens begin whose text was not given out yet, in characters, in order.
    held: VecDeque<usize>,
    /// The logprobs of those.
    pending: VecDeque<PlacedLogprobs>,
}

impl<'t> Choice<'t> {
    pub fn new(text: &'t ModelText, stops: Vec<String>, stop_tokens: Vec<u32>) -> Self {
        Self {
            decoder: Some(text.stream()),
            stops: StopMatcher::new(stops),
            stop_tokens,
            prompt_logprobs: Vec::new(),
            decoded: 0,
            released: 0,
            held: VecDeque::new(),
            pending: VecDeque::new(),
        }
    }

    /// The choice has ended: later events change nothing.
    pub fn is_done(&self) -> bool {
        self.decoder.is_none()
    }

    pub fn on(&mut self, event: GenerateEvent) -> Vec<ChoiceEvent> {
        let mut out = Vec::new();
        if self.is_done() {
            return out;
        }
        match event {
            GenerateEvent::Started { cached_tokens } => {
                out.push(ChoiceEvent::Started { cached_tokens });
            }
            GenerateEvent::PromptLogprobs { mut entries, .. } => {
                self.prompt_logprobs.append(&mut entries);
            }
            GenerateEvent::Token {
                token, logprobs, ..
            } => {
                self.prompt_done(&mut out);
                self.token(token, logprobs, &mut out);
            }
            GenerateEvent::Finished { reason } => {
                self.prompt_done(&mut out);
                self.finish(reason, &mut out);
            }
            GenerateEvent::Failed { reason, .. } => {
                self.decoder = None;
                out.push(ChoiceEvent::Failed(ApiError::unavailable(
                    "replica_lost",
                    format!("the replica failed: {reason}"),
                    1,
                )));
            }
        }
        out
    }

    fn prompt_done(&mut self, out: &mut Vec<ChoiceEvent>) {
        if !self.prompt_logprobs.is_empty() {
            let entries = std::mem::take(&mut self.prompt_logprobs);
            out.push(ChoiceEvent::PromptLogprobs(entries));
        }
    }

    fn token(&mut self, token: u32, logprobs: Option<TokenLogprobs>, out: &mut Vec<ChoiceEvent>) {
        self.held.push_back(self.decoded);
        if self.stop_tokens.contains(&token) {
            // Generated, but no part of the text: it and its logprobs come last.
            if let Some(entry) = logprobs {
                self.pending.push_back(PlacedLogprobs {
                    offset: self.decoded,
                    entry,
                    ends_text: true,
                });
            }
            return;
        }
        let Some(decoder) = self.decoder.as_mut() else {
            return;
        };
        let piece = decoder.push(token);
        if let Some(entry) = logprobs {
            self.pending.push_back(PlacedLogprobs {
                offset: self.decoded,
                entry,
                ends_text: false,
            });
        }
        self.decoded += piece.chars().count();
        let released = self.stops.push(&piece);
        let rest = match released.hit {
            true => std::mem::take(&mut self.held).len(),
            false => 0,
        };
        out.extend(self.delta(released.text, rest));
        if released.hit {
            self.decoder = None;
            out.push(ChoiceEvent::Finished(FinishReason::Stop));
        }
    }

    fn finish(&mut self, reason: FinishReason, out: &mut Vec<ChoiceEvent>) {
        let tail = self.decoder.take().map(StreamDecoder::finish);
        let released = self.stops.push(&tail.unwrap_or_default());
        let (mut text, mut reason) = (released.text, reason);
        if released.hit {
            reason = FinishReason::Stop;
        } else {
            text.push_str(&self.stops.finish());
        }
        // Tokens that never became a character have their place at the end.
        let rest = std::mem::take(&mut self.held).len();
        let mut last = self.delta(text, rest);
        if let (Some(ChoiceEvent::Delta { logprobs, .. }), false) = (&mut last, released.hit) {
            logprobs.extend(self.pending.drain(..));
        }
        out.extend(last);
        out.push(ChoiceEvent::Finished(reason));
    }

    /// Gives out `text` with the tokens that begin in it, `more` that do not, and the logprobs of the
    /// former. `None` where that is nothing.
    fn delta(&mut self, text: String, more: usize) -> Option<ChoiceEvent> {
        self.released += text.chars().count();
        let begun = self.held.iter().take_while(|at| **at < self.released);
        let begun = begun.count();
        self.held.drain(..begun);
        let tokens = u32::try_from(begun + more).unwrap_or(u32::MAX);
        let ready = self
            .pending
            .iter()
            .take_while(|placed| placed.offset < self.released)
            .count();
        let logprobs: Vec<_> = self.pending.drain(..ready).collect();
        let something = tokens > 0 || !text.is_empty() || !logprobs.is_empty();
        something.then_some(ChoiceEvent::Delta {
            text,
            tokens,
            logprobs,
        })
    }
}

/// Which choice of a request; prompt * n + i.
pub type ChoiceIndex = usize;

/// Drives one choice until it ends, its client is gone, or it fails. Every wait has a deadline.
pub async fn run(
    index: ChoiceIndex,
    text: Arc<ModelText>,
    stops: Vec<String>,
    stop_tokens: Vec<u32>,
    mut stream: GenerationStream,
    out: mpsc::Sender<(ChoiceIndex, ChoiceEvent)>,
) {
    let mut choice = Choice::new(&text, stops, stop_tokens);
    while !choice.is_done() {
        let next = tokio::time::timeout(limits::GENERATE_SILENCE_MAX, stream.next());
        let events = match next.await {
            Ok(Some(Ok(event))) => choice.on(event),
            Ok(Some(Err(error))) => vec![ChoiceEvent::Failed(error.into())],
            Ok(None) => vec![ChoiceEvent::Failed(ApiError::unavailable(
                "replica_lost",
                "the generation ended without a reason; send the request again.",
                1,
            ))],
            Err(_) => vec![ChoiceEvent::Failed(ApiError::unavailable(
                "timeout",
                "the model did not answer in time; send the request again later.",
                10,
            ))],
        };
        for event in events {
            let failed = matches!(event, ChoiceEvent::Failed(_));
            let sent =
                tokio::time::timeout(limits::CLIENT_STALL_MAX, out.send((index, event))).await;
            if failed || !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    }
}
