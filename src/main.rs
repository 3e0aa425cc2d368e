//! `cluster`: the one binary. This file only wires: arguments -> command -> exit code.
//!
//! `cmd/` has a file per subcommand; the files beside this one are what several commands share.

mod client;
mod cmd;
mod failure;
mod generation;
mod last;
mod lifeline;
mod lock;
mod machine;
mod signals;
mod size;
mod sse;
mod stats;
mod term;
mod url;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cmd::Cli::parse();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
