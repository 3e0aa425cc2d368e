//! An answer that is sent at once.

use super::generation::Generation;
use super::logprobs::TokenReport;
use super::render::{Piece, Renderer};
use crate::gateway::error::ApiError;
use crate::gateway::usage::Usage;
use serde_json::Value;
use std::collections::BTreeMap;
use trireme_shared::wire::generate::FinishReason;

#[derive(Default)]
struct Whole {
    text: String,
    logprobs: Vec<TokenReport>,
    reason: Option<FinishReason>,
}

/// Waits for every choice and gives the answer's JSON and its usage, which is durable.
pub async fn collect(
    mut generation: Generation,
    mut renderer: Renderer,
) -> Result<(Value, Usage), ApiError> {
    let mut choices: BTreeMap<usize, Whole> = BTreeMap::new();
    loop {
        let (index, event) = match generation.next().await {
            Ok(Some(next)) => next,
            Ok(None) => break,
            Err(error) => {
                generation.failed(&error);
                return Err(error);
            }
        };
        let whole = choices.entry(index).or_default();
        for piece in renderer.on(index, event) {
            match piece {
                Piece::Begin => {}
                Piece::Text { text, logprobs } => {
                    whole.text.push_str(&text);
                    whole.logprobs.extend(logprobs);
                }
                Piece::End(reason) => whole.reason = Some(reason),
            }
        }
    }
    let usage = generation.settle().await?;
    let note = generation.billing_note();
    let shape = &renderer.shape;
    let choices = choices
        .iter()
        .map(|(index, whole)| {
            let reason = whole.reason.unwrap_or(FinishReason::Stop);
            shape.whole_choice(*index, &whole.text, &whole.logprobs, reason)
        })
        .collect();
    let mut answer = shape.whole(choices, usage.to_json());
    if let Some(note) = note {
        answer["billing_note"] = note.into();
    }
    Ok((answer, usage))
}
