//! `cluster bench`: numbers, of any OpenAI-compatible server or of this machine's own engine.

mod engine;
mod serve;

use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster bench serve --concurrency 1,8,16\n  cluster bench engine --threads 2"
)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand)]
enum BenchCommand {
    /// Measure a server: output tok/s, time to first token, time between tokens
    Serve(serve::ServeArgs),
    /// Measure the engine in this process, without network and split: prefill and decode tok/s
    Engine(engine::EngineArgs),
}

impl BenchArgs {
    pub fn run(self) -> Result<()> {
        match self.command {
            BenchCommand::Serve(args) => args.run(),
            BenchCommand::Engine(args) => args.run(),
        }
    }
}
