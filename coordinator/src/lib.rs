//! The coordinator: replicated state, placement, the fleet of workers, and the HTTP gateway.
//!
//! `run` wires the rooms: journal -> certificates -> QUIC endpoint and fleet -> HTTP gateway, and
//! takes them down in the opposite order.

pub mod billing;
mod bootstrap;
pub mod fleet;
pub mod gateway;
pub mod placement;
pub mod raft;
#[cfg(test)]
mod scratch;
pub mod state;

use crate::fleet::dispatch::Dispatcher;
use crate::fleet::{Fleet, FleetSetup};
use crate::gateway::{GatewayParts, GatewayState};
use crate::state::Command;
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use trireme_shared::api::{CoordinatorFile, CoordinatorReport};
use trireme_shared::transport::{Endpoint, Protocol};

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

/// Why a coordinator does not run; the text tells the user what to do.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    #[error("{0}")]
    Start(String),
    #[error("the command log failed while serving: see the log, then start again")]
    Journal,
    #[error("the {0} ended by itself: see the log, then start again")]
    Ended(&'static str),
}

/// Runs a coordinator until `shutdown`, then drains. Writes `<data_dir>/coordinator.json` (see
/// `trireme_shared::api::CoordinatorFile`) once both ports listen.
pub async fn run(
    config: CoordinatorConfig,
    shutdown: CancellationToken,
) -> Result<(), CoordinatorError> {
    let journal = bootstrap::open_journal(&config.data_dir).await?;
    let served = serve(&config, &journal, &shutdown).await;
    // Whatever happened, what was answered is on disk and the lock is free for the next start.
    journal.close().await;
    served
}

async fn serve(
    config: &CoordinatorConfig,
    journal: &state::journal::Journal,
    shutdown: &CancellationToken,
) -> Result<(), CoordinatorError> {
    let boot = bootstrap::boot(journal, &config.data_dir).await?;
    let accept = [Protocol::Join, Protocol::Control];
    let endpoint = Endpoint::bind(config.listen, &boot.identity, &accept)
        .map_err(|e| CoordinatorError::Start(format!("{e}. Choose another with --listen")))?;
    let listener = TcpListener::bind(config.http).await.map_err(|e| {
        let http = config.http;
        CoordinatorError::Start(format!(
            "cannot listen on {http}: {e}. Choose another with --http"
        ))
    })?;
    let http = listener
        .local_addr()
        .map_err(|e| CoordinatorError::Start(e.to_string()))?;
    let this = CoordinatorReport {
        id: bootstrap::COORDINATOR,
        pid: std::process::id(),
        http: format!("http://{}", bootstrap::reachable(http)),
        control: bootstrap::reachable(endpoint.local_addr()).to_string(),
    };
    let put = Command::PutCoordinator {
        id: this.id,
        http: this.http.clone(),
        control: this.control.clone(),
    };
    let proposed = journal.propose(put).await;
    proposed.map_err(|e| CoordinatorError::Start(e.to_string()))?;

    let (dispatcher, queue) = Dispatcher::new();
    let fleet = Fleet::new(FleetSetup {
        journal: journal.clone(),
        this: this.clone(),
        cache_dir: config.cache_dir.clone(),
    });
    let http_state = GatewayState::new(GatewayParts {
        dispatcher,
        fleet: fleet.clone(),
        journal: journal.clone(),
        cache_dir: config.cache_dir.clone(),
    })
    .map_err(|e| CoordinatorError::Start(e.to_string()))?;

    // The fleet outlives the gateway: requests that run out their time need their replicas.
    let (close_gateway, close_fleet) = (CancellationToken::new(), CancellationToken::new());
    let mut fleet_task = tokio::spawn({
        let (fleet, endpoint, close) = (fleet.clone(), endpoint.clone(), close_fleet.clone());
        async move { fleet.serve(endpoint, boot.authority, queue, close).await }
    });
    let mut gateway_task =
        tokio::spawn(gateway::serve(listener, http_state, close_gateway.clone()));
    let path = bootstrap::address_file(&config.data_dir);
    let written = write_address(&path, &this, &boot.admin_key);
    if written.is_ok() {
        tracing::info!(
            http = this.http,
            control = this.control,
            "the coordinator listens"
        );
    }

    let ended = match written {
        Err(error) => Err(error),
        Ok(()) => tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            () = journal.stopped() => Err(CoordinatorError::Journal),
            _ = &mut fleet_task => Err(CoordinatorError::Ended("fleet")),
            _ = &mut gateway_task => Err(CoordinatorError::Ended("gateway")),
        },
    };
    tracing::info!("draining");
    close_gateway.cancel();
    if !gateway_task.is_finished() {
        // `serve` bounds its own drain.
        let _ = gateway_task.await;
    }
    let cut_off = fleet.drain().await;
    if cut_off > 0 {
        tracing::warn!(cut_off, "sequences were cut off");
    }
    close_fleet.cancel();
    if !fleet_task.is_finished() {
        let _ = fleet_task.await;
    }
    endpoint.close().await;
    // Left behind, it would send the next reader to a process that is gone.
    let _ = std::fs::remove_file(&path);
    ended
}

fn write_address(
    path: &std::path::Path,
    this: &CoordinatorReport,
    admin_key: &str,
) -> Result<(), CoordinatorError> {
    let file = CoordinatorFile {
        id: this.id,
        pid: this.pid,
        http: this.http.clone(),
        control: this.control.clone(),
        admin_key: admin_key.to_owned(),
    };
    let bytes =
        serde_json::to_vec_pretty(&file).map_err(|e| CoordinatorError::Start(e.to_string()))?;
    bootstrap::write_private(path, &bytes)
}
