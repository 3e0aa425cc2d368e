//! One client's request as it sees it: what it was sent, token by token, until the end or until it left.

use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// A server that says nothing for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What is sent.
pub struct Asked<'a> {
    /// `ip:port`
    pub address: &'a str,
    pub key: &'a str,
    /// The client's own name for the request.
    pub id: &'a str,
    pub idempotency: Option<&'a str>,
    pub body: &'a Value,
    /// It leaves after so many tokens: it sends no more, and reads what is still under way.
    pub leave_after: Option<usize>,
}

/// What came back.
#[derive(Debug, Default)]
pub struct Heard {
    /// 0 where no answer began.
    pub status: u16,
    /// When each token came.
    pub tokens: Vec<Instant>,
    /// Of a whole answer: prompt and completion tokens, and what it cost, as it says.
    pub usage: Option<(u64, u64, i64)>,
    pub text: String,
}

impl Heard {
    pub fn is_whole(&self) -> bool {
        self.usage.is_some()
    }
}

/// Sends a request and hears all that comes of it; whatever breaks only ends the hearing.
pub fn ask(asked: &Asked<'_>) -> Heard {
    let mut heard = Heard::default();
    // A broken connection is what this test is about.
    if let Err(error) = hear(asked, &mut heard) {
        heard.text = error.to_string();
    }
    heard
}

fn hear(asked: &Asked<'_>, heard: &mut Heard) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(asked.address)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    let body = asked.body.to_string();
    let idempotency = asked
        .idempotency
        .map(|key| format!("idempotency-key: {key}\r\n"));
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nhost: trireme\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\nx-request-id: {}\r\n{}content-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        asked.key,
        asked.id,
        idempotency.unwrap_or_default(),
        body.len()
    )?;
    let mut lines = BufReader::new(stream.try_clone()?);
    let (mut line, mut in_body, mut done) = (String::new(), false, false);
    let mut usage = None;
    loop {
        line.clear();
        if lines.read_line(&mut line)? == 0 {
            break;
        }
        let text = line.trim_end();
        if heard.status == 0 {
            let status = text.split(' ').nth(1).and_then(|code| code.parse().ok());
            heard.status = status.unwrap_or(0);
            continue;
        }
        in_body |= text.is_empty();
        if !in_body {
            continue;
        }
        if heard.status != 200 {
            heard.text.push_str(text);
            continue;
        }
        // A frame is one line of one chunk.
        match text.strip_prefix("data: ") {
            Some("[DONE]") => done = true,
            Some(event) => {
                let event: Value = serde_json::from_str(event)?;
                let choices = event["choices"].as_array().into_iter().flatten();
                let tokens = choices.filter_map(|c| c["logprobs"]["tokens"].as_array());
                let count = tokens.map(Vec::len).sum();
                heard
                    .tokens
                    .extend(std::iter::repeat_n(Instant::now(), count));
                let number = |name: &str| event["usage"][name].as_u64();
                if let Some(completion) = number("completion_tokens") {
                    let cost = event["usage"]["cost_nano_usd"].as_i64().unwrap_or(-1);
                    let prompt = number("prompt_tokens").unwrap_or(0);
                    usage = Some((prompt, completion, cost));
                }
                if event["error"].is_object() {
                    heard.text = event["error"].to_string();
                }
            }
            None => {}
        }
        if asked
            .leave_after
            .is_some_and(|most| heard.tokens.len() >= most)
        {
            let _ = stream.shutdown(Shutdown::Write);
        }
    }
    heard.usage = usage.filter(|_| done);
    Ok(())
}
