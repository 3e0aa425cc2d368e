//! `cluster coordinator`: runs one coordinator in this process.

use crate::lock::DirLock;
use anyhow::Result;
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;
use trireme_coordinator::webhooks::reach::Reach;
use trireme_coordinator::{CoordinatorConfig, JoinConfig};
use trireme_shared::limits;

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster coordinator --data-dir /var/lib/trireme --listen 10.0.0.1:7400 \\\n    \
                        --http 10.0.0.1:8080\n  cluster coordinator --data-dir /var/lib/trireme --listen 10.0.0.2:7400 \\\n    \
                        --http 10.0.0.2:8080 --join 10.0.0.1:7400 --token-file token.txt\n\nWithout --join it \
                        begins a cluster of its own, or goes on with what its data folder holds. \
                        With it, it joins the coordinators there (`cluster member add` makes the \
                        token); the token is needed the first time only.\n\nThe admin key and both addresses are written to \
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
    /// Join the group of these coordinators (their --listen addresses, tried in order)
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    join: Vec<String>,
    /// Join token (others on this machine can see it in the process list: prefer --token-file)
    #[arg(
        long,
        value_name = "TOKEN",
        conflicts_with = "token_file",
        requires = "join"
    )]
    token: Option<String>,
    /// File that holds the join token; `-` is stdin
    #[arg(long, value_name = "FILE", requires = "join")]
    token_file: Option<PathBuf>,
    /// Folder for model files [default: this user's cache folder]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Let tenants' webhooks be at private addresses, and on this machine by http
    #[arg(long)]
    allow_private_webhooks: bool,
    /// End when stdin closes
    #[arg(long, hide = true)]
    lifeline: bool,
}

impl CoordinatorArgs {
    pub fn run(self) -> Result<()> {
        // A predecessor whose lifeline was cut just now may still be ending.
        let wait = limits::LIFELINE_EXIT_DEADLINE;
        let _lock = DirLock::acquire(&self.data_dir, "process.lock", "coordinator", wait)?;
        let token = super::token_of(&self.token, &self.token_file)?;
        let join = (!self.join.is_empty()).then_some(JoinConfig {
            addresses: self.join,
            token,
        });
        let config = CoordinatorConfig {
            data_dir: self.data_dir,
            listen: self.listen,
            http: self.http,
            cache_dir: self.cache_dir,
            webhooks: match self.allow_private_webhooks {
                true => Reach::Private,
                false => Reach::Public,
            },
            join,
        };
        super::serve(self.lifeline, |shutdown| {
            trireme_coordinator::run(config, shutdown)
        })
    }
}
