//! A scripted engine: serves the dispatcher's queue in place of the fleet.

use crate::fleet::dispatch::{Dispatch, DispatchError, SequenceRequest};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;
use trireme_shared::wire::generate::{FinishReason, GenerateEvent, TokenLogprobs};

/// How a script ends.
#[derive(Clone)]
pub enum End {
    Finish(FinishReason),
    Fail(DispatchError),
    /// Says nothing more until the gateway drops the stream.
    Hang,
}

/// What the engine does with one sequence.
#[derive(Clone)]
pub struct Script {
    pub cached_tokens: u32,
    pub tokens: Vec<u32>,
    pub end: End,
}

impl Script {
    /// Generates the bytes of `text`, a token each, and ends at the model's end-of-turn token.
    pub fn says(text: &str) -> Self {
        let mut tokens = ids(text.as_bytes());
        tokens.push(END_OF_TURN);
        Self {
            cached_tokens: 0,
            tokens,
            end: End::Finish(FinishReason::Stop),
        }
    }

    pub fn then(mut self, end: End) -> Self {
        self.tokens.retain(|token| *token != END_OF_TURN);
        self.end = end;
        self
    }

    pub fn cached(mut self, tokens: u32) -> Self {
        self.cached_tokens = tokens;
        self
    }
}

/// Whose machines the engine runs on; a token is a unit of work.
pub const LENDER: &str = "lender";

/// `<|im_end|>` of the random model's vocabulary.
pub const END_OF_TURN: u32 = 2;

/// The random model's tokens for bytes: three special tokens, then the 256 bytes.
pub fn ids(bytes: &[u8]) -> Vec<u32> {
    bytes.iter().map(|byte| u32::from(*byte) + 3).collect()
}

/// The other end of the dispatcher.
#[derive(Clone)]
pub struct Engine {
    scripts: Arc<Mutex<VecDeque<Script>>>,
    seen: Arc<Mutex<Vec<SequenceRequest>>>,
}

impl Engine {
    /// Serves `queue`. The receiver hears of each sequence whose stream was dropped before its end.
    pub fn serve(mut queue: mpsc::Receiver<Dispatch>) -> (Self, mpsc::UnboundedReceiver<()>) {
        let engine = Self {
            scripts: Arc::default(),
            seen: Arc::default(),
        };
        let (cancelled, cancels) = mpsc::unbounded_channel();
        let served = engine.clone();
        tokio::spawn(async move {
            while let Some(dispatch) = queue.recv().await {
                let script = served.scripts.lock().unwrap().pop_front();
                let script = script.unwrap_or_else(|| Script::says("Hello!"));
                served.seen.lock().unwrap().push(dispatch.sequence.clone());
                tokio::spawn(play(dispatch, script, cancelled.clone()));
            }
        });
        (engine, cancels)
    }

    /// The next sequence gets this script (in order of arrival; the default is "Hello!").
    pub fn script(&self, script: Script) {
        self.scripts.lock().unwrap().push_back(script);
    }

    pub fn seen(&self) -> Vec<SequenceRequest> {
        self.seen.lock().unwrap().clone()
    }
}

fn report(token: u32, top: u8) -> TokenLogprobs {
    // The best other token is the id after it, so that tests can tell which position it is.
    TokenLogprobs {
        token,
        logprob: -0.5,
        top: [(token, -0.5), (token + 1, -1.5), (0, f32::NEG_INFINITY)]
            .into_iter()
            .take(usize::from(top))
            .collect(),
    }
}

async fn play(dispatch: Dispatch, script: Script, cancelled: mpsc::UnboundedSender<()>) {
    let Dispatch { sequence, events } = dispatch;
    sequence.work.note(LENDER, script.tokens.len() as u64);
    let mut said = Vec::new();
    // Without tokens, a failing sequence never enters a batch.
    if !(script.tokens.is_empty() && matches!(script.end, End::Fail(_))) {
        said.push(GenerateEvent::Started {
            cached_tokens: script.cached_tokens,
        });
    }
    if let Some(top) = sequence.prompt_logprobs {
        // In two pieces, as chunked prefill sends them.
        let entries: Vec<_> = sequence.prompt[1..]
            .iter()
            .map(|token| report(*token, top))
            .collect();
        let cut = entries.len() / 2;
        for (first, part) in [(1, &entries[..cut]), (1 + cut, &entries[cut..])] {
            said.push(GenerateEvent::PromptLogprobs {
                first: first as u32,
                entries: part.to_vec(),
            });
        }
    }
    let mut end = script.end;
    for (index, token) in script.tokens.iter().enumerate() {
        if index as u32 == sequence.max_tokens {
            end = End::Finish(FinishReason::Length);
            break;
        }
        said.push(GenerateEvent::Token {
            index: index as u32,
            token: *token,
            logprobs: sequence.logprobs.map(|top| report(*token, top)),
        });
    }
    for event in said {
        if events.send(Ok(event)).await.is_err() {
            let _ = cancelled.send(());
            return;
        }
    }
    let last = match end {
        End::Finish(reason) => Ok(GenerateEvent::Finished { reason }),
        End::Fail(error) => Err(error),
        End::Hang => {
            events.closed().await;
            let _ = cancelled.send(());
            return;
        }
    };
    let _ = events.send(last).await;
}
