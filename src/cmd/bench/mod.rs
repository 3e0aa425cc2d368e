//! `cluster bench`: numbers, of any OpenAI-compatible server of this machine's own engine, or of a group
//! of coordinators.

mod catch_up;
mod commits;
mod curve;
mod engine;
mod fair;
mod gateway;
mod load;
mod roofline;
mod serve;
mod settle;

use crate::failure::Failure;
use crate::term;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    /// Measure one tenant's requests alone, and while another tenant floods the server
    Fair(fair::FairArgs),
    /// Measure what the gateway adds to a request, at a fixed rate
    Gateway(gateway::GatewayArgs),
    /// Measure the engine in this process, without network and split: prefill and decode tok/s
    Engine(engine::EngineArgs),
    /// Measure what this machine allows, and how near each part of the engine comes to it
    Roofline(roofline::RooflineArgs),
    /// Measure a group of coordinators in this process: commands/s through commit, and how long one takes
    Commits(commits::CommitsArgs),
    /// Measure a group's settlements in this process: requests let in and charged a second
    Settle(settle::SettleArgs),
    /// Measure commits while a new member of the group is sent a large snapshot
    CatchUp(catch_up::CatchUpArgs),
}

impl BenchArgs {
    pub fn run(self) -> Result<()> {
        match self.command {
            BenchCommand::Serve(args) => args.run(),
            BenchCommand::Fair(args) => args.run(),
            BenchCommand::Gateway(args) => args.run(),
            BenchCommand::Engine(args) => args.run(),
            BenchCommand::Roofline(args) => args.run(),
            BenchCommand::Commits(args) => args.run(),
            BenchCommand::Settle(args) => args.run(),
            BenchCommand::CatchUp(args) => args.run(),
        }
    }
}

/// A folder for this run, removed with all that is in it.
struct NewFolder(PathBuf);

impl NewFolder {
    /// In `parent`.
    fn make(parent: &Path) -> Result<Self> {
        let folder = parent.join(format!(".trireme-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self(folder))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            term::out(format!("cannot remove {}: {error}", self.0.display()));
        }
    }
}

/// Measures a group in a new folder in `parent`; a spinner tells what it is at.
fn in_a_new_folder<T>(
    parent: &Path,
    measure: impl AsyncFnOnce(PathBuf, &(dyn Fn(&str) + Sync)) -> Result<T, String>,
) -> Result<T> {
    let folder = NewFolder::make(parent)?;
    let spinner = term::spinner();
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let tell = |doing: &str| spinner.set_message(doing.to_owned());
    let report = runtime.block_on(measure(folder.path().to_owned(), &tell));
    spinner.finish_and_clear();
    runtime.shutdown_timeout(Duration::from_secs(1));
    report.map_err(|error| {
        Failure::new(
            "the group could not be measured",
            "see that --dir can be written",
        )
        .because(error)
    })
}
