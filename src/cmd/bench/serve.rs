//! `cluster bench serve`: a closed loop of streamed requests against an OpenAI-compatible server.

use super::load::{Api, Load, ServerArgs, concurrency, first_model, random_seed, table};
use crate::client::Client;
use crate::failure::Failure;
use crate::term;
use anyhow::Result;
use clap::Args;
use serde_json::json;
use trireme_shared::limits;

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster bench serve --concurrency 1,8,16 --prompt-tokens 128 --max-tokens 64\n  \
                        cluster bench serve --url http://10.0.0.5:8000 --api-key K --model M --json"
)]
pub struct ServeArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Model to ask [default: the first that is served]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Requests open at once; several values are measured one after another
    #[arg(long, value_name = "N[,N...]", value_delimiter = ',', default_values_t = [1, 8, 16], value_parser = concurrency)]
    concurrency: Vec<usize>,
    /// Length of each prompt, about
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    prompt_tokens: u32,
    /// Tokens that all prompts begin with, of their length
    #[arg(long, value_name = "N", default_value_t = 0)]
    shared_prefix_tokens: u32,
    /// Tokens that the server may guess ahead (Trireme only) [default: as the server does]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=i64::from(limits::DRAFT_TOKENS_MAX)))]
    speculative_tokens: Option<u8>,
    /// Longest answer
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Requests at each concurrency [default: 4 for each open one, at least 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    requests: Option<u32>,
    /// What prompts are drawn by: runs with the same seed ask the same prompts [default: a new one]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Keep connections open between requests; a server that closes one meanwhile fails a request
    #[arg(long)]
    keep_connections: bool,
    /// Which endpoint is asked
    #[arg(long, value_enum, default_value_t)]
    api: Api,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

impl ServeArgs {
    pub fn run(self) -> Result<()> {
        let (url, key) = self.server.find()?;
        let client = match self.keep_connections {
            true => Client::new(&[url], key),
            false => Client::without_kept_connections(&[url], key),
        };
        let model = match &self.model {
            Some(model) => model.clone(),
            None => first_model(&client)?,
        };
        let seed = match self.seed {
            Some(seed) => seed,
            None => random_seed()?,
        };
        let load = Load {
            seed,
            prompt_tokens: self.prompt_tokens,
            shared_prefix_tokens: self.shared_prefix_tokens,
            max_tokens: self.max_tokens,
            api: self.api,
            speculative_tokens: self.speculative_tokens,
        };
        let (mut results, mut asked) = (Vec::new(), 0);
        for &concurrency in &self.concurrency {
            let requests = (4 * concurrency).max(8);
            let requests = self.requests.map_or(requests, |n| n as usize);
            results.push(load.measure(&client, &model, concurrency, asked, requests));
            asked += requests;
        }
        if self.json {
            term::json(&json!({
                "url": client.url(),
                "model": model,
                "seed": seed,
                "prompt_tokens": self.prompt_tokens,
                "max_tokens": self.max_tokens,
                "results": results,
            }))?;
        } else {
            term::out(format!("{} at {}", term::bold(&model), client.url()));
            term::out(table(&results));
        }
        match results.iter().find_map(|r| r.failure.as_deref()) {
            Some(reason) if results.iter().all(|r| r.failures == r.requests) => Err(Failure::new(
                "every request failed",
                "check --url, --api-key and --model",
            )
            .because(reason)),
            Some(reason) => {
                term::err(format!("some requests failed, the first with: {reason}"));
                Ok(())
            }
            None => Ok(()),
        }
    }
}
