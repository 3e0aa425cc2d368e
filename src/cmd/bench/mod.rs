//! `cluster bench`: numbers, of any OpenAI-compatible server of this machine's own engine, or of a group
//! of coordinators.

mod commits;
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
    /// Measure a group of coordinators in this process: commands/s through commit, and how long one takes
    Commits(commits::CommitsArgs),
}

impl BenchArgs {
    pub fn run(self) -> Result<()> {
        match self.command {
            BenchCommand::Serve(args) => args.run(),
            BenchCommand::Engine(args) => args.run(),
            BenchCommand::Commits(args) => args.run(),
        }
    }
}
