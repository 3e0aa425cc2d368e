//! The coordinator: replicated state, placement, the fleet of workers, and the HTTP gateway.
//!
//! `run` wires the rooms: group and identity -> QUIC endpoint -> fleet -> HTTP gateway, and takes them
//! down in the opposite order.

// The simulator's model of billing is put to the state's own tests too, and names this crate.
#[cfg(test)]
extern crate self as trireme_coordinator;

pub mod authority;
pub mod backup;
mod bootstrap;
pub mod fleet;
pub mod gateway;
pub mod placement;
mod places;
pub mod planted;
pub mod raft;
mod reaper;
#[cfg(test)]
mod scratch;
pub mod state;
pub mod webhooks;

use crate::authority::Rotation;
use crate::bootstrap::{Entered, Upkeep};
use crate::fleet::dispatch::Dispatcher;
use crate::fleet::{Fleet, FleetSetup};
use crate::gateway::traces::Traces;
use crate::gateway::{GatewayParts, GatewayState};
use crate::raft::group::Group;
use crate::webhooks::reach::Reach;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use trireme_shared::api::{CoordinatorFile, CoordinatorReport};
use trireme_shared::limits;
use trireme_shared::transport::{Connection, Endpoint, Protocol};

/// `cluster coordinator`'s settings.
#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    pub data_dir: PathBuf,
    /// QUIC, for workers and other coordinators. Port 0 picks one.
    pub listen: SocketAddr,
    /// HTTP, for clients. Port 0 picks one.
    pub http: SocketAddr,
    /// Model cache; `None` is the user's cache folder.
    pub cache_dir: Option<PathBuf>,
    /// Where tenants' webhooks may be.
    pub webhooks: Reach,
    /// The group to join, where the data folder holds none yet.
    pub join: Option<JoinConfig>,
}

/// How to get into a group.
#[derive(Clone)]
pub struct JoinConfig {
    /// Control addresses of its coordinators, `host:port`, tried in order.
    pub addresses: Vec<String>,
    /// A join token for coordinators. Not needed again once this member has its certificate.
    pub token: Option<String>,
}

impl std::fmt::Debug for JoinConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JoinConfig({})", self.addresses.join(","))
    }
}

/// Why a coordinator does not run; the text tells the user what to do.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    #[error("{0}")]
    Start(String),
    #[error("the replicated log failed while serving: {0}")]
    Group(String),
    #[error(
        "this coordinator was removed from its group: join again with an empty --data-dir and a new \
         token"
    )]
    Removed,
    #[error("the {0} ended by itself: see the log, then start again")]
    Ended(&'static str),
}

/// Runs a coordinator until `shutdown`, then drains. Writes `<data_dir>/coordinator.json` (see
/// `trireme_shared::api::CoordinatorFile`) once both ports listen.
pub async fn run(
    config: CoordinatorConfig,
    shutdown: CancellationToken,
) -> Result<(), CoordinatorError> {
    let entered = tokio::select! {
        entered = bootstrap::enter(&config) => entered?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let group = entered.group.clone();
    let served = serve(&config, entered, &shutdown).await;
    // Whatever happened, what was answered is on disk and the lock is free for the next start.
    group.close().await;
    served
}

async fn serve(
    config: &CoordinatorConfig,
    entered: Entered,
    shutdown: &CancellationToken,
) -> Result<(), CoordinatorError> {
    let Entered {
        group,
        identity,
        authorities,
        admin_key,
        newcomer,
    } = entered;
    let accept = [
        Protocol::Join,
        Protocol::Control,
        Protocol::Raft,
        Protocol::Group,
    ];
    let endpoint = Endpoint::bind(config.listen, &identity, &accept)
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
        id: group.own(),
        pid: std::process::id(),
        http: format!("http://{}", bootstrap::reachable(http)),
        control: bootstrap::reachable(endpoint.local_addr()).to_string(),
    };
    group.announce_address(&this.control);
    group.attach(&endpoint);

    let (dispatcher, queue) = Dispatcher::new();
    let fleet = Fleet::new(FleetSetup {
        group: group.clone(),
        this: this.clone(),
        cache_dir: config.cache_dir.clone(),
    });
    let http_state = GatewayState::new(GatewayParts {
        dispatcher,
        fleet: fleet.clone(),
        group: group.clone(),
        cache_dir: config.cache_dir.clone(),
        traces: Traces::from_environment().map_err(|e| {
            CoordinatorError::Start(format!("the environment's OTEL_ variables: {e}"))
        })?,
        reach: config.webhooks,
    })
    .map_err(|e| CoordinatorError::Start(e.to_string()))?;

    // The fleet outlives the gateway: requests that run out their time need their replicas. The
    // endpoint outlives both.
    let (close_gateway, close_fleet) = (CancellationToken::new(), CancellationToken::new());
    let close_all = CancellationToken::new();
    let _close_on_return = close_all.clone().drop_guard();
    let upkeep = Upkeep {
        group: group.clone(),
        endpoint: endpoint.clone(),
        this: this.clone(),
        data_dir: config.data_dir.clone(),
        identity,
        authorities,
    };
    tokio::spawn(upkeep.run(close_all.clone()));
    let rotation = Rotation {
        group: group.clone(),
        fleet: fleet.clone(),
    };
    tokio::spawn(rotation.run(close_all.clone()));
    tokio::spawn(reaper::reap(group.clone(), close_all.clone()));
    tokio::spawn(webhooks::deliver(
        group.clone(),
        config.webhooks,
        close_all.clone(),
    ));
    tokio::spawn(accept_all(
        endpoint.clone(),
        group.clone(),
        fleet.clone(),
        close_fleet.clone(),
    ));
    if newcomer {
        let admitted = tokio::select! {
            admitted = let_in(&group) => admitted,
            () = shutdown.cancelled() => return Ok(()),
        };
        if let Err(error) = admitted {
            endpoint.close().await;
            return Err(error);
        }
    }
    let mut fleet_task = tokio::spawn({
        let (fleet, endpoint, close) = (fleet.clone(), endpoint.clone(), close_fleet.clone());
        async move { fleet.serve(endpoint, queue, close).await }
    });
    let mut gateway_task =
        tokio::spawn(gateway::serve(listener, http_state, close_gateway.clone()));
    let path = bootstrap::address_file(&config.data_dir);
    let written = write_address(&path, &this, admin_key);
    if written.is_ok() {
        tracing::info!(
            id = %this.id,
            http = this.http,
            control = this.control,
            "the coordinator listens"
        );
    }

    let ended = match written {
        Err(error) => Err(error),
        Ok(()) => tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            reason = group.stopped() => Err(match group.was_removed() {
                true => CoordinatorError::Removed,
                false => CoordinatorError::Group(
                    reason.unwrap_or_else(|| "see the log, then start again".into()),
                ),
            }),
            _ = &mut fleet_task => Err(CoordinatorError::Ended("fleet")),
            _ = &mut gateway_task => Err(CoordinatorError::Ended("gateway")),
        },
    };
    tracing::info!("draining");
    // First of all: whoever leads next need not wait for an election.
    group.step_down().await;
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
    close_all.cancel();
    endpoint.close().await;
    // Left behind, it would send the next reader to a process that is gone.
    let _ = std::fs::remove_file(&path);
    ended
}

/// Accepts connections and hands each to its protocol's server.
async fn accept_all(endpoint: Endpoint, group: Group, fleet: Fleet, shutdown: CancellationToken) {
    let places = Arc::new(Semaphore::new(limits::CONTROL_CONNECTIONS_MAX));
    while let Some(connection) = endpoint.accept().await {
        if matches!(connection.protocol(), Protocol::Raft | Protocol::Group) {
            // Only members dial these, a connection or two each: they need no place.
            let group = group.clone();
            tokio::spawn(async move { between_members(&group, &connection).await });
            continue;
        }
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            connection.turn_away("this coordinator serves as many connections as it can");
            continue;
        };
        let (fleet, shutdown) = (fleet.clone(), shutdown.clone());
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                () = shutdown.cancelled() => connection.leave("the coordinator is stopping"),
                () = fleet.converse(&connection) => {}
            }
        });
    }
}

async fn between_members(group: &Group, connection: &Connection) {
    match connection.protocol() {
        Protocol::Raft => group.serve_raft(connection).await,
        _ => group.serve_group(connection).await,
    }
}

/// A newcomer waits until the group's state has come to it.
async fn let_in(group: &Group) -> Result<(), CoordinatorError> {
    let mut applied = group.applied();
    let came = async {
        while group.read(|s| s.cluster().is_none()) {
            if applied.changed().await.is_err() {
                return false;
            }
        }
        true
    };
    match tokio::time::timeout(limits::LET_IN_DEADLINE, came).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(CoordinatorError::Group(
            group
                .stopped()
                .await
                .unwrap_or_else(|| "see the log".into()),
        )),
        Err(_) => Err(CoordinatorError::Start(format!(
            "the group did not let this coordinator in within {} s: a majority of it must run and \
             reach this one's --listen address (`cluster status`). Start this one again to go on",
            limits::LET_IN_DEADLINE.as_secs()
        ))),
    }
}

fn write_address(
    path: &std::path::Path,
    this: &CoordinatorReport,
    admin_key: Option<String>,
) -> Result<(), CoordinatorError> {
    let file = CoordinatorFile {
        id: this.id,
        pid: this.pid,
        http: this.http.clone(),
        control: this.control.clone(),
        admin_key,
    };
    let bytes =
        serde_json::to_vec_pretty(&file).map_err(|e| CoordinatorError::Start(e.to_string()))?;
    bootstrap::write_private(path, &bytes)
}
