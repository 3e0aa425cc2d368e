//! The worker: joins a cluster, loads its share of a model and runs it.
pub mod agent;
pub mod backend;
pub mod bandwidth;
pub mod bench;
pub mod engine;
pub mod loader;
pub mod model;
pub mod parallel;

use std::net::SocketAddr;
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;
use trireme_shared::identity::{IdentityError, NodeId};
use trireme_shared::transport::join::JoinError;
use trireme_shared::transport::{REMOVED, TransportError};

/// `cluster join`'s settings.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// `host:port` of control endpoints, one or more: the coordinator that answers names the others.
    pub coordinators: Vec<String>,
    /// Needed for the first start only; later the saved certificate is used.
    pub token: Option<String>,
    pub threads: usize,
    /// Compute threads of all workers of this host, where there are several; 0 where only this
    /// one's are known. Ranks wait more politely on a host with more threads than cores.
    pub host_threads: usize,
    pub memory_bytes: u64,
    /// Key, certificate and CA live here.
    pub data_dir: PathBuf,
    /// This worker's own QUIC endpoint. Port 0 picks one.
    pub listen: SocketAddr,
    /// `host:port` peers reach it by, where it differs from what the coordinator sees.
    pub advertise: Option<String>,
    pub isa: backend::Isa,
    /// Model cache; `None` is the user's cache folder.
    pub cache_dir: Option<PathBuf>,
}

/// Why a worker could not start or go on; the text tells the user what to do.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("{0}")]
    Start(String),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(
        "the coordinator refuses {node}: {reason}. If it should be let in, join again with a new \
         token and an empty --data-dir"
    )]
    Refused { node: NodeId, reason: String },
    #[error("cannot write {path}: {reason}")]
    File { path: PathBuf, reason: String },
}

impl WorkerError {
    /// The worker is no member any more, which is final.
    pub fn is_removal(&self) -> bool {
        matches!(self, Self::Refused { reason, .. } if reason == REMOVED)
    }
}

/// Joins and serves until `shutdown`, then drains and leaves. Writes `<data_dir>/worker.json`
/// (`{"id", "pid", "data_addr"}`) once the coordinator welcomed it.
pub async fn run(config: WorkerConfig, shutdown: CancellationToken) -> Result<(), WorkerError> {
    agent::run(config, shutdown).await
}
