//! Reads a stream of OpenAI's chat or completion chunks: text, usage, and when each piece came.

use crate::size;
use serde_json::Value;
use std::time::{Duration, Instant};

/// What one generation gave so far.
#[derive(Debug)]
pub struct Generation {
    started: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
    /// Times between pieces of text, in seconds.
    pub gaps: Vec<f64>,
    pieces: u64,
    pub text: String,
    pub prompt_tokens: Option<u64>,
    usage_tokens: Option<u64>,
    pub cost_nano_usd: Option<i64>,
    pub finish_reason: Option<String>,
}

impl Generation {
    /// `started` is when the request was sent.
    pub fn new(started: Instant) -> Self {
        Self {
            started,
            first: None,
            last: None,
            gaps: Vec::new(),
            pieces: 0,
            text: String::new(),
            prompt_tokens: None,
            usage_tokens: None,
            cost_nano_usd: None,
            finish_reason: None,
        }
    }

    /// Takes one chunk; returns its text.
    pub fn take(&mut self, chunk: &Value, at: Instant) -> String {
        if let Some(usage) = chunk.get("usage").filter(|u| u.is_object()) {
            self.prompt_tokens = usage["prompt_tokens"].as_u64();
            self.usage_tokens = usage["completion_tokens"].as_u64();
            self.cost_nano_usd = usage["cost_nano_usd"].as_i64();
        }
        let choice = &chunk["choices"][0];
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.finish_reason = Some(reason.to_owned());
        }
        let text = choice["delta"]["content"]
            .as_str()
            .or_else(|| choice["text"].as_str())
            .unwrap_or("");
        if !text.is_empty() {
            match self.last {
                Some(last) => self.gaps.push(at.duration_since(last).as_secs_f64()),
                None => self.first = Some(at),
            }
            self.last = Some(at);
            self.pieces += 1;
            self.text.push_str(text);
        }
        text.to_owned()
    }

    /// Generated tokens: the server's count, else the pieces of text seen.
    pub fn tokens(&self) -> u64 {
        self.usage_tokens.unwrap_or(self.pieces)
    }

    /// Time to the first text.
    pub fn ttft(&self) -> Option<Duration> {
        self.first.map(|first| first.duration_since(self.started))
    }

    /// Tokens a second after the first; `None` for fewer than two tokens.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let span = self.last?.duration_since(self.first?).as_secs_f64();
        (self.tokens() > 1 && span > 0.0).then(|| (self.tokens() - 1) as f64 / span)
    }

    /// `42 tokens, $0.0000026, 112.4 tok/s, first after 31 ms`
    pub fn summary(&self) -> String {
        let tokens = self.tokens();
        let mut parts = vec![format!(
            "{tokens} token{}",
            if tokens == 1 { "" } else { "s" }
        )];
        parts.extend(self.cost_nano_usd.map(size::usd));
        parts.extend(
            self.tokens_per_second()
                .map(|rate| format!("{rate:.1} tok/s")),
        );
        parts.extend(
            self.ttft()
                .map(|t| format!("first after {}", size::duration(t))),
        );
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn chat_chunks_make_text_times_and_usage() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut generation = Generation::new(start);
        let chunk = |text| json!({"choices": [{"delta": {"content": text}}], "usage": null});
        generation.take(
            &json!({"choices": [{"delta": {"role": "assistant"}}]}),
            at(5),
        );
        assert_eq!(generation.take(&chunk("Par"), at(50)), "Par");
        generation.take(&chunk("is"), at(150));
        generation.take(
            &json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}),
            at(160),
        );
        generation.take(
            &json!({"choices": [], "usage":
                {"prompt_tokens": 9, "completion_tokens": 3, "cost_nano_usd": 360}}),
            at(170),
        );
        assert_eq!(generation.text, "Paris");
        assert_eq!(generation.ttft(), Some(Duration::from_millis(50)));
        assert_eq!(generation.finish_reason.as_deref(), Some("stop"));
        // Two tokens after the first in 100 ms.
        assert_eq!(
            generation.summary(),
            "3 tokens, $0.00000036, 20.0 tok/s, first after 50 ms"
        );
    }

    #[test]
    fn without_usage_pieces_are_counted() {
        let start = Instant::now();
        let mut generation = Generation::new(start);
        generation.take(&json!({"choices": [{"text": "a"}]}), start);
        generation.take(&json!({"choices": [{"text": "b"}]}), start);
        assert_eq!((generation.tokens(), generation.gaps.len()), (2, 1));
    }
}
