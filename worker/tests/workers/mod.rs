//! Workers for tests of ranks: real endpoints on loopback with certificates of one cluster, each with
//! the accept loop that the agent has.

use std::net::{Ipv4Addr, SocketAddr};
use trireme_shared::identity::{ClusterAuthority, NodeId, NodeIdentity};
use trireme_shared::ids::WorkerId;
use trireme_shared::transport::{Endpoint, Protocol};
use trireme_worker::parallel::mesh::IncomingLinks;

pub struct Worker {
    pub endpoint: Endpoint,
    pub incoming: IncomingLinks,
}

/// Worker `index` of the test has the id `index + 1`.
pub fn worker_id(index: usize) -> WorkerId {
    WorkerId(index as u32 + 1)
}

/// Must run inside the runtime that shall carry the endpoints.
pub fn workers(count: usize) -> Vec<Worker> {
    let authority = ClusterAuthority::new("test").unwrap();
    let start = |index| {
        let node = NodeId::Worker(worker_id(index));
        let identity = NodeIdentity::issue(&authority, node).unwrap();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let endpoint = Endpoint::bind(listen, &identity, &[Protocol::Link]).unwrap();
        let incoming = IncomingLinks::default();
        tokio::spawn(serve(endpoint.clone(), incoming.clone()));
        Worker { endpoint, incoming }
    };
    (0..count).map(start).collect()
}

/// What the agent does with link connections.
async fn serve(endpoint: Endpoint, incoming: IncomingLinks) {
    while let Some(connection) = endpoint.accept().await {
        let Some(NodeId::Worker(peer)) = connection.peer() else {
            continue;
        };
        let incoming = incoming.clone();
        tokio::spawn(async move {
            while let Ok((send, recv)) = connection.quic().accept_bi().await {
                let incoming = incoming.clone();
                tokio::spawn(async move { incoming.accept(peer, send, recv).await });
            }
        });
    }
}
