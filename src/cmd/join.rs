//! `cluster join`: runs one worker in this process.

use super::IsaChoice;
use crate::lock::DirLock;
use crate::{machine, size};
use anyhow::Result;
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;
use trireme_shared::limits;
use trireme_worker::WorkerConfig;

/// More compute threads than any machine has; a larger number is a slip of the hand.
pub const THREADS_MAX: usize = 4_096;

#[derive(Args)]
#[command(
    after_help = "Example:\n  cluster token create --uses 4\n  cluster join 10.0.0.1:7400 --token \
                        TOKEN --threads 8 --memory 12GiB\n\nOne coordinator is enough: it names the \
                        others. More (separated by commas) help while that one is down.\n\nThe token is needed the first time only; \
                        the worker then keeps a certificate in its data folder."
)]
pub struct JoinArgs {
    /// Control address of one or more coordinators
    #[arg(value_name = "HOST:PORT", required = true, num_args = 1.., value_delimiter = ',')]
    addresses: Vec<String>,
    /// Join token (others on this machine can see it in the process list: prefer --token-file)
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_file")]
    token: Option<String>,
    /// File that holds the join token; `-` is stdin
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Compute threads to offer [default: all]
    #[arg(long, value_name = "N", value_parser = threads)]
    threads: Option<usize>,
    /// Compute threads of all workers on this machine together, where there are several: with more
    /// than it has cores they wait for each other without spinning
    #[arg(long, value_name = "N", value_parser = threads)]
    host_threads: Option<usize>,
    /// Memory to offer for weights and KV cache, e.g. 8GiB [default: 80 % of what is free]
    #[arg(long, value_name = "BYTES", value_parser = size::parse_bytes)]
    memory: Option<u64>,
    /// Folder for this worker's key and certificate [default: in this user's data folder]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where other workers and coordinators reach this worker (QUIC, UDP); port 0 picks one
    #[arg(long, value_name = "HOST:PORT", default_value = "0.0.0.0:0")]
    listen: SocketAddr,
    /// Address to give to others where it differs from what the coordinator sees (NAT)
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Which CPU kernels to run
    #[arg(long, value_enum, default_value_t)]
    isa: IsaChoice,
    /// Folder for model files [default: this user's cache folder]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// End when stdin closes
    #[arg(long, hide = true)]
    lifeline: bool,
}

impl JoinArgs {
    pub fn run(self) -> Result<()> {
        let token = super::token_of(&self.token, &self.token_file)?;
        let data_dir = match self.data_dir {
            Some(dir) => dir,
            None => crate::last::state_dir()?.join("worker"),
        };
        // A predecessor whose lifeline was cut just now may still be ending.
        let wait = limits::LIFELINE_EXIT_DEADLINE;
        let _lock = DirLock::acquire(&data_dir, "process.lock", "worker", wait)?;
        let config = WorkerConfig {
            coordinators: self.addresses,
            token,
            threads: self.threads.unwrap_or_else(machine::threads),
            host_threads: self.host_threads.unwrap_or(0),
            memory_bytes: self.memory.unwrap_or_else(machine::memory_bytes),
            data_dir,
            listen: self.listen,
            advertise: self.advertise,
            isa: self.isa.choose()?,
            cache_dir: self.cache_dir,
        };
        super::serve(self.lifeline, |shutdown| {
            trireme_worker::run(config, shutdown)
        })
    }
}

/// A thread count from the command line.
pub fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=THREADS_MAX).contains(&n) => Ok(n),
        _ => Err(format!("give a number of threads from 1 to {THREADS_MAX}")),
    }
}
