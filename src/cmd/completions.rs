//! `cluster completions`: scripts that teach a shell this command line.

use super::Cli;
use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster completions bash > ~/.local/share/bash-completion/completions/cluster"
)]
pub struct CompletionsArgs {
    /// The shell to write for
    #[arg(value_enum)]
    shell: Shell,
}

impl CompletionsArgs {
    pub fn run(self) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "cluster", &mut script);
        crate::term::part(String::from_utf8_lossy(&script));
        Ok(())
    }
}
