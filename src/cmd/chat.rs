//! `cluster chat`: a conversation in the terminal, or one question for scripts.

use super::ClientArgs;
use crate::client::{Client, Event, Next};
use crate::failure::Failure;
use crate::generation::Generation;
use crate::last::Last;
use crate::{signals, term};
use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Instant;
use trireme_shared::limits;

/// Lines typed ahead that are kept.
const TYPED_LINES_MAX: usize = 16;

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster chat                          a conversation (/reset, /exit, Ctrl-D)\n  \
                        cluster chat \"Who sailed triremes?\"   one question\n  git diff | cluster chat -      \
                        the question from stdin"
)]
pub struct ChatArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// One question; `-` reads it from stdin. Without it a conversation begins.
    message: Option<String>,
    /// Model to talk with [default: the last `cluster up`'s, else the first that is served]
    #[arg(long, short, value_name = "NAME")]
    model: Option<String>,
    /// What the model is told first
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Longest answer, in tokens [default: what the context holds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// 0 is always the likeliest word; higher is livelier
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Makes a random answer repeatable
    #[arg(long, value_name = "N")]
    seed: Option<i64>,
}

/// A one-shot answer as `--json` writes it.
#[derive(Serialize)]
struct Answer<'a> {
    model: &'a str,
    content: &'a str,
    finish_reason: Option<&'a str>,
    prompt_tokens: Option<u64>,
    completion_tokens: u64,
    cost_nano_usd: Option<i64>,
    ttft_seconds: Option<f64>,
    tokens_per_second: Option<f64>,
}

struct Chat {
    client: Client,
    model: String,
    args: ChatArgs,
    history: Vec<Value>,
    /// Ctrl-C presses so far.
    interrupts: Arc<AtomicUsize>,
}

impl ChatArgs {
    pub fn run(self) -> Result<()> {
        let client = self.client.tenant()?;
        let question = match self.message.as_deref() {
            Some("-") => Some(read_stdin()?),
            Some(text) => Some(text.to_owned()),
            None if !std::io::stdin().is_terminal() => Some(read_stdin()?),
            None => None,
        };
        let model = self.choose_model(&client)?;
        let mut chat = Chat {
            client,
            model,
            args: self,
            history: Vec::new(),
            interrupts: Arc::default(),
        };
        chat.reset();
        match question {
            Some(question) => chat.once(&question),
            None => chat.converse(),
        }
    }

    fn choose_model(&self, client: &Client) -> Result<String> {
        if let Some(model) = &self.model {
            return Ok(model.clone());
        }
        let served: Value = client.get("/v1/models")?;
        let mut names: Vec<&str> = served["data"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|model| model["id"].as_str())
            .collect();
        names.sort_unstable();
        let last = Last::load().map(|last| last.model);
        let known = last.filter(|last| names.contains(&last.as_str()));
        known
            .or_else(|| names.first().map(|n| (*n).to_owned()))
            .ok_or_else(|| {
                Failure::new(
                    "the cluster serves no model",
                    "`cluster status` says what is missing",
                )
                .into()
            })
    }
}

impl Chat {
    fn reset(&mut self) {
        self.history.clear();
        if let Some(system) = &self.args.system {
            self.history
                .push(json!({"role": "system", "content": system}));
        }
    }

    fn body(&self) -> Value {
        let mut body = json!({
            "model": self.model,
            "messages": self.history,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let options = [
            ("max_tokens", self.args.max_tokens.map(Value::from)),
            ("temperature", self.args.temperature.map(Value::from)),
            ("seed", self.args.seed.map(Value::from)),
        ];
        for (name, value) in options {
            if let Some(value) = value {
                body[name] = value;
            }
        }
        body
    }

    /// One question, its answer, the end. Ctrl-C ends the program here.
    fn once(&mut self, question: &str) -> Result<()> {
        let json = self.args.client.json;
        self.history
            .push(json!({"role": "user", "content": question}));
        let show = |text: &str| {
            if !json {
                term::part(text);
            }
        };
        let generation = self.ask(show)?;
        if json {
            return term::json(&Answer {
                model: &self.model,
                content: &generation.text,
                finish_reason: generation.finish_reason.as_deref(),
                prompt_tokens: generation.prompt_tokens,
                completion_tokens: generation.tokens(),
                cost_nano_usd: generation.cost_nano_usd,
                ttft_seconds: generation.ttft().map(|t| t.as_secs_f64()),
                tokens_per_second: generation.tokens_per_second(),
            });
        }
        term::out("");
        term::err(term::dim(&generation.summary()));
        Ok(())
    }

    fn converse(&mut self) -> Result<()> {
        let interrupts = self.interrupts.clone();
        signals::watch(move |asked| match asked {
            signals::Asked::Interrupt => {
                interrupts.fetch_add(1, Ordering::Relaxed);
            }
            signals::Asked::Terminate => std::process::exit(0),
        })
        .context("cannot listen for Ctrl-C")?;
        let lines = typed_lines()?;
        term::out(format!(
            "{}  {}",
            term::bold(&self.model),
            term::dim("/reset forgets, /exit or Ctrl-D leaves, Ctrl-C stops an answer")
        ));
        while let Some(line) = self.prompt(&lines) {
            match line.trim() {
                "" => {}
                "/exit" | "/quit" => break,
                "/reset" => {
                    self.reset();
                    term::out(term::dim("forgotten"));
                }
                command if command.starts_with('/') => {
                    term::out(term::dim("commands: /reset, /exit"));
                }
                question => self.turn(question),
            }
        }
        Ok(())
    }

    /// The next line typed; `None` at the end of input or a second Ctrl-C.
    fn prompt(&self, lines: &Receiver<String>) -> Option<String> {
        term::part(term::bold("> "));
        let before = self.interrupts.load(Ordering::Relaxed);
        let mut hinted = false;
        loop {
            match lines.recv_timeout(limits::CLIENT_POLL_INTERVAL * 5) {
                Ok(line) => return Some(line),
                Err(RecvTimeoutError::Disconnected) => {
                    term::out("");
                    return None;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let presses = self.interrupts.load(Ordering::Relaxed) - before;
            if presses >= 2 {
                term::out("");
                return None;
            }
            if presses == 1 && !hinted {
                hinted = true;
                term::out(term::dim("\nCtrl-C again, /exit or Ctrl-D leaves"));
                term::part(term::bold("> "));
            }
        }
    }

    /// One exchange; an error ends the answer, not the conversation.
    fn turn(&mut self, question: &str) {
        self.history
            .push(json!({"role": "user", "content": question}));
        match self.ask(|text| term::part(text)) {
            Ok(generation) => {
                term::out(format!("\n{}\n", term::dim(&generation.summary())));
                let answer = json!({"role": "assistant", "content": generation.text});
                self.history.push(answer);
            }
            Err(error) => {
                term::out("");
                self.history.pop();
                // The chain, its advice included; the exit code is not used here.
                let _ = crate::failure::report(&error);
            }
        }
    }

    /// Sends the history and shows the answer as it comes; Ctrl-C ends the answer.
    fn ask(&self, show: impl Fn(&str)) -> Result<Generation> {
        let before = self.interrupts.load(Ordering::Relaxed);
        let mut generation = Generation::new(Instant::now());
        let stream = self.client.stream("/v1/chat/completions", &self.body())?;
        loop {
            match stream.next(limits::CLIENT_POLL_INTERVAL)? {
                Next::Event(Event { data, at }) => show(&generation.take(&data, at)),
                Next::Waiting => {}
                Next::End => return Ok(generation),
            }
            if self.interrupts.load(Ordering::Relaxed) > before {
                show(" [stopped]");
                return Ok(generation);
            }
        }
    }
}

fn read_stdin() -> Result<String> {
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(limits::HTTP_BODY_BYTES_MAX as u64)
        .read_to_string(&mut text)
        .map_err(|error| {
            Failure::new(
                "cannot read the question from stdin",
                "it must be UTF-8 text",
            )
            .because(error)
        })?;
    if text.trim().is_empty() {
        return Err(
            Failure::usage("the question is empty", "write one after `cluster chat`").into(),
        );
    }
    Ok(text)
}

/// Lines of stdin, read on a thread so that the prompt can also notice Ctrl-C.
fn typed_lines() -> Result<Receiver<String>> {
    let (send, lines) = sync_channel(TYPED_LINES_MAX);
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            for line in std::io::stdin().lock().lines() {
                let Ok(line) = line else { return };
                if send.send(line).is_err() {
                    return;
                }
            }
        })?;
    Ok(lines)
}
