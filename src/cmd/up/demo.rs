//! The first question: asked through the cluster's own endpoint, so that the first run shows the
//! job done.

use super::Running;
use crate::client::{Client, Next};
use crate::generation::Generation;
use crate::term;
use anyhow::Result;
use std::time::Instant;
use trireme_shared::limits;

const QUESTION: &str = "Explain in two sentences why the sky is blue.";
/// Enough for an answer, short enough for a slow machine.
const TOKENS_MAX: u32 = 128;

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
    let mut wrap = Wrap::default();
    let mut generation = Generation::new(Instant::now());
    let stream = client.stream("/v1/chat/completions", &body)?;
    loop {
        match stream.next(limits::CLIENT_POLL_INTERVAL) {
            Ok(Next::Event(event)) => {
                let text = generation.take(&event.data, event.at);
                term::part(wrap.push(&text));
            }
            Ok(Next::Waiting) => running.check()?,
            Ok(Next::End) => break,
            Err(error) => {
                term::out("");
                return Err(error);
            }
        }
    }
    term::out(wrap.finish());
    term::out(format!("  {}", term::dim(&generation.summary())));
    Ok(())
}

/// Breaks streamed text into indented lines at words, whatever the terminal's width: a word is
/// shown once it is whole.
#[derive(Default)]
struct Wrap {
    column: usize,
    word: String,
}

impl Wrap {
    const INDENT: &str = "  ";
    const WIDTH: usize = 74;

    /// What of `text` (and of earlier text) can be shown now.
    fn push(&mut self, text: &str) -> String {
        let mut shown = String::new();
        for c in text.chars() {
            if c.is_whitespace() {
                self.place_word(&mut shown);
                if c == '\n' && self.column > 0 {
                    shown.push('\n');
                    self.column = 0;
                }
            } else {
                self.word.push(c);
            }
        }
        shown
    }

    fn place_word(&mut self, shown: &mut String) {
        if self.word.is_empty() {
            return;
        }
        let width = self.word.chars().count();
        if self.column > 0 && self.column + 1 + width > Self::WIDTH {
            shown.push('\n');
            self.column = 0;
        }
        shown.push_str(if self.column == 0 { Self::INDENT } else { " " });
        self.column += width + usize::from(self.column > 0);
        shown.push_str(&self.word);
        self.word.clear();
    }

    /// The last word.
    fn finish(mut self) -> String {
        let mut shown = String::new();
        self.place_word(&mut shown);
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streamed_words_are_whole_and_lines_fit() {
        let mut wrap = Wrap::default();
        assert_eq!(wrap.push("The sk"), "  The");
        assert_eq!(wrap.push("y is\n\nblue"), " sky is\n");
        assert_eq!(wrap.finish(), "  blue");

        let mut wrap = Wrap::default();
        let mut text = wrap.push(&"trireme ".repeat(50));
        text.push_str(&wrap.finish());
        assert_eq!(text.split_whitespace().count(), 50);
        assert!(text.lines().count() > 4);
        assert!(text.lines().all(|line| line.len() <= 78), "{text}");
    }
}
