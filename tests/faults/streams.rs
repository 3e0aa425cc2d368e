//! Streams as a client sees them: whole ones, read to the end, and ones that are let go.

use crate::harness::{Cluster, DEADLINE};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;

/// Where the best token led by less than this, another run may choose otherwise.
const MARGIN: f64 = 0.05;

/// A streamed completion, read to its end.
pub struct Stream {
    pub tokens: Vec<String>,
    /// Each token's lead over the runner-up.
    margins: Vec<f64>,
    text: String,
    pub completion_tokens: usize,
    prompt_tokens: usize,
}

impl Stream {
    /// Asks with a body that wants a stream, logprobs and usage. Anything but a whole stream panics.
    pub fn ask(cluster: &Cluster, body: &Value) -> Self {
        let answer = cluster.post("/v1/completions", body);
        assert_eq!(answer.status, 200, "{}\n{}", answer.text, cluster.logs());
        let mut stream = Self {
            tokens: Vec::new(),
            margins: Vec::new(),
            text: String::new(),
            completion_tokens: 0,
            prompt_tokens: 0,
        };
        let (mut usages, mut finished, mut done) = (0, 0, 0);
        for data in answer.text.lines().filter_map(|l| l.strip_prefix("data: ")) {
            if data == "[DONE]" {
                done += 1;
                continue;
            }
            assert_eq!(done, 0, "nothing follows the end: {data}");
            let event: Value = serde_json::from_str(data).expect("JSON");
            assert!(event["error"].is_null(), "{event}\n{}", cluster.logs());
            if let Some(usage) = event["usage"].as_object() {
                usages += 1;
                stream.completion_tokens = number(&usage["completion_tokens"]);
                stream.prompt_tokens = number(&usage["prompt_tokens"]);
            }
            for choice in event["choices"].as_array().expect("choices") {
                finished += usize::from(!choice["finish_reason"].is_null());
                stream.text.push_str(choice["text"].as_str().unwrap_or(""));
                stream.take_logprobs(&choice["logprobs"]);
            }
        }
        assert_eq!((usages, finished, done), (1, 1, 1), "{}", answer.text);
        stream
    }

    fn take_logprobs(&mut self, logprobs: &Value) {
        let Some(tokens) = logprobs["tokens"].as_array() else {
            return;
        };
        for (token, top) in tokens
            .iter()
            .zip(logprobs["top_logprobs"].as_array().expect("top"))
        {
            self.tokens
                .push(token.as_str().expect("a token").to_owned());
            let mut best: Vec<f64> = top
                .as_object()
                .expect("alternatives")
                .values()
                .map(|v| v.as_f64().expect("a logprob"))
                .collect();
            best.sort_by(|a, b| b.total_cmp(a));
            // Two ids may share a text, and then one entry.
            let margin = best.get(1).map_or(0.0, |second| best[0] - second);
            self.margins.push(margin);
        }
    }

    /// Every token once and in order, as many billed as sent, and the same as undisturbed wherever
    /// the choice was clear.
    pub fn assert_continues(&self, undisturbed: &Self, what: &str) {
        assert_eq!(
            self.completion_tokens,
            self.tokens.len(),
            "{what}: billed as sent"
        );
        assert_eq!(
            self.tokens.len(),
            undisturbed.tokens.len(),
            "{what}: tokens"
        );
        assert_eq!(
            self.prompt_tokens, undisturbed.prompt_tokens,
            "{what}: prompt"
        );
        let differ = |&at: &usize| self.tokens[at] != undisturbed.tokens[at];
        match (0..self.tokens.len()).find(differ) {
            None => assert_eq!(self.text, undisturbed.text, "{what}"),
            Some(at) => assert!(
                undisturbed.margins[at] < MARGIN,
                "{what}: token {at} is {:?}, undisturbed {:?} with margin {}",
                self.tokens[at],
                undisturbed.tokens[at],
                undisturbed.margins[at]
            ),
        }
    }
}

fn number(value: &Value) -> usize {
    value.as_u64().expect("a count") as usize
}

/// A request on a connection of its own. Dropping it is a client that vanishes.
pub struct Open(TcpStream);

impl Open {
    pub fn post(cluster: &Cluster, path: &str, body: &Value) -> Self {
        let base = cluster.base();
        let address = base.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a limit");
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            cluster.api_key(),
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("it reads");
        stream.write_all(body.as_bytes()).expect("it reads");
        Self(stream)
    }

    /// Reads until `mark` has come.
    pub fn read_until(&mut self, mark: &str) {
        let mut seen = String::new();
        let mut part = [0; 4096];
        while !seen.contains(mark) {
            let n = self.0.read(&mut part).expect("bytes");
            assert!(n > 0, "the stream ended early: {seen}");
            seen.push_str(&String::from_utf8_lossy(&part[..n]));
        }
    }
}
