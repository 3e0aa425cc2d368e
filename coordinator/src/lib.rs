//! The coordinator: replicated state, placement, the fleet of workers, and the HTTP gateway.

pub mod billing;
pub mod fleet;
pub mod gateway;
pub mod placement;
#[cfg(test)]
mod scratch;
pub mod state;

use std::net::SocketAddr;
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;

/// `cluster coordinator`'s settings.
#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    pub data_dir: PathBuf,
    /// QUIC, for workers. Port 0 picks one.
    pub listen: SocketAddr,
    /// HTTP, for clients. Port 0 picks one.
    pub http: SocketAddr,
    /// Model cache; `None` is the user's cache folder.
    pub cache_dir: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    #[error("{0}")]
    Start(String),
}

/// Runs a coordinator until `shutdown`, then drains. Writes `<data_dir>/coordinator.json` (see
/// `trireme_shared::api::CoordinatorFile`) once both ports listen.
pub async fn run(
    _config: CoordinatorConfig,
    _shutdown: CancellationToken,
) -> Result<(), CoordinatorError> {
    Err(CoordinatorError::Start("not built yet".into()))
}
