//! The worker process: joins, tells what it offers, runs the rank it is given, and leaves politely.
//!
//! What it keeps true: one rank at a time (`core`); a lost coordinator stops nothing that runs, and
//! all coordinators hear the same (`control` keeps a link to each and finds it again); a coordinator
//! or a peer gets through only with a certificate of this cluster (`trireme_shared::transport`); an
//! idle worker sends each coordinator a heartbeat each `HEARTBEAT_INTERVAL` and does nothing else.
//!
//! Files: `enrol` (identity) -> `control` (the streams to the coordinators) with `links` (which there
//! are) -> `drive` (the loop) around `core` (the decisions); `generate` serves gateways, `rank` is what
//! they share with the loop, `renewal` keeps the certificate fresh.

mod backoff;
mod control;
mod core;
mod drive;
mod enrol;
mod generate;
mod inventory;
mod links;
mod rank;
mod renewal;
mod worker_file;

use crate::parallel::mesh::IncomingLinks;
use crate::parallel::shm;
use crate::{WorkerConfig, WorkerError};
use control::ControlLinks;
use generate::Admission;
use rank::CurrentRank;
use renewal::Renewal;
use tokio_util::sync::CancellationToken;
use trireme_shared::identity::NodeId;
use trireme_shared::ids::WorkerId;
use trireme_shared::transport::{Connection, Endpoint, Protocol};

/// See [`crate::run`].
pub async fn run(config: WorkerConfig, shutdown: CancellationToken) -> Result<(), WorkerError> {
    sweep_shared_memory();
    let (identity, worker) = tokio::select! {
        enrolled = enrol::enrol(&config) => enrolled?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let accept = [Protocol::Generate, Protocol::Link];
    let endpoint = Endpoint::bind(config.listen, &identity, &accept)?;
    let inventory = inventory::inventory(&config, endpoint.local_addr());
    let incoming = IncomingLinks::default();
    let rank = CurrentRank::default();
    let admission = Admission::default();
    tokio::spawn(serve(
        endpoint.clone(),
        rank.clone(),
        admission.clone(),
        incoming.clone(),
    ));
    let group = worker_file::read_coordinators(&config.data_dir);
    let control = ControlLinks::open(
        endpoint.clone(),
        config.coordinators.clone(),
        &group,
        identity.node(),
        inventory,
    );
    let agent = drive::Agent {
        renewal: Renewal::new(identity, config.data_dir.clone()),
        group,
        config,
        worker,
        endpoint,
        incoming,
        rank,
        admission,
        control,
    };
    agent.run(shutdown).await
}

/// Frees the shared memory that killed workers of this host left behind.
fn sweep_shared_memory() {
    tokio::task::spawn_blocking(|| match shm::sweep_stale() {
        0 => {}
        files => tracing::info!(
            files,
            "removed shared-memory files of workers that are gone"
        ),
    });
}

/// Hands each connection to its protocol's server, until the endpoint closes.
async fn serve(
    endpoint: Endpoint,
    rank: CurrentRank,
    admission: Admission,
    incoming: IncomingLinks,
) {
    while let Some(connection) = endpoint.accept().await {
        match (connection.protocol(), connection.peer()) {
            (Protocol::Generate, _) => {
                tokio::spawn(generate::serve(connection, rank.clone(), admission.clone()));
            }
            (Protocol::Link, Some(NodeId::Worker(peer))) => {
                tokio::spawn(links(connection, peer, incoming.clone()));
            }
            // The transport admits no others; were that to change, they are refused here.
            _ => connection.refuse("this worker does not serve that protocol"),
        }
    }
}

/// Hands each stream of a peer to the rank that waits for it. A stream that is slow to say for whom
/// it is holds up no other; their number is bounded by the transport (`LINK_STREAMS_MAX`).
async fn links(connection: Connection, peer: WorkerId, incoming: IncomingLinks) {
    while let Ok((send, recv)) = connection.quic().accept_bi().await {
        let incoming = incoming.clone();
        tokio::spawn(async move { incoming.accept(peer, send, recv).await });
    }
}

#[cfg(test)]
mod tests;
