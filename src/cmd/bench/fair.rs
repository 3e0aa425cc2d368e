//! `cluster bench fair`: what one tenant's requests are like while another floods the server, or while long
//! prompts of its own come in.
//!
//! A closed loop of one tenant's requests is measured alone, and again while another key (or the same) keeps
//! many streams open. The measured ones begin once every stream of the flood has brought text or was refused.

use super::load::{Api, Load, Measured, ServerArgs, concurrency, first_model, random_seed, table};
use crate::client::Client;
use crate::failure::Failure;
use crate::term;
use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;
use trireme_shared::limits;

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster bench fair --flood-key $(cluster key create flood) --flood 64\n  \
                        cluster bench fair --open 8 --flood 1 --flood-prompt-tokens 2000 --flood-max-tokens 1"
)]
pub struct FairArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Key of the tenant that floods [default: the measured one's]
    #[arg(long, value_name = "KEY")]
    flood_key: Option<String>,
    /// Streams that it keeps open
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = concurrency)]
    flood: usize,
    /// Requests that the measured tenant keeps open
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = concurrency)]
    open: usize,
    /// Requests that are measured, alone and beside the flood
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// Model to ask [default: the first that is served]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Length of each prompt, about
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    prompt_tokens: u32,
    /// Longest answer
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Length of each of the flood's prompts, about [default: as of the measured ones]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    flood_prompt_tokens: Option<u32>,
    /// Longest answer that the flood asks for [default: as the measured ones do]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    flood_max_tokens: Option<u32>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What the flood got while the other tenant was measured.
#[derive(Debug, Default, Serialize)]
struct Flood {
    streams: usize,
    requests: usize,
    failures: usize,
    output_tokens: u64,
}

impl FairArgs {
    pub fn run(self) -> Result<()> {
        let (url, key) = self.server.find()?;
        let measured = Client::new(std::slice::from_ref(&url), key.clone());
        let flooding = Client::new(&[url], self.flood_key.clone().or(key));
        let model = match &self.model {
            Some(model) => model.clone(),
            None => first_model(&measured)?,
        };
        let load = Load {
            seed: random_seed()?,
            prompt_tokens: self.prompt_tokens,
            shared_prefix_tokens: 0,
            max_tokens: self.max_tokens,
            api: Api::Completions,
            // What may be guessed differs from text to text.
            speculative_tokens: Some(0),
        };
        let flood = Load {
            prompt_tokens: self.flood_prompt_tokens.unwrap_or(self.prompt_tokens),
            max_tokens: self.flood_max_tokens.unwrap_or(self.max_tokens),
            ..load.clone()
        };
        let requests = self.requests as usize;
        let alone = load.measure(&measured, &model, self.open, 0, requests);
        let (beside, flood) = self.beside(
            &flood,
            &flooding,
            || load.measure(&measured, &model, self.open, requests, requests),
            &model,
        )?;
        if self.json {
            return term::json(&json!({
                "url": measured.url(),
                "model": model,
                "alone": alone,
                "beside": beside,
                "flood": flood,
            }));
        }
        term::out(format!("{} at {}", term::bold(&model), measured.url()));
        term::out(table(&[alone, beside]));
        term::out(format!(
            "the second line beside {} other streams: {} requests, {} failed, {} tokens",
            flood.streams, flood.requests, flood.failures, flood.output_tokens
        ));
        Ok(())
    }

    /// Measures while the flood runs.
    fn beside(
        &self,
        load: &Load,
        flooding: &Client,
        measure: impl FnOnce() -> Measured,
        model: &str,
    ) -> Result<(Measured, Flood)> {
        let stop = AtomicBool::new(false);
        let (begun, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let stream = |number: usize| {
            let (mut mine, mut first) = (Flood::default(), true);
            for turn in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                // Prompts that the measured tenant does not send.
                let number = 1_000_000 + turn * self.flood + number;
                let tell = || {
                    if std::mem::replace(&mut first, false) {
                        begun.fetch_add(1, Ordering::Relaxed);
                    }
                };
                mine.requests += 1;
                match load.one(flooding, model, number, tell) {
                    Ok(generation) => mine.output_tokens += generation.tokens(),
                    Err(_) => {
                        mine.failures += 1;
                        if std::mem::replace(&mut first, false) {
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                        std::thread::sleep(limits::CLIENT_RETRY_PAUSE);
                    }
                }
            }
            mine
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.flood)
                .map(|number| {
                    scope.spawn({
                        let stream = &stream;
                        move || stream(number)
                    })
                })
                .collect();
            let patience = Instant::now() + limits::CLIENT_STREAM_SILENCE_MAX;
            let heard_of = || begun.load(Ordering::Relaxed) + refused.load(Ordering::Relaxed);
            while heard_of() < self.flood && Instant::now() < patience {
                std::thread::sleep(limits::CLIENT_POLL_INTERVAL);
            }
            let ready = begun.load(Ordering::Relaxed);
            let measured = (ready > 0).then(measure);
            stop.store(true, Ordering::Relaxed);
            let mut all = Flood::default();
            for thread in threads {
                let one = thread.join();
                let one = one.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                all.requests += one.requests;
                all.failures += one.failures;
                all.output_tokens += one.output_tokens;
            }
            all.streams = ready;
            match measured {
                Some(measured) => Ok((measured, all)),
                None => Err(Failure::new(
                    "no stream of the flood began",
                    "check --flood-key: it must be a key of a tenant; and --flood-prompt-tokens",
                )
                .into()),
            }
        })
    }
}
