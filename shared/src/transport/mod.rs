//! QUIC endpoints with mutual TLS 1.3. One UDP socket per process serves and dials; the protocol is
//! chosen by ALPN and each protocol says which roles may speak it.
//!
//! What it keeps true: a [`Connection`] in anyone's hands has an authenticated peer of this cluster
//! whose role may speak the connection's protocol on that side (only `Protocol::Join` has an
//! anonymous dialler); a dialler's peer is exactly the node it asked for; a node that was removed is
//! not talked to. Every handshake uses the endpoint's newest identity. Neighbours: `identity` gives the
//! certificates, `wire::codec` the frames, the agent, the fleet and the group the conversations.

mod connection;
mod dial;
mod gate;
pub mod join;
mod protocol;
mod tls;
mod tuning;

pub use connection::{Connection, REMOVED};
pub use protocol::Protocol;

use crate::identity::{Fingerprint, NodeId, NodeIdentity};
use crate::limits;
use connection::Inner;
use gate::Gate;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use tls::Credentials;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;

#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error("cannot listen on {address}: {source}")]
    Bind {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("cannot reach {address}: {reason}")]
    Connect { address: String, reason: String },
    #[error("{address} is {got}, not {want}")]
    WrongPeer {
        address: String,
        got: String,
        want: String,
    },
    #[error("{node} was removed from the cluster")]
    Removed { node: NodeId },
    #[error(
        "{address} belongs to another cluster (its CA is {got}, the token is for {want}): check \
         the address, or ask that cluster for a token; one that changed its CA needs new tokens too"
    )]
    WrongCluster {
        address: String,
        got: String,
        want: Fingerprint,
    },
    #[error("the TLS setup failed: {0}")]
    Tls(String),
}

/// Codes that close a connection, for the peer's logs.
pub mod close_code {
    /// The work is done, or the process is stopping.
    pub const DONE: u32 = 0;
    /// The peer is not wanted, now or later; the reason is in words.
    pub const REFUSED: u32 = 1;
    /// Not now, for want of room; the peer may try again.
    pub const BUSY: u32 = 2;
}

/// A process's QUIC endpoint. Cheap to clone; closes when the last clone and connection are gone.
#[derive(Clone)]
pub struct Endpoint(Arc<Shared>);

struct Shared {
    quic: quinn::Endpoint,
    local: SocketAddr,
    accept: Vec<Protocol>,
    current: RwLock<Current>,
    gate: Arc<Gate<Inner>>,
    /// Handshakes of diallers in progress; each runs in a task of its own.
    handshakes: Mutex<JoinSet<Option<Connection>>>,
}

/// What new handshakes use.
struct Current {
    /// `None` for a joiner, which has no name yet.
    credentials: Option<Arc<Credentials>>,
    /// `None` where nothing is accepted.
    server: Option<Arc<quinn::ServerConfig>>,
}

impl Endpoint {
    /// Binds `listen` and serves `accept` with this node's certificate. Needs a tokio runtime; the
    /// endpoint's I/O runs on it.
    pub fn bind(
        listen: SocketAddr,
        identity: &NodeIdentity,
        accept: &[Protocol],
    ) -> Result<Self, TransportError> {
        let credentials = Credentials::new(identity)?;
        let server = match accept {
            [] => None,
            some => Some(tuning::server(tls::server(&credentials, some)?)),
        };
        Self::open(listen, Some(credentials), accept, server)
    }

    /// An endpoint that can only dial, and only to join.
    fn anonymous(listen: SocketAddr) -> Result<Self, TransportError> {
        Self::open(listen, None, &[], None)
    }

    fn open(
        listen: SocketAddr,
        credentials: Option<Credentials>,
        accept: &[Protocol],
        server: Option<quinn::ServerConfig>,
    ) -> Result<Self, TransportError> {
        let failed = |source| TransportError::Bind {
            address: listen,
            source,
        };
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(failed(std::io::Error::other("no tokio runtime is running")));
        }
        let socket = UdpSocket::bind(listen).map_err(failed)?;
        tuning::socket(&socket);
        let config = tuning::endpoint(credentials.as_ref().map(|c| c.identity.reset_secret()));
        let runtime = Arc::new(quinn::TokioRuntime);
        let quic = quinn::Endpoint::new(config, server.clone(), socket, runtime);
        let quic = quic.map_err(failed)?;
        let local = quic.local_addr().map_err(failed)?;
        Ok(Self(Arc::new(Shared {
            quic,
            local,
            accept: accept.to_vec(),
            current: RwLock::new(Current {
                credentials: credentials.map(Arc::new),
                server: server.map(Arc::new),
            }),
            gate: Arc::default(),
            handshakes: Mutex::default(),
        })))
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.0.local
    }

    /// Uses another certificate or trust bundle of this same node from the next handshake on. Live
    /// connections go on with what they were made with.
    pub fn replace_identity(&self, identity: &NodeIdentity) -> Result<(), TransportError> {
        let mut current = self
            .0
            .current
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let own = current.credentials.as_ref().map(|c| c.identity.node());
        if own != Some(identity.node()) {
            let reason = format!("an endpoint cannot become {}", identity.node());
            return Err(TransportError::Tls(reason));
        }
        let credentials = Credentials::new(identity)?;
        if let Some(server) = &current.server {
            // The rest stays, its key for address tokens too: those of dials under way stay good.
            let mut server = quinn::ServerConfig::clone(server);
            server.crypto = Arc::new(tls::server(&credentials, &self.0.accept)?);
            self.0.quic.set_server_config(Some(server.clone()));
            current.server = Some(Arc::new(server));
        }
        current.credentials = Some(Arc::new(credentials));
        Ok(())
    }

    /// Refuses handshakes with these nodes from now on, as dialler and as server, and closes their
    /// connections at once. Nodes refused before stay refused.
    pub fn refuse_nodes(&self, nodes: impl IntoIterator<Item = NodeId>) {
        for connection in self.0.gate.refuse(nodes) {
            connection.cut_off();
        }
    }

    /// `refuse_nodes` of one.
    pub fn remove_node(&self, node: NodeId) {
        self.refuse_nodes([node]);
    }

    fn current(&self) -> RwLockReadGuard<'_, Current> {
        // Written whole, after all that can fail.
        self.0
            .current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The next authenticated connection; `None` once the endpoint is closed. Handshakes that fail
    /// are logged and skipped, and never hold up others. Cancelling it loses nothing.
    pub async fn accept(&self) -> Option<Connection> {
        let mut handshakes = self.0.handshakes.lock().await;
        loop {
            tokio::select! {
                Some(done) = handshakes.join_next() => {
                    if let Ok(Some(connection)) = done {
                        return Some(connection);
                    }
                }
                incoming = self.0.quic.accept() => {
                    let incoming = incoming?;
                    if handshakes.len() >= limits::HANDSHAKES_MAX {
                        tracing::warn!("too many handshakes at once: one was refused");
                        incoming.refuse();
                    } else {
                        // Not what was current when its first packet came.
                        let server = self.current().server.clone();
                        handshakes.spawn(admit(incoming, server, self.0.gate.clone()));
                    }
                }
            }
        }
    }

    /// Closes every connection and waits, with a deadline, for the closes to be sent.
    pub async fn close(&self) {
        self.0.quic.close(close_code::DONE.into(), b"closing");
        // Past the deadline the peers notice by silence.
        let _ = timeout(limits::CLOSE_DEADLINE, self.0.quic.wait_idle()).await;
    }
}

/// The server's half of a handshake; `None` if it failed or the dialler may not speak here.
async fn admit(
    incoming: quinn::Incoming,
    server: Option<Arc<quinn::ServerConfig>>,
    gate: Arc<Gate<Inner>>,
) -> Option<Connection> {
    let from = incoming.remote_address();
    let handshake = async {
        let accepted = match server {
            Some(server) => incoming.accept_with(server),
            None => incoming.accept(),
        };
        accepted?.await
    };
    let quic = match timeout(limits::CONNECT_DEADLINE, handshake).await {
        Ok(Ok(quic)) => quic,
        Ok(Err(error)) => {
            tracing::warn!(%from, %error, "a connection was refused");
            return None;
        }
        Err(_) => {
            tracing::warn!(%from, "a handshake took too long");
            return None;
        }
    };
    match dialler(&quic) {
        Ok((protocol, peer)) => {
            let connection = Connection::new(quic, protocol, peer);
            if let Some(node) = peer
                && !gate.enter(node, connection.inner())
            {
                tracing::warn!(%from, %node, "a removed node was refused");
                connection.inner().cut_off();
                return None;
            }
            tuning::admitted(connection.quic(), protocol);
            Some(connection)
        }
        Err(reason) => {
            tracing::warn!(%from, reason, "a connection was refused");
            quic.close(close_code::REFUSED.into(), reason.as_bytes());
            None
        }
    }
}

/// Protocol and peer of an accepted connection, if that peer may dial that protocol.
fn dialler(quic: &quinn::Connection) -> Result<(Protocol, Option<NodeId>), String> {
    let alpn = tls::alpn(quic).unwrap_or_default();
    let protocol = Protocol::of_alpn(&alpn).ok_or("the protocol is not known here")?;
    let peer = tls::peer(quic)?;
    match (protocol.dialler(), peer) {
        (None, _) => Ok((protocol, None)),
        (Some(role), Some(node)) if node.role() == role => Ok((protocol, peer)),
        (Some(_), Some(node)) => Err(format!("{node} may not open {protocol:?} connections")),
        (Some(_), None) => Err(format!("{protocol:?} connections need a certificate")),
    }
}

#[cfg(test)]
mod tests;
