//! Load on an OpenAI-compatible server, and what it is measured by.
//!
//! At each concurrency that many requests are always open. Tokens are counted from the server's
//! `usage` where it gives one, else pieces of text are counted. Times are of pieces of text as they
//! arrive, so a server that sends several tokens at once shows fewer, longer gaps.

use crate::client::{Client, Next};
use crate::failure::Failure;
use crate::generation::Generation;
use crate::last::Last;
use crate::stats::percentile;
use crate::{size, term};
use anyhow::Result;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use trireme_shared::limits;

/// What every request asks for.
#[derive(Clone)]
pub struct Load {
    /// Of this run's prompts. Two runs share no prompts unless they share it, so that a server which
    /// keeps what it has computed does not answer the second from the first.
    pub seed: u64,
    pub prompt_tokens: u32,
    /// How many of them, the first ones, are every prompt's.
    pub shared_prefix_tokens: u32,
    pub max_tokens: u32,
    pub api: Api,
    /// Tokens that the server may guess ahead; where it is none, the server is told nothing of it.
    pub speculative_tokens: Option<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Api {
    /// /v1/completions
    #[default]
    Completions,
    /// /v1/chat/completions
    Chat,
}

/// Reads a number of requests open at once.
pub fn concurrency(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(n) if (1..=limits::BENCH_CONCURRENCY_MAX).contains(&n) => Ok(n),
        _ => Err(format!(
            "give numbers from 1 to {}",
            limits::BENCH_CONCURRENCY_MAX
        )),
    }
}

/// What one concurrency gave. Times in milliseconds.
#[derive(Debug, Serialize)]
pub struct Measured {
    pub concurrency: usize,
    pub requests: usize,
    pub failures: usize,
    seconds: f64,
    prompt_tokens: u64,
    output_tokens: u64,
    output_tokens_per_second: f64,
    ttft_p50_ms: Option<f64>,
    ttft_p99_ms: Option<f64>,
    inter_token_p50_ms: Option<f64>,
    inter_token_p99_ms: Option<f64>,
    /// The first failure's reason.
    pub failure: Option<String>,
}

/// Which server is asked, as whom.
#[derive(Args)]
pub struct ServerArgs {
    /// Base address of the server [default: the last `cluster up`]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Key to show [default: the last `cluster up`'s]
    #[arg(
        long,
        value_name = "KEY",
        env = "TRIREME_API_KEY",
        hide_env_values = true
    )]
    api_key: Option<String>,
}

impl ServerArgs {
    /// The server's address and the key to show there.
    pub fn find(&self) -> Result<(String, Option<String>)> {
        let last = Last::load();
        let url = match (&self.url, &last) {
            (Some(url), _) => url.clone(),
            (None, Some(last)) => last.coordinators.first().cloned().unwrap_or_default(),
            (None, None) => {
                return Err(Failure::usage(
                    "no server is named and no `cluster up` is known",
                    "pass --url URL, or start a cluster with `cluster up`",
                )
                .into());
            }
        };
        // The last cluster's key is shown to that cluster only.
        let known = last.filter(|last| last.coordinators.contains(&url));
        let key = self.api_key.clone();
        Ok((url, key.or_else(|| known.map(|last| last.api_key))))
    }
}

impl Load {
    /// Sends `requests`, `concurrency` of them open at a time, with the prompts from number `first` on.
    pub fn measure(
        &self,
        client: &Client,
        model: &str,
        concurrency: usize,
        first: usize,
        requests: usize,
    ) -> Measured {
        let bar = ProgressBar::new(requests as u64);
        let template = "  {prefix:>4} open  [{bar:30}] {pos} of {len} requests  {elapsed}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(concurrency.to_string());
        let next = AtomicUsize::new(0);
        let started = Instant::now();
        let outcomes: Vec<Result<Generation>> = std::thread::scope(|scope| {
            let work = || {
                let mut mine = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= requests {
                        return mine;
                    }
                    mine.push(self.one(client, model, first + number, || {}));
                    bar.inc(1);
                }
            };
            let threads: Vec<_> = (0..concurrency.min(requests))
                .map(|_| scope.spawn(work))
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            // A panic of ours is a defect; it must not pass for a measurement.
            joined
                .flat_map(|r| r.unwrap_or_else(|p| std::panic::resume_unwind(p)))
                .collect()
        });
        let seconds = started.elapsed().as_secs_f64();
        bar.finish_and_clear();
        summarise(concurrency, seconds, &outcomes)
    }

    /// One request, with the prompt of that number; `heard` is called at each event.
    pub fn one(
        &self,
        client: &Client,
        model: &str,
        number: usize,
        mut heard: impl FnMut(),
    ) -> Result<Generation> {
        let shared = self.shared_prefix_tokens.min(self.prompt_tokens);
        let own = prompt(self.prompt_tokens - shared, self.seed, number);
        let prompt = match shared {
            0 => own,
            _ => format!("{} {own}", prompt(shared, self.seed, usize::MAX)),
        };
        let mut body = json!({
            "model": model,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if let Some(tokens) = self.speculative_tokens {
            body["speculative_tokens"] = tokens.into();
        }
        let path = match self.api {
            Api::Completions => {
                body["prompt"] = prompt.into();
                "/v1/completions"
            }
            Api::Chat => {
                body["messages"] = json!([{"role": "user", "content": prompt}]);
                "/v1/chat/completions"
            }
        };
        let mut generation = Generation::new(Instant::now());
        let stream = client.stream(path, &body)?;
        loop {
            match stream.next(limits::CLIENT_STREAM_SILENCE_MAX)? {
                Next::Event(event) => {
                    heard();
                    drop(generation.take(&event.data, event.at));
                }
                Next::End => return Ok(generation),
                Next::Waiting => anyhow::bail!(
                    "nothing came for {}",
                    size::duration(limits::CLIENT_STREAM_SILENCE_MAX)
                ),
            }
        }
    }
}

/// The first model that the server lists.
pub fn first_model(client: &Client) -> Result<String> {
    let served: Value = client.get("/v1/models")?;
    served["data"][0]["id"]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| Failure::new("the server lists no model", "name one with --model").into())
}

/// A seed that no other run has.
pub fn random_seed() -> Result<u64> {
    Ok(getrandom::u64()?)
}

/// A prompt of about `tokens` tokens: common words, one token each in most vocabularies. Each
/// `number` begins differently, so that no prompt is another's prefix and no cache helps.
fn prompt(tokens: u32, seed: u64, number: usize) -> String {
    const WORDS: [&str; 32] = [
        "the", "sea", "was", "calm", "and", "every", "ship", "in", "our", "line", "moved", "with",
        "one", "long", "stroke", "of", "its", "many", "men", "who", "sat", "on", "three", "rows",
        "while", "a", "small", "wind", "from", "north", "began", "to",
    ];
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(number as u64);
    let words: Vec<&str> = (0..tokens)
        .map(|_| WORDS[(random.next_u32() >> 27) as usize])
        .collect();
    words.join(" ")
}

fn summarise(concurrency: usize, seconds: f64, outcomes: &[Result<Generation>]) -> Measured {
    let good: Vec<&Generation> = outcomes.iter().filter_map(|o| o.as_ref().ok()).collect();
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let mut ttft: Vec<f64> = good.iter().filter_map(|g| g.ttft().map(ms)).collect();
    let mut gaps: Vec<f64> = good
        .iter()
        .flat_map(|g| g.gaps.iter().map(|gap| gap * 1e3))
        .collect();
    let output_tokens = good.iter().map(|g| g.tokens()).sum();
    Measured {
        concurrency,
        requests: outcomes.len(),
        failures: outcomes.len() - good.len(),
        seconds,
        prompt_tokens: good.iter().filter_map(|g| g.prompt_tokens).sum(),
        output_tokens,
        output_tokens_per_second: output_tokens as f64 / seconds.max(1e-9),
        ttft_p50_ms: percentile(&mut ttft, 50.0),
        ttft_p99_ms: percentile(&mut ttft, 99.0),
        inter_token_p50_ms: percentile(&mut gaps, 50.0),
        inter_token_p99_ms: percentile(&mut gaps, 99.0),
        failure: outcomes
            .iter()
            .find_map(|o| o.as_ref().err().map(|error| format!("{error:#}"))),
    }
}

/// For people, a line for each.
pub fn table(results: &[Measured]) -> String {
    let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.1}"));
    let rows = results
        .iter()
        .map(|r| {
            vec![
                r.concurrency.to_string(),
                r.requests.to_string(),
                r.failures.to_string(),
                format!("{:.1}", r.output_tokens_per_second),
                ms(r.ttft_p50_ms),
                ms(r.ttft_p99_ms),
                ms(r.inter_token_p50_ms),
                ms(r.inter_token_p99_ms),
            ]
        })
        .collect();
    let header = [
        ">open",
        ">requests",
        ">failed",
        ">tok/s",
        ">TTFT p50",
        ">p99 ms",
        ">ITL p50",
        ">p99 ms",
    ];
    term::table(&header, rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::{answer, serve};

    #[test]
    fn prompts_have_the_asked_length_and_differ() {
        assert_eq!(prompt(100, 1, 0).split(' ').count(), 100);
        assert_eq!(prompt(100, 1, 7), prompt(100, 1, 7));
        let starts: std::collections::BTreeSet<String> = (0..32)
            .map(|n| prompt(8, 1 + n / 16, n as usize % 16))
            .collect();
        assert_eq!(starts.len(), 32);
    }

    #[test]
    fn good_and_failed_requests_are_counted() {
        let body = "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"choices\":[{\"text\":\"b\"}],\
                    \"usage\":{\"prompt_tokens\":5,\"completion_tokens\":4}}\n\ndata: [DONE]\n\n";
        let url = serve(vec![
            answer("200 OK", "text/event-stream", body),
            answer(
                "503 Service Unavailable",
                "application/json",
                "{\"error\":{\"message\":\"full\"}}",
            ),
        ]);
        let load = Load {
            seed: 0,
            prompt_tokens: 3,
            shared_prefix_tokens: 0,
            max_tokens: 4,
            api: Api::Completions,
            speculative_tokens: None,
        };
        let measured = load.measure(&Client::new(&[url], None), "m", 1, 0, 2);
        assert_eq!((measured.requests, measured.failures), (2, 1));
        assert_eq!((measured.output_tokens, measured.prompt_tokens), (4, 5));
        assert!(measured.ttft_p50_ms.is_some() && measured.inter_token_p50_ms.is_some());
        assert!(measured.failure.unwrap().contains("full"));
    }
}
