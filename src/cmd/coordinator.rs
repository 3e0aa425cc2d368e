//! `cluster coordinator`: runs one coordinator in this process.

use crate::lock::DirLock;
use anyhow::Result;
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;
use trireme_coordinator::CoordinatorConfig;
use trireme_shared::limits;

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster coordinator --data-dir /var/lib/trireme --listen 10.0.0.1:7400 \\\n    \
                        --http 10.0.0.1:8080\n\nThe admin key and both addresses are written to \
                        coordinator.json in the data folder."
)]
pub struct CoordinatorArgs {
    /// Folder for the cluster's state, keys and certificates
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Where workers connect (QUIC, UDP); port 0 picks one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7400")]
    listen: SocketAddr,
    /// Where clients connect (HTTP); port 0 picks one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    http: SocketAddr,
    /// Folder for model files [default: this user's cache folder]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// End when stdin closes
    #[arg(long, hide = true)]
    lifeline: bool,
}

impl CoordinatorArgs {
    pub fn run(self) -> Result<()> {
        // A predecessor whose lifeline was cut just now may still be ending.
        let wait = limits::LIFELINE_EXIT_DEADLINE;
        let _lock = DirLock::acquire(&self.data_dir, "process.lock", "coordinator", wait)?;
        let config = CoordinatorConfig {
            data_dir: self.data_dir,
            listen: self.listen,
            http: self.http,
            cache_dir: self.cache_dir,
        };
        super::serve(self.lifeline, |shutdown| {
            trireme_coordinator::run(config, shutdown)
        })
    }
}
