//! The first question: asked through the cluster's own endpoint, so that the first run shows the
//! job done.

use super::Running;
use crate::client::{Client, Next};
use crate::generation::Generation;
use crate::term;
use anyhow::Result;
use std::time::Instant;
use trireme_shared::limits;

const QUESTION: &str = "What is the capital of France?";
/// Enough for an answer, short enough for a slow machine.
const TOKENS_MAX: u32 = 96;

/// Asks, streams the answer and prints tokens, cost and speed.
pub fn ask(client: &Client, model: &str, running: &Running<'_>) -> Result<()> {
    let body = serde_json::json!({
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": TOKENS_MAX,
        "temperature": 0,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    term::out("");
    term::out(format!("  {} {QUESTION}", term::dim(">")));
    term::part("  ");
    let mut generation = Generation::new(Instant::now());
    let stream = client.stream("/v1/chat/completions", &body)?;
    loop {
        match stream.next(limits::CLIENT_POLL_INTERVAL) {
            Ok(Next::Event(event)) => {
                let text = generation.take(&event.data, event.at);
                term::part(text.replace('\n', "\n  "));
            }
            Ok(Next::Waiting) => running.check()?,
            Ok(Next::End) => break,
            Err(error) => {
                term::out("");
                return Err(error);
            }
        }
    }
    term::out("");
    term::out(format!("  {}", term::dim(&generation.summary())));
    Ok(())
}
